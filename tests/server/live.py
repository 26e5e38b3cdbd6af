"""The API behind a real uvicorn on a free port, and the official client at the other end."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import uvicorn
from pydantic import BaseModel

from agentrft.server.app import create_app
from agentrft.server.context import Chat
from agentrft.server.settings import ServerSettings
from agentrft.store.access import Role
from agentrft.store.home import Home


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    home: Home
    url: str
    token: str
    clients: ExitStack
    """Closes the clients: the garbage collector may take a socket before what would close it."""

    def client(self, token: str = "") -> openai.OpenAI:
        return self.clients.enter_context(
            openai.OpenAI(
                base_url=f"{self.url}/v1", api_key=token or self.token, max_retries=0, timeout=20
            )
        )

    def async_client(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(
            base_url=f"{self.url}/v1", api_key=self.token, max_retries=0, timeout=20
        )

    def token_of(self, project: str, role: Role = Role.SUBMIT) -> str:
        return self.home.access.create_token(project, role, "test")[1]


@contextmanager
def live_server(folder: Path, chat: Chat, **settings: Any) -> Iterator[Live]:
    home = Home.open(folder)
    home.access.create_project("default")
    app = create_app(home, ServerSettings(**settings), chat)
    config = uvicorn.Config(
        app, host="127.0.0.1", port=0, log_level="error", ws="none", timeout_graceful_shutdown=2
    )
    server = uvicorn.Server(config)
    # The server closes its socket only if it came up before it was asked to end.
    with closing(config.bind_socket()) as bound:
        bound.listen()  # whoever is faster than the thread waits and is not refused
        thread = threading.Thread(target=server.run, args=([bound],), daemon=True)
        thread.start()
        try:
            token = home.access.create_token("default", Role.SUBMIT, "test")[1]
            url = f"http://127.0.0.1:{bound.getsockname()[1]}"
            with ExitStack() as clients:
                yield Live(home=home, url=url, token=token, clients=clients)
        finally:
            server.should_exit = True
            thread.join(timeout=20)
            home.close()


def assert_nothing_unknown(model: BaseModel, *known: str) -> None:
    """Fail for fields that the client's types do not have."""
    assert set(model.model_extra or {}) <= set(known), model
    for name in type(model).model_fields:
        for part in _parts(getattr(model, name)):
            assert_nothing_unknown(part, *known)


def _parts(value: object) -> Iterator[BaseModel]:
    if isinstance(value, BaseModel):
        yield value
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _parts(part)
