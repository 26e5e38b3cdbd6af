"""The API, the queue and a job's whole life with every row in PostgreSQL instead of SQLite."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from private_postgres import WITHOUT, private_postgres
from served import bearer
from starlette.testclient import TestClient
from tuning import GRADER, FakeModel, carried_out, questions

from agentrft.inference.scripted import ScriptedChat, scripted_answer
from agentrft.server.app import create_app
from agentrft.server.settings import ServerSettings
from agentrft.store.access import Role
from agentrft.store.home import Home


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    if os.environ.get(WITHOUT) == "1":
        pytest.skip(f"{WITHOUT}=1")
    with private_postgres() as server:
        home = Home.open(tmp_path, server.create("api"))
        yield home
        home.close()


def test_a_job_lives_from_upload_to_a_model_that_answers(home: Home) -> None:
    home.access.create_project("default")
    _, token = home.access.create_token("default", Role.ADMIN, "test")
    chat = ScriptedChat(lambda _request: scripted_answer("yes"))
    app = create_app(home, ServerSettings(deliver_webhooks=False), chat)
    with TestClient(app, base_url="http://localhost", headers=bearer(token)) as client:
        rows = "\n".join(str(row).replace("'", '"') for row in questions(10))
        file = client.post(
            "/v1/files", files={"file": ("rows.jsonl", rows)}, data={"purpose": "fine-tune"}
        ).json()
        settings = {"batch_size": 5, "n_epochs": 1}
        made = client.post(
            "/v1/fine_tuning/jobs",
            json={
                "model": "smollm2-135m",
                "training_file": file["id"],
                "method": {
                    "type": "reinforcement",
                    "reinforcement": {"grader": GRADER, "hyperparameters": settings},
                },
                "metadata": {"who": "postgres"},
            },
        )
        assert made.status_code == 200, made.text
        path = f"/v1/fine_tuning/jobs/{made.json()['id']}"
        carried_out(home, FakeModel())
        assert client.get(path).json()["status"] == "queued"
        assert client.post(f"{path}/pause").json()["status"] == "paused"
        assert client.post(f"{path}/resume").json()["status"] == "queued"
        carried_out(home, FakeModel())
        job = client.get(path).json()
        assert job["status"] == "succeeded", job
        events = client.get(f"{path}/events", params={"limit": 100}).json()["data"]
        assert [e["data"]["step"] for e in events if e["type"] == "metrics"] == [2, 1]
        found = client.get("/v1/fine_tuning/jobs", params={"metadata[who]": "postgres"}).json()
        assert [one["id"] for one in found["data"]] == [job["id"]]
        table = client.get(f"/v1/files/{job['result_files'][0]}/content").text
        assert len(table.splitlines()) == 3
        said = client.post(
            "/v1/chat/completions",
            json={"model": job["fine_tuned_model"], "messages": [{"role": "user", "content": "?"}]},
        )
        assert said.json()["choices"][0]["message"]["content"] == "yes"
        assert client.get("/v1/models/a%00b").status_code in (400, 404)
        assert client.delete(f"/v1/models/{job['fine_tuned_model']}").json()["deleted"]
