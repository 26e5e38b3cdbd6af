"""The contract from outside: a real server, the real model, and the official client, old and new."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from move_job import conversations, follow, uploaded
from openai import OpenAI
from server import DeskServer

ROOT = Path(__file__).parents[2]
OLD_CLIENT = Path(sys.prefix) / "openai-1.109.1"
"""Where `make setup` puts the oldest supported client, beside the newest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """A server, its tokens, the desk and a model that learned to call its tools."""

    home: Path
    environment: dict[str, str]
    desk: str
    model: str


def token(home: Path, role: str, project: str) -> str:
    command = [sys.executable, "-m", "agentrft", "token", "create", "--home", str(home)]
    done = subprocess.run(
        [*command, "--role", role, "--project", project], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


@pytest.fixture(scope="module")
def running(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    home = tmp_path_factory.mktemp("server") / "home"
    (home / "models").mkdir(parents=True)
    (home / "models" / smollm2_folder.name).symlink_to(smollm2_folder)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        "OPENAI_BASE_URL": f"http://127.0.0.1:{port}/v1",
        "OPENAI_API_KEY": token(home, "admin", "default"),
        "READ_API_KEY": token(home, "read", "default"),
        "OTHER_API_KEY": token(home, "submit", "other"),
    }
    command = [sys.executable, "-m", "agentrft", "serve", "--port", str(port), "--home", str(home)]
    with DeskServer(0) as desk, subprocess.Popen(command) as server:
        thread = threading.Thread(target=desk.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            wait_until_healthy(port, server)
            client = OpenAI(
                base_url=environment["OPENAI_BASE_URL"], api_key=environment["OPENAI_API_KEY"]
            )
            yield Running(
                home=home,
                environment=os.environ | environment,
                desk=f"http://127.0.0.1:{desk.server_port}",
                model=taught(client),
            )
        finally:
            server.terminate()
            server.wait(timeout=90)
            desk.shutdown()
            thread.join()


def wait_until_healthy(port: int, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    while True:
        assert server.poll() is None, "the server ended at once"
        try:
            if httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 200:
                return
        except httpx2.HTTPError:
            pass
        assert time.monotonic() < deadline, "the server does not answer"
        time.sleep(0.2)


def taught(client: OpenAI) -> str:
    """Imitate a few demonstrations, so that the model calls tools at all."""
    job = client.fine_tuning.jobs.create(
        model="smollm2-135m",
        training_file=uploaded(client, "demonstrations.jsonl", conversations()[:40]),
        method={
            "type": "supervised",
            "supervised": {
                "hyperparameters": {
                    "batch_size": 4,
                    "n_epochs": 1,
                    "learning_rate_multiplier": 2.0,
                }
            },
        },
        suffix="taught",
        seed=0,
    )
    return follow(client, job.id)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("version", ["1.109.1", "newest"])
def test_the_official_client_finds_what_it_expects(
    running: Running, version: str, kind: str
) -> None:
    path = [str(ROOT / "examples" / "openai_client")]
    if version != "newest":
        assert OLD_CLIENT.is_dir(), f"{OLD_CLIENT} is missing; `make setup` installs it"
        path.append(str(OLD_CLIENT))
    done = subprocess.run(
        [
            *(sys.executable, str(Path(__file__).parent / "client_scenario.py")),
            *(kind, running.desk, running.model),
        ],
        capture_output=True,
        text=True,
        check=False,
        env=running.environment | {"PYTHONPATH": os.pathsep.join(path)},
    )
    assert done.returncode == 0, done.stderr[-6000:]
    if version != "newest":
        assert version in done.stdout


def test_no_header_value_lies_anywhere_in_the_home_folder(running: Running) -> None:
    written = [path for path in running.home.rglob("*") if path.is_file()]
    assert any(path.name == "agentrft.db" for path in written)
    assert [path for path in written if b"desk-secret" in path.read_bytes()] == []


def test_the_compatibility_page_is_what_the_server_answers(running: Running) -> None:
    client = OpenAI(
        base_url=running.environment["OPENAI_BASE_URL"],
        api_key=running.environment["OPENAI_API_KEY"],
    )
    finished = [
        job.id
        for job in client.fine_tuning.jobs.list()
        if job.status == "succeeded" and job.method and job.method.type == "reinforcement"
    ]
    assert finished, "the scenarios above leave finished jobs behind"
    written = subprocess.run(
        [sys.executable, str(Path(__file__).parent / "compatibility.py"), finished[0]],
        capture_output=True,
        text=True,
        check=False,
        env=running.environment,
    )
    assert written.returncode == 0, written.stderr
    assert written.stdout == (ROOT / "docs" / "compatibility.md").read_text()
