"""How routes of this API read a body and answer a repeated request.

JSON is read as strictly as datasets are. A call with an Idempotency-Key takes effect once; the same
call again gets the same reply.
"""

import hashlib
import uuid
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from fastapi.routing import APIRoute
from starlette.concurrency import run_in_threadpool

from agentrft.server.auth import identity_of
from agentrft.server.context import server_of
from agentrft.server.errors import bad_request
from agentrft.store.jsonl import RowError, strict_json

_LONGEST_KEY = 255

_NOT_HERE = {"/v1/files", "/v1/webhooks"}
"""Uploads are too long to be read first; the reply of the other holds a secret."""

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class StrictRequest(Request):
    """A request whose JSON is what it seems to be."""

    async def json(self) -> Any:
        """Return the body. Raises ApiError 400 for anything that two readers could read differently."""
        return read_json(await self.body())


class Route(APIRoute):
    """A route that reads strictly and answers repeated requests from memory."""

    def get_route_handler(self) -> Handler:
        """Wrap FastAPI's handler."""
        handler = super().get_route_handler()

        async def handle(request: Request) -> Response:
            strict = StrictRequest(request.scope, request.receive)
            key = request.headers.get("idempotency-key")
            if key is None or request.method == "GET" or self.path in _NOT_HERE:
                return await handler(strict)
            return await _once(strict, key, handler)

        return handle


def router(tag: str) -> APIRouter:
    """Return a router for routes of this API."""
    return APIRouter(prefix="/v1", tags=[tag], route_class=Route)


def new_id(request: Request, prefix: str) -> str:
    """Return an id: random, or the same again for the same request under the same Idempotency-Key.

    So a request that is repeated after a crash finds what the first one made.
    """
    seed = getattr(request.state, "repeat_seed", None)
    return prefix + (seed or uuid.uuid4().hex)[:24]


def read_json(body: bytes) -> Any:
    """Return the value a JSON text stands for. Raises ApiError 400."""
    try:
        return strict_json(body.decode("utf-8"))
    except UnicodeDecodeError:
        raise bad_request("The body is not UTF-8.", code="invalid_json") from None
    except RowError as problem:
        raise bad_request(
            f"We could not parse the JSON body of your request: {problem}.", code="invalid_json"
        ) from None


def repeat_seed(project: str, key: str, digest: str) -> str:
    """Return the random-looking part of ids that a request under this key makes."""
    return hashlib.sha256(f"{project}\0{key}\0{digest}".encode()).hexdigest()


def checked_key(key: str) -> str:
    """Return an Idempotency-Key. Raises ApiError 400 for one that nobody could have meant."""
    if not 0 < len(key) <= _LONGEST_KEY:
        raise bad_request(f"Idempotency-Key must have 1 to {_LONGEST_KEY} characters.")
    return key


async def _once(request: StrictRequest, key: str, handler: Handler) -> Response:
    replies = server_of(request).home.replies
    project = identity_of(request).project
    digest = hashlib.sha256(
        f"{request.method} {request.url.path}?{request.url.query}\0".encode() + await request.body()
    ).hexdigest()
    stored = await run_in_threadpool(replies.begin, project, checked_key(key), digest)
    if stored is not None:
        return replayed(stored.status, stored.body)
    request.state.repeat_seed = repeat_seed(project, key, digest)
    kept = False
    try:
        response = await handler(request)
        if response.status_code < 300 and not isinstance(response, StreamingResponse):
            body = bytes(response.body)
            await run_in_threadpool(replies.finish, project, key, response.status_code, body)
            kept = True
    finally:
        # A refusal is not kept: what was in the way may be gone at the next try.
        if not kept:
            await run_in_threadpool(replies.abandon, project, key)
    return response


def replayed(status: int, body: bytes) -> Response:
    """Return a kept reply."""
    headers = {"idempotency-replayed": "true"}
    return Response(body, status, headers, media_type="application/json")
