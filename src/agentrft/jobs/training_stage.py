"""Training by the method of a run, alone or as a stage of a longer run."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from agentrft.core.errors import UserError
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Method
from agentrft.core.spec import AgentSpec, Shown
from agentrft.core.task import Demonstration
from agentrft.jobs.checkpoints import delivered
from agentrft.jobs.context import Job
from agentrft.jobs.distillation import distillation, short_spec
from agentrft.jobs.preference import preference
from agentrft.jobs.project import Project
from agentrft.jobs.rejection import rejection
from agentrft.jobs.retest import for_training
from agentrft.jobs.serving import ServedModel, begun_from, served_model
from agentrft.jobs.stages import TUNED, WARM, reinforcement, under, warm_start
from agentrft.jobs.trained import UnchangedError
from agentrft.jobs.trials import keep_spec

STAGE_OF: Mapping[Method, str] = {
    Method.SUPERVISED: WARM,
    Method.REJECTION: "rejection",
    Method.DISTILLATION: "distillation",
    Method.PREFERENCE: "preference",
    Method.REINFORCEMENT: TUNED,
}
"""What a stage is called in a report."""


async def train(
    job: Job, project: Project, start: Path | None, *, allow_findings: bool = False
) -> Checkpoint:
    """Train a project with the job's own method, from a checkpoint or from the base model."""
    with served_model(project, job.home, trained=True) as model:
        return await trained(job, model, start, allow_findings=allow_findings)


async def trained(
    job: Job,
    model: ServedModel,
    start: Path | None,
    demonstrations: Sequence[Demonstration] | None = None,
    *,
    allow_findings: bool = False,
) -> Checkpoint:
    """Train with the job's own method, on the project's demonstrations if none are given.

    Wherever grades choose what is learned, the grader is audited first, as before an improvement.
    Raises UnchangedError, and the run has failed, if the weights end as the base model's.
    """
    job.check = partial(_require_change, job, model)
    start = begun_from(job, start)
    match job.run.method:
        case Method.SUPERVISED:
            return await warm_start(job, model, start, demonstrations)
        case Method.REJECTION:
            return await rejection(job, model, start, allow_findings=allow_findings)
        case Method.DISTILLATION:
            return await distillation(job, model, start, allow_findings=allow_findings)
        case Method.PREFERENCE:
            return await preference(job, model, start, allow_findings=allow_findings)
        case Method.REINFORCEMENT:
            return await reinforcement(job, model, start, allow_findings=allow_findings)
        case other:
            raise UserError(f"{other} is no method that trains from the command line")


def _require_change(job: Job, model: ServedModel) -> None:
    if not model.changed(Path(delivered(job).path)):
        raise UnchangedError(f"run {job.run.id}")


async def trained_stage(
    job: Job,
    model: ServedModel,
    method: Method,
    start: Checkpoint | None,
    demonstrations: Sequence[Demonstration],
) -> tuple[Checkpoint, AgentSpec]:
    """Train a stage under the model's spec; return the weights and the spec that they go on with.

    The run keeps the spec that each stage trained under, so that another model can go the same way.
    Raises as `trained` does.
    """
    spec, acting = model.project.spec, model
    keep_spec(job.folder, spec)
    child = job.child(STAGE_OF[method], method)
    child.note_result(spec=spec.hash)
    if method is Method.SUPERVISED:
        # What demonstrations in the prompt show is what imitating them teaches.
        acting = under(model, replace(for_training(spec), shown=Shown()))
    elif method in (Method.PREFERENCE, Method.REINFORCEMENT):
        acting = under(model, for_training(spec))
    checkpoint = await trained(child, acting, Path(start.path) if start else None, demonstrations)
    return checkpoint, short_spec(model.project) if method is Method.DISTILLATION else spec
