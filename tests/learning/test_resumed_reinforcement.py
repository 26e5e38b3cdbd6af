"""Real engine, real trainer, chosen tasks: stopped amid a step and resumed, the same bits come out."""

import asyncio
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from lab import a_job, reinforced, served, warmed
from recipes import CHOOSY, REINFORCEMENT, TRAINER
from toys import BANDIT, Problem

from agentrft.core.config import Methods
from agentrft.core.grade import Grade
from agentrft.core.run import Method, StepMetrics
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.jobs.context import Job, Stopped

SETTINGS = replace(
    REINFORCEMENT,
    steps=4,
    tasks_per_step=2,
    group_size=2,
    tasks=CHOOSY,
    checkpoint_interval=4,
    trainer=replace(TRAINER, deterministic=True),
)


def trained(job: Job, problem: Problem, warm: Path, folder: Path) -> dict[str, bytes]:
    """Return the files of weights and of the optimizer's state."""
    # One rollout at a time: batches of another size round otherwise.
    train = partial(reinforced, concurrency=1)
    with served(problem, warm, folder, Methods(reinforcement=SETTINGS)) as model:
        checkpoint = asyncio.run(train(job, model))
    files = {file.name: file.read_bytes() for file in Path(checkpoint.path).glob("*.safetensors")}
    assert len(files) >= 2
    return files


def test_a_resumed_run_with_chosen_tasks_ends_with_the_same_weights(tmp_path: Path) -> None:
    warm = warmed(BANDIT, tmp_path, seed=0)
    straight_job = a_job(tmp_path / "straight", Method.REINFORCEMENT, 0)
    straight = trained(straight_job, BANDIT, warm, tmp_path / "straight")
    steps = [step.values for step in straight_job.read_all(StepMetrics)]
    assert max(step["rounds"] for step in steps) > 1
    first_two = sum(step["rollouts"] for step in steps[:2])

    job = a_job(tmp_path / "cut", Method.REINFORCEMENT, 0)
    graded: list[str] = []

    def stop_amid_the_third_step(task: Task, trajectory: Trajectory) -> Grade:
        graded.append(trajectory.id)
        if len(graded) == first_two + 5:
            job.stop.set()
        return BANDIT.rule(task, trajectory)

    with pytest.raises(Stopped):
        trained(job, replace(BANDIT, rule=stop_amid_the_third_step), warm, tmp_path / "cut")
    assert [step.step for step in job.read_all(StepMetrics)] == [1, 2]

    again = a_job(tmp_path / "cut", Method.REINFORCEMENT, 0)
    assert trained(again, BANDIT, warm, tmp_path / "cut") == straight
    assert [step.step for step in again.read_all(StepMetrics)] == [1, 2, 3, 4]
