"""The server's commands on a home folder, without a server."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from agentrft.cli import app
from agentrft.core.config import ServerConfig
from agentrft.core.errors import AgentRFTError, ConfigError
from agentrft.core.job import FineTuningJob, SupervisedMethod
from agentrft.store.access import Role
from agentrft.store.codec import load_server_config
from agentrft.store.home import Home


def told(home: Path, *arguments: str) -> str:
    """Run a command; return what it prints, raise what it raises."""
    done = CliRunner().invoke(app, [*arguments, "--home", str(home)])
    if done.exception is not None:
        raise done.exception
    return done.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    with_job = Home.open(tmp_path)
    with_job.access.create_project("default")
    job = FineTuningJob(
        id="ftjob-0123456789abcdef01234567",
        project="default",
        model="smollm2-135m",
        base="smollm2-135m",
        method=SupervisedMethod(),
        training_file="file-1",
        seed=1,
        created_at=time.time(),
    )
    with_job.queue.submit(job, {})
    with_job.close()
    return tmp_path


def test_a_job_is_listed_with_its_whole_id_shown_and_followed_to_its_end(home: Path) -> None:
    job = "ftjob-0123456789abcdef01234567"
    assert job in told(home, "jobs", "list")
    assert told(home, "jobs", "list", "--project", "other").count("\n") == 1
    assert json.loads(told(home, "jobs", "show", job))["job"]["status"] == "validating_files"
    assert told(home, "jobs", "pause", job) == f"{job} paused\n"
    assert told(home, "jobs", "resume", job) == f"{job} validating_files\n"
    assert told(home, "jobs", "cancel", job) == f"{job} cancelled\n"
    assert told(home, "jobs", "checkpoints", job) == ""
    messages = told(home, "jobs", "events", job, "--follow").splitlines()
    assert [line.split(maxsplit=3)[3] for line in messages][-3:] == [
        "Fine-tuning job paused",
        "Fine-tuning job resumed",
        "Fine-tuning job cancelled",
    ]


@pytest.mark.parametrize("command", ["show", "events", "pause", "resume", "cancel"])
def test_a_job_that_does_not_exist_is_named(home: Path, command: str) -> None:
    with pytest.raises(AgentRFTError, match="ftjob-none"):
        told(home, "jobs", command, "ftjob-none")


def test_what_a_job_is_not_ready_for_is_refused(home: Path) -> None:
    with pytest.raises(AgentRFTError, match="only a paused job can be resumed"):
        told(home, "jobs", "resume", "ftjob-0123456789abcdef01234567")


def test_a_token_is_printed_alone_once_and_useless_after_its_end(home: Path) -> None:
    token = told(home, "token", "create", "--role", "submit", "--name", "ci", "--days", "3")
    assert token.startswith("art-")
    assert token.count("\n") == 1
    opened = Home.open(home)
    identity = opened.access.identify(token.strip())
    assert identity is not None
    assert (identity.project, identity.role) == ("default", Role.SUBMIT)
    shown = told(home, "token", "list")
    assert identity.token_id in shown
    assert token.strip() not in shown
    assert "until " in shown
    told(home, "token", "revoke", identity.token_id)
    assert "revoked" in told(home, "token", "list")
    assert opened.access.identify(token.strip()) is None
    opened.close()


def test_an_unknown_role_is_answered_with_those_there_are(home: Path) -> None:
    with pytest.raises(ConfigError, match="read, submit, admin"):
        told(home, "token", "create", "--role", "owner")


def test_webhooks_are_added_with_a_secret_listed_without_and_removed(home: Path) -> None:
    secret = told(home, "webhooks", "add", "https://desk.example/hook")
    assert secret.startswith("whsec_")
    listed = told(home, "webhooks", "list")
    assert "https://desk.example/hook" in listed
    assert secret.strip() not in listed
    told(home, "webhooks", "remove", listed.split()[0])
    assert told(home, "webhooks", "list") == ""


def test_settings_of_the_server_are_read_from_the_home_folder(tmp_path: Path) -> None:
    assert load_server_config(tmp_path) == ServerConfig()
    (tmp_path / "server.toml").write_text(
        'aliases = { "our-agent" = "smollm2-135m" }\nprivate_addresses = "listed"\n'
    )
    config = load_server_config(tmp_path)
    assert config.aliases == {"our-agent": "smollm2-135m"}
    assert config.private_addresses == "listed"


def test_a_setting_that_does_not_exist_stops_the_server_with_its_name(tmp_path: Path) -> None:
    (tmp_path / "server.toml").write_text('host = "rft.example"\n')
    with pytest.raises(
        ConfigError, match=r"server\.toml: unknown key 'host'; did you mean 'hosts'"
    ):
        told(tmp_path, "serve")


def test_a_worker_ends_with_the_server_that_started_it_even_if_that_was_killed(home: Path) -> None:
    starter = (
        "import os, subprocess, sys, time\n"
        "worker = subprocess.Popen([sys.executable, '-m', 'agentrft', 'worker', "
        "'--home', sys.argv[1], '--parent', str(os.getpid())])\n"
        "print(worker.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    told(home, "jobs", "cancel", "ftjob-0123456789abcdef01234567")
    with subprocess.Popen(
        [sys.executable, "-c", starter, str(home)], stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        worker = int(server.stdout.readline())
        server.kill()
    deadline = time.monotonic() + 60
    while Path(f"/proc/{worker}/cmdline").exists() and runs(worker):
        assert time.monotonic() < deadline, "the worker lives on"
        time.sleep(0.1)


def runs(process: int) -> bool:
    """Whether a process is more than a record that nobody has read yet."""
    try:
        os.kill(process, 0)
        return ") Z " not in Path(f"/proc/{process}/stat").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False
