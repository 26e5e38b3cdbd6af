"""The API in this process, with a token for each kind of caller."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from starlette.testclient import TestClient

from agentrft.inference.scripted import ScriptedChat, scripted_answer
from agentrft.server.app import create_app
from agentrft.server.settings import ServerSettings
from agentrft.store.access import Role
from agentrft.store.home import Home


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    home: Home
    app: FastAPI
    client: TestClient
    """Speaks for an administrator of project `default`."""

    def token(self, role: Role, project: str = "default") -> str:
        self.home.access.create_project(project)
        return self.home.access.create_token(project, role, "test")[1]

    def caller(self, role: Role, project: str = "default") -> dict[str, str]:
        return bearer(self.token(role, project))

    def upload(self, rows: Sequence[Mapping[str, Any]], **headers: str) -> str:
        """Upload rows for training; return the file's id."""
        content = "\n".join(json.dumps(row) for row in rows)
        reply = self.client.post(
            "/v1/files",
            files={"file": ("rows.jsonl", content)},
            data={"purpose": "fine-tune"},
            headers=headers,
        )
        assert reply.status_code == 200, reply.text
        return reply.json()["id"]


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


@contextmanager
def served(folder: Path, **settings: Any) -> Iterator[Served]:
    home = Home.open(folder)
    home.access.create_project("default")
    _, token = home.access.create_token("default", Role.ADMIN, "test")
    chat = ScriptedChat(lambda _request: scripted_answer("It ", "shipped."))
    app = create_app(home, ServerSettings(poll_s=0.02, **settings), chat)
    with TestClient(app, base_url="http://localhost", headers=bearer(token)) as client:
        yield Served(home=home, app=app, client=client)
    home.close()


def error_of(reply: Any) -> dict[str, Any]:
    """Return the error of a reply, which has exactly the contract's four fields."""
    body = reply.json()
    assert set(body) == {"error"}, body
    assert set(body["error"]) == {"message", "type", "param", "code"}
    return body["error"]


def tasks(count: int = 10, tools: Sequence[str] = ()) -> list[dict[str, Any]]:
    return [
        {
            "messages": [{"role": "user", "content": f"What is {n} + 1?"}],
            "answer": str(n + 1),
            "tools": [tool_schema(name) for name in tools],
        }
        for n in range(count)
    ]


def demonstrations(count: int = 10) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"What is {n} + 1?"},
                {"role": "assistant", "content": str(n + 1)},
            ]
        }
        for n in range(count)
    ]


def tool_schema(name: str) -> dict[str, Any]:
    parameters = {"type": "object", "properties": {"query": {"type": "string"}}}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


CHECK = {
    "type": "string_check",
    "name": "right",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


def reinforcement(**changes: Any) -> dict[str, Any]:
    return {"type": "reinforcement", "reinforcement": {"grader": CHECK, **changes}}
