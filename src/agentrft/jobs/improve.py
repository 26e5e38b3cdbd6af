"""The main job: measure, search for a better spec, then take the advised method, and report.

Every stage is a run of its own, named after its parent, so that a killed improvement finds
what is done and goes on from there.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import UserError
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event, Method, RolloutRecord, Split, StepMetrics
from agentrft.core.spec import AgentSpec, Shown
from agentrft.core.task import Demonstration
from agentrft.jobs.audit import caveats, gate, project_subject
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement
from agentrft.jobs.holdout import holdout_looks
from agentrft.jobs.optimize import STAGE as SEARCH
from agentrft.jobs.optimize import found_again, kept_summary, search_examples, search_spec
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import SPEC_FOLDER, Project, plain_spec
from agentrft.jobs.retest import for_training, retest
from agentrft.jobs.serving import OpenModel, ServedModel, require_weights, served_model
from agentrft.jobs.stages import (
    BASE,
    SPEC,
    STAGES,
    TUNED,
    WARM,
    evaluation,
    measured,
    reinforcement,
    under,
    warm_start,
)
from agentrft.jobs.standing import preflight
from agentrft.jobs.trials import keep_spec
from agentrft.measure.advisor import AFTER_SEARCH, Advice
from agentrft.measure.monitors import alarms_of
from agentrft.measure.next_steps import NextStep
from agentrft.measure.report import Report, ReportInput, StageResult, build_report, write_report
from agentrft.measure.search_summary import Retest
from agentrft.optimize.problem import Found, Proposer
from agentrft.optimize.proposers import PROPOSERS
from agentrft.store.codec import from_json, load_config, to_json
from agentrft.store.home import Home
from agentrft.store.spec_files import write_spec

CLIMB = "climb.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """What came out of an improvement."""

    report: Report
    folder: Path
    """Where report.html and report.json lie."""
    checkpoint: Checkpoint | None
    """The weights to deliver: the best by the held-out grader, else the last. None if none trained."""
    advice: Advice
    """What comes next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Climbed:
    """`climb.json`: what an improvement decided on its way."""

    advice: tuple[Advice, ...] = ()
    retests: tuple[Retest, ...] = ()


async def improve(
    job: Job,
    project: Project,
    *,
    allow_findings: bool = False,
    open_model: OpenModel | None = None,
    proposers: Sequence[Proposer] = PROPOSERS,
) -> Improvement:
    """Run every stage that is not done yet and write the report.

    The grader is audited first; raises GraderRefusedError unless `allow_findings`. Raises UserError
    for an agent behind an endpoint, whose weights cannot change.
    """
    require_weights(project.config)
    async with job.running():
        await gate(
            job, project_subject(project), project.config.audit, allow_findings=allow_findings
        )
        opened = open_model or partial(served_model, job=job)
        with opened(project, job.home, trained=True) as model:
            climb = _Climb(
                job=job,
                model=model,
                opened=model.project.spec,
                proposers=proposers,
                allow_findings=allow_findings,
            )
            await climb.search()
            while step := await climb.advised():
                await climb.take(step)
        climbed = Climbed(advice=tuple(climb.advice), retests=tuple(climb.retests))
        (job.folder / CLIMB).write_bytes(to_json(climbed))
        report = reported(job, project.config, climb.stages, climbed=climbed)
        folder = job.home.report(job.run.id)
        write_report(report, folder)
        write_spec(job.folder / SPEC_FOLDER, climb.spec, plain_spec(project.folder, project.config))
        keep_spec(job.folder, climb.spec)
        weights = climb.checkpoint.path if climb.checkpoint else ""
        job.note_result(report=str(folder), checkpoint=weights, spec=climb.spec.hash)
    return Improvement(
        report=report, folder=folder, checkpoint=climb.checkpoint, advice=climb.advice[-1]
    )


@dataclass(kw_only=True)
class _Climb:
    """An improvement as it goes: spec and weights as they are now, and what led there."""

    job: Job
    model: ServedModel
    """Acts under the spec as it is now."""
    opened: AgentSpec
    """The project's own spec, which nothing takes back."""
    proposers: Sequence[Proposer]
    allow_findings: bool
    checkpoint: Checkpoint | None = None
    stages: list[StageResult] = field(default_factory=list[StageResult])
    advice: list[Advice] = field(default_factory=list[Advice])
    retests: list[Retest] = field(default_factory=list[Retest])
    demonstrations: tuple[Demonstration, ...] = ()
    taken: set[NextStep] = field(default_factory=set[NextStep])

    @property
    def spec(self) -> AgentSpec:
        return self.model.project.spec

    async def search(self) -> None:
        """Look for a better spec, and measure it and the project's own on the holdout."""
        child = self.job.child(SEARCH, Method.OPTIMIZE)
        found = found_again(child) if child.is_done else await self._searched(child)
        own = {shown.id: shown for shown in self.model.project.demonstrations()}
        verified = {shown.id: shown for shown in found.demonstrations}
        self.demonstrations = tuple((verified | own).values())
        await self._measure(BASE, _kept(child, self.model))
        if found.summary.promoted:
            self.model = under(self.model, found.chosen)
            await self._measure(SPEC, _kept(child, self.model))

    async def advised(self) -> NextStep | None:
        """Measure where the agent stands; return the advised method if it is one to take here."""
        number = len(self.advice) + 1
        child = self.job.child(f"advice {number}", Method.PREFLIGHT)
        acting = under(self.model, for_training(self.spec))
        result = await preflight(
            child,
            acting.project,
            Path(self.checkpoint.path) if self.checkpoint else None,
            open_model=_open(acting),
            known=AFTER_SEARCH,
            allow_findings=self.allow_findings,
        )
        self.advice.append(result.advice)
        self.job.event(
            f"advice {result.advice.rule}: {result.advice.method}. {result.advice.reason}"
        )
        step = result.advice.method
        takes = step in (NextStep.SUPERVISED, NextStep.REINFORCEMENT) and step not in self.taken
        return step if takes else None

    async def take(self, step: NextStep) -> None:
        """Train by the advised method, test the spec again, and measure on the holdout."""
        self.taken.add(step)
        start = Path(self.checkpoint.path) if self.checkpoint else None
        if step is NextStep.SUPERVISED:
            stage = WARM
            # What demonstrations in the prompt show is what imitating them teaches.
            lean = replace(for_training(self.spec), shown=Shown())
            training = self.job.child(stage, Method.SUPERVISED)
            self.checkpoint = await warm_start(
                training, under(self.model, lean), start, self.demonstrations
            )
        else:
            stage = TUNED
            acting = under(self.model, for_training(self.spec))
            training = self.job.child(stage, Method.REINFORCEMENT)
            self.checkpoint = await reinforcement(training, acting, start)
        spec, found = await retest(self.job, self.model, stage, self.checkpoint, self.opened)
        self.model = under(self.model, spec)
        if found is not None:
            self.retests.append(found)
        await self._measure(stage, ())

    async def _searched(self, child: Job) -> Found:
        async with child.running():
            return await search_spec(child, self.model, proposers=self.proposers)

    async def _measure(self, stage: str, known: Sequence[RolloutRecord]) -> None:
        result = await measured(self.job, self.model, stage, self.checkpoint, known=known)
        self.stages.append(result)


def _kept(search: Job, model: ServedModel) -> list[RolloutRecord]:
    """Return what a search rolled out on the holdout under the model's spec, if it is comparable."""
    project, evaluated = model.project, model.project.config.methods.evaluation
    if evaluated.temperature not in (None, project.spec.decoding.temperature):
        return []
    tasks = {task.id for task in project.tasks("holdout")[: evaluated.tasks or None]}
    name = project.spec.hash
    records = [
        record
        for record in search.read_all(RolloutRecord)
        if record.split == "holdout"
        and record.graded.trajectory.spec_hash == name
        and record.graded.trajectory.task_id in tasks
        and record.graded.grade.score is not None
    ]
    return records if evaluated.samples_per_task == 1 else []


def _open(model: ServedModel) -> OpenModel:
    """Return an opener that gives the model that is open already."""

    @contextmanager
    def opened(project: Project, home: Home, *, trained: bool) -> Iterator[ServedModel]:
        yield model

    return opened


async def measure(job: Job, project: Project, split: Split, checkpoint: Path | None) -> Report:
    """Measure the base model or a checkpoint on a split."""
    stage = BASE if checkpoint is None else "checkpoint"
    measurement = Measurement(stage=stage, split=split, seed=job.run.seed)
    with served_model(project, job.home, trained=checkpoint is not None, job=job) as model:
        records = await evaluation(job, model, project.tasks(split), measurement, checkpoint)
    stages = [StageResult(name=stage, records=records)]
    return reported(job, project.config, stages, split=split)


def reported(
    job: Job,
    config: ProjectConfig,
    stages: Sequence[StageResult],
    *,
    split: Split = "holdout",
    climbed: Climbed | None = None,
) -> Report:
    """Put the stages into one report."""
    climbed = climbed or Climbed()
    run = job.home.store.find_run(job.child_id(SEARCH))
    search = replace(job, run=run) if run else None
    summary = kept_summary(search) if search and search.is_done else None
    return build_report(
        ReportInput(
            project=config.name,
            model=config.agent_model,
            run_id=job.run.id,
            seeds=(job.run.seed,),
            config=job.run.config,
            pass_threshold=config.pass_threshold,
            phase_s=phase_seconds(job),
            created_at=job.run.created_at,
            split=split,
            holdout_looks=holdout_looks(job),
            caveats=caveats(job),
            stages=tuple(stages),
            search=summary,
            search_examples=search_examples(search, summary) if search and summary else (),
            advice=climbed.advice,
            retests=climbed.retests,
        )
    )


def report_again(home: Home, run_id: str) -> tuple[Report, Path]:
    """Rebuild the report of an improvement from the store, as far as it got; return where it lies."""
    job = Job(
        home=home, run=home.store.run(run_id), progress=SilentProgress(), stop=asyncio.Event()
    )
    stages: list[StageResult] = []
    for name in STAGES:
        runs = [home.store.find_run(job.child_id(child)) for child in (f"{name} measured", name)]
        children = [replace(job, run=run) for run in runs if run]
        stages.append(
            StageResult(
                name=name,
                records=[record for child in children for record in child.read_all(RolloutRecord)],
                metrics=[step for child in children for step in child.read_all(StepMetrics)],
                alarms=[a for child in children for a in alarms_of(child.read_all(Event))],
            )
        )
    stages = [stage for stage in stages if stage.records]
    if not stages:
        raise UserError(f"run {run_id} has no measured stage yet; nothing to report")
    path = job.folder / CLIMB
    climbed = from_json(Climbed, path.read_bytes()) if path.is_file() else None
    config = load_config(ProjectConfig, job.run.config, run_id)
    report = reported(job, config, stages, climbed=climbed)
    folder = home.report(run_id)
    write_report(report, folder)
    return report, folder


def phase_seconds(job: Job) -> dict[str, float]:
    """Return wall seconds of every stage that has run under this job, in their order."""
    names = [
        SEARCH,
        f"{BASE} measured",
        f"{SPEC} measured",
        "advice 1",
        WARM,
        f"{WARM} spec",
        f"{WARM} measured",
        "advice 2",
        TUNED,
        f"{TUNED} spec",
        f"{TUNED} measured",
        "advice 3",
    ]
    found = {name: job.home.store.find_run(job.child_id(name)) for name in names}
    return {name: float(run.result.get("seconds", 0.0)) for name, run in found.items() if run}
