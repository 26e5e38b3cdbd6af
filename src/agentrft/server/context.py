"""What every route can reach: the home, the settings, the chat child, and what lives per process."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from typing import Annotated, Protocol, cast

from fastapi import Depends, Request

from agentrft.egress.policy import EgressPolicy
from agentrft.graders.backends import Backends
from agentrft.inference.chat import ChatDelta, ChatEnd, ChatRequest
from agentrft.server.followers import Followers
from agentrft.server.limits import Limiter
from agentrft.server.metrics import Metrics
from agentrft.server.settings import ServerSettings
from agentrft.store.home import Home


class Chat(Protocol):
    """What answers chat requests; `inference.chat.ChatClient` outside of tests."""

    def stream(self, request: ChatRequest) -> AsyncIterator[ChatDelta | ChatEnd]:
        """Answer piece by piece; the last piece is the end."""
        ...

    async def ready(self) -> bool:
        """Whether it would answer now."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """One server process."""

    home: Home
    settings: ServerSettings
    backends: Backends
    """What graders reach."""
    chat: Chat
    limiter: Limiter
    metrics: Metrics
    followers: Followers

    @property
    def policy(self) -> EgressPolicy:
        """Where tools, graders and webhooks may be."""
        return self.backends.policy

    def backends_of(self, project: str) -> Backends:
        """Return what graders of a project reach; their code shares a sandbox with nobody else's."""
        return replace(self.backends, owner=project)


def server_of(request: Request) -> Server:
    """Return the server that a request reached."""
    return cast(Server, request.app.state.server)


async def _server(request: Request) -> Server:
    return server_of(request)


Here = Annotated[Server, Depends(_server)]
"""Parameter of a route that needs the server."""
