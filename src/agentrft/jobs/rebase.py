"""Another base model, the same way: what a run did to one model, repeated on another, side by side.

Spec, tools, grader, data, methods and seed are the run's. The holdout shows all four policies,
validation tasks decide whether to change.
"""

from dataclasses import replace
from functools import partial
from pathlib import Path

from agentrft.core.errors import ConfigError
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Method
from agentrft.core.spec import AgentSpec
from agentrft.jobs.audit import audited
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement
from agentrft.jobs.origin import Origin, carried_over
from agentrft.jobs.project import SPEC_FOLDER, Project, plain_spec
from agentrft.jobs.rebase_report import (
    NEW_BASE,
    NEW_LEAN,
    NEW_TUNED,
    OLD_BASE,
    OLD_TUNED,
    VALIDATED,
    write_rebase_report,
)
from agentrft.jobs.retest import retest
from agentrft.jobs.serving import OpenModel, ServedModel, served_model
from agentrft.jobs.stages import evaluation, measured, under
from agentrft.jobs.training_stage import trained_stage
from agentrft.jobs.trials import keep_spec
from agentrft.measure.report import Report
from agentrft.store.spec_files import write_spec


async def rebase(
    job: Job,
    origin: Origin,
    project: Project,
    *,
    allow_findings: bool = False,
    open_model: OpenModel | None = None,
) -> tuple[Report, Path]:
    """Repeat on the project's model what `origin` did to another; return report and its folder.

    The project's settings are the origin's, its model aside. Raises UserError for what does not
    carry over, ConfigError for a resumed run of another origin, GraderRefusedError unless
    `allow_findings`.
    """
    if job.run.result.get("origin") not in (None, origin.job.run.id):
        raise ConfigError(
            f"run {job.run.id} rebases {job.run.result['origin']}, not {origin.job.run.id}; name "
            "that one, or start anew without --resume"
        )
    opened = open_model or partial(served_model, job=job)
    own, project = project.spec, replace(project, spec=origin.spec)
    former = replace(project, config=replace(project.config, model=origin.model))
    async with job.running():
        notes = carried_over(origin, project, job.home.models)
        job.note_result(origin=origin.job.run.id, notes=notes)
        for note in notes:
            job.event(note, level="warn")
        await audited(job, project, allow_findings=allow_findings)
        with opened(former, job.home, trained=True) as model:
            await measured(job, model, OLD_BASE, None, known=origin.known(trained=False))
            kept = origin.known(trained=True)
            await measured(job, model, OLD_TUNED, origin.checkpoint, known=kept)
            await _validated(job, model, OLD_TUNED, origin.checkpoint)
        with opened(project, job.home, trained=True) as model:
            await measured(job, model, NEW_BASE, None)
            checkpoint: Checkpoint | None = None
            for method, spec in origin.steps:
                checkpoint, _ = await trained_stage(
                    job, under(model, spec), method, checkpoint, origin.demonstrations
                )
            assert checkpoint is not None
            await measured(job, model, NEW_TUNED, checkpoint)
            await _validated(job, model, NEW_TUNED, checkpoint)
            distilled = any(method is Method.DISTILLATION for method, _ in origin.steps)
            baseline = origin.spec if distilled else own
            lean = await _lean(job, model, checkpoint, baseline)
        keep_spec(job.folder, lean)
        write_spec(job.folder / SPEC_FOLDER, lean, plain_spec(project.folder, project.config))
        job.note_result(checkpoint=checkpoint.path, spec=lean.hash)
        report, folder = write_rebase_report(job)
        job.note_result(report=str(folder))
    return report, folder


async def _validated(job: Job, model: ServedModel, stage: str, checkpoint: Checkpoint) -> None:
    """Measure on the tasks that decide, if there are any."""
    project = model.project
    if project.validation_rows != "validation":
        return
    tasks = project.tasks("validation")[: project.config.methods.optimize.retest_tasks]
    measurement = Measurement(stage=stage, split="validation", seed=job.run.seed)
    child = job.child(stage + VALIDATED, Method.EVALUATION)
    await evaluation(child, model, tasks, measurement, Path(checkpoint.path))


async def _lean(
    job: Job, model: ServedModel, checkpoint: Checkpoint, baseline: AgentSpec
) -> AgentSpec:
    """Test the spec again; measure what is left of it if some of it went."""
    lean, _ = await retest(job, model, NEW_TUNED, checkpoint, baseline)
    if lean.hash != model.project.spec.hash:
        await measured(job, under(model, lean), NEW_LEAN, checkpoint)
    return lean
