"""The control of training: what the best spec reaches by several rollouts, without new weights."""

from collections.abc import Sequence
from dataclasses import replace

from agentrft.core.run import Method, RolloutRecord
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement, foreseen, stored_records
from agentrft.jobs.serving import ServedModel
from agentrft.jobs.stages import evaluation
from agentrft.measure.report import StageResult

BEST_OF = "best of"
TEMPERATURE = 1.0
"""At least: the model's own distribution, at which training explores too. k rollouts of a spec that
decodes greedily are one rollout, and a choice among them would be no control."""


async def best_of(job: Job, model: ServedModel, known: Sequence[RolloutRecord] = ()) -> StageResult:
    """Roll each holdout task out `evaluation.best_of` times with the untouched model.

    `known` are rollouts of the same spec and seeds that the run already made: its first samples,
    where they were drawn at the same temperature.
    """
    child = job.child(BEST_OF, Method.EVALUATION)
    measurement = Measurement(stage=BEST_OF, split="holdout", seed=job.run.seed)
    project = model.project
    methods = project.config.methods
    measured_at = methods.evaluation.temperature
    own = project.spec.decoding.temperature if measured_at is None else measured_at
    drawn = replace(
        methods.evaluation,
        samples_per_task=methods.evaluation.best_of,
        temperature=max(own, TEMPERATURE),
    )
    child.note_result(temperature=drawn.temperature)
    tasks = project.tasks("holdout")
    if own == drawn.temperature and not stored_records(child, measurement):
        child.append(foreseen(known, tasks, drawn, measurement))
    config = replace(project.config, methods=replace(methods, evaluation=drawn))
    drawing = replace(model, project=replace(project, config=config))
    await evaluation(child, drawing, tasks, measurement, None)
    return drawn_control(child)


def drawn_control(child: Job) -> StageResult:
    """Return what was drawn, named by how."""
    temperature = child.run.result["temperature"]
    return StageResult(
        name=f"at temperature {temperature:g}", records=child.read_all(RolloutRecord)
    )
