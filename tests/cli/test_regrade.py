"""`agentrft regrade` as a person meets it, over rollouts that were stored beforehand."""

import json
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.run import Method, RolloutRecord, Run, RunStatus
from agentrft.core.task import Message
from agentrft.core.trajectory import StopReason, Trajectory, Turn
from agentrft.jobs.project import open_project
from agentrft.jobs.regrade import PROJECT_FILE
from agentrft.jobs.starter import write_starter
from agentrft.store.home import Home

FUNCTION = """
from agentrft import grader

@grader
def short(task, trajectory):
    return float(len(trajectory.output_text) < 5)
"""


def agentrft(home: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", "from agentrft.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"AGENTRFT_HOME": str(home), "PATH": "", "COLUMNS": "160"},
    )


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home with a run over the starter's holdout: two answers to each task, one of them longer."""
    library = tmp_path / "library"
    write_starter(library)
    run = Run(
        id="run-1",
        project="library",
        method=Method.EVALUATION,
        status=RunStatus.SUCCEEDED,
        result={PROJECT_FILE: str(library / "agent.toml")},
    )
    tasks = open_project(library).tasks("holdout")
    with closing(Home.open(tmp_path / "home")) as opened:
        opened.store.put_run(run)
        opened.store.append(
            run.id,
            [
                RolloutRecord(
                    stage="base",
                    split="holdout",
                    step=0,
                    family="",
                    graded=GradedTrajectory(
                        trajectory=answered(task.id, answer),
                        grade=Grade(score=float(len(answer) > 5)),
                    ),
                )
                for task in tasks
                for answer in ("yes", "certainly")
            ],
        )
    return tmp_path / "home"


def answered(task_id: str, text: str) -> Trajectory:
    turn = Turn(
        observation_ids=(1,),
        action_ids=(2,),
        behavior_logprobs=(-0.1,),
        first_version=0,
        last_version=0,
        message=Message(role="assistant", content=text),
    )
    return Trajectory(
        id=f"trace_{task_id}_{text}",
        task_id=task_id,
        model="m",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=(turn,),
        stop_reason=StopReason.FINISHED,
    )


def test_a_grader_object_regrades_a_run(home: Path, tmp_path: Path) -> None:
    grader = {
        "type": "string_check",
        "input": "{{ sample.output_text }}",
        "reference": "yes",
        "operation": "eq",
    }
    (tmp_path / "g.json").write_text(json.dumps(grader))
    done = agentrft(home, "regrade", "run-1", "--grader", tmp_path / "g.json")
    assert done.returncode == 0, done.stderr
    for shown in ("advantages change sign", "Moved most", "trace_", "tau-b -1.000"):
        assert shown in done.stdout
    report = Path(done.stdout.split("report  ")[-1].strip())
    assert json.loads(report.read_text())["source_id"] == "run-1"


def test_the_grader_of_another_project_regrades_a_run(home: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    write_starter(other)
    (other / "graders.py").write_text(FUNCTION)
    config = other / "agent.toml"
    config.write_text(
        config.read_text() + '[grader]\ntype = "function"\nfunction = "graders.py:short"\n'
    )
    done = agentrft(home, "regrade", "run-1", "--grader", config)
    assert done.returncode == 0, done.stderr
    done = agentrft(home, "regrade", "run-1", "--project", other, "--resume")
    assert "no unfinished regrade run" in done.stderr


def test_the_environments_own_grade_cannot_be_asked_again(home: Path) -> None:
    done = agentrft(home, "regrade", "run-1")
    assert done.returncode == 1
    assert "whose state is gone" in done.stderr
    assert "--grader" in done.stderr


def test_the_signing_key_is_the_same_each_time(tmp_path: Path) -> None:
    first, second = (agentrft(tmp_path, "signing-key").stdout for _ in range(2))
    assert first == second
    assert first.startswith("whsec_")
