"""Dataset files: JSON Lines to tasks and demonstrations, one row at a time.

Every complaint names file, line and field; the first five of a file come in one message.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast, get_args

from agentrft.core.errors import DataError
from agentrft.core.task import Demonstration, Message, Role, Task, ToolCall, ToolSpec, content_id

_SHOWN_ERRORS = 5
_ROLES: tuple[str, ...] = get_args(Role)

Row = TypeVar("Row", Task, Demonstration)


class _RowError(Exception):
    """What is wrong with one row; the reader adds file and line."""


def read_tasks(path: Path) -> tuple[Task, ...]:
    """Return the tasks of a JSONL file; the last message of each is the user's.

    Raises DataError with file, line and field of up to five problems.
    """
    return _read(path, _task)


def read_demonstrations(path: Path) -> tuple[Demonstration, ...]:
    """Return the conversations of a JSONL file; the last message of each is the assistant's.

    Raises DataError with file, line and field of up to five problems.
    """
    return _read(path, _demonstration)


def _read(path: Path, parse: Callable[[Mapping[str, Any]], Row]) -> tuple[Row, ...]:
    rows: list[Row] = []
    line_of: dict[str, int] = {}
    problems: list[str] = []
    for number, line in _lines(path):
        try:
            row = parse(_json_object(line))
            _check_new(row.id, line_of)
        except _RowError as problem:
            problems.append(f"{path} line {number}: {problem}")
            if len(problems) == _SHOWN_ERRORS:
                problems.append("there may be more; reading stopped here")
                break
        else:
            line_of[row.id] = number
            rows.append(row)
    if problems:
        raise DataError("\n".join(problems))
    if not rows:
        raise DataError(f"{path} is empty; it needs at least one JSON object per line")
    return tuple(rows)


def _check_new(row_id: str, line_of: Mapping[str, int]) -> None:
    if row_id in line_of:
        raise _RowError(
            f"field 'id': {row_id!r} is already the id of line {line_of[row_id]}; "
            "ids must differ (rows without one get the hash of their content)"
        )


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines that are not blank."""
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if number == 1 and line.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(
                        f"{path} line 1: starts with a byte order mark; "
                        "save the file as UTF-8 without one"
                    )
                if line.strip():
                    yield number, line
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the [data] table of agent.toml") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _json_object(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line.decode("utf-8"), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise _RowError(f"column {error.start + 1}: not UTF-8; save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise _RowError(f"column {error.colno}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise _RowError("nested too deeply") from None
    if not isinstance(row, dict):
        raise _RowError(f"is {_kind(row)}; each line must be a JSON object")
    if b"\\u" in line and _has_lone_surrogate(json.dumps(row, ensure_ascii=False)):
        raise _RowError("has half of a surrogate pair (\\ud800 to \\udfff), which is not text")
    return cast(dict[str, Any], row)


def _has_lone_surrogate(text: str) -> bool:
    return any("\ud800" <= character <= "\udfff" for character in text)


def _refuse_constant(name: str) -> NoReturn:
    raise _RowError(f"{name} is not JSON; use null or a number")


def _task(row: Mapping[str, Any]) -> Task:
    messages = _messages(row)
    if messages[-1].role != "user":
        raise _RowError(
            f"field 'messages[{len(messages) - 1}].role': the last message of a task must be "
            f"the user's, not {messages[-1].role!r}"
        )
    return Task(
        id=_text(row, "id") or content_id(row),
        family=_text(row, "family"),
        messages=messages,
        tools=_tools(row),
        row=row,
    )


def _demonstration(row: Mapping[str, Any]) -> Demonstration:
    messages = _messages(row)
    if messages[-1].role != "assistant":
        raise _RowError(
            f"field 'messages[{len(messages) - 1}].role': the last message of a demonstration "
            f"must be the assistant's, not {messages[-1].role!r}"
        )
    return Demonstration(
        id=_text(row, "id") or content_id(row),
        family=_text(row, "family"),
        messages=messages,
        tools=_tools(row),
    )


def _messages(row: Mapping[str, Any]) -> tuple[Message, ...]:
    entries = _objects(row, "messages")
    if not entries:
        raise _RowError("field 'messages': missing or empty; each row needs a list of messages")
    name_of_call: dict[str, str] = {}
    messages: list[Message] = []
    for index, entry in enumerate(entries):
        message = _message(entry, f"messages[{index}]", name_of_call)
        name_of_call.update({call.id: call.name for call in message.tool_calls})
        messages.append(message)
    return tuple(messages)


def _message(entry: Mapping[str, Any], at: str, name_of_call: Mapping[str, str]) -> Message:
    role = entry.get("role")
    if role not in _ROLES:
        raise _RowError(f"field '{at}.role': {role!r} is not one of {', '.join(_ROLES)}")
    calls = _tool_calls(entry, at)
    if calls and role != "assistant":
        raise _RowError(f"field '{at}.tool_calls': only assistant messages may call tools")
    content = _content(entry, at)
    if not content and not calls and role != "tool":
        raise _RowError(f"field '{at}.content': missing or empty")
    if role != "tool":
        return Message(role=role, content=content, tool_calls=calls)
    call_id = entry.get("tool_call_id")
    if not isinstance(call_id, str) or call_id not in name_of_call:
        raise _RowError(f"field '{at}.tool_call_id': {call_id!r} answers no earlier tool call")
    return Message(role=role, content=content, tool_call_id=call_id, name=name_of_call[call_id])


def _content(entry: Mapping[str, Any], at: str) -> str:
    content = entry.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _RowError(f"field '{at}.content': is {_kind(content)}; expected text")
    texts: list[str] = []
    for index, part in enumerate(cast(list[Any], content)):
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                raise _RowError(f"field '{at}.content[{index}]': only text parts are supported")
    return "".join(texts)


def _tool_calls(entry: Mapping[str, Any], at: str) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    for index, call in enumerate(_objects(entry, "tool_calls", at)):
        where = f"{at}.tool_calls[{index}]"
        function = call.get("function")
        if not isinstance(function, dict):
            raise _RowError(f"field '{where}.function': missing; expected an object")
        function = cast(dict[str, Any], function)
        for key, holder, path in (
            ("id", call, where),
            ("name", function, f"{where}.function"),
            ("arguments", function, f"{where}.function"),
        ):
            if not isinstance(holder.get(key), str) or not holder[key]:
                raise _RowError(
                    f"field '{path}.{key}': expected text, got {_kind(holder.get(key))}"
                )
        try:
            arguments = json.loads(function["arguments"])
        except json.JSONDecodeError as error:
            raise _RowError(f"field '{where}.function.arguments': not JSON: {error.msg}") from None
        if not isinstance(arguments, dict):
            raise _RowError(f"field '{where}.function.arguments': must be the JSON of an object")
        calls.append(
            ToolCall(id=call["id"], name=function["name"], arguments=function["arguments"])
        )
    return tuple(calls)


def _tools(row: Mapping[str, Any]) -> tuple[ToolSpec, ...]:
    tools: list[ToolSpec] = []
    for index, entry in enumerate(_objects(row, "tools")):
        at = f"tools[{index}]"
        function = entry.get("function")
        if not isinstance(function, dict):
            raise _RowError(
                f"field '{at}.function': missing; a tool is "
                '{"type": "function", "function": {"name": ..., "parameters": ...}}'
            )
        function = cast(dict[str, Any], function)
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise _RowError(f"field '{at}.function.name': missing; every tool needs a name")
        if any(tool.name == name for tool in tools):
            raise _RowError(f"field '{at}.function.name': {name!r} appears twice")
        parameters = function.get("parameters", {"type": "object", "properties": {}})
        if not isinstance(parameters, dict):
            raise _RowError(f"field '{at}.function.parameters': expected a JSON schema object")
        tools.append(
            ToolSpec(
                name=name,
                description=_text(function, "description", f"{at}.function."),
                parameters=cast(dict[str, Any], parameters),
            )
        )
    return tuple(tools)


def _objects(holder: Mapping[str, Any], key: str, at: str = "") -> Sequence[Mapping[str, Any]]:
    """Return a list of objects; a missing key or null is an empty list."""
    path = f"{at}.{key}" if at else key
    entries = holder.get(key)
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise _RowError(f"field '{path}': is {_kind(entries)}; expected a list")
    for index, entry in enumerate(cast(list[Any], entries)):
        if not isinstance(entry, dict):
            raise _RowError(f"field '{path}[{index}]': is {_kind(entry)}; expected an object")
    return cast(list[dict[str, Any]], entries)


def _text(holder: Mapping[str, Any], key: str, prefix: str = "") -> str:
    value = holder.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _RowError(f"field '{prefix}{key}': is {_kind(value)}; expected text")
    return value


def _kind(value: object) -> str:
    match value:
        case None:
            return "missing or null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text" if value else "empty text"
        case list():
            return "a list"
        case _:
            return "an object"
