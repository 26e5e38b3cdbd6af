"""Stages of an improvement, each a run of its own: measure, imitate, reinforce.

A stage that is done is read back; one that was interrupted goes on where it was.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from agentrft.core.policy import Checkpoint
from agentrft.core.run import TRAINING, Event, Method, RolloutRecord, StepMetrics
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Demonstration, Task
from agentrft.jobs.audit import audited
from agentrft.jobs.checkpoints import delivered
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement, evaluate, foreseen, in_file_order, stored_records
from agentrft.jobs.reinforcement import reinforce, serving
from agentrft.jobs.serving import ServedModel, first_step
from agentrft.jobs.supervised import demonstration_samples, imitate
from agentrft.jobs.validation import task_sets
from agentrft.measure.monitors import alarms_of
from agentrft.measure.report import StageResult

BASE, SPEC, WARM, TUNED = "base", "spec", "warm start", "reinforcement"
MEASURED = " measured"
"""Ends the name of the run that measures a stage."""


def under(model: ServedModel, spec: AgentSpec) -> ServedModel:
    """Return the model acting under another spec."""
    return replace(model, project=replace(model.project, spec=spec))


async def measured(
    job: Job,
    model: ServedModel,
    stage: str,
    checkpoint: Checkpoint | None,
    *,
    known: Sequence[RolloutRecord] = (),
) -> StageResult:
    """Measure a stage on every holdout task and add what its training recorded.

    `known` are rollouts of the same policy that another run already made; others than these would
    be, such as further samples of some tasks, are left out.
    """
    child = job.child(stage + MEASURED, Method.EVALUATION)
    measurement = Measurement(stage=stage, split="holdout", seed=job.run.seed)
    tasks, config = model.project.tasks("holdout"), model.project.config.methods.evaluation
    if not stored_records(child, measurement):
        child.append(foreseen(known, tasks, config, measurement))
    path = Path(checkpoint.path) if checkpoint else None
    records = await evaluation(child, model, tasks, measurement, path)
    return with_training(job, stage, records)


def with_training(job: Job, stage: str, records: Sequence[RolloutRecord]) -> StageResult:
    """Return a stage's measurement together with what its training recorded, if it was trained."""
    run = job.home.store.find_run(job.child_id(stage))
    if run is None or run.method not in TRAINING:
        return StageResult(name=stage, records=records)
    training = replace(job, run=run)
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
            job.note_result(
                split=measurement.split,
                spec_hash=model.project.spec.hash,
                checkpoint=str(checkpoint or ""),
            )
            setup = await serving(job, model, checkpoint)
            records = await evaluate(
                job,
                setup,
                tasks,
                methods.evaluation,
                measurement,
                concurrency=model.concurrency,
            )
    return in_file_order(records, tasks)


async def warm_start(
    job: Job,
    model: ServedModel,
    start: Path | None,
    demonstrations: Sequence[Demonstration] | None = None,
) -> Checkpoint:
    """Imitate conversations, the project's own if none are given."""
    config = model.project.config.methods.supervised
    if job.is_done:
        return job.checkpoint()
    async with job.running():
        samples = demonstration_samples(job, model.project, model.renderer, demonstrations)
        return await imitate(job, model, samples, config, start)


async def reinforcement(
    job: Job, model: ServedModel, start: Path | None, *, allow_findings: bool = False
) -> Checkpoint:
    """Reinforce from a checkpoint, or from the base model without one."""
    config = model.project.config.methods.reinforcement
    if job.is_done:
        return delivered(job)
    async with job.running():
        await audited(job, model.project, allow_findings=allow_findings)
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
