"""Where a project's agent stands: rollouts of train tasks, the grader asked twice, and the advice.

The same loop, limits and grader as training. Everything is stored, so a killed run goes on.
"""

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from agentrft.audit.run import audit
from agentrft.core.call_thread import in_thread
from agentrft.core.config import EvaluationConfig, ProjectConfig
from agentrft.core.errors import ConfigError, ToolError, UserError, boundary
from agentrft.core.grade import Grade, GradedTrajectory, Outcome
from agentrft.core.protocols import Environment
from agentrft.core.run import Method, RolloutRecord, RunStatus
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.inference.models import describe
from agentrft.jobs.audit import project_subject, summary
from agentrft.jobs.context import Job
from agentrft.jobs.distillation import short_spec
from agentrft.jobs.evaluation import Measurement, evaluate, in_file_order
from agentrft.jobs.grading import grader_types
from agentrft.jobs.holdout import runs_beside
from agentrft.jobs.project import Project
from agentrft.jobs.regrade import needs_environment
from agentrft.jobs.reinforcement import serving
from agentrft.jobs.serving import OpenModel, ServedModel, served_model
from agentrft.measure.advisor import AFTER_SEARCH, Supply, advise
from agentrft.measure.next_steps import Prices, expected_costs
from agentrft.measure.preflight_page import write_preflight
from agentrft.measure.preflight_result import PreflightResult
from agentrft.measure.standing import Plan, Standing, standing
from agentrft.rollout.deadline import within
from agentrft.rollout.episode import RolloutSetup, close_environment, grade_rollout, in_order
from agentrft.store.home import Home

STAGE = "preflight"
ASKS_MODEL = {"score_model", "label_model"}
REPLAY_TIMEOUT_S = 60.0
"""Wall clock of repeating a rollout's calls before it is graded again."""


async def preflight(
    job: Job,
    project: Project,
    checkpoint: Path | None = None,
    *,
    open_model: OpenModel | None = None,
    known: Supply | None = None,
    allow_findings: bool = False,
) -> PreflightResult:
    """Measure, audit the grader without refusing, advise, and write `preflight.html` and `.json`.

    `known` is what a search or a training before it found out; what can be measured is filled in.
    `allow_findings` trusts the grader whatever its audit says.
    Raises Stopped, and UserError if no rollout can be scored.
    """
    opened = open_model or partial(served_model, job=job)
    async with job.running():
        with opened(project, job.home, trained=checkpoint is not None) as model:
            setup = await serving(job, model, checkpoint)
            found, notes = await measured_standing(job, model, setup)
        audited = await _audited(job, project)
        known = known or _known(job, setup, trained=checkpoint is not None)
        known = replace(known, warm_started=known.warm_started or checkpoint is not None)
        supply = supply_of(project, job.home, found, known, audited)
        supply = replace(supply, grader_trusted=supply.grader_trusted or allow_findings)
        config = project.config
        costs = expected_costs(found, config.methods, _prices(config))
        result = PreflightResult(
            project=config.name,
            model=setup.policy.model,
            run_id=job.run.id,
            created_at=job.run.created_at,
            standing=found,
            advice=advise(found, supply, config.advisor, costs=costs),
            costs=costs,
            audit=audited,
            notes=notes,
        )
        folder = job.home.report(job.run.id)
        write_preflight(result, folder)
        job.note_result(
            report=str(folder),
            verdict=result.verdict,
            rule=result.advice.rule,
            method=result.advice.method.value,
            pass_at_1=asdict(found.pass_1),
        )
    return result


async def measured_standing(
    job: Job, model: ServedModel, setup: RolloutSetup
) -> tuple[Standing, tuple[str, ...]]:
    """Roll out train tasks at the training temperature and measure; also return what to remark.

    Raises UserError if no rollout can be scored.
    """
    project, methods = model.project, model.project.config.methods
    train, holdout = (
        project.tasks("train"),
        project.tasks("holdout") if _has_holdout(project) else (),
    )
    tasks = sample_of(train, methods.preflight.tasks, job.run.seed)
    records = await evaluate(
        job,
        replace(setup, gold_grader=project.gold_grader),
        tasks,
        EvaluationConfig(
            samples_per_task=methods.preflight.samples,
            temperature=methods.reinforcement.temperature,
        ),
        Measurement(stage=STAGE, split="train", seed=job.run.seed),
        concurrency=model.concurrency,
    )
    rollouts = with_tasks(records, tasks)
    again, notes = await _flips(job, project, setup, rollouts)
    plan = Plan(
        pass_threshold=project.config.pass_threshold,
        group_size=methods.reinforcement.group_size,
        train_tasks=len({task.messages for task in train}),
        holdout_tasks=len(holdout[: methods.optimize.confirm_tasks or None]),
        holdout_samples=methods.optimize.confirm_samples,
        alpha=methods.optimize.alpha,
    )
    if all(graded.outcome is Outcome.INFRASTRUCTURE_FAULT for _, graded in rollouts):
        failure = rollouts[0][1].trajectory.failure or rollouts[0][1].grade.failure
        told = f"{failure.where}: {failure.message}" if failure else "no reason was given"
        raise UserError(f"none of {len(rollouts)} rollouts could be scored; the first: {told}")
    return standing(rollouts, project.tools, plan, graded_again=again), notes


def supply_of(
    project: Project, home: Home, found: Standing, known: Supply, audited: dict[str, Any]
) -> Supply:
    """Count what there is to train with, beside what is known already."""
    config = project.config
    return replace(
        known,
        demonstrations=max(known.demonstrations, len(project.demonstrations())),
        pairs=len(project.preferences()),
        shorter_spec=_has_shorter(project),
        grader_trusted=not audited.get("blocked"),
        grader_asks_model=bool(grader_types(config.grader) & ASKS_MODEL),
        parameters=None
        if config.endpoint
        else describe(config.model, cache=home.models).parameters,
        endpoint=config.endpoint is not None,
    )


def _known(job: Job, setup: RolloutSetup, *, trained: bool) -> Supply:
    """Return what a search that ended with this spec, of this model, has found out."""
    if trained:
        return Supply()
    ended = any(
        run.method is Method.OPTIMIZE
        and run.status is RunStatus.SUCCEEDED
        and run.result.get("spec") == setup.policy.spec.hash
        and all(run.config.get(key) == job.run.config.get(key) for key in ("model", "endpoint"))
        for run in runs_beside(job)
    )
    return AFTER_SEARCH if ended else Supply()


def _has_shorter(project: Project) -> bool:
    try:
        short_spec(project)
    except ConfigError:
        return False
    return True


def _has_holdout(project: Project) -> bool:
    """A preflight does without: the advice then is to collect tasks."""
    return (project.folder / project.config.data.holdout).is_file()


def sample_of(tasks: Sequence[Task], count: int, seed: int) -> list[Task]:
    """Return so many tasks, drawn by seed, in file order."""
    places = random.Random(derive_seed(seed, STAGE)).sample(
        range(len(tasks)), min(count, len(tasks))
    )
    return [tasks[place] for place in sorted(places)]


def with_tasks(
    records: Sequence[RolloutRecord], tasks: Sequence[Task]
) -> list[tuple[Task, GradedTrajectory]]:
    """Return rollouts in file order, each with its task."""
    task_of = {task.id: task for task in tasks}
    ordered = (record.graded for record in in_file_order(records, tasks))
    return [(task_of[graded.trajectory.task_id], graded) for graded in ordered]


async def _flips(
    job: Job,
    project: Project,
    setup: RolloutSetup,
    rollouts: Sequence[tuple[Task, GradedTrajectory]],
) -> tuple[dict[str, list[float | None]], tuple[str, ...]]:
    """Ask the grader again where that is possible, and say where it is not."""
    acting = needs_environment(setup.grader)
    if acting and project.config.tools:
        note = f"{acting} looks at the environment, and its tools by URL are not called again"
        return {}, (f"flip rate not measured: {note}",)
    wanted = project.config.methods.preflight.regraded
    again = await graded_again(job, setup, rollouts, wanted=wanted)
    lost = sum(not scores for scores in again.values())
    note = f"the calls of {lost} of {len(again)} rollouts could not be repeated for a second grade"
    return again, (note,) if lost else ()


async def graded_again(
    job: Job,
    setup: RolloutSetup,
    rollouts: Sequence[tuple[Task, GradedTrajectory]],
    *,
    wanted: int,
    times: int = 1,
) -> dict[str, list[float | None]]:
    """Grade some rollouts again, of different tasks first; return the scores by trajectory id.

    None stands for a grader that failed; no score at all, for calls that could not be repeated.
    """
    seen: Counter[str] = Counter()
    rounds: list[tuple[int, Task, Trajectory]] = []
    for task, graded in rollouts:
        if graded.grade.score is not None:
            rounds.append((seen[task.id], task, graded.trajectory))
            seen[task.id] += 1
    chosen = sorted(rounds, key=lambda entry: entry[0])[:wanted]
    acting = needs_environment(setup.grader)
    with job.progress.phase("grades given again", max(times * len(chosen), 1)) as phase:

        async def once(task: Task, trajectory: Trajectory) -> Grade | None:
            given = (setup, task, trajectory)
            grade = await (_replayed(*given) if acting else _regraded(*given))
            phase.advance()
            return grade

        work = in_order([once(task, trajectory) for _, task, trajectory in chosen * times])
        grades = await job.unless_stopped(work)
    again: dict[str, list[float | None]] = {trajectory.id: [] for _, _, trajectory in chosen}
    for (_, _, trajectory), grade in zip(chosen * times, grades, strict=True):
        if grade is not None:
            again[trajectory.id].append(grade.score)
    return again


async def _regraded(setup: RolloutSetup, task: Task, trajectory: Trajectory) -> Grade:
    return await grade_rollout(setup.grader, task, trajectory, None)


async def _replayed(setup: RolloutSetup, task: Task, trajectory: Trajectory) -> Grade | None:
    """Repeat the calls in a fresh environment, so that a grader that looks at it can grade again.

    None if they cannot be repeated, which says nothing about the grader.
    """
    environment: Environment | None = None
    opening = partial(setup.open_environment, task, trajectory.id)
    late = ToolError(f"the calls were not repeated in {REPLAY_TIMEOUT_S:g} s")
    try:
        with boundary(ToolError, "calls repeated for a second grade"):
            async with within(REPLAY_TIMEOUT_S, late):
                environment = await in_thread(opening, name=f"replay {trajectory.id}")
                for turn in trajectory.turns:
                    ran = {result.call_id for result in turn.tool_results if not result.guard}
                    for call in turn.message.tool_calls:
                        if call.id in ran:
                            await environment.call_tool(call)
        return await grade_rollout(setup.grader, task, trajectory, environment)
    except ToolError:
        return None
    finally:
        if environment is not None:
            await close_environment(environment, trajectory.id)


async def _audited(job: Job, project: Project) -> dict[str, Any]:
    """Audit the grader once per run; what it finds is told, not enforced."""
    if before := job.run.result.get("audit"):
        return dict(before)
    with job.progress.phase("audit of the grader", 1) as phase:
        report = await job.unless_stopped(
            audit(project_subject(project), project.config.audit, seed=job.run.seed)
        )
        phase.advance()
    told = summary(report, allowed=False)
    job.note_result(audit=told)
    return told


def _prices(config: ProjectConfig) -> Prices:
    endpoint = config.endpoint
    if endpoint is None:
        return Prices()
    return Prices(prompt=endpoint.input_price, sampled=endpoint.output_price)
