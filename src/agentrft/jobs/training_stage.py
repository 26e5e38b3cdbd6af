"""Training as a stage of a longer run: one way in for every method that changes weights."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agentrft.core.policy import Checkpoint
from agentrft.core.run import Method
from agentrft.core.spec import AgentSpec, Shown
from agentrft.core.task import Demonstration
from agentrft.jobs.context import Job
from agentrft.jobs.distillation import distillation, short_spec
from agentrft.jobs.preference import preference
from agentrft.jobs.rejection import rejection
from agentrft.jobs.retest import for_training
from agentrft.jobs.serving import ServedModel
from agentrft.jobs.stages import TUNED, WARM, reinforcement, under, warm_start
from agentrft.jobs.trials import keep_spec

STAGE_OF: Mapping[Method, str] = {
    Method.SUPERVISED: WARM,
    Method.REJECTION: "rejection",
    Method.DISTILLATION: "distillation",
    Method.PREFERENCE: "preference",
    Method.REINFORCEMENT: TUNED,
}
"""What a stage is called in a report."""


async def trained(
    job: Job,
    model: ServedModel,
    method: Method,
    start: Checkpoint | None,
    demonstrations: Sequence[Demonstration],
) -> tuple[Checkpoint, AgentSpec]:
    """Train under the model's spec; return the weights and the spec that they go on with.

    The run keeps the spec that each stage trained under, so that another model can go the same way.
    """
    spec, path = model.project.spec, Path(start.path) if start else None
    keep_spec(job.folder, spec)
    child = job.child(STAGE_OF[method], method)
    child.note_result(spec=spec.hash)
    match method:
        case Method.SUPERVISED:
            # What demonstrations in the prompt show is what imitating them teaches.
            lean = under(model, replace(for_training(spec), shown=Shown()))
            return await warm_start(child, lean, path, demonstrations), spec
        case Method.REJECTION:
            return await rejection(child, model, path), spec
        case Method.DISTILLATION:
            return await distillation(child, model, path), short_spec(model.project)
        case Method.PREFERENCE:
            return await preference(child, under(model, for_training(spec)), path), spec
        case _:
            return await reinforcement(child, under(model, for_training(spec)), path), spec
