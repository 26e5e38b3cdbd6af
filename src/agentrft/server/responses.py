"""`responses`: the same models for agent loops that speak the newer form.

A whole reply is the last event of the stream that would have been sent, so the two cannot differ.
"""

import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import TypeAdapter

from agentrft.core.errors import AgentRFTError
from agentrft.core.task import Message
from agentrft.inference.chat import (
    CallDelta,
    ChatDelta,
    ChatEnd,
    ChatRequest,
    TokenLogprob,
    ToolName,
)
from agentrft.server import responses_wire as wire
from agentrft.server.auth import require
from agentrft.server.chat import (
    EVENT_STREAM,
    CalledModel,
    Pieces,
    answer_form,
    begin,
    called_model,
    conversation,
    error_of,
    logprobs_of,
    together,
    tool_choice,
    unless_gone,
)
from agentrft.server.chat_wire import FunctionName
from agentrft.server.context import Here
from agentrft.server.routing import router
from agentrft.store.access import Identity, Role

routes = router("responses")
_EVENT = TypeAdapter(dict[str, Any])


@routes.post(
    "/responses",
    response_model=wire.ResponseReply,
    responses={200: {"content": {EVENT_STREAM: {}}}},
)
async def create_response(
    request: Request,
    body: wire.ResponseBody,
    server: Here,
    caller: Annotated[Identity, Depends(require(Role.READ))],
) -> Any:
    """Answer a conversation, whole or as a stream of events."""
    model = await called_model(server, caller, body.model)
    asked = _chat_request(body, model)
    answer = _Answer(body, model, asked)
    pieces = together(server.chat, [asked])
    if not body.stream:
        return await unless_gone(request, answer.whole(pieces))
    begun = await unless_gone(request, begin(pieces))
    if isinstance(begun, Response):
        return begun
    return StreamingResponse(answer.sent(begun, request), media_type=EVENT_STREAM)


def _chat_request(body: wire.ResponseBody, model: CalledModel) -> ChatRequest:
    tools = wire.tool_specs(body.tools or ())
    choice = body.tool_choice
    if isinstance(choice, wire.FunctionChoice):
        choice = FunctionName(name=choice.name)
    messages = conversation(wire.core_messages(body.input))
    if body.instructions:
        messages = (Message(role="system", content=body.instructions), *messages)
    shown = "message.output_text.logprobs" in (body.include or ())
    return ChatRequest(
        base=model.base,
        adapter=model.adapter,
        messages=messages,
        tools=tools,
        tool_choice=tool_choice(tools, choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        max_tokens=body.max_output_tokens,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        top_logprobs=(body.top_logprobs or 0) if shown or body.top_logprobs is not None else None,
        schema=answer_form(wire.answer_form(body.text)[0], tools, choice, "text.format"),
    )


@dataclass(slots=True)
class _Item:
    """One item of the answer while it is written."""

    id: str
    call: CallDelta | None = None
    text: str = ""
    tokens: list[TokenLogprob] = field(default_factory=list[TokenLogprob])

    def reply(self, status: wire.Progress) -> wire.MessageReply | wire.CallReply:
        """Return the item as it goes out."""
        if self.call is None:
            begun = self.text or status != "in_progress"
            content = [self.part()] if begun else []
            return wire.MessageReply(id=self.id, status=status, content=content)
        return wire.CallReply(
            id=self.id,
            status=status,
            call_id=self.call.id,
            name=self.call.name,
            arguments="" if status == "in_progress" else self.call.arguments,
        )

    def part(self) -> wire.TextReply:
        """Return the text of a message item."""
        return wire.TextReply(text=self.text, annotations=[], logprobs=logprobs_of(self.tokens))


class _Answer:
    """Turns pieces into events; the last one holds the whole response."""

    def __init__(self, body: wire.ResponseBody, model: CalledModel, asked: ChatRequest) -> None:
        self._id = f"resp_{uuid.uuid4().hex}"
        self._echo = _echo(body, model, asked)
        self._created_at = int(time.time())
        self._done: list[wire.MessageReply | wire.CallReply] = []
        self._open: _Item | None = None
        self._number = 0
        self._response = self._reply("in_progress")

    async def whole(self, pieces: Pieces) -> wire.ResponseReply:
        """Return the response once it has ended."""
        async with aclosing(pieces):
            async for _, piece in pieces:
                for _ in self._events(piece):
                    pass
        return self._response

    async def sent(self, pieces: Pieces, request: Request) -> AsyncIterator[str]:
        """Yield server-sent events; a failure becomes an error event and a failed response."""
        yield self._event("response.created", response=self._response)
        yield self._event("response.in_progress", response=self._response)
        async with aclosing(pieces):
            try:
                async for _, piece in pieces:
                    for event in self._events(piece):
                        yield event
            except AgentRFTError as error:
                told: dict[str, Any] = error_of(error, request)["error"]
                yield self._event(
                    "error", code=told["code"], message=told["message"], param=told["param"]
                )
                failure = wire.ResponseError(message=told["message"])
                yield self._event("response.failed", response=self._reply("failed", error=failure))

    def _events(self, piece: ChatDelta | ChatEnd) -> Iterator[str]:
        if isinstance(piece, ChatEnd):
            yield from self._end(piece)
            return
        if piece.text or (piece.logprobs and piece.call is None):
            yield from self._write(piece)
        if piece.call is not None:
            yield from self._call(piece.call)

    def _write(self, piece: ChatDelta) -> Iterator[str]:
        item = self._open
        if item is None:
            item = self._open = _Item(id=f"msg_{uuid.uuid4().hex}")
            yield self._added(item)
            yield self._event("response.content_part.added", **self._place(item), part=item.part())
        item.text += piece.text
        item.tokens += piece.logprobs
        yield self._event(
            "response.output_text.delta",
            **self._place(item),
            delta=piece.text,
            logprobs=logprobs_of(piece.logprobs),
        )

    def _call(self, call: CallDelta) -> Iterator[str]:
        yield from self._close("completed")
        item = _Item(id=f"fc_{uuid.uuid4().hex}", call=call)
        place = {"item_id": item.id, "output_index": len(self._done)}
        yield self._added(item)
        arguments = call.arguments
        yield self._event("response.function_call_arguments.delta", **place, delta=arguments)
        yield self._event(
            "response.function_call_arguments.done", **place, name=call.name, arguments=arguments
        )
        yield self._finished(item.reply("completed"))

    def _close(self, status: wire.Progress) -> Iterator[str]:
        """End the text that is open, if any; calls arrive whole."""
        if self._open is None:
            return
        item, self._open = self._open, None
        place, part = self._place(item), item.part()
        yield self._event(
            "response.output_text.done", **place, text=part.text, logprobs=part.logprobs
        )
        yield self._event("response.content_part.done", **place, part=part)
        yield self._finished(item.reply(status))

    def _end(self, end: ChatEnd) -> Iterator[str]:
        status = "incomplete" if end.finish_reason == "length" else "completed"
        if self._open is None and not self._done:
            # An answer without a word is still a message.
            yield from self._write(ChatDelta())
        yield from self._close(status)
        self._response = self._reply(
            status,
            completed_at=int(time.time()) if status == "completed" else None,
            incomplete_details=(
                wire.Incomplete(reason="max_output_tokens") if status == "incomplete" else None
            ),
            usage=_usage(end),
        )
        yield self._event(f"response.{status}", response=self._response)

    def _added(self, item: _Item) -> str:
        return self._event(
            "response.output_item.added",
            output_index=len(self._done),
            item=item.reply("in_progress"),
        )

    def _finished(self, reply: wire.MessageReply | wire.CallReply) -> str:
        index = len(self._done)
        self._done.append(reply)
        return self._event("response.output_item.done", output_index=index, item=reply)

    def _place(self, item: _Item) -> dict[str, Any]:
        return {"item_id": item.id, "output_index": len(self._done), "content_index": 0}

    def _reply(self, status: str, **fields: object) -> wire.ResponseReply:
        return wire.ResponseReply.model_validate(
            {
                **self._echo,
                "id": self._id,
                "created_at": self._created_at,
                "status": status,
                "output": list(self._done),
                **fields,
            }
        )

    def _event(self, type: str, **fields: object) -> str:
        event = _EVENT.dump_json(
            {"type": type, "sequence_number": self._number, **fields}, by_alias=True
        )
        self._number += 1
        return f"event: {type}\ndata: {event.decode()}\n\n"


def _echo(body: wire.ResponseBody, model: CalledModel, asked: ChatRequest) -> dict[str, Any]:
    """Return what a response says of its request: the values that were used."""
    choice = asked.tool_choice
    return {
        "instructions": body.instructions,
        "max_output_tokens": body.max_output_tokens,
        "model": model.name,
        "parallel_tool_calls": asked.parallel_tool_calls,
        "prompt_cache_key": body.prompt_cache_key,
        "safety_identifier": body.safety_identifier,
        "temperature": asked.temperature,
        "text": wire.answer_form(body.text)[1],
        "tool_choice": wire.ChoiceReply(name=choice.name)
        if isinstance(choice, ToolName)
        else choice,
        "tools": [
            wire.ToolReply(name=t.name, description=t.description, parameters=t.parameters)
            for t in body.tools or ()
        ],
        "top_logprobs": asked.top_logprobs or 0,
        "top_p": asked.top_p,
        "user": body.user,
        "metadata": body.metadata or {},
    }


def _usage(end: ChatEnd) -> wire.ResponseUsage:
    return wire.ResponseUsage(
        input_tokens=end.prompt_tokens,
        input_tokens_details=wire.InputTokens(cached_tokens=end.cached_tokens),
        output_tokens=end.completion_tokens,
        total_tokens=end.prompt_tokens + end.completion_tokens,
    )
