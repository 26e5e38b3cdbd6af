import asyncio
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from builders import CANARIES, a_job, a_setup, a_trainer, some_tasks, yes_or_no

from agentrft.core.errors import StoreError
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import RunStatus, StepMetrics
from agentrft.core.sample import Sample
from agentrft.core.training_config import ReinforcementConfig, TaskChoice
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.checkpoints import resume_point
from agentrft.jobs.context import Job
from agentrft.jobs.reinforcement import reinforce
from agentrft.jobs.validation import TaskSets
from agentrft.rollout.episode import RolloutSetup
from agentrft.training.recording import RecordingTrainer

ONE_BEHIND = ReinforcementConfig(
    steps=6,
    tasks_per_step=2,
    group_size=4,
    checkpoint_interval=3,
    validation_interval=6,
    staleness=1,
)
ROLLOUTS_PER_STEP = 8


def run(
    job: Job,
    trainer: RecordingTrainer,
    setup: RolloutSetup | None = None,
    *,
    config: ReinforcementConfig = ONE_BEHIND,
    first_step: int = 0,
) -> None:
    async def main() -> None:
        async with job.running():
            await reinforce(
                job,
                setup or a_setup(),
                trainer,
                TaskSets(train=some_tasks(5), validation=some_tasks(3)),
                config,
                first_step=first_step,
                concurrency=ROLLOUTS_PER_STEP,
            )

    asyncio.run(main())


def test_rollouts_lag_one_version_except_after_checkpoints_and_evaluations(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    run(job, a_trainer())
    steps = job.read_all(StepMetrics)
    assert [step.values["staleness"] for step in steps] == [0, 1, 1, 0, 1, 1]


def test_without_staleness_every_rollout_is_of_the_newest_weights(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    run(job, a_trainer(), config=replace(ONE_BEHIND, staleness=0))
    assert {step.values["staleness"] for step in job.read_all(StepMetrics)} == {0}


class WaitingTrainer(RecordingTrainer):
    """Trains on no batch but the last before a rollout of the next one is asked for."""

    def __init__(self, last: int) -> None:
        super().__init__(canaries=CANARIES)
        self._last = last
        self.asked = 0
        self._news = threading.Condition()

    async def hear(self, request: SampleRequest) -> None:
        with self._news:
            self.asked += 1
            self._news.notify()

    def step(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        batch = len(self.batches) + 1
        with self._news:
            assert batch == self._last or self._news.wait_for(
                lambda: self.asked > batch * ROLLOUTS_PER_STEP, 20
            ), f"batch {batch} waited in vain"
        return super().step(samples)


def test_the_next_rollouts_are_made_while_a_step_trains(tmp_path: Path) -> None:
    trainer = WaitingTrainer(last=6)
    config = replace(ONE_BEHIND, checkpoint_interval=6)
    setup = a_setup(ScriptedSampler(yes_or_no, before=trainer.hear))
    run(a_job(tmp_path), trainer, setup, config=config)
    assert len(trainer.batches) == 6


class FailingTrainer(RecordingTrainer):
    """Stops the run in its fifth step, as a kill would: no snapshot is taken."""

    def step(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        if len(self.batches) == 4:
            raise StoreError("the disk is gone")
        return super().step(samples)


@pytest.mark.parametrize(
    "choice",
    [TaskChoice(), TaskChoice(curriculum=True, revisited=0.5, rounds=3, oversampling=1.5)],
    ids=["every task", "chosen tasks"],
)
def test_a_killed_run_that_samples_ahead_ends_as_if_it_had_not_been(
    tmp_path: Path, choice: TaskChoice
) -> None:
    config = replace(ONE_BEHIND, tasks=choice)
    straight = a_trainer()
    run(a_job(tmp_path / "whole"), straight, config=config)

    job, first = a_job(tmp_path / "cut"), FailingTrainer(canaries=CANARIES)
    with pytest.raises(StoreError):
        run(job, first, config=config)
    assert job.run.status is RunStatus.FAILED

    again = a_job(tmp_path / "cut")
    folder = resume_point(again, lambda _folder: None)
    assert folder is not None
    second = RecordingTrainer.resumed(folder, canaries=CANARIES)
    run(again, second, config=config, first_step=second.cursor["step"])
    assert first.batches[:3] + second.batches == straight.batches


def test_a_run_that_ends_leaves_no_rollouts_behind(tmp_path: Path) -> None:
    job, trainer = a_job(tmp_path), FailingTrainer(canaries=CANARIES)
    left: list[asyncio.Task[object]] = []

    async def main() -> None:
        async with job.running():
            try:
                await reinforce(
                    job,
                    a_setup(),
                    trainer,
                    TaskSets(train=some_tasks(5)),
                    ONE_BEHIND,
                    first_step=0,
                    concurrency=1,
                )
            finally:
                left.extend(asyncio.all_tasks() - {asyncio.current_task()})

    with pytest.raises(StoreError):
        asyncio.run(main())
    assert left == []
