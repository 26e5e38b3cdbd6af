"""Checks between the model and its tools: mend a call, hold it, or answer it in the tool's place.

All names are canonical; what the model is told is in its own. One `GuardState` per rollout.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from agentrft.core.spec import Guards, Precondition, Rendering
from agentrft.core.task import ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult
from agentrft.rollout.naming import joined, members, nearest_name
from agentrft.rollout.rendering import cut
from agentrft.rollout.tools import ArgumentsError, read_object

READ_SHOWN = 3
"""Latest readings that a held call is answered with."""
_READING = Rendering(max_characters=500)

Key = tuple[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What becomes of one call."""

    call: ToolCall
    """Canonical, as it is to be run."""
    repairs: tuple[str, ...] = ()
    answer: ToolResult | None = None
    """If set, the call is not run and this, completed by `Session.shown`, is its result."""


@dataclass(frozen=True, slots=True)
class _Success:
    """A call that ran and was not turned down."""

    call: ToolCall
    result: ToolResult


@dataclass(frozen=True, slots=True)
class _Words:
    """How a text names calls and results: as the model does, or canonically."""

    call: Callable[[ToolCall], ToolCall]
    result: Callable[[ToolResult], str]

    def line(self, call: ToolCall) -> str:
        """Return a call on one line."""
        named = self.call(call)
        return f"{named.name} {named.arguments or '{}'}"


_CANONICAL = _Words(call=lambda call: call, result=lambda result: result.content)


class GuardState:
    """What the guards remember of one rollout.

    A turn's calls are all admitted before any of them has finished, so that a call cannot count on
    another one of its own turn.
    """

    def __init__(
        self, guards: Guards, tools: Sequence[ToolSpec], written: Callable[[ToolCall], ToolCall]
    ) -> None:
        """`written` gives a call as the model would write it."""
        self._guards = guards
        self._models = _Words(call=written, result=seen)
        self._names = {tool.name for tool in tools}
        self._writers = {*guards.check_first, *guards.confirm}
        if any(tool.read_only for tool in tools):
            self._writers |= {tool.name for tool in tools if not tool.read_only}
        self._said: dict[Key, ToolResult | None] = {}
        """Calls that were run, with what the model saw; None while they run."""
        self._succeeded: dict[Key, _Success] = {}
        self._checked: set[Key] = set()
        """Calls that were held by `check_first` and not made again yet."""
        self._last_held: Key | None = None
        """The call that was held, if no other was made since."""

    def admit(self, call: ToolCall, repairs: tuple[str, ...] = ()) -> Admission:
        """Decide about one call; called in the order in which the model wrote them."""
        guards, key = self._guards, _key(call)
        confirmed = self._last_held == key
        self._last_held = None
        if rule := self._unmet(call):
            answer = _answer(call, "preconditions", repairs)
            told = self._telling(answer, lambda words: self._precondition(rule, words))
            return Admission(call=call, repairs=repairs, answer=replace(told, is_error=True))
        if guards.block_duplicates and key in self._said:
            answer = self._repeating(_answer(call, "block_duplicates", repairs), self._said[key])
            return Admission(call=call, repairs=repairs, answer=answer)
        if guard := self._holding(call, confirmed=confirmed):
            return Admission(call=call, repairs=repairs, answer=_answer(call, guard, repairs))
        self._checked.discard(key)
        self._said[key] = None
        return Admission(call=call, repairs=repairs)

    def finished(self, call: ToolCall, result: ToolResult) -> ToolResult:
        """Note what the model sees of a call, and complete what a guard says in a tool's place.

        Called in the order of the calls, once all of a turn are through.
        """
        key = _key(call)
        self._last_held = None
        match result.guard:
            case "":
                self._note(key, call, result)
            case "block_duplicates" if not result.content:
                # The same call of its own turn has finished by now.
                result = self._repeating(result, self._said.get(key))
            case "check_first" | "confirm" as guard:
                tell = self._check if guard == "check_first" else _confirmation
                result = self._telling(result, lambda words: tell(call, words))
                self._checked.add(key)
                self._last_held = key
            case _:
                pass
        return result

    def _note(self, key: Key, call: ToolCall, result: ToolResult) -> None:
        if not result.is_error:
            # The world may have changed: what was read or refused before may be otherwise now.
            writes = call.name in self._writers
            for other, said in list(self._said.items()):
                stale = writes and other[0] not in self._writers
                if said is not None and (said.is_error or stale):
                    del self._said[other]
            self._succeeded.pop(key, None)
            self._succeeded[key] = _Success(call, result)
        self._said[key] = result

    def _holding(self, call: ToolCall, *, confirmed: bool) -> str:
        """Return the guard that holds a call until it is made again; empty if none does."""
        if call.name in self._guards.check_first and _key(call) not in self._checked:
            return "check_first"
        return "confirm" if call.name in self._guards.confirm and not confirmed else ""

    def _unmet(self, call: ToolCall) -> Precondition | None:
        """Return a precondition that a call lacks; those on tools that are not here do not bind."""
        rules = (rule for rule in self._guards.preconditions if rule.tool == call.name)
        return next((rule for rule in rules if not self._met(rule, call)), None)

    def _met(self, rule: Precondition, call: ToolCall) -> bool:
        if not self._names.intersection(rule.after):
            return True
        earlier = [one.call for one in self._succeeded.values() if one.call.name in rule.after]
        if not rule.same_argument:
            return bool(earlier)
        wanted = _argument(call, rule.same_argument)
        had = [_argument(one, rule.same_argument) for one in earlier]
        return wanted is not None and wanted in had

    def _telling(self, result: ToolResult, tell: Callable[[_Words], str]) -> ToolResult:
        content, shown = tell(_CANONICAL), tell(self._models)
        return replace(result, content=content, shown=None if shown == content else shown)

    def _repeating(self, result: ToolResult, earlier: ToolResult | None) -> ToolResult:
        """Answer with what the call said before; nothing yet while it runs."""
        if earlier is None:
            return result
        # The words before it also keep a grader from taking it for what the tool said.
        again = "The same call was made before and is not run again. It said: "
        told = self._telling(result, lambda words: again + words.result(earlier))
        return replace(told, is_error=earlier.is_error)

    def _precondition(self, rule: Precondition, words: _Words) -> str:
        own = ToolCall(id="", name=rule.tool, arguments=json.dumps({rule.same_argument: 0}))
        named = words.call(own)
        calls = (ToolCall(id="", name=name, arguments="{}") for name in rule.after)
        after = " or ".join(words.call(one).name for one in calls if one.name in self._names)
        same = next(iter(json.loads(named.arguments)))
        suffix = f" with the same {same}" if rule.same_argument else ""
        return f"Error: {named.name} can only run after {after} has succeeded{suffix}"

    def _check(self, call: ToolCall, words: _Words) -> str:
        reads = [one for one in self._succeeded.values() if one.call.name not in self._writers]
        lines = [
            f"{words.line(one.call)}: {cut(words.result(one.result), _READING)}"
            for one in reads[-READ_SHOWN:]
        ]
        read = "\n".join(["Read so far:", *lines]) if lines else "Nothing was read so far."
        return (
            f"Not run yet: {words.line(call)}\n{read}\n"
            "Is it right? If so, make the same call again."
        )


def _confirmation(call: ToolCall, words: _Words) -> str:
    return (
        f"Not run yet, for it cannot be undone: {words.line(call)}\n"
        "If it is right, make the same call again as your next one."
    )


def seen(result: ToolResult) -> str:
    """Return what the model saw of a result."""
    return result.content if result.shown is None else result.shown


def _answer(call: ToolCall, guard: str, repairs: tuple[str, ...]) -> ToolResult:
    return ToolResult(call_id=call.id, name=call.name, content="", guard=guard, repairs=repairs)


def _key(call: ToolCall) -> Key:
    try:
        return call.name, json.dumps(read_object(call.arguments), sort_keys=True)
    except ArgumentsError:
        return call.name, call.arguments


def _argument(call: ToolCall, name: str) -> object:
    """Return an argument for comparison: a text without regard to case and blanks around it."""
    try:
        value = read_object(call.arguments).get(name)
    except ArgumentsError:
        return None
    return value.strip().casefold() if isinstance(value, str) else value


def coerced(arguments: str, schema: Mapping[str, Any]) -> str:
    """Return arguments with values in the schema's types, where nothing is lost by that."""
    given = members(arguments)
    if given is None:
        return arguments
    known = cast(Mapping[str, Mapping[str, Any]], schema.get("properties") or {})
    found = [(key, _coerced(raw, known[key]) if key in known else raw) for key, raw in given]
    return arguments if found == given else joined(found)


def _coerced(raw: str, schema: Mapping[str, Any]) -> str:
    """Return the JSON text of one value in its type."""
    value = json.loads(raw)
    kinds = schema.get("type")
    kinds = cast(list[str], kinds) if isinstance(kinds, list) else [str(kinds)]
    if "enum" in schema:
        return _nearest_value(raw, value, schema["enum"])
    if any(_is(value, kind) for kind in kinds):
        return coerced(raw, schema) if isinstance(value, dict) else raw
    if "string" in kinds and isinstance(value, int | float) and not isinstance(value, bool):
        return json.dumps(raw)
    if isinstance(value, float) and "integer" in kinds and value.is_integer():
        return str(int(value))
    if not isinstance(value, str):
        return raw
    text = value.strip()
    text = text.lower() if text.lower() in ("true", "false") else text
    try:
        inside = json.loads(text)
    except (ValueError, RecursionError):
        return raw
    if isinstance(inside, float) and not math.isfinite(inside):
        return raw
    return _coerced(text, schema) if any(_fits(inside, kind) for kind in kinds) else raw


def _is(value: object, kind: str) -> bool:
    match kind:
        case "string":
            return isinstance(value, str)
        case "boolean":
            return isinstance(value, bool)
        case "integer":
            return isinstance(value, int) and not isinstance(value, bool)
        case "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        case "object":
            return isinstance(value, dict)
        case "array":
            return isinstance(value, list)
        case "null":
            return value is None
        case _:
            return True


def _fits(value: object, kind: str) -> bool:
    """Whether a value that stood in quotes is one of this type; null is as likely a text."""
    whole = isinstance(value, float) and value.is_integer() and kind == "integer"
    return kind != "null" and (_is(value, kind) or whole)


def _nearest_value(raw: str, value: object, allowed: Iterable[object]) -> str:
    """Return the value of the list that this nearly is; as it is if that cannot be told."""
    options = list(allowed)
    if value in options:
        return raw
    names = {
        option if isinstance(option, str) else json.dumps(option): option for option in options
    }
    near = nearest_name(value if isinstance(value, str) else raw, names)
    return json.dumps(names[near], ensure_ascii=False) if near else raw
