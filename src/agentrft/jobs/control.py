"""The control of training: what the best spec reaches by several rollouts, without new weights."""

from collections.abc import Sequence
from dataclasses import replace

from agentrft.core.run import Method, RolloutRecord
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement, stored_records
from agentrft.jobs.serving import ServedModel
from agentrft.jobs.stages import evaluation
from agentrft.measure.report import StageResult

BEST_OF = "best of"


async def best_of(job: Job, model: ServedModel, known: Sequence[RolloutRecord] = ()) -> StageResult:
    """Roll each holdout task out `evaluation.best_of` times with the untouched model.

    `known` are rollouts of the same spec and seeds that the run already made: its first samples.
    """
    child = job.child(BEST_OF, Method.EVALUATION)
    measurement = Measurement(stage=BEST_OF, split="holdout", seed=job.run.seed)
    if not stored_records(child, measurement):
        child.append([replace(record, stage=BEST_OF) for record in known])
    project = model.project
    methods = project.config.methods
    drawn = replace(methods.evaluation, samples_per_task=methods.evaluation.best_of)
    config = replace(project.config, methods=replace(methods, evaluation=drawn))
    drawing = replace(model, project=replace(project, config=config))
    records = await evaluation(child, drawing, project.tasks("holdout"), measurement, None)
    return StageResult(name=BEST_OF, records=records)
