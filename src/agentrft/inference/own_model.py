"""Grader models in our own engine: chats of a process that serves them, the server's or a private one.

Loads no torch: the process does.
"""

import asyncio
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from weakref import WeakKeyDictionary

from agentrft.core.errors import GraderError, SamplerError, UserError
from agentrft.core.usage import TokenUsage
from agentrft.inference.chat import ChatClient, ChatEnd, ChatRequest
from agentrft.inference.grader_model import GradingReply, GradingRequest

_ANSWER_TOKENS = 1024
"""Of a reply that names no limit."""
_TEXT_CHARACTERS = 300
"""Of one text in a forced reply: a small model that may go on for ever does."""
_FIRST_DELAY_S = 0.2
_LONGEST_DELAY_S = 5.0
_ENDING_S = 20.0
_POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class _Private:
    process: subprocess.Popen[bytes]
    folder: Path


class OwnModels:
    """Leads to a process that serves models of this home.

    `served` is the socket of a running server. Where nobody answers on it and `command` is given, that
    command with the path of a socket put behind it is started when somebody asks, until `close`.
    """

    def __init__(
        self, served: Path, command: Callable[[Path], Sequence[str]] | None = None
    ) -> None:
        self._served = served
        self._command = command
        self._private: _Private | None = None
        self._lock = threading.Lock()

    async def client(self) -> ChatClient:
        """Return a client of a process that is up. Raises SamplerError if there is none."""
        client = ChatClient(self._served)
        if self._command is None or await client.ready():
            return client
        private = await asyncio.to_thread(self._start, self._command)
        client = ChatClient(private.folder / "chat.sock")
        while not await client.ready():
            if private.process.poll() is not None:
                raise SamplerError(
                    f"the process of grader models ended with code {private.process.returncode}; "
                    "what it says is above"
                )
            await asyncio.sleep(_POLL_S)
        return client

    def close(self) -> None:
        """End the private process, if one was started; closing twice is free."""
        with self._lock:
            private, self._private = self._private, None
        if private is None:
            return
        private.process.terminate()
        try:
            private.process.wait(_ENDING_S)
        except subprocess.TimeoutExpired:
            private.process.kill()
            private.process.wait()
        shutil.rmtree(private.folder, ignore_errors=True)

    def _start(self, command: Callable[[Path], Sequence[str]]) -> _Private:
        with self._lock:
            if self._private is None or self._private.process.poll() is not None:
                if self._private is not None:
                    shutil.rmtree(self._private.folder, ignore_errors=True)
                # Paths of sockets are short, those of home folders need not be.
                folder = Path(tempfile.mkdtemp(prefix="agentrft-"))
                process = subprocess.Popen(command(folder / "chat.sock"), process_group=0)
                self._private = _Private(process, folder)
            return self._private


class OwnGraderModel:
    """A `GraderModel` in our own engine, base weights only; replies are forced into the schema."""

    def __init__(
        self, base: str, own: OwnModels, *, max_concurrent: int = 16, timeout_s: float = 120.0
    ) -> None:
        self._base = base
        self._own = own
        self._max_concurrent = max_concurrent
        self._timeout_s = timeout_s
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            WeakKeyDictionary()
        )

    async def ask(self, request: GradingRequest) -> GradingReply:
        """Answer; without a temperature the likeliest tokens are taken, so that grades nearly repeat.

        Raises GraderError: `model_grader_server_error`.
        """
        chat = ChatRequest(
            base=self._base,
            messages=request.messages,
            max_tokens=request.max_tokens or _ANSWER_TOKENS,
            temperature=request.temperature or 0.0,
            top_p=request.top_p or 1.0,
            seed=request.seed,
            schema=None if request.schema is None else bounded(request.schema),
        )
        slots = self._slots.setdefault(
            asyncio.get_running_loop(), asyncio.Semaphore(self._max_concurrent)
        )
        deadline = asyncio.timeout(self._timeout_s)
        last = ""
        try:
            async with deadline, slots:
                delay_s = _FIRST_DELAY_S
                while True:
                    try:
                        return await self._answer(chat)
                    except SamplerError as error:  # busy, or just started again
                        last = f"; the last reason: {error}"
                    await asyncio.sleep(delay_s)
                    delay_s = min(2 * delay_s, _LONGEST_DELAY_S)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise _server_error(
                f"grader model {self._base!r} gave no answer in {self._timeout_s:g} s{last}"
            ) from None
        except UserError as error:
            raise _server_error(f"grader model {self._base!r}: {error}") from error

    async def _answer(self, request: ChatRequest) -> GradingReply:
        client = await self._own.client()
        async with aclosing(client.stream(request)) as pieces:
            async for piece in pieces:
                if isinstance(piece, ChatEnd):
                    return GradingReply(
                        text=piece.message.content,
                        finish_reason="length" if piece.finish_reason == "length" else "stop",
                        usage=TokenUsage(
                            prompt_tokens=piece.prompt_tokens,
                            completion_tokens=piece.completion_tokens,
                            cached_tokens=piece.cached_tokens,
                        ),
                    )
        raise SamplerError("the answer has no end")


def bounded(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Return a schema whose free texts have a greatest length."""
    result = {key: _bounded_within(value) for key, value in schema.items()}
    if schema.get("type") == "string" and not {"enum", "const", "maxLength"} & schema.keys():
        result["maxLength"] = _TEXT_CHARACTERS
    return result


def _bounded_within(value: object) -> object:
    match value:
        case Mapping():
            return bounded(cast(Mapping[str, Any], value))
        case list():
            return [_bounded_within(part) for part in cast(list[object], value)]
        case _:
            return value


def _server_error(message: str) -> GraderError:
    return GraderError(message, code="model_grader_server_error")
