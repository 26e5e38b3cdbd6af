"""Read-only questions across tables: what was validated, what waits, who was last heard of."""

import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, func, select

from agentrft.core.grade import Outcome
from agentrft.core.job import JobStatus
from agentrft.core.protocols import Page
from agentrft.core.run import Event, RolloutRecord
from agentrft.core.trajectory import StopReason
from agentrft.store import schema
from agentrft.store.codec import from_json
from agentrft.store.database import Database
from agentrft.store.errors import NotFoundError
from agentrft.store.listing import TrajectorySummary
from agentrft.store.sql import SqlStore

_rollouts = schema.trajectories
_LINE = [column for column in _rollouts.c if column.name != "run_id"]
_WAITING = (JobStatus.VALIDATING_FILES.value, JobStatus.QUEUED.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationSummary:
    """One look at the validation rows."""

    step: int
    rollouts: int
    dropped: int
    """Spoiled by infrastructure; not part of the mean."""
    score_mean: float | None
    """None if nothing was scored."""


class Overview:
    """Answers for the server's own pages and probes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def last_heartbeat(self) -> float | None:
        """Return when a worker that holds a job last said so, in Unix time."""
        return self._single(select(func.max(schema.jobs.c.heartbeat_at)))

    def oldest_waiting(self) -> float | None:
        """Return when the oldest job without a worker was made, in Unix time."""
        jobs = schema.jobs
        waiting = jobs.c.status.in_(_WAITING) & jobs.c.worker.is_(None)
        return self._single(select(func.min(jobs.c.created_at)).where(waiting))

    def evaluations(self, run_id: str) -> tuple[EvaluationSummary, ...]:
        """Return a run's validations by step."""
        lost = _rollouts.c.outcome == Outcome.INFRASTRUCTURE_FAULT.value
        query = (
            select(
                _rollouts.c.step,
                func.count().label("rollouts"),
                func.sum(case((lost, 1), else_=0)).label("dropped"),
                func.avg(case((lost, None), else_=_rollouts.c.score)).label("score_mean"),
            )
            .where(_validation_of(run_id))
            .group_by(_rollouts.c.step)
            .order_by(_rollouts.c.step)
        )
        with self._database.reading() as connection:
            rows = connection.execute(query).mappings().all()
        return tuple(EvaluationSummary(**row) for row in rows)

    def metrics_of_steps(self, run_id: str, steps: Collection[int]) -> Mapping[int, Event]:
        """Return the metrics events of a run's steps, by step."""
        events = schema.events
        query = (
            select(events.c.record)
            .where(events.c.run_id == run_id, events.c.step.in_(steps))
            .order_by(events.c.sequence)
        )
        with self._database.reading() as connection:
            records = connection.execute(query).scalars().all()
        found = [from_json(Event, zlib.decompress(record)) for record in records]
        return {event.step: event for event in found if event.kind == "metrics"}

    def validation_rollouts(
        self, run_id: str, step: int, *, after: int = 0, limit: int = 100
    ) -> Page[TrajectorySummary]:
        """List the rollouts of one validation without reading their tokens."""
        query = (
            select(*_LINE)
            .where(_validation_of(run_id), _rollouts.c.step == step, _rollouts.c.sequence > after)
            .order_by(_rollouts.c.sequence)
            .limit(limit + 1)
        )
        with self._database.reading() as connection:
            rows = connection.execute(query).mappings().all()
        shown = tuple(_summary(row) for row in rows[:limit])
        return Page(
            items=shown,
            last=shown[-1].record_id if shown else after,
            has_more=len(rows) > limit,
        )

    def rollout(self, run_id: str, name: int | str) -> tuple[int, RolloutRecord]:
        """Return a whole rollout of a run with its record id, by that or by its trajectory id.

        Of several with the same trajectory id it is the latest. Raises NotFoundError.
        """
        column = _rollouts.c.sequence if isinstance(name, int) else _rollouts.c.trajectory_id
        named = (_rollouts.c.run_id == run_id) & (column == name)
        record_id = self._single(select(func.max(_rollouts.c.sequence)).where(named))
        if record_id is None:
            raise NotFoundError(f"no rollout {name} in {run_id}; list them to see their ids")
        return record_id, SqlStore(self._database).trajectory(record_id)

    def _single(self, query: Any) -> Any:
        with self._database.reading() as connection:
            return connection.execute(query).scalar()


def _validation_of(run_id: str) -> ColumnElement[bool]:
    return (_rollouts.c.run_id == run_id) & (_rollouts.c.split == "validation")


def _summary(row: Mapping[Any, Any]) -> TrajectorySummary:
    columns = dict(row)
    return TrajectorySummary(
        record_id=columns.pop("sequence"),
        outcome=Outcome(columns.pop("outcome")),
        stop_reason=StopReason(columns.pop("stop_reason")),
        **columns,
    )
