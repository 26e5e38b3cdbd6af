"""What every request passes before any route sees it, and what every reply carries.

Order: request id, Host, Origin, token, rate, size of the body. Written against bare ASGI, so that
streams pass through untouched.
"""

import time
import uuid
from collections.abc import Mapping, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from agentrft.core.errors import AgentRFTError, boundary
from agentrft.server.auth import OPEN, identify
from agentrft.server.context import Server
from agentrft.server.errors import ApiError, as_api_error
from agentrft.server.settings import ServerSettings
from agentrft.store.files import MAX_FILE_BYTES

_FORM_BYTES = 1 << 20
"""Of an upload beside the file itself."""
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
_EVERY_REPLY = {
    "openai-version": "2020-10-01",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}


class _UnforeseenError(AgentRFTError):
    """A failure that nobody attributed: a bug of ours."""


@dataclass
class _Reply:
    """What is known of the reply so far."""

    status: int = 0


class Gate:
    """ASGI middleware; the outermost of ours."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server
        self._hosts = allowed_hosts(server.settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let one request through or refuse it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, send)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        request_id = f"req_{uuid.uuid4().hex}"
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = request_id
        extra: dict[str, str] = {"x-request-id": request_id}
        reply = _Reply()

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                reply.status = message["status"]
                extra["openai-processing-ms"] = str(round((time.perf_counter() - began) * 1e3))
                _add_headers(message, extra)
            await send(message)

        try:
            with boundary(_UnforeseenError, f"{scope['method']} {scope['path']}"):
                await self._admit(scope, state, extra)
                with suppress(ClientDisconnect):
                    await self._app(scope, _bounded(receive, self._most_bytes(scope)), answer)
        except AgentRFTError as error:
            refusal = as_api_error(error, request_id)
            if reply.status:
                # Half an answer is out; only breaking the connection tells that it is not whole.
                raise
            await refusal.reply()(scope, receive, answer)
        finally:
            took_s = time.perf_counter() - began
            self._server.metrics.request(scope, reply.status, took_s)

    async def _admit(
        self, scope: Scope, state: MutableMapping[str, Any], extra: MutableMapping[str, str]
    ) -> None:
        headers = Headers(scope=scope)
        self._check_host(headers)
        self._check_origin(scope, headers)
        if scope["path"] in OPEN:
            return
        access = self._server.home.access
        identity = await run_in_threadpool(identify, access, headers.get("authorization", ""))
        state["identity"] = identity
        allowance = self._server.limiter.take(identity.token_id)
        extra.update(allowance.headers)
        if not allowance.allowed:
            raise ApiError(
                429,
                f"Rate limit reached: {allowance.limit} requests per minute for this token. "
                f"Please try again in {allowance.retry_s:.3f}s.",
                code="rate_limit_exceeded",
                headers={"retry-after": str(max(1, round(allowance.retry_s)))},
            )

    def _check_host(self, headers: Headers) -> None:
        host = headers.get("host", "")
        if _name_of(host).lower() not in self._hosts:
            raise ApiError(
                403,
                f"Host {host!r} is not one this server answers to; "
                "its operator can add the name to the server's hosts.",
                code="host_not_allowed",
            )

    def _check_origin(self, scope: Scope, headers: Headers) -> None:
        own = {f"{scheme}://{headers['host']}" for scheme in ("http", "https")}
        for origin in headers.getlist("origin"):
            if origin not in own and origin not in self._server.settings.allowed_origins:
                raise ApiError(
                    403,
                    f"Origin {origin!r} may not call this server; "
                    "its operator can add it to the server's origins.",
                    code="origin_not_allowed",
                )

    def _most_bytes(self, scope: Scope) -> int:
        if scope["method"] == "POST" and scope["path"] == "/v1/files":
            return MAX_FILE_BYTES + _FORM_BYTES
        return self._server.settings.json_bytes


def allowed_hosts(settings: ServerSettings) -> frozenset[str]:
    """Return the names, without port, that a Host header may carry."""
    # Nobody can call "every address" by name, so such a host adds one that never comes.
    named = (settings.host, *settings.allowed_hosts)
    bracketed = (f"[{name}]" if ":" in name else name for name in named)
    return frozenset(name.lower() for name in (*_LOOPBACK, *bracketed))


def _name_of(host: str) -> str:
    if host.startswith("["):
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]


def _bounded(receive: Receive, most_bytes: int) -> Receive:
    """Refuse a body once it turns out longer than allowed."""
    received = 0

    async def bounded() -> Message:
        nonlocal received
        message = await receive()
        received += len(message.get("body", b""))
        if received > most_bytes:
            raise ApiError(
                413, f"The body is longer than {most_bytes} bytes; send less.", code="too_large"
            )
        return message

    return bounded


def _add_headers(message: Message, extra: Mapping[str, str]) -> None:
    headers = MutableHeaders(scope=message)
    for name, value in _EVERY_REPLY.items():
        headers.setdefault(name, value)
    for name, value in extra.items():
        headers[name] = value
