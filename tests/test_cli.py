"""The command line as a person meets it: in a process of its own, with a home folder of its own."""

import dataclasses
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import ConfigError
from agentrft.core.run import Method, Run, RunStatus
from agentrft.jobs.project import open_project
from agentrft.jobs.resume import unfinished_run
from agentrft.jobs.starter import write_starter
from agentrft.store.codec import from_json, to_json
from agentrft.store.home import Home


def agentrft(home: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-c", "from agentrft.cli import main; main()"]
    return subprocess.run(
        [*command, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"AGENTRFT_HOME": str(home), "PATH": "", "COLUMNS": "120"},
    )


def test_help_lists_the_commands(tmp_path: Path) -> None:
    done = agentrft(tmp_path, "--help")
    assert done.returncode == 0
    for name in ("improve", "train", "evaluate", "report", "init", "models", "runs"):
        assert name in done.stdout


def test_init_says_what_it_wrote_and_what_to_do_next(tmp_path: Path) -> None:
    done = agentrft(tmp_path / "home", "init", tmp_path / "library")
    assert done.returncode == 0, done.stderr
    assert "agentrft improve" in done.stdout
    assert 'name = "library"' in (tmp_path / "library" / "agent.toml").read_text()


def test_init_leaves_an_existing_folder_alone(tmp_path: Path) -> None:
    done = agentrft(tmp_path / "home", "init", tmp_path)
    assert done.returncode == 1
    assert "exists already" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("improve", "nowhere"), "agentrft init NAME"),
        (("report", "run-0"), "run-0"),
        (("runs", "show", "run-0"), "run-0"),
        (("models", "info", "no-such-model"), "smollm2-135m"),
    ],
)
def test_a_mistake_is_one_message_without_a_traceback(
    tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    done = agentrft(tmp_path, *arguments)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_models_are_listed_without_a_download(tmp_path: Path) -> None:
    done = agentrft(tmp_path, "models", "list")
    assert done.returncode == 0, done.stderr
    assert "smollm2-135m" in done.stdout


def test_a_new_home_has_no_runs(tmp_path: Path) -> None:
    done = agentrft(tmp_path / "new", "runs", "list")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "new" / "agentrft.db").exists()


def test_resuming_nothing_says_so(tmp_path: Path) -> None:
    agentrft(tmp_path / "home", "init", tmp_path / "library")
    done = agentrft(tmp_path / "home", "improve", tmp_path / "library", "--resume")
    assert done.returncode == 1
    assert "no unfinished improve run" in done.stderr


def test_the_home_option_wins_over_the_environment(tmp_path: Path) -> None:
    done = agentrft(tmp_path / "other", "runs", "list", "--home", tmp_path / "chosen")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "chosen").is_dir()
    assert not (tmp_path / "other").exists()


def test_settings_that_changed_since_refuse_to_resume(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "home")
    write_starter(tmp_path / "library")
    config = open_project(tmp_path / "library").config
    home.store.put_run(paused(config))
    assert unfinished_run(home.store, "library", Method.IMPROVE, config) == "run-1"
    changed = replace(config, limits=replace(config.limits, max_turns=7))
    with pytest.raises(ConfigError, match=r"limits\.max_turns"):
        unfinished_run(home.store, "library", Method.IMPROVE, changed)


def test_a_setting_that_a_later_version_brought_does_not_keep_a_run_from_going_on(
    tmp_path: Path,
) -> None:
    home = Home.open(tmp_path / "home")
    write_starter(tmp_path / "library")
    config = open_project(tmp_path / "library").config
    run = paused(config)
    del run.config["methods"]["reinforcement"]["staleness"]
    home.store.put_run(run)
    assert unfinished_run(home.store, "library", Method.IMPROVE, config) == "run-1"
    reinforcement = replace(config.methods.reinforcement, staleness=1)
    changed = replace(config, methods=replace(config.methods, reinforcement=reinforcement))
    with pytest.raises(ConfigError, match=r"reinforcement\.staleness"):
        unfinished_run(home.store, "library", Method.IMPROVE, changed)


def paused(config: ProjectConfig) -> Run:
    return Run(
        id="run-1",
        project="library",
        method=Method.IMPROVE,
        status=RunStatus.PAUSED,
        config=from_json(dict[str, Any], to_json(dataclasses.asdict(config))),
    )
