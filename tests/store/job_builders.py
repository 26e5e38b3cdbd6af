"""Small fine-tuning jobs, and a clock that moves when told."""

from dataclasses import dataclass

from agentrft.core.job import FineTuningJob, JobStatus, SupervisedMethod
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event


@dataclass
class Clock:
    """Seconds that pass only on purpose."""

    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def job(
    name: str = "a",
    *,
    project: str = "desk",
    status: JobStatus = JobStatus.VALIDATING_FILES,
    metadata: dict[str, str] | None = None,
) -> FineTuningJob:
    return FineTuningJob(
        id=f"ftjob-{name}",
        project=project,
        model="smollm2-135m",
        base="smollm2-135m",
        method=SupervisedMethod(),
        training_file="file-train",
        seed=7,
        metadata=metadata,
        created_at=1_000_000.0,
        status=status,
        validated=status is not JobStatus.VALIDATING_FILES,
    )


def queued(name: str = "a", *, project: str = "desk") -> FineTuningJob:
    return job(name, project=project, status=JobStatus.QUEUED)


def event(message: str = "x", *, step: int = 0) -> Event:
    return Event(level="info", message=message, created_at=1.0, step=step)


def checkpoint(run_id: str, step: int) -> Checkpoint:
    return Checkpoint(run_id=run_id, step=step, path=f"/c/{step}", policy_version=step)
