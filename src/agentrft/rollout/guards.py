"""Checks between the model and its tools: mend a call, hold it, or answer it in the tool's place.

All names are canonical; what the model is told is in its own. One `GuardState` per rollout.
"""

import json
import math
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
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
    shown: str


class GuardState:
    """What the guards remember of one rollout.

    A turn's calls are all admitted before any of them has finished, so that a call cannot count on
    another one of its own turn.
    """

    def __init__(
        self, guards: Guards, tools: Sequence[ToolSpec], written: Callable[[ToolCall], ToolCall]
    ) -> None:
        """`written` gives a call as the model would write it."""
        self._guards, self._written = guards, written
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
        if refusal := self._unmet(call):
            return _held(call, repairs, "preconditions", refusal, is_error=True)
        if guards.block_duplicates and key in self._said:
            earlier = self._said[key]
            told = _repeated(earlier) if earlier else ""
            failed = earlier is not None and earlier.is_error
            return _held(call, repairs, "block_duplicates", told, is_error=failed)
        if call.name in guards.check_first and key not in self._checked:
            return _held(call, repairs, "check_first")
        if call.name in guards.confirm and not confirmed:
            return _held(call, repairs, "confirm")
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
            case "block_duplicates" if not result.content and (said := self._said.get(key)):
                # The same call of its own turn has finished by now.
                result = replace(result, content=_repeated(said), is_error=said.is_error)
            case "check_first" | "confirm":
                result = replace(result, content=self._question(call, result.guard))
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
            self._succeeded[key] = _Success(call, seen(result))
        self._said[key] = result

    def _unmet(self, call: ToolCall) -> str:
        """Say which precondition a call lacks; those on tools that are not here do not bind."""
        for rule in self._guards.preconditions:
            after = [name for name in rule.after if name in self._names]
            if rule.tool == call.name and after and not self._met(rule, after, call):
                names = " or ".join(self._form(name).name for name in after)
                same = ""
                if rule.same_argument:
                    own = self._form(call.name, rule.same_argument).arguments
                    same = f" with the same {next(iter(json.loads(own)))}"
                mine = self._form(call.name).name
                return f"Error: {mine} can only run after {names} has succeeded{same}"
        return ""

    def _form(self, name: str, parameter: str = "") -> ToolCall:
        arguments = json.dumps({parameter: 0} if parameter else {})
        return self._written(ToolCall(id="", name=name, arguments=arguments))

    def _met(self, rule: Precondition, after: Collection[str], call: ToolCall) -> bool:
        earlier = [one.call for one in self._succeeded.values() if one.call.name in after]
        if not rule.same_argument:
            return bool(earlier)
        wanted = _argument(call, rule.same_argument)
        had = [_argument(one, rule.same_argument) for one in earlier]
        return wanted is not None and wanted in had

    def _question(self, call: ToolCall, guard: str) -> str:
        written = _line(self._written(call))
        if guard == "confirm":
            return (
                f"Not run yet, for it cannot be undone: {written}\n"
                "If it is right, make the same call again as your next one."
            )
        reads = [one for one in self._succeeded.values() if one.call.name not in self._writers]
        lines = [
            f"{_line(self._written(one.call))}: {cut(one.shown, _READING)}"
            for one in reads[-READ_SHOWN:]
        ]
        read = "\n".join(["Read so far:", *lines]) if lines else "Nothing was read so far."
        return f"Not run yet: {written}\n{read}\nIs it right? If so, make the same call again."


def seen(result: ToolResult) -> str:
    """Return what the model saw of a result."""
    return result.content if result.shown is None else result.shown


def _held(
    call: ToolCall, repairs: tuple[str, ...], guard: str, told: str = "", *, is_error: bool = False
) -> Admission:
    answer = ToolResult(
        call_id=call.id,
        name=call.name,
        content=told,
        guard=guard,
        repairs=repairs,
        is_error=is_error,
    )
    return Admission(call=call, repairs=repairs, answer=answer)


def _repeated(earlier: ToolResult) -> str:
    # The words before it also keep a grader from taking it for what the tool said.
    return f"The same call was made before and is not run again. It said: {seen(earlier)}"


def _line(call: ToolCall) -> str:
    return f"{call.name} {call.arguments or '{}'}"


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
