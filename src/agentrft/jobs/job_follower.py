"""What the API shows of a job that trains: an event per step, and checkpoints that can be called."""

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from agentrft.core.job import FineTuningJob, Lease, PreferenceMethod, ReinforcementMethod
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event
from agentrft.jobs.context import Job
from agentrft.jobs.following import StepResult
from agentrft.jobs.hyperparameters import Resolved
from agentrft.jobs.step_report import (
    StepReport,
    preference_report,
    reinforcement_report,
    supervised_report,
)
from agentrft.store.catalogue import CallableModel
from agentrft.store.home import Home

ORGANISATION = "agentrft"


class JobFollower:
    """Implements `jobs.following.Follower` for a leased job."""

    def __init__(self, work: Job, lease: Lease, record: FineTuningJob, resolved: Resolved) -> None:
        self._work, self._lease = work, lease
        self._record, self._resolved = record, resolved
        self._began, self._steps = time.time(), 0

    def stepped(self, result: StepResult) -> None:
        """Write the step's metrics event and when the job may be done."""
        report = self._report(result)
        self._work.append(
            [
                Event(
                    level="info",
                    message=report.message,
                    created_at=time.time(),
                    data=report.data,
                    step=result.step,
                    kind="metrics",
                )
            ]
        )
        self._steps += 1
        step_s = (time.time() - self._began) / self._steps
        left_s = step_s * (self._resolved.steps - result.step)
        self._record = replace(self._record, estimated_finish=time.time() + left_s)
        self._work.home.queue.save(self._lease, self._record)

    def has_told(self, step: int) -> bool:
        """Whether the step has its metrics event; a worker may be killed just before it."""
        events = self._work.read_all(Event)
        return step == 0 or any(e.kind == "metrics" and e.step == step for e in events)

    def kept(self, checkpoints: Sequence[Checkpoint]) -> None:
        """Offer as models what was looked at, and no longer what is about to go."""
        catalogue, job_id = self._work.home.catalogue, self._record.id
        offered = {model.step for model in catalogue.of_job(job_id) if not model.final}
        for step in offered - {checkpoint.step for checkpoint in checkpoints}:
            catalogue.remove_checkpoint(job_id, step, self._lease)
        for checkpoint in checkpoints:
            if self._resolved.looks_after(checkpoint.step):
                offer_checkpoint(self._work, self._lease, self._record, checkpoint)

    def _report(self, result: StepResult) -> StepReport:
        total = self._resolved.steps
        method = self._record.method
        # Where training diverged, a value is no number, which JSON cannot say.
        finite = {name: value for name, value in result.metrics.items() if math.isfinite(value)}
        result = replace(result, metrics=finite)
        if isinstance(method, ReinforcementMethod):
            return reinforcement_report(
                result.metrics,
                step=result.step,
                total_steps=total,
                grader=method.grader,
                tools=[tool.name for tool in method.tools],
                train=result.train,
                validation=result.validation or (),
            )
        if isinstance(method, PreferenceMethod):
            return preference_report(result.metrics, step=result.step, total_steps=total)
        return supervised_report(
            result.metrics,
            step=result.step,
            total_steps=total,
            full_valid_loss=result.metrics.get("validation_loss"),
            full_valid_mean_token_accuracy=result.metrics.get("validation_token_accuracy"),
        )


def offer_checkpoint(
    work: Job, lease: Lease, record: FineTuningJob, checkpoint: Checkpoint
) -> None:
    """Make a checkpoint callable and say so, unless it is."""
    offered = {model.step for model in work.home.catalogue.of_job(record.id) if not model.final}
    if checkpoint.step not in offered:
        model = register(work.home, lease, record, checkpoint, final=False)
        work.event(f"Checkpoint created: {model.id}", step=checkpoint.step)


def register(
    home: Home, lease: Lease, record: FineTuningJob, checkpoint: Checkpoint, *, final: bool
) -> CallableModel:
    """Enter a checkpoint into the catalogue, as the job's result or as one on the way."""
    name = model_name(record)
    model = CallableModel(
        id=name if final else f"{name}:ckpt-step-{checkpoint.step}",
        project=record.project,
        job_id=record.id,
        base=record.base,
        path=checkpoint.path,
        step=checkpoint.step,
        final=final,
        created_at=time.time(),
    )
    home.catalogue.add(model, lease)
    return model


def model_name(record: FineTuningJob) -> str:
    """Return `ft:<base>:<organisation>:<suffix>:<job>`; of a folder or hub id the last part."""
    base = record.base.rstrip("/").rpartition("/")[2].replace(":", "-")
    job = record.id.removeprefix("ftjob-")
    return f"ft:{base}:{ORGANISATION}:{record.suffix or ''}:{job}"
