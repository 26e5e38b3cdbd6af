"""One tool call as JSON text: its name, and its arguments exactly as written."""

import json
import re
from dataclasses import dataclass
from typing import Any, NoReturn

FORM = '{"name": ..., "arguments": {...}}'
"""What a call must look like, for messages to the model."""

_BLANKS = re.compile(r"[ \t\r\n]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenCall:
    """A readable call."""

    name: str
    arguments: str
    """The substring of the text that holds the arguments' JSON object."""


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON value")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)


def read_call(text: str, start: int = 0) -> tuple[WrittenCall, int]:
    """Read the JSON object at `start`; return the call and the position after it.

    Raises ValueError with a reason the model can act on. Arguments may also be called parameters,
    as some families do, and may be left out where a tool takes none.
    """
    position = _skip(text, start)
    if text[position : position + 1] != "{":
        raise ValueError(f"the call is not a JSON object; write {FORM}")
    try:
        found, end = read_members(text, position)
    except json.JSONDecodeError as error:
        where = error.pos - start
        raise ValueError(f"the call is not valid JSON: {error.msg} at character {where}") from error
    except RecursionError as error:
        raise ValueError("the call is nested too deeply") from error
    values = {key: (value, raw) for key, value, raw in found}
    name = values.get("name", (None, ""))[0]
    if not isinstance(name, str) or not name or not name.isprintable():
        raise ValueError(f'the call has no "name" that is a text; write {FORM}')
    empty: tuple[Any, str] = ({}, "{}")
    arguments, written = values.get("arguments", values.get("parameters", empty))
    if not isinstance(arguments, dict):
        raise ValueError(f'"arguments" must be a JSON object; write {FORM}')
    return WrittenCall(name=name, arguments=written), end


def read_members(text: str, start: int = 0) -> tuple[list[tuple[str, Any, str]], int]:
    """Read the JSON object at `start`: keys with values and their texts, and the position after it.

    Raises JSONDecodeError, RecursionError.
    """
    found: list[tuple[str, Any, str]] = []
    position = _skip(text, _expect(text, _skip(text, start), "{"))
    while text[position : position + 1] != "}":
        if found:
            position = _skip(text, _expect(text, position, ","))
        key, end = _DECODER.raw_decode(text, _expect(text, position, '"') - 1)
        position = _skip(text, _expect(text, _skip(text, end), ":"))
        value, end = _DECODER.raw_decode(text, position)
        found.append((key, value, text[position:end]))
        position = _skip(text, end)
    return found, position + 1


def _skip(text: str, position: int) -> int:
    match = _BLANKS.match(text, position)
    return match.end() if match else position


def _expect(text: str, position: int, character: str) -> int:
    if text[position : position + 1] != character:
        raise json.JSONDecodeError(f"Expecting {character!r}", text, position)
    return position + 1
