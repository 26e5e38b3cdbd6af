"""How an agent behind an endpoint calls tools: as chat completions have it, or as text between marks.

Two siblings. Both turn messages into what is sent, and replies into messages.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.core.trajectory import ParseFailure
from agentrft.egress.openai_api import ChatReply, at, listed
from agentrft.inference.calls import FORM, read_call
from agentrft.rollout.tools import ArgumentsError, read_object

_OPEN, _CLOSE = "<tool_call>", "</tool_call>"
_TOLD = (
    "You can call tools. Each line is one of them:\n{tools}\n\n"
    "To call a tool, write\n"
    '<tool_call>{{"name": "<tool>", "arguments": {{<arguments>}}}}</tool_call>\n'
    "and end your turn; the results come in the next message. Several calls may follow each other."
)

Wire = dict[str, Any]
"""One message as it is sent."""


class NativeCalls:
    """`tools`, `tool_calls` and messages of role `tool`. Remembers the last reply it read."""

    name = "native"

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self.fields: Mapping[str, object] = {"tools": [_function(tool) for tool in tools] or None}
        """What every request has besides its messages."""
        self._last: Mapping[str, object] = {}
        self._readable: list[bool] = []
        """Of each call of the last reply."""

    def opening(self, messages: Sequence[Message]) -> list[Wire]:
        """Return the prompt as it is sent."""
        return [_native(message) for message in messages]

    def read(self, reply: ChatReply) -> tuple[Message, tuple[ParseFailure, ...]]:
        """Return what the model said, and the calls whose arguments are no JSON object."""
        self._last = reply.message
        found = [_native_call(entry) for entry in listed(reply.message.get("tool_calls"))]
        self._readable = [isinstance(call, ToolCall) for call in found]
        message = Message(
            role="assistant",
            content=reply.text or reply.refusal,
            tool_calls=tuple(call for call in found if isinstance(call, ToolCall)),
        )
        return message, tuple(call for call in found if isinstance(call, ParseFailure))

    def following(self, said: Message, answers: Sequence[Message]) -> list[Wire]:
        """Send the reply back as it came, for servers put more into it than calls.

        Arguments that are no JSON break the templates of some servers, so `{}` stands for them.
        """
        known = {call.id for call in said.tool_calls}
        unreadable = [a for a in answers if a.role == "tool" and a.tool_call_id not in known]
        ids = iter([call.id for call in said.tool_calls])
        other_ids = iter([answer.tool_call_id for answer in unreadable])
        again = {name: value for name, value in self._last.items() if value is not None}
        again |= {"role": "assistant", "content": said.content}
        if self._readable:
            again["tool_calls"] = [
                _renamed(entry, next(ids) if readable else next(other_ids), readable=readable)
                for entry, readable in zip(
                    listed(self._last.get("tool_calls")), self._readable, strict=True
                )
            ]
        return [again, *(_native(answer) for answer in answers)]


class TextCalls:
    """Tools in the system text, calls between marks, results as messages of the user.

    Remembers the last reply it read.
    """

    name = "text"
    fields: Mapping[str, object] = {}

    def __init__(self, tools: Sequence[ToolSpec]) -> None:
        self._tools = tools
        self._last = ""

    def opening(self, messages: Sequence[Message]) -> list[Wire]:
        """Return the prompt as it is sent, the tools at the end of its system text."""
        told = _TOLD.format(
            tools="\n".join(
                json.dumps(_function(tool)["function"], ensure_ascii=False) for tool in self._tools
            )
        )
        if messages and messages[0].role in ("system", "developer"):
            first, messages = messages[0].content, messages[1:]
            told = f"{first}\n\n{told}"
        return [{"role": "system", "content": told}, *_plain(messages)]

    def read(self, reply: ChatReply) -> tuple[Message, tuple[ParseFailure, ...]]:
        """Return what the model said and called."""
        self._last = reply.text or reply.refusal
        content, found = written_calls(self._last, self._tools)
        message = Message(
            role="assistant",
            content=content,
            tool_calls=tuple(call for call in found if isinstance(call, ToolCall)),
        )
        return message, tuple(call for call in found if isinstance(call, ParseFailure))

    def following(self, said: Message, answers: Sequence[Message]) -> list[Wire]:
        """Return the reply as it was written, and the results in one message."""
        return [{"role": "assistant", "content": self._last}, *_plain(answers)]


Calling = NativeCalls | TextCalls


def written_calls(
    text: str, tools: Sequence[ToolSpec]
) -> tuple[str, list[ToolCall | ParseFailure]]:
    """Read calls from text; return what stands outside of them, and each call.

    Where there are no marks, a text that is nothing but a call of one of the tools is one.
    """
    content, found, place = "", list[ToolCall | ParseFailure](), 0
    # Not by splitting at the marks: an argument may quote what a tool said, marks included.
    while (mark := text.find(_OPEN, place)) >= 0:
        content += text[place:mark]
        call, place = _block(text, mark + len(_OPEN), f"call_{len(found)}")
        found.append(call)
    content = (content + text[place:]).strip()
    if not found and content.startswith("{"):
        closed = content.removesuffix(_CLOSE) + _CLOSE
        bare, end = _block(closed, 0, "call_0")
        known = [tool.name for tool in tools]
        if isinstance(bare, ToolCall) and bare.name in known and end == len(closed):
            return "", [bare]
    return content, found


def _block(text: str, start: int, call_id: str) -> tuple[ToolCall | ParseFailure, int]:
    """Read the call after an opening mark; return it, and the place behind its closing mark."""
    call, end, reason = None, start, ""
    try:
        call, end = read_call(text, start)
    except ValueError as error:
        reason = str(error)
    close = text.find(_CLOSE, end)
    if close < 0:
        close = after = len(text)
        reason = (
            reason or "the call has no end, so it was not run; write it again in full and close it"
        )
    else:
        after = close + len(_CLOSE)
        if text[end:close].strip():
            reason = reason or f"there is text after the call's JSON object; write only {FORM}"
    if call is None or reason:
        return ParseFailure(raw=text[start:close].strip(), reason=reason), after
    return ToolCall(id=call_id, name=call.name, arguments=call.arguments), after


def _native_call(entry: object) -> ToolCall | ParseFailure:
    call_id, name = at(entry, "id"), at(entry, "function", "name")
    written = _arguments(entry)
    try:
        read_object(written)
    except ArgumentsError as error:
        raw = f"{name} {written}"
        return ParseFailure(raw=raw, reason=f"{error}; write the call again with a JSON object")
    if not isinstance(name, str) or not name:
        return ParseFailure(raw=json.dumps(entry), reason="the call names no function")
    return ToolCall(id=call_id if isinstance(call_id, str) else "", name=name, arguments=written)


def _arguments(entry: object) -> str:
    """Return the arguments of a call as text; some servers send the object itself, or nothing."""
    given = at(entry, "function", "arguments")
    return given if given and isinstance(given, str) else json.dumps(given or {})


def _renamed(entry: object, call_id: str | None, *, readable: bool) -> Wire:
    """Return a call of the reply under the id that its answer refers to."""
    name = at(entry, "function", "name")
    function = {
        "name": name if isinstance(name, str) and name else "unknown",
        "arguments": _arguments(entry) if readable else "{}",
    }
    kept = entry if isinstance(entry, dict) else {}
    return {**kept, "id": call_id, "type": "function", "function": function}


def _function(tool: ToolSpec) -> Wire:
    described = {
        "name": tool.name,
        "description": tool.description,
        "parameters": dict(tool.parameters),
    }
    return {"type": "function", "function": described}


def _native(message: Message) -> Wire:
    wire: Wire = {"role": message.role, "content": message.content}
    if message.tool_calls:
        wire["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        wire["tool_call_id"] = message.tool_call_id
    return wire


def _plain(messages: Sequence[Message]) -> list[Wire]:
    """Return messages as text; templates of some servers want user and assistant in turn."""
    wires: list[Wire] = []
    for message in messages:
        role = "user" if message.role == "tool" else message.role
        content = "\n".join(_written(message))
        if role == "user" and wires and wires[-1]["role"] == "user":
            wires[-1]["content"] += f"\n{content}"
        else:
            wires.append({"role": role, "content": content})
    return wires


def _written(message: Message) -> Iterator[str]:
    if message.role == "tool":
        yield f"<tool_response>\n{message.content}\n</tool_response>"
        return
    if message.content or not message.tool_calls:
        yield message.content
    for call in message.tool_calls:
        yield f'{_OPEN}{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}{_CLOSE}'
