"""Measure a policy: every task of a split, through the same loop as training and serving."""

import asyncio
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from agentrft.core.config import EvaluationConfig
from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.run import RolloutRecord, RolloutSplit
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Task
from agentrft.jobs.context import Job
from agentrft.rollout.episode import RolloutSetup, run_episode
from agentrft.store.listing import RunStore, TrajectorySummary

COMMIT_EVERY = 32
"""Rollouts stored together; an interrupted evaluation loses fewer than this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What is measured, and under which name it is stored."""

    stage: str
    split: RolloutSplit
    step: int = 0
    seed: int = 0
    attempts: int = 2
    """Tries of a rollout that infrastructure spoils; the last failure is stored and never scored."""


async def evaluate(
    job: Job,
    setup: RolloutSetup,
    tasks: Sequence[Task],
    config: EvaluationConfig,
    measurement: Measurement,
    *,
    concurrency: int,
    told: Callable[[int], None] = lambda done: None,
) -> list[RolloutRecord]:
    """Roll out `samples_per_task` times per task, skipping what an interrupted try already stored.

    `told` hears after each rollout how many there are.
    """
    chosen = tasks[: config.tasks] if config.tasks else tasks
    records = stored_records(job, measurement)
    # By seed: rollouts end in another order than they begin, so a count does not say which are there.
    have = {record.graded.trajectory.seed for record in records}
    missing = [
        (task, sample)
        for sample in range(config.samples_per_task)
        for task in chosen
        if have.isdisjoint(_seeds(measurement, task, sample))
    ]
    if not missing:
        return records
    line, done = asyncio.Semaphore(concurrency), itertools.count(len(records) + 1)
    label = f"{measurement.stage}: {measurement.split}"
    with job.progress.phase(label, len(missing)) as phase:

        async def measured(task: Task, sample: int) -> RolloutRecord:
            async with line:
                graded = await _rollout(setup, task, sample, config, measurement)
            phase.rollout(graded)
            phase.advance()
            told(next(done))
            return RolloutRecord(
                stage=measurement.stage,
                split=measurement.split,
                step=measurement.step,
                family=task.family,
                graded=graded,
            )

        async def commit_as_they_finish() -> None:
            running = [asyncio.ensure_future(measured(*pair)) for pair in missing]
            uncommitted: list[RolloutRecord] = []
            try:
                for finished in asyncio.as_completed(running):
                    uncommitted.append(await finished)
                    if len(uncommitted) == COMMIT_EVERY:
                        job.append(uncommitted)
                        records.extend(uncommitted)
                        uncommitted = []
            finally:
                for pending in running:
                    pending.cancel()
                job.append(uncommitted)
                records.extend(uncommitted)

        await job.unless_stopped(commit_as_they_finish())
    return records


async def _rollout(
    setup: RolloutSetup,
    task: Task,
    sample: int,
    config: EvaluationConfig,
    measurement: Measurement,
) -> GradedTrajectory:
    """Run one rollout, again if infrastructure spoiled it and a try is left."""
    graded: GradedTrajectory | None = None
    for seed in _seeds(measurement, task, sample):
        graded = await run_episode(setup, task, seed=seed, temperature=config.temperature)
        if graded.outcome is not Outcome.INFRASTRUCTURE_FAULT:
            break
    assert graded is not None
    return graded


def foreseen(
    records: Sequence[RolloutRecord],
    tasks: Sequence[Task],
    config: EvaluationConfig,
    measurement: Measurement,
) -> list[RolloutRecord]:
    """Return those rollouts of the same policy that this measurement would make, under its name."""
    chosen = tasks[: config.tasks] if config.tasks else tasks
    seeds = {
        seed
        for task in chosen
        for sample in range(config.samples_per_task)
        for seed in _seeds(measurement, task, sample)
    }
    return [
        replace(record, stage=measurement.stage, step=measurement.step)
        for record in records
        if record.graded.trajectory.seed in seeds
    ]


def _seeds(measurement: Measurement, task: Task, sample: int) -> list[int]:
    """Return the seeds of a rollout's tries.

    Stages share them, so that paired differences compare policies and not luck.
    """
    named = (measurement.seed, "evaluation", task.id, sample)
    return [derive_seed(*named, attempt) for attempt in range(measurement.attempts)]


def stored_records(job: Job, measurement: Measurement) -> list[RolloutRecord]:
    """Read what this run already stored of a measurement."""
    return [
        job.home.store.trajectory(summary.record_id)
        for summary in stored_summaries(job, measurement.stage, measurement.split)
        if summary.step == measurement.step
    ]


def stored_summaries(
    job: Job, stage: str | None = None, split: RolloutSplit | None = None
) -> Iterator[TrajectorySummary]:
    """List what this run already stored, without reading tokens."""
    return summaries(job.home.store, job.run.id, stage=stage, split=split)


def summaries(
    store: RunStore,
    run_id: str,
    *,
    stage: str | None = None,
    split: RolloutSplit | None = None,
) -> Iterator[TrajectorySummary]:
    """List the rollouts of a run in the order they were stored, without reading tokens."""
    after, more = 0, True
    while more:
        page = store.trajectories(run_id, stage=stage, split=split, after=after, limit=1000)
        yield from page.items
        after, more = page.last, page.has_more


def in_file_order(records: Sequence[RolloutRecord], tasks: Sequence[Task]) -> list[RolloutRecord]:
    """Sort by task, then by seed, so that it does not matter which rollout ended first."""
    place = {task.id: number for number, task in enumerate(tasks)}
    made = [(place[r.graded.trajectory.task_id], r.graded.trajectory.seed, r) for r in records]
    return [record for *_, record in sorted(made, key=lambda one: one[:2])]
