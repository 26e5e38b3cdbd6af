"""Who is calling, and what they may do. Without a token only what `OPEN` lists answers."""

from collections.abc import Awaitable, Callable

from fastapi import Request

from agentrft.server.errors import ApiError
from agentrft.store.access import Access, Identity, Role

OPEN = frozenset({"/healthz", "/docs", "/openapi.json"})
"""Paths that answer without a token: a browser that opens a page has none."""


def identify(access: Access, authorization: str) -> Identity:
    """Return whose token an Authorization header carries. Raises ApiError 401 for none or a bad one."""
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise _unauthorized(
            "You didn't provide an API token. Send it as header 'Authorization: Bearer art-...'; "
            "`agentrft token create` makes one."
        )
    identity = access.identify(token.strip())
    if identity is None:
        raise _unauthorized(
            "Incorrect API token provided: it is unknown, expired or revoked. "
            "`agentrft token list` shows what exists."
        )
    return identity


def require(role: Role) -> Callable[[Request], Awaitable[Identity]]:
    """Return the dependency that lets through who has the role, and says who it is."""

    async def caller(request: Request) -> Identity:
        identity = identity_of(request)
        if identity.role < role:
            raise ApiError(
                403,
                f"This token has role '{identity.role}'; {request.method} {request.url.path} needs "
                f"'{role}'.",
                code="insufficient_permissions",
            )
        return identity

    return caller


def identity_of(request: Request) -> Identity:
    """Return who is calling, as the gate found out."""
    identity = request.state.identity
    assert isinstance(identity, Identity), "the gate lets nobody pass without an identity"
    return identity


def _unauthorized(message: str) -> ApiError:
    return ApiError(
        401,
        message,
        code="invalid_api_key",
        headers={"www-authenticate": 'Bearer realm="agentrft"'},
    )
