"""Who holds a job. Every write of a worker passes here first, inside its own transaction."""

from typing import Any

from sqlalchemy import Connection, Row, select

from agentrft.core.errors import LeaseLostError
from agentrft.core.job import Lease
from agentrft.store import schema

_HOLD_COLUMNS = [c for c in schema.jobs.c if c.name != "record"]


def hold(connection: Connection, lease: Lease) -> Row[Any]:
    """Lock the job's row until the transaction ends and return it, without the record.

    Raises LeaseLostError unless the lease is the newest and was not given back. That its time ran
    out does not matter: until somebody notices, nobody else has the job.
    """
    table = schema.jobs
    query = select(*_HOLD_COLUMNS).where(table.c.id == lease.job.id)
    row = connection.execute(query.with_for_update(key_share=True)).first()
    if row is None or row.fence != lease.fence or row.worker is None:
        raise LeaseLostError(
            f"job {lease.job.id}: worker {lease.worker!r} no longer holds it (its fence is "
            f"{lease.fence}); {_now(row)}, and nothing this worker writes is kept"
        )
    return row


def _now(row: Row[Any] | None) -> str:
    if row is None:
        return "the job was removed"
    if row.worker is None:
        return f"the job is {row.status}"
    return f"worker {row.worker!r} took it up (fence {row.fence})"
