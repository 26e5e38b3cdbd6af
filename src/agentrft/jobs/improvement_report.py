"""The report of a run with stages, made when it ends or at any time from what they left behind."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import UserError
from agentrft.core.run import TRAINING, RolloutRecord, RunStatus, Split
from agentrft.jobs.audit import caveats
from agentrft.jobs.context import Job
from agentrft.jobs.control import BEST_OF, drawn_control
from agentrft.jobs.holdout import holdout_looks, runs_beside
from agentrft.jobs.optimize import STAGE as SEARCH
from agentrft.jobs.optimize import kept_summary, opened_run, run_report, search_examples
from agentrft.jobs.stages import MEASURED, with_training
from agentrft.measure.advisor import Advice
from agentrft.measure.report import Report, StageResult, build_report, write_report
from agentrft.measure.search_summary import Retest
from agentrft.store.codec import from_json, load_config
from agentrft.store.home import Home

CLIMB = "climb.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Climbed:
    """`climb.json`: what was decided on the way."""

    advice: tuple[Advice, ...] = ()
    retests: tuple[Retest, ...] = ()


def reported(
    job: Job,
    config: ProjectConfig,
    stages: Sequence[StageResult],
    *,
    split: Split = "holdout",
    climbed: Climbed | None = None,
    control: StageResult | None = None,
) -> Report:
    """Put the stages into one report."""
    climbed = climbed or Climbed()
    children = children_of(job)
    search = children.get(SEARCH)
    summary = kept_summary(search) if search and search.is_done else None
    return build_report(
        replace(
            run_report(job, config, stages),
            phase_s={name: child.seconds for name, child in children.items()},
            split=split,
            holdout_looks=holdout_looks(job),
            caveats=(*caveats(job), *_without_effect(children)),
            control=control,
            search=summary,
            search_examples=search_examples(search, summary) if search and summary else (),
            advice=climbed.advice,
            retests=climbed.retests,
        )
    )


def report_again(home: Home, run_id: str) -> tuple[Report, Path]:
    """Rebuild the report of an improvement from the store, as far as it got; return where it lies."""
    report, folder = rebuilt(home, run_id), home.report(run_id)
    write_report(report, folder)
    return report, folder


def rebuilt(home: Home, run_id: str) -> Report:
    """Return the report of what a run with stages left behind. Raises UserError if that is nothing."""
    job = opened_run(home, run_id)
    children = children_of(job)
    # A training that rolled nothing out, and left nothing to go on with, was paid for all the same.
    stages = [stage for stage in _stages(job, children) if stage.records or stage.metrics]
    if not stages:
        raise UserError(f"run {run_id} has no measured stage yet; nothing to report")
    path = job.folder / CLIMB
    climbed = from_json(Climbed, path.read_bytes()) if path.is_file() else None
    drawn = children.get(BEST_OF)
    control = drawn_control(drawn) if drawn else None
    config = load_config(ProjectConfig, job.run.config, run_id)
    return reported(job, config, stages, climbed=climbed, control=control)


def children_of(job: Job) -> dict[str, Job]:
    """Return the stages that have begun, by name, in the order in which they began."""
    before = f"{job.run.id}."
    runs = reversed([run for run in runs_beside(job) if run.parent_id == job.run.id])
    return {run.id.removeprefix(before).replace("-", " "): replace(job, run=run) for run in runs}


def _without_effect(children: Mapping[str, Job]) -> Iterator[str]:
    for name, child in children.items():
        if child.run.method in TRAINING and child.run.status is RunStatus.FAILED:
            yield f"The {name} left nothing to go on with: {child.run.error}."


def _stages(job: Job, children: Mapping[str, Job]) -> Iterator[StageResult]:
    """Return what was measured, and what still trains."""
    for name, child in children.items():
        if name.endswith(MEASURED):
            records = child.read_all(RolloutRecord)
            yield with_training(job, name.removesuffix(MEASURED), records)
        elif child.run.method in TRAINING and name + MEASURED not in children:
            yield with_training(job, name, ())
