"""The API as one ASGI application. Torch-free; running work is reached through the store alone."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import anyio.to_thread
from fastapi import FastAPI

from agentrft.server import errors
from agentrft.server.context import Chat, Server
from agentrft.server.followers import Followers
from agentrft.server.gate import Gate
from agentrft.server.limits import Limiter
from agentrft.server.metrics import Metrics
from agentrft.server.settings import ServerSettings
from agentrft.store.home import Home

__all__ = ["ServerSettings", "create_app"]

ROUTERS = ()


def create_app(home: Home, settings: ServerSettings, chat: Chat) -> FastAPI:
    """Return the application; it closes neither `home` nor `chat`."""
    server = Server(
        home=home,
        settings=settings,
        chat=chat,
        limiter=Limiter(settings.requests_per_minute),
        metrics=Metrics(),
        followers=Followers(home, settings.poll_s, events.frame),
    )

    @asynccontextmanager
    async def running(_app: FastAPI) -> AsyncIterator[None]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = settings.threads
        yield

    app = FastAPI(
        title="AgentRFT",
        description="The OpenAI fine-tuning contract, on your machine.",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        lifespan=running,
        redirect_slashes=False,
    )
    app.state.server = server
    errors.install(app)
    app.add_middleware(Gate, server=server)
    for router in ROUTERS:
        app.include_router(router)
    return app
