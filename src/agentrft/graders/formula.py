"""Formulas over scores: numbers, names, + - * / ^, parentheses and eight functions. No eval.

Parsed once to steps of a stack machine, which needs no recursion whatever the length; each step
knows its position, so that an error while computing points at it.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from agentrft.core.errors import ConfigError, GraderError

MAX_CHARACTERS = 4096
MAX_DEPTH = 64
"""Of nested parentheses, calls, signs and powers."""

_TOKEN = re.compile(
    r"\s*(?:(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)"
    r"|(?P<name>[A-Za-z_]\w*)|(?P<sign>[-+*/^(),]))",
    re.ASCII,
)
_OF_MANY: Mapping[str, Callable[[list[float]], float]] = {"min": min, "max": max}
_OF_ONE: Mapping[str, Callable[[float], float]] = {
    "abs": abs,
    "floor": math.floor,
    "ceil": math.ceil,
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}
_OF_TWO: Mapping[str, Callable[[float, float], float]] = {
    "+": lambda left, right: left + right,
    "-": lambda left, right: left - right,
    "*": lambda left, right: left * right,
    "/": lambda left, right: left / right,
    "^": math.pow,
}
FUNCTIONS = (*_OF_MANY, *_OF_ONE)


@dataclass(frozen=True, slots=True)
class Apply:
    """Take `count` values off the stack, put the result back."""

    symbol: str
    count: int
    position: int
    """Character in the text, from 0."""


Step = float | str | Apply
"""Push a number, push the score of that name, or apply."""


@dataclass(frozen=True, slots=True)
class Formula:
    """A parsed formula."""

    text: str
    steps: tuple[Step, ...]

    def value(self, scores: Mapping[str, float]) -> float:
        """Compute. Raises GraderError with the position where no finite number comes out."""
        stack: list[float] = []
        for step in self.steps:
            match step:
                case str():
                    stack.append(scores[step])
                case Apply():
                    operands = stack[-step.count :]
                    del stack[-step.count :]
                    stack.append(self._apply(step, operands))
                case _:
                    stack.append(step)
        (result,) = stack
        if not math.isfinite(result):
            raise GraderError(
                f"formula {self.text!r} gave {result}; a score must be finite",
                code="formula_parse_error",
            )
        return result

    def _apply(self, step: Apply, operands: list[float]) -> float:
        reason = "the result is not a finite number"
        result = math.nan
        try:
            result = float(_compute(step, operands))
        except (ArithmeticError, ValueError) as error:
            reason = str(error)
        if math.isfinite(result):
            return result
        shown = ", ".join(f"{operand:g}" for operand in operands)
        raise GraderError(
            f"formula {self.text!r}, character {step.position + 1}: "
            f"{step.symbol} of {shown}: {reason}",
            code="formula_parse_error",
        )


def parse_formula(text: str, names: Collection[str], where: str) -> Formula:
    """Parse; every variable must be one of `names`. Raises ConfigError with the position."""
    if len(text) > MAX_CHARACTERS:
        raise ConfigError(f"{where}: {len(text)} characters; at most {MAX_CHARACTERS} are read")
    return Formula(text, _Parser(text, names, where).parse())


def _compute(step: Apply, operands: list[float]) -> float:
    if step.symbol in _OF_MANY:
        return _OF_MANY[step.symbol](operands)
    match operands:
        case [operand] if step.symbol == "-":
            return -operand
        case [operand]:
            return _OF_ONE[step.symbol](operand)
        case _:
            left, right = operands
            return _OF_TWO[step.symbol](left, right)


class _Parser:
    """Recursive descent. `^` binds tighter than a sign and groups to the right: -2^2 is -4."""

    def __init__(self, text: str, names: Collection[str], where: str) -> None:
        self.text = text
        self.names = names
        self.where = where
        self.tokens = list(self._tokens())
        self.next = 0
        self.depth = 0
        self.steps: list[Step] = []

    def parse(self) -> tuple[Step, ...]:
        self._sum()
        kind, word, position = self.tokens[self.next]
        if kind != "end":
            raise self._error(f"unexpected {word!r}", position)
        return tuple(self.steps)

    def _tokens(self) -> Iterator[tuple[str, str, int]]:
        position = 0
        end = len(self.text.rstrip())
        while position < end:
            match = _TOKEN.match(self.text, position)
            if match is None or match.lastgroup is None:
                start = len(self.text) - len(self.text[position:].lstrip())
                raise self._error(f"unexpected {self.text[start]!r}", start)
            yield match.lastgroup, match[match.lastgroup], match.start(match.lastgroup)
            position = match.end()
        yield "end", "the end", end

    def _sum(self) -> None:
        self._product()
        while (sign := self._accept("+", "-")) is not None:
            self._product()
            self.steps.append(Apply(*sign))

    def _product(self) -> None:
        self._signed()
        while (sign := self._accept("*", "/")) is not None:
            self._signed()
            self.steps.append(Apply(*sign))

    def _signed(self) -> None:
        # Every way to nest passes here, so this alone bounds the recursion.
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise self._error(f"nested deeper than {MAX_DEPTH}", self.tokens[self.next][2])
        if (minus := self._accept("-")) is None:
            self._power()
        else:
            self._signed()
            self.steps.append(Apply("-", 1, minus[2]))
        self.depth -= 1

    def _power(self) -> None:
        self._atom()
        if (power := self._accept("^")) is not None:
            self._signed()
            self.steps.append(Apply(*power))

    def _atom(self) -> None:
        kind, word, position = self.tokens[self.next]
        self.next += 1
        if kind == "number":
            if not math.isfinite(float(word)):
                raise self._error(f"{word} is too large", position)
            self.steps.append(float(word))
        elif kind == "name" and self.tokens[self.next][1] == "(":
            self._call(word, position)
        elif kind == "name":
            if word not in self.names:
                known = ", ".join(sorted(self.names)) or "none"
                raise self._error(f"unknown name {word!r}; graders: {known}", position)
            self.steps.append(word)
        elif word == "(":
            self._sum()
            self._expect(")")
        else:
            raise self._error(f"expected a number, a name or '(', found {word!r}", position)

    def _call(self, function: str, position: int) -> None:
        if function not in FUNCTIONS:
            known = ", ".join(FUNCTIONS)
            raise self._error(f"unknown function {function!r}; functions: {known}", position)
        self._expect("(")
        self._sum()
        count = 1
        while self._accept(",") is not None:
            self._sum()
            count += 1
        self._expect(")")
        if count > 1 and function not in _OF_MANY:
            raise self._error(f"{function} takes one value, got {count}", position)
        self.steps.append(Apply(function, count, position))

    def _accept(self, *signs: str) -> tuple[str, int, int] | None:
        """Take the next token if it is one of these: the sign, its two operands, its position."""
        kind, word, position = self.tokens[self.next]
        if kind != "sign" or word not in signs:
            return None
        self.next += 1
        return word, 2, position

    def _expect(self, sign: str) -> None:
        if self._accept(sign) is None:
            _, word, position = self.tokens[self.next]
            raise self._error(f"expected {sign!r}, found {word!r}", position)

    def _error(self, reason: str, position: int) -> ConfigError:
        return ConfigError(f"{self.where}: {self.text!r}, character {position + 1}: {reason}")
