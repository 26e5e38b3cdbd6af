"""What a dataset row may be in each training method: one reader for checks and for training.

Every complaint names its field; the file readers add the line.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast, get_args

from agentrft.core.errors import DataError
from agentrft.core.task import (
    Demonstration,
    Message,
    Preference,
    Role,
    Task,
    ToolCall,
    ToolSpec,
    content_id,
)
from agentrft.store.jsonl import RowError, kind_of, parsed, strict_json

RowKind = Literal["supervised", "dpo", "reinforcement"]

OUTPUTS = ("preferred_output", "non_preferred_output")
LEAST_TRAINING_ROWS = 10
MOST_TASKS = {"training": 50_000, "validation": 1_000}
MOST_TOOL_NAMES = 1_000

_ROLES: tuple[str, ...] = get_args(Role)
_MESSAGE_KEYS = ("role", "content", "name", "tool_calls", "tool_call_id", "weight")
_TOOL_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")
_LABEL = re.compile(r"[^\x00-\x1f\x7f]{0,512}")


@dataclass(frozen=True, slots=True, kw_only=True)
class RowCount:
    """What is in a file that passed."""

    rows: int
    with_tools: int
    """Rows that list tools."""
    tools: Mapping[str, int]
    """By tool name: how many rows list it."""


def check_rows(
    path: Path,
    kind: RowKind,
    *,
    validation: bool = False,
    tools: frozenset[str] | None = None,
) -> RowCount:
    """Check a file against the format of a training method, in memory that does not grow with it.

    Rows may list only the `tools` given, if any are. Raises DataError with line and field of the
    first five problems and a count of the others, or for too few or too many rows.
    """
    role = "validation" if validation else "training"
    most = MOST_TASKS[role] if kind == "reinforcement" else None
    least = 1 if validation else LEAST_TRAINING_ROWS
    listed: Counter[str] = Counter()

    def tools_of(row: Mapping[str, Any], line: int) -> tuple[ToolSpec, ...]:
        specs = _checked(kind, row, f"row-{line}")
        _check_offered(specs, tools)
        if len(listed.keys() | {spec.name for spec in specs}) > MOST_TOOL_NAMES:
            raise RowError(
                f"field 'tools': more than {MOST_TOOL_NAMES} different tools in one file"
            )
        return specs

    rows = with_tools = 0
    for specs in parsed(path, tools_of):
        rows += 1
        with_tools += bool(specs)
        listed.update(spec.name for spec in specs)
        if most is not None and rows > most:
            raise DataError(f"the file has more than {most} rows, the most of a {role} file")
    if rows < least:
        raise DataError(f"the file has {rows} rows; a {role} file needs at least {least}")
    return RowCount(rows=rows, with_tools=with_tools, tools=dict(listed))


def task_of(row: Mapping[str, Any], name: str = "") -> Task:
    """Return the task of a row; a `name` replaces its `id` and `family`. Raises RowError."""
    messages = _messages(row, "messages")
    if messages[-1].role != "user":
        raise RowError(
            f"field 'messages[{len(messages) - 1}].role': the last message of a task must be "
            f"the user's, not {messages[-1].role!r}"
        )
    return Task(
        id=name or _label(row, "id") or content_id(row),
        family="" if name else _label(row, "family"),
        messages=messages,
        tools=_tools(row),
        row=row,
    )


def demonstration_of(row: Mapping[str, Any], name: str = "") -> Demonstration:
    """Return the conversation of a row; a `name` replaces `id` and `family`. Raises RowError."""
    messages = _messages(row, "messages")
    if messages[-1].role != "assistant":
        raise RowError(
            f"field 'messages[{len(messages) - 1}].role': the last message of a demonstration "
            f"must be the assistant's, not {messages[-1].role!r}"
        )
    _check_parallel(row, messages, "messages")
    return Demonstration(
        id=name or _label(row, "id") or content_id(row),
        family="" if name else _label(row, "family"),
        messages=messages,
        tools=_tools(row),
        imitated=tuple(
            entry.get("weight") != 0
            for entry in _objects(row, "messages")
            if entry["role"] == "assistant"
        ),
    )


def preference_of(row: Mapping[str, Any], name: str = "") -> Preference:
    """Return the pair of a row; a `name` replaces its `id` and `family`. Raises RowError."""
    given = row.get("input")
    if not isinstance(given, dict):
        raise RowError(f"field 'input': is {kind_of(given)}; expected an object with 'messages'")
    for key in ("messages", "tools", "parallel_tool_calls"):
        if row.get(key) is not None:
            raise RowError(
                f"field '{key}': a pair has it in 'input', for both outputs; move it there"
            )
    given = cast(dict[str, Any], given)
    messages = _messages(given, "messages", "input.")
    if messages[-1].role == "assistant":
        raise RowError(
            f"field 'input.messages[{len(messages) - 1}].role': the input must end before the "
            "assistant's answer; put the answers into preferred_output and non_preferred_output"
        )
    _check_parallel(given, messages, "input.messages")
    preferred, rejected = (_output(row, given, key) for key in OUTPUTS)
    return Preference(
        id=name or _label(row, "id") or content_id(row),
        family="" if name else _label(row, "family"),
        messages=messages,
        preferred=preferred,
        rejected=rejected,
        tools=_tools(given, "input."),
    )


def _output(row: Mapping[str, Any], given: Mapping[str, Any], key: str) -> tuple[Message, ...]:
    answers = _messages(row, key)
    for index, answer in enumerate(answers):
        if _objects(row, key)[index].get("weight") == 0:
            raise RowError(
                f"field '{key}[{index}].weight': outputs of a pair are compared as a whole; "
                "leave it out"
            )
        if answer.role not in ("assistant", "tool"):
            raise RowError(
                f"field '{key}[{index}].role': {answer.role!r} cannot be in an output; "
                "only assistant and tool messages can"
            )
    if answers[-1].role != "assistant":
        raise RowError(f"field '{key}': must end with the assistant's message")
    _check_parallel(given, answers, key)
    return answers


def _checked(kind: RowKind, row: Mapping[str, Any], name: str) -> tuple[ToolSpec, ...]:
    """Check a row and return the tools it lists."""
    match kind:
        case "supervised":
            return demonstration_of(row, name).tools
        case "reinforcement":
            return task_of(row, name).tools
        case "dpo":
            return preference_of(row, name).tools


def _check_offered(specs: Sequence[ToolSpec], offered: frozenset[str] | None) -> None:
    for index, spec in enumerate(specs):
        if offered is not None and spec.name not in offered:
            known = ", ".join(sorted(offered)) or "none"
            raise RowError(
                f"field 'tools[{index}].function.name': the job has no tool {spec.name!r}; "
                f"its tools: {known}"
            )


def _check_parallel(holder: Mapping[str, Any], messages: Sequence[Message], at: str) -> None:
    parallel = holder.get("parallel_tool_calls")
    if not isinstance(parallel, bool | None):
        prefix = at.removesuffix("messages")
        raise RowError(
            f"field '{prefix}parallel_tool_calls': is {kind_of(parallel)}; expected true or false"
        )
    if parallel is False:
        for index, message in enumerate(messages):
            if len(message.tool_calls) > 1:
                raise RowError(
                    f"field '{at}[{index}].tool_calls': several calls at once, "
                    "but the row says parallel_tool_calls: false"
                )


def _messages(row: Mapping[str, Any], key: str, prefix: str = "") -> tuple[Message, ...]:
    entries = _objects(row, key, prefix)
    if not entries:
        raise RowError(
            f"field '{prefix}{key}': missing or empty; each row needs a list of messages"
        )
    name_of_call: dict[str, str] = {}
    messages: list[Message] = []
    for index, entry in enumerate(entries):
        message = _message(entry, f"{prefix}{key}[{index}]", name_of_call)
        name_of_call.update({call.id: call.name for call in message.tool_calls})
        messages.append(message)
    return tuple(messages)


def _message(entry: Mapping[str, Any], at: str, name_of_call: Mapping[str, str]) -> Message:
    role = entry.get("role")
    if role not in _ROLES:
        raise RowError(f"field '{at}.role': {role!r} is not one of {', '.join(_ROLES)}")
    _check_keys(entry, at, role)
    calls = _tool_calls(entry, at)
    if calls and role != "assistant":
        raise RowError(f"field '{at}.tool_calls': only assistant messages may call tools")
    content = _content(entry, at)
    if not content and not calls and role != "tool":
        raise RowError(f"field '{at}.content': missing or empty")
    if role != "tool":
        return Message(role=role, content=content, tool_calls=calls)
    call_id = entry.get("tool_call_id")
    if not isinstance(call_id, str) or call_id not in name_of_call:
        raise RowError(f"field '{at}.tool_call_id': {call_id!r} answers no earlier tool call")
    return Message(role=role, content=content, tool_call_id=call_id, name=name_of_call[call_id])


def _check_keys(entry: Mapping[str, Any], at: str, role: str) -> None:
    for key, value in entry.items():
        # What the official client writes for "nothing" may stand in any message.
        if key not in _MESSAGE_KEYS and value not in (None, []):
            raise RowError(
                f"field '{at}.{key}': not supported; a message has {', '.join(_MESSAGE_KEYS)}"
            )
    _text(entry, "name", f"{at}.")
    weight = entry.get("weight")
    if weight is None:
        return
    if isinstance(weight, bool) or weight not in (0, 1):
        raise RowError(f"field '{at}.weight': {weight!r} must be 0 or 1")
    if role != "assistant":
        raise RowError(f"field '{at}.weight': only assistant messages have a weight")


def _content(entry: Mapping[str, Any], at: str) -> str:
    content = entry.get("content")
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise RowError(f"field '{at}.content': is {kind_of(content)}; expected text")
    texts: list[str] = []
    for index, part in enumerate(cast(list[Any], content)):
        match part:
            case {"type": "text", "text": str(text)}:
                texts.append(text)
            case _:
                raise RowError(f"field '{at}.content[{index}]': only text parts are supported")
    return "".join(texts)


def _tool_calls(entry: Mapping[str, Any], at: str) -> tuple[ToolCall, ...]:
    calls: list[ToolCall] = []
    for index, call in enumerate(_objects(entry, "tool_calls", f"{at}.")):
        where = f"{at}.tool_calls[{index}]"
        function = _function(call, where, "expected an object")
        for key, holder, path in (
            ("id", call, where),
            ("name", function, f"{where}.function"),
            ("arguments", function, f"{where}.function"),
        ):
            if not isinstance(holder.get(key), str) or not holder[key]:
                raise RowError(
                    f"field '{path}.{key}': expected text, got {kind_of(holder.get(key))}"
                )
        try:
            arguments = strict_json(function["arguments"])
        except RowError as problem:
            raise RowError(f"field '{where}.function.arguments': {problem}") from None
        if not isinstance(arguments, dict):
            raise RowError(f"field '{where}.function.arguments': must be the JSON of an object")
        calls.append(
            ToolCall(id=call["id"], name=function["name"], arguments=function["arguments"])
        )
    return tuple(calls)


def _tools(row: Mapping[str, Any], prefix: str = "") -> tuple[ToolSpec, ...]:
    if row.get("functions"):
        raise RowError(f"field '{prefix}functions': not supported; write them as 'tools'")
    tools: dict[str, ToolSpec] = {}
    for index, entry in enumerate(_objects(row, "tools", prefix)):
        at = f"{prefix}tools[{index}]"
        function = _function(
            entry,
            at,
            'a tool is {"type": "function", "function": {"name": ..., "parameters": ...}}',
        )
        name = function.get("name")
        if not isinstance(name, str) or not name:
            raise RowError(f"field '{at}.function.name': missing; every tool needs a name")
        if not _TOOL_NAME.fullmatch(name):
            raise RowError(
                f"field '{at}.function.name': {name!r} is not 1 to 64 letters, digits, '_' or '-'"
            )
        if name in tools:
            raise RowError(f"field '{at}.function.name': {name!r} appears twice")
        parameters = function.get("parameters")
        if parameters is None:
            parameters = {"type": "object", "properties": {}}
        if not isinstance(parameters, dict):
            raise RowError(f"field '{at}.function.parameters': expected a JSON schema object")
        tools[name] = ToolSpec(
            name=name,
            description=_text(function, "description", f"{at}.function."),
            parameters=cast(dict[str, Any], parameters),
        )
    return tuple(tools.values())


def _function(entry: Mapping[str, Any], at: str, expected: str) -> dict[str, Any]:
    if entry.get("type", "function") != "function":
        raise RowError(f"field '{at}.type': {entry['type']!r} is not supported; only 'function' is")
    function = entry.get("function")
    if not isinstance(function, dict):
        raise RowError(f"field '{at}.function': missing; {expected}")
    return cast(dict[str, Any], function)


def _objects(holder: Mapping[str, Any], key: str, prefix: str = "") -> Sequence[Mapping[str, Any]]:
    """Return a list of objects; a missing key or null is an empty list."""
    entries = holder.get(key)
    if entries is None:
        return ()
    if not isinstance(entries, list):
        raise RowError(f"field '{prefix}{key}': is {kind_of(entries)}; expected a list")
    for index, entry in enumerate(cast(list[Any], entries)):
        if not isinstance(entry, dict):
            raise RowError(
                f"field '{prefix}{key}[{index}]': is {kind_of(entry)}; expected an object"
            )
    return cast(list[dict[str, Any]], entries)


def _text(holder: Mapping[str, Any], key: str, prefix: str = "") -> str:
    value = holder.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RowError(f"field '{prefix}{key}': is {kind_of(value)}; expected text")
    return value


def _label(row: Mapping[str, Any], key: str) -> str:
    label = _text(row, key)
    if not _LABEL.fullmatch(label):
        raise RowError(f"field '{key}': has control characters or is longer than 512 characters")
    return label
