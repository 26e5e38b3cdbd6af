"""The checks before compute: rows, tools, a few rollouts of the untouched model, and the grader.

They go the way of training: same loop, same limits, same grader. What they measure is judged in
`measure/preflight.py`. The grader must do without the environment, as grader objects do.
"""

import asyncio
import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrft.core.errors import GraderError, boundary
from agentrft.core.grade import GradedTrajectory
from agentrft.core.job import JobError
from agentrft.core.run import RolloutRecord
from agentrft.core.sample import Sample
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Demonstration, Preference, Task
from agentrft.graders.reading import keys_read
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement, stored_records
from agentrft.jobs.pairs import Pair
from agentrft.jobs.tool_probe import probe_tools
from agentrft.measure.preflight import judge, numbers
from agentrft.measure.preflight_facts import (
    Facts,
    GraderFacts,
    ToolFacts,
    grader_facts,
    length_facts,
    rollout_facts,
    row_facts,
)
from agentrft.rollout.episode import GRADER_TIMEOUT_S, RolloutSetup, in_order
from agentrft.rollout.group import collect

STAGE = "preflight"
TASKS = 16
"""Sampled tasks at most."""
ROLLOUTS_PER_TASK = 4
ROLLOUTS_TIMEOUT_S = 3600.0
"""Wall clock of all base rollouts; what is done by then is judged."""
REGRADED = 8
"""Trajectories that are graded again."""
GRADINGS = 3
"""Of each of them, the first included."""
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
        sampled = sample_of_tasks(train, job.run.seed)
        rollouts = await _base_rollouts(job, setup, sampled, temperature, concurrency)
        threshold = grader.get("pass_threshold")
        facts = Facts(
            method="reinforcement",
            rows=rows,
            tools=probed,
            rollouts=rollout_facts(
                rollouts,
                per_task=ROLLOUTS_PER_TASK,
                pass_threshold=PASS_THRESHOLD if threshold is None else float(threshold),
            ),
            grader=await job.unless_stopped(_regrade(setup, sampled, rollouts, concurrency)),
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


def sample_of_tasks(tasks: Sequence[Task], seed: int) -> list[Task]:
    """Return the tasks that base rollouts are made of, in file order."""
    places = range(len(tasks))
    chosen = random.Random(derive_seed(seed, STAGE)).sample(places, min(TASKS, len(tasks)))
    return [tasks[place] for place in sorted(chosen)]


async def _base_rollouts(
    job: Job, setup: RolloutSetup, tasks: Sequence[Task], temperature: float, concurrency: int
) -> list[GradedTrajectory]:
    """Roll the tasks out and store all of it; an earlier try that got so far is taken as it is."""
    stored = stored_records(job, Measurement(stage=STAGE, split="train"))
    if stored:
        return [record.graded for record in stored]
    planned = len(tasks) * ROLLOUTS_PER_TASK
    done: list[GradedTrajectory] = []
    with job.progress.phase("preflight: base rollouts", planned) as phase:

        def note(graded: GradedTrajectory) -> None:
            done.append(graded)
            phase.rollout(graded)
            phase.advance()
            if len(done) % len(tasks) == 0 and len(done) <= planned:
                job.event(f"preflight: {len(done)} of {planned} rollouts")

        rolling = collect(
            setup,
            tasks,
            group_size=ROLLOUTS_PER_TASK,
            seed=derive_seed(job.run.seed, STAGE),
            temperature=temperature,
            concurrency=concurrency,
            on_trajectory=note,
        )
        deadline = asyncio.timeout(ROLLOUTS_TIMEOUT_S)
        try:
            async with deadline:
                await job.unless_stopped(rolling)
        except TimeoutError:
            if not deadline.expired():
                raise
            job.event(
                f"preflight: only {len(done)} of {planned} rollouts in {ROLLOUTS_TIMEOUT_S:g} s; "
                "going on with those",
                level="warn",
            )
    families = {task.id: task.family for task in tasks}
    job.append(
        [
            RolloutRecord(
                stage=STAGE,
                split="train",
                step=0,
                family=families[graded.trajectory.task_id],
                graded=graded,
            )
            for graded in done
        ]
    )
    return done


async def _regrade(
    setup: RolloutSetup,
    tasks: Sequence[Task],
    rollouts: Sequence[GradedTrajectory],
    concurrency: int,
) -> GraderFacts:
    """Grade some trajectories again, of different tasks where possible."""
    task_of = {task.id: task for task in tasks}
    scored = [r for r in rollouts if r.grade.score is not None]
    first_of_task = {r.trajectory.task_id: r for r in reversed(scored)}
    others = [r for r in scored if r is not first_of_task[r.trajectory.task_id]]
    chosen = [*first_of_task.values(), *others][:REGRADED]
    slots = asyncio.Semaphore(concurrency)

    async def score(graded: GradedTrajectory) -> float | None:
        trajectory = graded.trajectory
        async with slots:
            try:
                with boundary(GraderError, f"grader {setup.grader.name!r}"):
                    async with asyncio.timeout(GRADER_TIMEOUT_S):
                        grade = await setup.grader.grade(
                            task_of[trajectory.task_id], trajectory, None
                        )
            except GraderError:
                return None
        return grade.score

    scores = await in_order([score(graded) for graded in chosen for _ in range(GRADINGS - 1)])
    again: dict[str, list[float | None]] = {}
    for place, value in enumerate(scores):
        again.setdefault(chosen[place // (GRADINGS - 1)].trajectory.id, []).append(value)
    return grader_facts(rollouts, again)


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
