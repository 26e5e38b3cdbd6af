"""`chat/completions`: base models, fine-tuned models and their checkpoints answer as OpenAI's do.

Several choices run at the same time with seeds of their own. A client that leaves cancels its work.
"""

import asyncio
import hashlib
import json
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request, Response
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from agentrft.core.errors import AgentRFTError
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Message, ToolSpec
from agentrft.inference.chat import ChatDelta, ChatEnd, ChatRequest, TokenLogprob, ToolName
from agentrft.server import chat_wire as wire
from agentrft.server.auth import require
from agentrft.server.context import Chat, Here, Server
from agentrft.server.errors import ApiError, as_api_error, bad_request, not_found
from agentrft.server.routing import router
from agentrft.store.access import Identity, Role
from agentrft.store.errors import NotFoundError

CLIENT_LEFT = 499
"""Status of a reply that nobody waits for."""
EVENT_STREAM = "text/event-stream"

Reader = Annotated[Identity, Depends(require(Role.READ))]
Pieces = AsyncGenerator[tuple[int, ChatDelta | ChatEnd], None]
T = TypeVar("T")

routes = router("chat")


@dataclass(frozen=True, slots=True, kw_only=True)
class CalledModel:
    """What a request's `model` stands for."""

    name: str
    """As replies name it."""
    base: str
    adapter: str | None = None

    @property
    def fingerprint(self) -> str:
        """Same seed and same fingerprint, same answer."""
        backend = f"{version('agentrft')}\0{self.base}\0{self.adapter}"
        return "fp_" + hashlib.sha256(backend.encode()).hexdigest()[:10]


@routes.post(
    "/chat/completions",
    response_model=wire.ChatCompletion,
    responses={200: {"content": {EVENT_STREAM: {}}}},
)
async def create_chat_completion(
    request: Request, body: wire.ChatCompletionBody, server: Here, caller: Reader
) -> Any:
    """Answer a conversation, whole or as a stream of chunks."""
    model = await called_model(server, caller, body.model)
    requests = _choices(body, _chat_request(body, model))
    pieces = together(server.chat, requests)
    answer = _Answer(body, model)
    if not body.stream:
        return await unless_gone(request, answer.whole(pieces))
    begun = await unless_gone(request, begin(pieces))
    if isinstance(begun, Response):
        return begun
    return StreamingResponse(answer.chunks(begun, request), media_type=EVENT_STREAM)


async def called_model(server: Server, caller: Identity, name: str) -> CalledModel:
    """Return what a name stands for: a base model, an alias, or what the caller may use of `ft:`.

    Raises ApiError 404.
    """
    base = server.settings.base_of(name)
    if base is not None:
        return CalledModel(name=base, base=base)
    try:
        model = await run_in_threadpool(server.home.catalogue.get, caller.project, name)
    except NotFoundError:
        raise not_found(
            f"The model '{name}' does not exist or you do not have access to it; "
            "GET /v1/models lists what you can call.",
            "model",
            "model_not_found",
        ) from None
    return CalledModel(name=name, base=model.base, adapter=str(model.path))


def conversation(messages: Sequence[tuple[str, Message]]) -> tuple[Message, ...]:
    """Return messages whose tool answers name their tool; each comes with its path in the body.

    Raises ApiError 400 where an answer has no call or a call no answer.
    """
    result: list[Message] = []
    unanswered: dict[str, str] = {}
    for path, message in messages:
        if message.role == "tool":
            call_id = message.tool_call_id or ""
            if call_id not in unanswered:
                raise bad_request(
                    f"{path}: no tool call with id {call_id!r} stands before this answer.", path
                )
            result.append(replace(message, name=unanswered.pop(call_id)))
            continue
        if unanswered:
            raise _no_answer(unanswered, path)
        unanswered = {call.id: call.name for call in message.tool_calls}
        result.append(message)
    if unanswered:
        raise _no_answer(unanswered, messages[-1][0])
    return tuple(result)


def _no_answer(unanswered: Mapping[str, str], path: str) -> ApiError:
    calls = ", ".join(repr(call_id) for call_id in unanswered)
    return bad_request(f"{path}: tool call {calls} has no answer; each call needs one.", path)


def tool_choice(
    tools: Sequence[ToolSpec], choice: wire.ToolMode | wire.FunctionName | None
) -> wire.ToolMode | ToolName:
    """Return how the model may call tools. Raises ApiError 400 for a choice the tools cannot meet."""
    names = [tool.name for tool in tools]
    for name in names:
        if names.count(name) > 1:
            raise bad_request(f"tools: two are named {name!r}; rename one.", "tools")
    if isinstance(choice, wire.FunctionName):
        if choice.name not in names:
            raise bad_request(f"tool_choice: there is no tool {choice.name!r}.", "tool_choice")
        return ToolName(name=choice.name)
    if choice == "required" and not tools:
        raise bad_request("tool_choice: 'required' needs tools; give some.", "tool_choice")
    return choice or "auto"


def answer_form(
    schema: Mapping[str, Any] | None, tools: Sequence[ToolSpec], choice: object, path: str
) -> Mapping[str, Any] | None:
    """Return the schema. Raises ApiError 400 where the model may call tools instead."""
    if schema is not None and tools and choice != "none":
        raise bad_request(
            f"{path}: an answer forced into a form cannot call tools here; leave tools out, or say "
            "tool_choice 'none'.",
            path,
        )
    return schema


def together(chat: Chat, requests: Sequence[ChatRequest]) -> Pieces:
    """Answer requests at the same time; each piece comes with its request's index."""
    arrived: asyncio.Queue[tuple[int, ChatDelta | ChatEnd] | None] = asyncio.Queue()

    async def pump(index: int, request: ChatRequest) -> None:
        async for piece in chat.stream(request):
            arrived.put_nowait((index, piece))

    async def merged() -> Pieces:
        tasks = [asyncio.create_task(pump(i, request)) for i, request in enumerate(requests)]
        for task in tasks:
            task.add_done_callback(lambda _task: arrived.put_nowait(None))
        try:
            running = len(tasks)
            while running:
                piece = await arrived.get()
                if piece is not None:
                    yield piece
                    continue
                running -= 1
                for task in tasks:
                    if task.done():
                        task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    return merged()


async def begin(pieces: Pieces) -> Pieces:
    """Wait for the first piece, so that a refusal still has a status of its own."""
    first = await anext(pieces)

    async def resumed() -> Pieces:
        async with aclosing(pieces):
            yield first
            async for piece in pieces:
                yield piece

    return resumed()


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T | Response:
    """Do the work; a client that leaves cancels it. Needs a request whose body was read."""
    working = asyncio.ensure_future(work)
    # Nothing but the disconnect can still arrive.
    leaving = asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else Response(status_code=CLIENT_LEFT)
    finally:
        working.cancel()
        leaving.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


def error_of(error: AgentRFTError, request: Request) -> dict[str, Any]:
    """Return the contract's error body for a failure in the middle of a stream."""
    return as_api_error(error, str(request.state.request_id)).body


def logprobs_of(tokens: Sequence[TokenLogprob]) -> list[wire.TokenLogprobs]:
    """Return drawn tokens with their alternatives."""
    return [
        wire.TokenLogprobs(
            token=token.token,
            bytes=list(token.bytes),
            logprob=token.logprob,
            top_logprobs=[
                wire.TopLogprob(token=text, bytes=list(text.encode()), logprob=logprob)
                for text, logprob in token.top
            ],
        )
        for token in tokens
    ]


def _chat_request(body: wire.ChatCompletionBody, model: CalledModel) -> ChatRequest:
    tools = wire.tool_specs(body.tools or ())
    choice = body.tool_choice
    if isinstance(choice, wire.FunctionChoice):
        choice = choice.function
    most = {body.max_tokens, body.max_completion_tokens} - {None}
    if len(most) > 1:
        raise bad_request(
            "max_tokens and max_completion_tokens differ; give only one.", "max_tokens"
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise bad_request("top_logprobs needs logprobs: true.", "top_logprobs")
    if body.stream_options is not None and not body.stream:
        raise bad_request("stream_options needs stream: true.", "stream_options")
    return ChatRequest(
        base=model.base,
        adapter=model.adapter,
        messages=conversation(
            [(f"messages[{i}]", wire.core_message(m)) for i, m in enumerate(body.messages)]
        ),
        tools=tools,
        tool_choice=tool_choice(tools, choice),
        parallel_tool_calls=body.parallel_tool_calls is not False,
        max_tokens=most.pop() if most else None,
        temperature=1.0 if body.temperature is None else body.temperature,
        top_p=1.0 if body.top_p is None else body.top_p,
        seed=body.seed,
        stop=(body.stop,) if isinstance(body.stop, str) else tuple(body.stop or ()),
        top_logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        schema=answer_form(
            wire.answer_schema(body.response_format), tools, choice, "response_format"
        ),
    )


def _choices(body: wire.ChatCompletionBody, request: ChatRequest) -> list[ChatRequest]:
    count = body.n or 1
    if body.seed is None:
        return [request] * count
    seeds = (derive_seed(body.seed, "choice", index) for index in range(count))
    return [replace(request, seed=seed) for seed in seeds]


class _Answer:
    """Turns pieces into OpenAI's reply, whole or in chunks."""

    def __init__(self, body: wire.ChatCompletionBody, model: CalledModel) -> None:
        self._body = body
        self._model = model
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._with_usage = bool(body.stream_options and body.stream_options.include_usage)

    async def whole(self, pieces: Pieces) -> wire.ChatCompletion:
        """Return the reply once every choice has ended."""
        ends: dict[int, ChatEnd] = {}
        tokens: dict[int, list[TokenLogprob]] = {}
        async with aclosing(pieces):
            async for index, piece in pieces:
                if isinstance(piece, ChatEnd):
                    ends[index] = piece
                else:
                    tokens.setdefault(index, []).extend(piece.logprobs)
        return wire.ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._model.name,
            choices=[
                wire.Choice(
                    index=index,
                    message=_assistant(end.message),
                    logprobs=self._logprobs(tokens.get(index, ())),
                    finish_reason=end.finish_reason,
                )
                for index, end in sorted(ends.items())
            ],
            usage=_usage(list(ends.values())),
            system_fingerprint=self._model.fingerprint,
        )

    async def chunks(self, pieces: Pieces, request: Request) -> AsyncIterator[str]:
        """Yield server-sent events; a failure becomes an error event and ends the stream."""
        begun: set[int] = set()
        ends: list[ChatEnd] = []
        async with aclosing(pieces):
            try:
                async for index, piece in pieces:
                    if index not in begun:
                        begun.add(index)
                        calls_first = isinstance(piece, ChatDelta) and piece.call and not piece.text
                        content = None if calls_first else ""
                        delta = wire.Delta(role="assistant", content=content, refusal=None)
                        yield self._chunk(index, delta)
                    if isinstance(piece, ChatEnd):
                        ends.append(piece)
                        yield self._chunk(index, wire.Delta(), finish_reason=piece.finish_reason)
                    else:
                        yield self._chunk(index, _delta(piece), piece.logprobs)
            except AgentRFTError as error:
                yield _event(json.dumps(error_of(error, request)))
                return
        if self._with_usage:
            yield self._frame([], _usage(ends))
        yield _event("[DONE]")

    def _chunk(
        self,
        index: int,
        delta: wire.Delta,
        tokens: Sequence[TokenLogprob] = (),
        finish_reason: wire.FinishReason | None = None,
    ) -> str:
        logprobs = self._logprobs(tokens) if tokens else None
        choice = wire.ChunkChoice(
            index=index, delta=delta, logprobs=logprobs, finish_reason=finish_reason
        )
        return self._frame([choice], None)

    def _frame(self, choices: list[wire.ChunkChoice], usage: wire.Usage | None) -> str:
        usage_field = {"usage": usage} if self._with_usage else {}
        chunk = wire.ChatCompletionChunk(
            id=self._id,
            object="chat.completion.chunk",
            created=self._created,
            model=self._model.name,
            choices=choices,
            service_tier="default",
            system_fingerprint=self._model.fingerprint,
            **usage_field,
        )
        return _event(chunk.model_dump_json(exclude_unset=True))

    def _logprobs(self, tokens: Sequence[TokenLogprob]) -> wire.Logprobs | None:
        if not self._body.logprobs:
            return None
        return wire.Logprobs(content=logprobs_of(tokens), refusal=None)


def _event(data: str) -> str:
    return f"data: {data}\n\n"


def _assistant(message: Message) -> wire.AssistantReply:
    calls = [
        wire.CallReply(
            id=call.id, function=wire.CalledFunction(name=call.name, arguments=call.arguments)
        )
        for call in message.tool_calls
    ]
    content = message.content or (None if calls else "")
    return wire.AssistantReply(content=content, tool_calls=calls or None)


def _delta(piece: ChatDelta) -> wire.Delta:
    fields: dict[str, Any] = {}
    if piece.text:
        fields["content"] = piece.text
    if call := piece.call:
        function = wire.FunctionDelta(name=call.name, arguments=call.arguments)
        fields["tool_calls"] = [
            wire.CallDeltaReply(index=call.index, id=call.id, type="function", function=function)
        ]
    return wire.Delta(**fields)


def _usage(ends: Sequence[ChatEnd]) -> wire.Usage:
    prompt = ends[0].prompt_tokens
    completion = sum(end.completion_tokens for end in ends)
    return wire.Usage(
        prompt_tokens=prompt,
        completion_tokens=completion,
        total_tokens=prompt + completion,
        prompt_tokens_details=wire.PromptTokens(
            cached_tokens=ends[0].cached_tokens, audio_tokens=0
        ),
        completion_tokens_details=wire.CompletionTokens(
            reasoning_tokens=0,
            audio_tokens=0,
            accepted_prediction_tokens=0,
            rejected_prediction_tokens=0,
        ),
    )
