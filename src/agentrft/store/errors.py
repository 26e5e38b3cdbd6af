"""What every store says when something is not there, or is there already."""

from agentrft.core.errors import StoreError
from agentrft.core.run import Record


class NotFoundError(StoreError):
    """It is not there, or it belongs to another project."""


class ConflictError(StoreError):
    """What is asked does not go with how things stand."""


class TooLargeError(StoreError):
    """More than is kept."""


def no_run(run_id: str) -> StoreError:
    """No run of this id."""
    return StoreError(f"no run {run_id!r} in this home; list them or check --home")


def no_trajectory(record_id: int) -> StoreError:
    """No trajectory of this id."""
    return StoreError(f"no trajectory {record_id} in this home; a rewind may have removed it")


def second_result(run_id: str, record: Record) -> StoreError:
    """Metrics or a checkpoint for a step that has them."""
    return StoreError(
        f"run {run_id!r} already has a {type(record).__name__} of step {record.step}; "
        "each step has one result, rewind the run before repeating it"
    )
