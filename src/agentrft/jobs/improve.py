"""The main job: measure, search for a better spec, then take the advised method, and report.

Every stage is a run of its own, named after its parent, so that a killed improvement finds
what is done and goes on from there.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from agentrft.core.policy import Checkpoint
from agentrft.core.run import Method, RolloutRecord, Split
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Demonstration
from agentrft.jobs.audit import audited
from agentrft.jobs.context import Job
from agentrft.jobs.control import best_of
from agentrft.jobs.evaluation import Measurement
from agentrft.jobs.improvement_report import CLIMB, Climbed, reported
from agentrft.jobs.optimize import STAGE as SEARCH
from agentrft.jobs.optimize import found_again, search_spec
from agentrft.jobs.preflight import preflight
from agentrft.jobs.project import SPEC_FOLDER, Project, plain_spec
from agentrft.jobs.retest import for_training, retest
from agentrft.jobs.serving import OpenModel, ServedModel, require_weights, served_model
from agentrft.jobs.stages import BASE, SPEC, evaluation, measured, under, with_training
from agentrft.jobs.trained import NothingLearnedError
from agentrft.jobs.training_stage import STAGE_OF, trained_stage
from agentrft.jobs.trials import keep_spec
from agentrft.measure.advisor import AFTER_SEARCH, Advice
from agentrft.measure.next_steps import NextStep
from agentrft.measure.report import Report, StageResult, write_report
from agentrft.measure.search_summary import Retest
from agentrft.optimize.problem import Found, Proposer
from agentrft.optimize.proposers import PROPOSERS
from agentrft.store.codec import to_json
from agentrft.store.home import Home
from agentrft.store.spec_files import write_spec

METHOD_OF: Mapping[NextStep, Method] = {
    NextStep.SUPERVISED: Method.SUPERVISED,
    NextStep.REJECTION: Method.REJECTION,
    NextStep.DISTILLATION: Method.DISTILLATION,
    NextStep.PREFERENCE: Method.PREFERENCE,
    NextStep.REINFORCEMENT: Method.REINFORCEMENT,
}
"""Advice that is taken here."""


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
        await audited(job, project, allow_findings=allow_findings)
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
            while method := await climb.advised():
                await climb.draw()
                await climb.take(method)
        climbed = Climbed(advice=tuple(climb.advice), retests=tuple(climb.retests))
        (job.folder / CLIMB).write_bytes(to_json(climbed))
        report = reported(job, project.config, climb.stages, climbed=climbed, control=climb.control)
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
    """The project's own spec, which nothing takes back; once it is distilled, the short one."""
    proposers: Sequence[Proposer]
    allow_findings: bool
    checkpoint: Checkpoint | None = None
    stages: list[StageResult] = field(default_factory=list[StageResult])
    control: StageResult | None = None
    """Several rollouts of each holdout task by the best spec, before any weight changed."""
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

    async def advised(self) -> Method | None:
        """Measure where the agent stands; return the advised method if it is one to take here."""
        number = len(self.advice) + 1
        child = self.job.child(f"advice {number}", Method.PREFLIGHT)
        acting = under(self.model, for_training(self.spec))
        result = await preflight(
            child,
            acting.project,
            Path(self.checkpoint.path) if self.checkpoint else None,
            open_model=_open(acting),
            known=replace(
                AFTER_SEARCH, demonstrations=len(self.demonstrations), taken=frozenset(self.taken)
            ),
            allow_findings=self.allow_findings,
        )
        self.advice.append(result.advice)
        self.job.event(
            f"advice {result.advice.rule}: {result.advice.method}. {result.advice.reason}"
        )
        return METHOD_OF.get(result.advice.method)

    async def draw(self) -> None:
        """Roll the best spec without training out as often as best-of-k takes, once."""
        if self.control or not self.model.project.config.methods.evaluation.best_of:
            return
        self.control = await best_of(self.job, self.model, self.stages[-1].records)

    async def take(self, method: Method) -> None:
        """Train by the advised method, test the spec again, and measure on the holdout.

        A method that leaves nothing to go on with is passed over; what it took stays charged.
        """
        self.taken |= {step for step, taken in METHOD_OF.items() if taken is method}
        stage = STAGE_OF[method]
        try:
            self.checkpoint, spec = await trained_stage(
                self.job, self.model, method, self.checkpoint, self.demonstrations
            )
        except NothingLearnedError as error:
            self.job.event(f"the {stage} is passed over. {error}", level="warn")
            tried = with_training(self.job, stage, ())
            if tried.records or tried.metrics:
                self.stages.append(tried)
            return
        if method is Method.DISTILLATION:
            # The weights stand for what is not in it any more.
            self.model, self.opened = under(self.model, spec), spec
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
    name = project.spec.hash
    return [
        record
        for record in search.read_all(RolloutRecord)
        if record.split == "holdout"
        and record.graded.trajectory.spec_hash == name
        and record.graded.grade.score is not None
    ]


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
    report = reported(job, project.config, stages, split=split)
    # An export of these weights finds by this what was measured of them.
    write_report(report, job.home.report(job.run.id))
    job.note_result(checkpoint=str(checkpoint or ""))
    return report
