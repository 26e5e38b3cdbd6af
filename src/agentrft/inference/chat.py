"""Chat with a served model: what is asked, what comes back, and the client of the serving process.

Loads no torch. The other end is `inference/service.py`, reached over a unix socket in the home folder.
"""

import dataclasses
import json
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import httpx2

from agentrft.core.errors import SamplerError, UserError
from agentrft.core.task import Message, ToolCall, ToolSpec

ChatFinish = Literal["stop", "length", "tool_calls"]

_CONNECT_S = 5.0
_SILENCE_S = 600.0
"""Longest wait for the next piece: a model may have to be loaded first, or all rows be taken."""


class ChatBusyError(SamplerError):
    """More is asked of the serving process than it holds in line; try again later."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolName:
    """The one tool that must be called."""

    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatRequest:
    """One answer wanted. Ask several times, with different seeds, for several choices."""

    base: str
    """Registry name, hub id or folder of the base model."""
    adapter: str | None = None
    """Checkpoint folder on top of it."""
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: Literal["auto", "none", "required"] | ToolName = "auto"
    parallel_tool_calls: bool = True
    """False ends the answer after its first call."""
    max_tokens: int | None = None
    """None: as many as the context holds."""
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    """None draws one."""
    stop: tuple[str, ...] = ()
    """The answer ends before the first of these."""
    top_logprobs: int | None = None
    """How many likely alternatives to report for each token; None reports no logprobs at all."""
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer is forced into; then there are no tool calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLogprob:
    """A sampled token under the model itself: temperature 1, all tokens, in nats."""

    token: str
    bytes: bytes
    """A character may be spread over several tokens; their bytes put together give it."""
    logprob: float
    top: tuple[tuple[str, float], ...] = ()
    """The likeliest tokens here, best first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CallDelta:
    """A piece of a tool call. Calls are sent whole, once they are readable."""

    index: int
    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatDelta:
    """What was added to the answer."""

    text: str = ""
    call: CallDelta | None = None
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatEnd:
    """The whole answer: what the deltas add up to, and what it took."""

    message: Message
    finish_reason: ChatFinish
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    """Prompt tokens that were not computed again."""


class ChatClient:
    """Asks the serving process. Leaving a stream early frees what it held there."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatDelta | ChatEnd, None]:
        """Answer piece by piece; the last piece is the end.

        Raises UserError for what no retry can help, ChatBusyError if too many wait, SamplerError if
        the process is down or fails.
        """
        ended = False
        try:
            async with (
                self._client() as client,
                client.stream("POST", "/chat", content=dump_request(request)) as reply,
            ):
                if reply.status_code != 200:
                    await reply.aread()
                    raise _failure(reply.status_code, reply.text)
                async for line in reply.aiter_lines():
                    piece = load_piece(line)
                    ended = isinstance(piece, ChatEnd)
                    yield piece
        except httpx2.HTTPError as error:
            raise SamplerError(
                f"the chat process does not answer ({type(error).__name__}); it is started again by "
                "`agentrft serve`, try again in a moment"
            ) from error
        if not ended:
            raise SamplerError("the chat process ended in the middle of an answer; try again")

    async def ready(self) -> bool:
        """Whether the process is up."""
        try:
            async with self._client() as client:
                return (await client.get("/health")).status_code == 200
        except httpx2.HTTPError:
            return False

    def _client(self) -> httpx2.AsyncClient:
        return httpx2.AsyncClient(
            # There is nothing to verify on a socket, and setting it up takes longer than asking.
            transport=httpx2.AsyncHTTPTransport(uds=str(self.socket), verify=False),
            trust_env=False,
            base_url="http://chat",
            timeout=httpx2.Timeout(_SILENCE_S, connect=_CONNECT_S),
        )


def _failure(status: int, text: str) -> SamplerError | UserError:
    """Turn an error reply into the error it stands for."""
    try:
        message = str(json.loads(text)["error"])
    except (ValueError, LookupError, TypeError):
        message = f"the chat process answered {status}"
    match status:
        case 400:
            return UserError(message)
        case 503:
            return ChatBusyError(message)
        case _:
            return SamplerError(message)


def dump_request(request: ChatRequest) -> bytes:
    """Write a request as JSON."""
    return json.dumps(dataclasses.asdict(request)).encode()


def load_request(text: bytes) -> ChatRequest:
    """Read what `dump_request` wrote. Raises UserError."""
    try:
        fields: dict[str, Any] = json.loads(text)
        choice: Any = fields["tool_choice"]
        fields["messages"] = tuple(_load_message(message) for message in fields["messages"])
        fields["tools"] = tuple(ToolSpec(**tool) for tool in fields["tools"])
        fields["tool_choice"] = choice if isinstance(choice, str) else ToolName(**choice)
        fields["stop"] = tuple(fields["stop"])
        return ChatRequest(**fields)
    except (ValueError, LookupError, TypeError) as error:
        raise UserError(f"the chat request cannot be read: {error}") from error


def dump_piece(piece: ChatDelta | ChatEnd) -> bytes:
    """Write a piece of an answer as one line of JSON."""
    kind = "delta" if isinstance(piece, ChatDelta) else "end"
    fields = dataclasses.asdict(piece)
    # ASCII alone, since readers of lines also break them at some characters beyond it.
    return json.dumps({kind: fields}, default=list).encode() + b"\n"


def dump_error(error: Exception) -> bytes:
    """Write the error that ended an answer as one line of JSON."""
    return json.dumps({"error": str(error)}).encode() + b"\n"


def load_piece(line: str) -> ChatDelta | ChatEnd:
    """Read a line of an answer. Raises SamplerError for an error line and for what is no line."""
    try:
        fields: dict[str, Any] = json.loads(line)
        if "error" in fields:
            raise SamplerError(str(fields["error"]))
        if "delta" in fields:
            return _load_delta(fields["delta"])
        end: dict[str, Any] = fields["end"]
        end["message"] = _load_message(end["message"])
        return ChatEnd(**end)
    except (ValueError, LookupError, TypeError) as error:
        raise SamplerError(f"the chat process wrote what cannot be read: {error}") from error


def _load_delta(fields: Mapping[str, Any]) -> ChatDelta:
    call = fields["call"]
    return ChatDelta(
        text=fields["text"],
        call=None if call is None else CallDelta(**call),
        logprobs=tuple(
            TokenLogprob(
                token=token["token"],
                bytes=bytes(token["bytes"]),
                logprob=token["logprob"],
                top=tuple((text, logprob) for text, logprob in token["top"]),
            )
            for token in fields["logprobs"]
        ),
    )


def _load_message(fields: dict[str, Any]) -> Message:
    fields["tool_calls"] = tuple(ToolCall(**call) for call in fields["tool_calls"])
    return Message(**fields)
