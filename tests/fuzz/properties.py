"""What must hold for any input of the four parsers that read text of strangers.

Each function takes raw input and asserts. Anything raised but AssertionError is a crash of the parser.
Expectations come from second, slower readers written here.
"""

import ast
import json
import math
import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

from agentrft.core.errors import ConfigError, DataError, GraderError
from agentrft.core.task import Message
from agentrft.core.trajectory import StopReason, Trajectory, Turn
from agentrft.graders.formula import parse_formula
from agentrft.graders.model_grader import NumberScale
from agentrft.graders.model_reply import read_reply
from agentrft.graders.template import AbsentFromOutput, parse_template, sample_of
from agentrft.inference.grader_model import GradingReply
from agentrft.store.datasets import read_demonstrations, read_tasks
from agentrft.store.jsonl import check_upload
from agentrft.store.rows import RowKind, check_rows

# --- formulas -----------------------------------------------------------------------------------

SCORES: Mapping[str, float] = {"a": 0.5, "b": 2.0, "zero": 0.0, "low": -1.25}


def formula(text: str) -> None:
    """It has the value that Python gives it, or says at which character it is wrong."""
    try:
        parsed = parse_formula(text, SCORES, "here")
    except ConfigError as error:
        _says_where(str(error), text)
        return
    try:
        value = parsed.value(SCORES)
    except GraderError as error:
        _has_code(error, "formula_parse_error")
        value = math.nan
    expected = by_python(text)
    assert value == expected or (math.isnan(value) and math.isnan(expected)), text


def _says_where(complaint: str, text: str) -> None:
    position = re.search(r", character (\d+): ", complaint)
    assert position is not None or "characters; at most" in complaint, complaint
    assert position is None or 1 <= int(position[1]) <= len(text) + 1, complaint


def _has_code(error: GraderError | AbsentFromOutput, *codes: str) -> None:
    assert error.code in codes, error


def by_python(text: str) -> float:
    """The value by Python's own grammar, which agrees on all that a formula may contain; else NaN."""
    number = r"(?<![A-Za-z0-9_.])(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
    numbers = re.sub(number, lambda m: repr(float(m[0])), text, flags=re.ASCII)
    spaced = re.sub(r"\s", " ", numbers.strip(), flags=re.ASCII)
    tree = ast.parse(f"({spaced.replace('^', '**')})", mode="eval")
    try:
        return _walk(tree.body)
    except (ArithmeticError, ValueError):
        return math.nan


_FUNCTIONS: Mapping[str, Callable[..., float]] = {
    "min": lambda *values: min(values),
    "max": lambda *values: max(values),
    "abs": math.fabs,
    "floor": lambda value: float(math.floor(value)),
    "ceil": lambda value: float(math.ceil(value)),
    "exp": math.exp,
    "sqrt": math.sqrt,
    "log": math.log,
}


def _walk(node: ast.expr) -> float:
    match node:
        case ast.Constant(value=float(value)):
            result = value
        case ast.Name(id=name):
            result = SCORES[name]
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            result = -_walk(operand)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            result = _FUNCTIONS[name](*map(_walk, arguments))
        case ast.BinOp(left=left, op=sign, right=right):
            result = _binary(sign, _walk(left), _walk(right))
        case _:
            raise AssertionError(f"a formula got through that Python reads as {ast.dump(node)}")
    if not math.isfinite(result):
        raise ArithmeticError("a step is not finite")
    return result


def _binary(sign: ast.operator, left: float, right: float) -> float:
    match sign:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
        case ast.Pow():
            return math.pow(left, right)
        case _:
            raise AssertionError(f"a formula got through with {sign}")


# --- templates ----------------------------------------------------------------------------------


def template(text: str, row_text: str, output: str) -> None:
    """Literals stay, values go in once, and nothing that was put in is read again."""
    row = {"x": row_text, "trap": "{{item.leak}}", "leak": "LEAKED", "list": [row_text, {"k": 1}]}
    sample = sample_of(finished(output))
    json.dumps(sample, allow_nan=False, ensure_ascii=False).encode()  # it is sent to endpoints
    try:
        parsed = parse_template(text, "here")
    except ConfigError:
        return
    try:
        filled = parsed.fill(row, sample)
    except AbsentFromOutput as absent:
        _has_code(absent, "sample_parse_error", "invalid_variable_error")
        return
    except GraderError as error:
        _has_code(error, "invalid_variable_error")
        return
    assert filled == filled_slowly(text, {"item": row, "sample": sample})


def filled_slowly(text: str, known: Mapping[str, Any]) -> str:
    """The same template, found by searching for braces and read step by step."""
    shown = ""
    while (start := text.find("{{")) >= 0 and (end := text.find("}}", start + 2)) >= 0:
        value = _looked_up(text[start + 2 : end].strip(), known)
        shown += text[:start] + (value if isinstance(value, str) else _as_json(value))
        text = text[end + 2 :]
    return shown + text


def _as_json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _looked_up(path: str, known: Mapping[str, Any]) -> Any:
    namespace = "item" if path.startswith("item") else "sample"
    value, rest = known[namespace], path.removeprefix(namespace)
    while rest:
        if rest[0] == ".":
            step = rest[1:]
            for length, letter in enumerate(step):
                if letter in ".[":
                    step = step[:length]
                    break
            value, rest = value[step], rest[1 + len(step) :]
        elif rest[1] in "\"'":
            step = rest[2 : rest.index(f"{rest[1]}]", 2)]
            value, rest = value[step], rest[len(step) + 4 :]
        else:
            digits = rest[1 : rest.index("]")]
            value, rest = value[int(digits)], rest[len(digits) + 2 :]
    return value


def finished(text: str) -> Trajectory:
    """A rollout whose answer is this text."""
    turn = Turn(
        observation_ids=(1,),
        action_ids=(2,),
        behavior_logprobs=(-0.1,),
        first_version=0,
        last_version=0,
        message=Message(role="assistant", content=text),
    )
    return Trajectory(
        id="trace_1",
        task_id="task-1",
        model="m",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=(turn,),
        stop_reason=StopReason.FINISHED,
    )


# --- dataset files ------------------------------------------------------------------------------

_KINDS: tuple[RowKind, ...] = ("supervised", "dpo", "reinforcement")


def rows(content: bytes, path: Path) -> None:
    """A file is read whole, or refused with the number of a line; what is read is plain JSON."""
    path.write_bytes(content)
    lines = content.split(b"\n")
    accepted = _refused_by(lambda: check_upload(path), len(lines)) is None
    if accepted:
        for line in lines:
            if line.strip():
                strictly_read(line)
    for kind in _KINDS:
        refused = _refused_by(lambda kind=kind: check_rows(path, kind, validation=True), len(lines))
        assert refused is not None or accepted, f"{kind} takes what an upload refuses"
    _refused_by(lambda: read_tasks(path), len(lines))
    _refused_by(lambda: read_demonstrations(path), len(lines))


def _refused_by(read: Callable[[], object], lines: int) -> str | None:
    try:
        read()
    except DataError as error:
        _says_which_line(str(error), lines)
        return str(error)
    return None


def _says_which_line(complaint: str, lines: int) -> None:
    number = re.search(r"line (\d+): ", complaint)
    assert number is not None or re.search("is empty|the file has", complaint), complaint
    assert number is None or 1 <= int(number[1]) <= lines, complaint


def strictly_read(line: bytes) -> Any:
    """Read a row as the strictest reader would; AssertionError if it would not."""

    def refuse(word: str) -> NoReturn:
        raise AssertionError(f"{word} got through")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in pairs}) == len(pairs), "a key stands twice"
        return dict(pairs)

    row = json.loads(line.decode("utf-8"), parse_constant=refuse, object_pairs_hook=unique)
    assert isinstance(row, dict)
    json.dumps(row, allow_nan=False, ensure_ascii=False).encode("utf-8")
    assert _depth(row) <= 64
    return cast(Any, row)


def _depth(value: Any) -> int:
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return (1 + max(map(_depth, inner), default=0)) if isinstance(value, dict | list) else 0


# --- replies of grader models -------------------------------------------------------------------

_NUMBER = re.compile(r"-?\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


def reply(text: str) -> float | None:
    """A score is a number that stands in the reply as its one result, clipped to the range; or none."""
    scale = NumberScale(low=0.0, high=1.0)
    try:
        result, conclusions = read_reply(GradingReply(text=text, finish_reason="stop"), "here")
        score, _ = scale.score(result, text, "here")
    except GraderError as error:
        _has_code(error, "model_grader_parse_error")
        return None
    conclusions.encode("utf-8", "replace")
    assert math.isfinite(score)
    assert 0.0 <= score <= 1.0
    written = {min(max(_float(number), 0.0), 1.0) for number in _NUMBER.findall(text)}
    assert score in written, text
    # Prose around the object would leave open which number is meant.
    bare = text.strip().removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    assert bare.startswith("{"), text
    assert bare.endswith("}"), text
    return score


def _float(number: str) -> float:
    try:
        return float(number)
    except OverflowError:
        return sys.float_info.max
