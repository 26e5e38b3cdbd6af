"""What every store says when something is not there, is there already, or may not be done."""

from agentrft.core.errors import StoreError
from agentrft.core.run import Record


class NotFoundError(StoreError):
    """There is nothing of this id, or it belongs to another project."""


class ConflictError(StoreError):
    """What is there forbids what was asked."""


class TooLargeError(StoreError):
    """More bytes than are taken in one piece."""


def no_run(run_id: str) -> NotFoundError:
    """No run of this id."""
    return NotFoundError(f"no run {run_id!r} in this home; list them or check --home")


def no_trajectory(record_id: int) -> NotFoundError:
    """No trajectory of this id."""
    return NotFoundError(f"no trajectory {record_id} in this home; a rewind may have removed it")


def no_job(job_id: str) -> NotFoundError:
    """No job of this id that the caller may see."""
    return NotFoundError(f"no fine-tuning job {job_id!r}; list the jobs to see their ids")


def second_result(run_id: str, record: Record) -> StoreError:
    """Metrics or a checkpoint for a step that has them."""
    return StoreError(
        f"run {run_id!r} already has a {type(record).__name__} of step {record.step}; "
        "each step has one result, rewind the run before repeating it"
    )
