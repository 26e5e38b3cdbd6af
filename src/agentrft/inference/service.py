"""The process that serves models for chat: HTTP on a unix socket, answers as lines of JSON.

Only this machine's owner reaches the socket, and only through `ChatClient`; who may ask for which
model is the server's business.
"""

import asyncio
import os
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from agentrft.core.config import EngineConfig
from agentrft.core.errors import AgentRFTError, ConfigError, SamplerError, UserError, boundary
from agentrft.inference.chat import (
    ChatBusyError,
    ChatDelta,
    ChatEnd,
    dump_error,
    dump_piece,
    load_request,
)
from agentrft.inference.served import ServedModels

_GRACE_S = 5
"""How long answers under way may take once the process is asked to end."""
_LONGEST_PATH_BYTES = 107
"""Of a unix socket's name on Linux."""


def serve_chat(socket: Path, models: Path, config: EngineConfig, *, max_loaded: int = 2) -> None:
    """Serve until SIGTERM or SIGINT. Raises SamplerError if another process serves on the socket."""
    listener = _listen(socket)
    served = ServedModels(models, config, max_loaded=max_loaded)
    server = uvicorn.Server(
        uvicorn.Config(
            chat_app(served),
            lifespan="on",
            access_log=False,
            log_level="warning",
            timeout_graceful_shutdown=_GRACE_S,
        )
    )
    # uvicorn stops at these signals and raises them once more when it has; that one ends nothing.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    server.run(sockets=[listener])


def chat_app(served: ServedModels) -> Starlette:
    """Return the application; it closes the models when it ends."""

    @asynccontextmanager
    async def lifespan(_app: Starlette) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await served.close()

    async def health(_request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    return Starlette(
        routes=[
            Route("/health", health),
            Route("/chat", _ChatRoute(served), methods=["POST"]),
        ],
        lifespan=lifespan,
    )


class _ChatRoute:
    """Answers one request, and stops computing when the client is gone, at whatever stage."""

    def __init__(self, served: ServedModels) -> None:
        self._served = served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await Request(scope, receive).body()
        answering = asyncio.create_task(self._answer(body, scope, receive, send))
        leaving = asyncio.create_task(_disconnected(receive))
        try:
            await asyncio.wait({answering, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
            answering.cancel()
            with suppress(asyncio.CancelledError):
                await answering

    async def _answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        started = False
        try:
            with boundary(SamplerError, "the chat process failed"):
                async with aclosing(self._pieces(body)) as pieces:
                    async for piece in pieces:
                        if not started:
                            started = True
                            await send(_START)
                        await send(_body(dump_piece(piece)))
        except AgentRFTError as error:
            if not started:
                await JSONResponse({"error": str(error)}, _status(error))(scope, receive, send)
                return
            await send(_body(dump_error(error)))
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _pieces(self, body: bytes) -> AsyncGenerator[ChatDelta | ChatEnd, None]:
        request = load_request(body)
        async with (
            self._served.use(request.base, request.adapter) as model,
            aclosing(model.answer(request)) as pieces,
        ):
            async for piece in pieces:
                yield piece


_START = {
    "type": "http.response.start",
    "status": 200,
    "headers": [(b"content-type", b"application/x-ndjson")],
}


def _body(line: bytes) -> dict[str, object]:
    return {"type": "http.response.body", "body": line, "more_body": True}


def _status(error: AgentRFTError) -> int:
    match error:
        case UserError():
            return 400
        case ChatBusyError():
            return 503
        case _:
            return 500


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _listen(path: Path) -> socket.socket:
    """Bind the socket for the owner alone, in place of one that nobody serves any more."""
    if len(os.fsencode(path)) > _LONGEST_PATH_BYTES:
        raise ConfigError(
            f"{path} is too long for a socket ({_LONGEST_PATH_BYTES} bytes); choose a home folder "
            "with a shorter path"
        )
    if path.exists():
        with socket.socket(socket.AF_UNIX) as probe:
            if probe.connect_ex(str(path)) == 0:
                raise SamplerError(f"another process serves chats on {path}; end it first")
        path.unlink()
    listener = socket.socket(socket.AF_UNIX)
    mask = os.umask(0o177)
    try:
        listener.bind(str(path))
    finally:
        os.umask(mask)
    return listener
