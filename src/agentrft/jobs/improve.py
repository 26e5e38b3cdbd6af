"""The main job: measure, warm start, reinforce, measure again, report.

Every stage is a run of its own, named after its parent, so that a killed improvement finds
what is done and goes on from there.
"""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import UserError
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event, Method, RolloutRecord, Split, StepMetrics
from agentrft.core.task import Task
from agentrft.jobs.audit import caveats, gate, project_subject
from agentrft.jobs.checkpoints import delivered
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement, evaluate, stored_records
from agentrft.jobs.holdout import holdout_looks
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import Project
from agentrft.jobs.reinforcement import reinforce, serving
from agentrft.jobs.serving import ServedModel, first_step, served_model
from agentrft.jobs.supervised import demonstration_samples, imitate
from agentrft.jobs.validation import task_sets
from agentrft.measure.monitors import alarms_of
from agentrft.measure.report import Report, ReportInput, StageResult, build_report, write_report
from agentrft.store.codec import load_config
from agentrft.store.home import Home

BASE, WARM, TUNED = "base", "warm start", "reinforcement"


@dataclass(frozen=True, slots=True, kw_only=True)
class Improvement:
    """What came out of an improvement."""

    report: Report
    folder: Path
    """Where report.html and report.json lie."""
    checkpoint: Checkpoint
    """The weights to deliver: the best by the held-out grader, else the last."""


async def improve(job: Job, project: Project, *, allow_findings: bool = False) -> Improvement:
    """Run every stage that is not done yet and write the report.

    The grader is audited first; raises GraderRefusedError unless `allow_findings`.
    """
    async with job.running():
        await gate(
            job, project_subject(project), project.config.audit, allow_findings=allow_findings
        )
        with served_model(project, job.home, trained=True) as model:
            stages = [await holdout_stage(job, model, BASE, None)]
            warm: Checkpoint | None = None
            if project.config.data.demonstrations:
                warm = await warm_start(job.child(WARM, Method.SUPERVISED), model, None)
                stages.append(await holdout_stage(job, model, WARM, warm))
            tuning = job.child(TUNED, Method.REINFORCEMENT)
            tuned = await reinforcement(tuning, model, Path(warm.path) if warm else None)
            stages.append(await holdout_stage(job, model, TUNED, tuned))
        report = reported(job, project.config, stages)
        folder = job.home.report(job.run.id)
        write_report(report, folder)
        job.note_result(report=str(folder), checkpoint=tuned.path)
    return Improvement(report=report, folder=folder, checkpoint=tuned)


async def train(
    job: Job, project: Project, start: Path | None, *, allow_findings: bool = False
) -> Checkpoint:
    """Train with the job's own method, from a checkpoint or from the base model.

    Before reinforcement the grader is audited, as before an improvement.
    """
    with served_model(project, job.home, trained=True) as model:
        if job.run.method is Method.SUPERVISED:
            return await warm_start(job, model, start)
        return await reinforcement(job, model, start, allow_findings=allow_findings)


async def measure(job: Job, project: Project, split: Split, checkpoint: Path | None) -> Report:
    """Measure the base model or a checkpoint on a split."""
    stage = BASE if checkpoint is None else "checkpoint"
    measurement = Measurement(stage=stage, split=split, seed=job.run.seed)
    with served_model(project, job.home, trained=checkpoint is not None, job=job) as model:
        records = await evaluation(job, model, project.tasks(split), measurement, checkpoint)
    stages = [StageResult(name=stage, records=records)]
    return reported(job, project.config, stages, split=split)


async def holdout_stage(
    job: Job, model: ServedModel, stage: str, checkpoint: Checkpoint | None
) -> StageResult:
    """Measure a stage on every holdout task and add what its training recorded."""
    child = job.child(f"{stage} measured", Method.EVALUATION)
    measurement = Measurement(stage=stage, split="holdout", seed=job.run.seed)
    path = Path(checkpoint.path) if checkpoint else None
    tasks = model.project.tasks("holdout")
    records = await evaluation(child, model, tasks, measurement, path)
    if checkpoint is None:
        return StageResult(name=stage, records=records)
    training = job.child(stage, Method.REINFORCEMENT if stage == TUNED else Method.SUPERVISED)
    return StageResult(
        name=stage,
        records=(*training.read_all(RolloutRecord), *records),
        metrics=training.read_all(StepMetrics),
        alarms=alarms_of(training.read_all(Event)),
    )


async def evaluation(
    job: Job,
    model: ServedModel,
    tasks: Sequence[Task],
    measurement: Measurement,
    checkpoint: Path | None,
) -> list[RolloutRecord]:
    """Measure the base model, or a checkpoint as it lies on disk, on all tasks of a split."""
    methods = model.project.config.methods
    if job.is_done:
        records = stored_records(job, measurement)
    else:
        async with job.running():
            job.note_result(split=measurement.split)
            setup = await serving(job, model, checkpoint)
            records = await evaluate(
                job,
                setup,
                tasks,
                methods.evaluation,
                measurement,
                concurrency=model.concurrency,
            )
    order = {task.id: number for number, task in enumerate(tasks)}
    return sorted(records, key=lambda record: order[record.graded.trajectory.task_id])


async def warm_start(job: Job, model: ServedModel, start: Path | None) -> Checkpoint:
    """Imitate the project's demonstrations."""
    config = model.project.config.methods.supervised
    if job.is_done:
        return job.checkpoint()
    async with job.running():
        trainer = model.resumed_trainer(job, config.trainer, "cross_entropy", start)
        samples = demonstration_samples(model.project, model.renderer)
        return await imitate(job, trainer, samples, config, first_step=first_step(trainer))


async def reinforcement(
    job: Job, model: ServedModel, start: Path | None, *, allow_findings: bool = False
) -> Checkpoint:
    """Reinforce from a checkpoint, or from the base model without one."""
    config = model.project.config.methods.reinforcement
    if job.is_done:
        return delivered(job)
    async with job.running():
        if job.run.parent_id is None:  # an improvement was audited before its first stage
            subject = project_subject(model.project)
            audit = model.project.config.audit
            await gate(job, subject, audit, allow_findings=allow_findings)
        trainer = model.resumed_trainer(job, config.trainer, "policy_gradient", start)
        tasks = task_sets(model.project)
        return await reinforce(
            job,
            model.setup(),
            trainer,
            tasks,
            config,
            first_step=first_step(trainer),
            concurrency=model.concurrency,
        )


def reported(
    job: Job, config: ProjectConfig, stages: Sequence[StageResult], *, split: Split = "holdout"
) -> Report:
    """Put the stages into one report."""
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
        )
    )


def report_again(home: Home, run_id: str) -> tuple[Report, Path]:
    """Rebuild the report of an improvement from the store, as far as it got; return where it lies."""
    job = Job(
        home=home, run=home.store.run(run_id), progress=SilentProgress(), stop=asyncio.Event()
    )
    stages: list[StageResult] = []
    for name in (BASE, WARM, TUNED):
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
    report = reported(job, load_config(ProjectConfig, job.run.config, run_id), stages)
    folder = home.report(run_id)
    write_report(report, folder)
    return report, folder


def phase_seconds(job: Job) -> dict[str, float]:
    """Return wall seconds of every stage that has run under this job."""
    names = [f"{BASE} measured", WARM, f"{WARM} measured", TUNED, f"{TUNED} measured"]
    found = {name: job.home.store.find_run(job.child_id(name)) for name in names}
    return {name: float(run.result.get("seconds", 0.0)) for name, run in found.items() if run}
