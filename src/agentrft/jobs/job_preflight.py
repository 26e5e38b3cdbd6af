"""Preflight of a fine-tuning job: rows, tools, rollouts of the untouched model, and the grader.

They go the way of training: same loop, same limits, same grader. What they measure is judged in
`measure/job_preflight.py`. The grader must do without the environment, as grader objects do.
"""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from agentrft.core.config import EvaluationConfig
from agentrft.core.grade import GradedTrajectory
from agentrft.core.job import JobError
from agentrft.core.sample import Sample
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Demonstration, Preference, Task
from agentrft.graders.reading import keys_read
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement, evaluate, stored_records
from agentrft.jobs.pairs import Pair
from agentrft.jobs.preflight import STAGE, graded_again, sample_of, with_tasks
from agentrft.jobs.tool_probe import probe_tools
from agentrft.measure.job_preflight import judge, numbers
from agentrft.measure.job_preflight_facts import (
    Facts,
    ToolFacts,
    grader_facts,
    length_facts,
    rollout_facts,
    row_facts,
)
from agentrft.rollout.episode import RolloutSetup

TASKS = 16
"""Sampled tasks at most."""
ROLLOUTS_PER_TASK = 4
ROLLOUTS_TIMEOUT_S = 3600.0
"""Wall clock of all base rollouts; what is done by then is judged."""
REGRADED = 8
"""Trajectories that are graded again."""
REGRADINGS = 2
"""Of each of them, beside the first."""
PASS_THRESHOLD = 0.999
"""Score from which a rollout passes, if the grader object names none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preflight:
    """What came of the checks."""

    error: JobError | None
    """Why the job must not train."""
    warnings: tuple[str, ...]
    numbers: Mapping[str, Any]
    """Facts and verdict in JSON types, for the job object."""


async def check_reinforcement(
    job: Job,
    setup: RolloutSetup,
    *,
    train: Sequence[Task],
    validation: Sequence[Task],
    tools: Collection[str],
    grader: Mapping[str, Any],
    temperature: float,
    concurrency: int,
    warn_only: bool = False,
) -> Preflight:
    """Check a reinforcement job; base rollouts are stored under the stage `preflight`.

    `tools` are the names of those that somebody serves, `grader` is the job's grader object. A dead
    tool ends the checks early, unless `warn_only`. Raises Stopped, and UserError for rows that no
    rollout could begin with.
    """
    rows = row_facts(train, validation, grader_keys=keys_read(grader))
    probed = await job.unless_stopped(probe_tools(setup, train, tools))
    for tool in probed:
        job.event(f"preflight: {_told(tool)}", level="info" if tool.alive else "warn")
    facts = Facts(method="reinforcement", rows=rows, tools=probed)
    if all(tool.alive for tool in probed) or warn_only:
        sampled = sample_of(train, TASKS, job.run.seed)
        rolled = await _base_rollouts(job, setup, sampled, temperature, concurrency)
        rollouts, threshold = [graded for _, graded in rolled], grader.get("pass_threshold")
        again = await graded_again(job, setup, rolled, wanted=REGRADED, times=REGRADINGS)
        facts = replace(
            facts,
            rollouts=rollout_facts(
                rollouts,
                per_task=ROLLOUTS_PER_TASK,
                pass_threshold=PASS_THRESHOLD if threshold is None else float(threshold),
            ),
            grader=grader_facts(rollouts, again),
        )
    return _concluded(job, facts, warn_only=warn_only)


def check_supervised(
    job: Job,
    *,
    train: Sequence[Demonstration],
    validation: Sequence[Demonstration],
    samples: Sequence[Sample],
    limit_tokens: int,
    warn_only: bool = False,
) -> Preflight:
    """Check a supervised job: its rows, and how they fit the context once rendered as `samples`."""
    facts = Facts(
        method="supervised",
        rows=row_facts(train, validation),
        lengths=length_facts([sample.action_mask for sample in samples], limit_tokens),
    )
    return _concluded(job, facts, warn_only=warn_only)


def check_preference(
    job: Job,
    *,
    train: Sequence[Preference],
    validation: Sequence[Preference],
    pairs: Sequence[Pair],
    limit_tokens: int,
    warn_only: bool = False,
) -> Preflight:
    """Check a preference job: its rows, and how they fit the context once rendered as `pairs`."""
    longer = [max(pair, key=lambda sample: len(sample.token_ids)) for pair in pairs]
    facts = Facts(
        method="dpo",
        rows=row_facts(train, validation),
        lengths=length_facts([sample.action_mask for sample in longer], limit_tokens),
    )
    return _concluded(job, facts, warn_only=warn_only)


async def _base_rollouts(
    job: Job, setup: RolloutSetup, tasks: Sequence[Task], temperature: float, concurrency: int
) -> list[tuple[Task, GradedTrajectory]]:
    """Roll the tasks out, each rollout with one try, so that whatever is lost is seen."""
    planned = len(tasks) * ROLLOUTS_PER_TASK
    measurement = Measurement(
        stage=STAGE, split="train", seed=derive_seed(job.run.seed, STAGE), attempts=1
    )

    def told(done: int) -> None:
        if done % len(tasks) == 0:
            job.event(f"preflight: {done} of {planned} rollouts")

    deadline = asyncio.timeout(ROLLOUTS_TIMEOUT_S)
    try:
        async with deadline:
            records = await evaluate(
                job,
                setup,
                tasks,
                EvaluationConfig(samples_per_task=ROLLOUTS_PER_TASK, temperature=temperature),
                measurement,
                concurrency=concurrency,
                told=told,
            )
    except TimeoutError:
        if not deadline.expired():
            raise
        records = stored_records(job, measurement)
        job.event(
            f"preflight: only {len(records)} of {planned} rollouts in {ROLLOUTS_TIMEOUT_S:g} s; "
            "going on with those",
            level="warn",
        )
    return with_tasks(records, tasks)


def _concluded(job: Job, facts: Facts, *, warn_only: bool) -> Preflight:
    verdict = judge(facts, warn_only=warn_only)
    measured = facts.rollouts
    if measured is not None and measured.mean is not None:
        job.event(
            f"preflight: mean score {measured.mean:.3f}, best of {measured.per_task} "
            f"{measured.best_of_k:.3f}, {measured.tasks_with_spread} of {measured.tasks} tasks "
            "with spread"
        )
    error = JobError(code=verdict.code, message=verdict.reason, param=verdict.param)
    return Preflight(
        error=None if verdict.go else error,
        warnings=tuple(f"preflight: {warning.message}" for warning in verdict.warnings),
        numbers=numbers(facts, verdict),
    )


def _told(tool: ToolFacts) -> str:
    if not tool.alive or tool.p50_s is None or tool.p95_s is None:
        return f"tool {tool.name!r} does not work: {tool.problem}"
    return (
        f"tool {tool.name!r} answers in {tool.alone_s:.2f} s alone, {tool.p50_s:.2f} s (p50) and "
        f"{tool.p95_s:.2f} s (p95) among {tool.calls - 1} calls at once, {tool.failed} failed"
    )
