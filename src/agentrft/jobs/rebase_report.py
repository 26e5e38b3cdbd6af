"""The report of a rebase: old and new model, before and after, in one table and one sentence."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import UserError
from agentrft.core.run import TRAINING, RolloutRecord, StepMetrics
from agentrft.jobs.audit import caveats
from agentrft.jobs.context import Job
from agentrft.jobs.holdout import holdout_looks
from agentrft.jobs.improvement_report import children_of
from agentrft.jobs.optimize import opened_run, run_report
from agentrft.jobs.retest import kept_retest
from agentrft.jobs.stages import MEASURED
from agentrft.measure.arms import Arm, Spending, spent_on_training
from agentrft.measure.comparison import LEVEL, NOT_MEASURED, compare
from agentrft.measure.comparison_section import Payoff
from agentrft.measure.report import Report, StageResult, build_report, write_report
from agentrft.measure.statistics import paired_difference, rate
from agentrft.measure.summary import by_task, passed
from agentrft.store.codec import load_config
from agentrft.store.home import Home

OLD_BASE, OLD_TUNED, NEW_BASE, NEW_TUNED = "old base", "old tuned", "new base", "new tuned"
NEW_LEAN = "new tuned lean"
"""The last one under the spec without the changes that it does not need."""
STAGES = (OLD_BASE, OLD_TUNED, NEW_BASE, NEW_TUNED, NEW_LEAN)
QUESTION = "Should the model change?"
VALIDATED = " validated"
"""Ends the name of the run that measures a stage on the tasks that decide."""


def write_rebase_report(job: Job) -> tuple[Report, Path]:
    """Write the report from what the stages left behind; return it and where it lies."""
    report, folder = rebase_report(job), job.home.report(job.run.id)
    write_report(report, folder)
    return report, folder


def rebase_report_again(home: Home, run_id: str) -> tuple[Report, Path]:
    """Write the report of a rebase again. Raises UserError if nothing was measured yet."""
    return write_rebase_report(opened_run(home, run_id))


def rebase_report(job: Job) -> Report:
    """Return the report, as far as the run got. Raises UserError if nothing was measured yet."""
    config, children = load_config(ProjectConfig, job.run.config, job.run.id), children_of(job)
    stages = _stages(children)
    if not stages:
        raise UserError(f"run {job.run.id} has no measured stage yet; nothing to report")
    tested = children.get(f"{NEW_TUNED} spec")
    report = build_report(
        replace(
            run_report(job, config, stages),
            phase_s={name: child.seconds for name, child in children.items()},
            holdout_looks=holdout_looks(job),
            caveats=(*caveats(job), *job.run.result.get("notes", ())),
            retests=(kept_retest(tested),) if tested and tested.is_done else (),
        )
    )
    if len(stages) < STAGES.index(NEW_LEAN):
        return report
    return replace(report, payoff=_decision(job, config, stages))


def _stages(children: Mapping[str, Job]) -> tuple[StageResult, ...]:
    return tuple(
        StageResult(name=name, records=children[name + MEASURED].read_all(RolloutRecord))
        for name in STAGES
        if name + MEASURED in children
    )


def rebased_arms(job: Job) -> list[Arm]:
    """Return the policies that a rebase has measured, each with what its weights took."""
    children = children_of(job)
    origin = opened_run(job.home, job.run.result["origin"])
    first = [origin] if origin.run.method in TRAINING else children_of(origin).values()
    took = {OLD_TUNED: _training(first), NEW_TUNED: _training(children.values())}
    took[NEW_LEAN] = took[NEW_TUNED]
    return [
        Arm(
            name=stage.name,
            records=stage.records,
            training=took.get(stage.name, Spending()),
            trained=stage.name in took,
        )
        for stage in _stages(children)
    ]


def _decision(job: Job, config: ProjectConfig, stages: Sequence[StageResult]) -> Payoff:
    children, origin = children_of(job), opened_run(job.home, job.run.result["origin"])
    by_stage = {stage.name: stage.records for stage in stages}
    split = "holdout, since there are no validation"
    for name in (OLD_TUNED, NEW_TUNED):
        if child := children.get(name + VALIDATED):
            by_stage[name], split = child.read_all(RolloutRecord), "validation"
    models = (str(origin.run.config["model"]), config.agent_model)
    try:
        answer = adoption(models, by_stage[OLD_TUNED], by_stage[NEW_TUNED], config, split)
        table = compare(
            rebased_arms(job),
            pass_threshold=config.pass_threshold,
            prices=config.prices,
            reference=OLD_TUNED,
        )
    except UserError as error:
        answer = f"Cannot tell whether to change the model: {error}."
        return Payoff(answer=answer, comparison=None, question=QUESTION)
    notes = tuple(note for note in table.notes if note != NOT_MEASURED)
    table = replace(table, answer=answer, notes=notes)
    return Payoff(answer=answer, comparison=table, question=QUESTION)


def adoption(
    models: tuple[str, str],
    old: Sequence[RolloutRecord],
    new: Sequence[RolloutRecord],
    config: ProjectConfig,
    split: str,
) -> str:
    """Say whether to change the model: only where the new one certainly solves more of these tasks."""
    former, latter = models
    first, second = (passed(by_task(records), config.pass_threshold) for records in (old, new))
    shared = first.keys() & second.keys()
    if not shared:
        return f"Cannot tell whether to change to {latter}: no task was measured with both."
    first, second = ({task: of[task] for task in shared} for of in (first, second))
    found = paired_difference(first, second)
    numbers = (
        f"on {len(shared)} {split} tasks the tuned {latter} solves {rate(second).value:.1%} and the "
        f"tuned {former} {rate(first).value:.1%}, {100 * found.value:+.1f} points (95% interval "
        f"{100 * found.low:+.1f} to {100 * found.high:+.1f}, p {found.p_value:.3f})"
    )
    certain = found.p_value <= LEVEL  # an interval over a few tasks that all agree has no width
    if certain and found.low > 0:
        return f"Change to {latter}: {numbers}."
    if certain and found.high < 0:
        return f"Keep {former}: {numbers}."
    return f"Keep {former}, unless {latter} is wanted for other reasons: {numbers}; that tells nothing."


def _training(jobs: Iterable[Job]) -> Spending:
    """Return what the stages that changed weights took."""
    taken = Spending()
    for job in jobs:
        if job.run.method in TRAINING:
            taken += spent_on_training(
                job.read_all(RolloutRecord), job.read_all(StepMetrics), seconds=job.seconds
            )
    return taken
