"""Runs in the database. Listings read summary columns; whole records are compressed JSON."""

import zlib
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from sqlalchemy import ColumnElement, Connection, Select, Table, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from agentrft.core.grade import Outcome
from agentrft.core.job import Lease
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Page
from agentrft.core.run import Event, Record, RolloutRecord, RolloutSplit, Run, StepMetrics
from agentrft.core.trajectory import StopReason
from agentrft.store import schema
from agentrft.store.codec import from_json, to_json
from agentrft.store.database import Database, upsert
from agentrft.store.errors import no_run, no_trajectory, second_result
from agentrft.store.leases import hold
from agentrft.store.listing import TrajectorySummary, kind_of, summary_of

R = TypeVar("R", bound=Record)

_COMPRESSION = 3
"""Token ids shrink as well at 3 as at 6, in a third of the time."""
_SUMMARY_COLUMNS = [c for c in schema.trajectories.c if c.name != "run_id"]
_LINE_COLUMNS = [c.name for c in _SUMMARY_COLUMNS if c.name != "sequence"]


class SqlStore:
    """`RunStore` in the database; every call is one transaction."""

    def __init__(self, database: Database, lease: Lease | None = None) -> None:
        """With a lease, every write raises LeaseLostError once somebody else holds the job."""
        self._database = database
        self._lease = lease

    @contextmanager
    def _writing(self) -> Generator[Connection]:
        with self._database.writing() as connection:
            if self._lease is not None:
                hold(connection, self._lease)
            yield connection

    def put_run(self, run: Run) -> None:
        """Insert a run or replace the row of the same id."""
        with self._writing() as connection:
            write_run(connection, run)

    def run(self, run_id: str) -> Run:
        """Return one run. Raises StoreError if there is none of this id."""
        run = self.find_run(run_id)
        if run is None:
            raise no_run(run_id)
        return run

    def find_run(self, run_id: str) -> Run | None:
        """Return one run, or None if there is none of this id."""
        with self._database.reading() as connection:
            return read_run(connection, run_id)

    def runs(self, project: str | None = None, *, after: int = 0, limit: int = 100) -> Page[Run]:
        """List runs, newest first."""
        table = schema.runs
        query = select(table.c.sequence, table.c.record).order_by(table.c.sequence.desc())
        if project is not None:
            query = query.where(table.c.project == project)
        if after:
            query = query.where(table.c.sequence < after)
        with self._database.reading() as connection:
            rows = connection.execute(query.limit(limit + 1)).all()
        shown = rows[:limit]
        return Page(
            items=tuple(from_json(Run, row.record) for row in shown),
            last=shown[-1].sequence if shown else after,
            has_more=len(rows) > limit,
        )

    def append(self, run_id: str, records: Sequence[Record]) -> None:
        """Append records in one transaction: all or none.

        Raises StoreError for an unknown run or a step that already has its metrics or checkpoint.
        """
        with self._writing() as connection:
            if not _locked(connection, run_id):
                raise no_run(run_id)
            rollouts: list[RolloutRecord] = []
            for record in records:
                if isinstance(record, RolloutRecord):
                    rollouts.append(record)
                    continue
                try:
                    write_record(connection, run_id, record)
                except IntegrityError as error:
                    raise second_result(run_id, record) from error
            _write_rollouts(connection, run_id, rollouts)
            if self._lease is not None and any(isinstance(r, Checkpoint) for r in records):
                _note_progress(connection, self._lease)

    def read(self, run_id: str, kind: type[R], *, after: int = 0, limit: int = 100) -> Page[R]:
        """Read records of one kind in append order."""
        table = _table(kind)
        query = select(table.c.sequence)
        if table is schema.trajectories:
            bodies = schema.trajectory_bodies
            query = query.add_columns(bodies.c.record).join(bodies)
        else:
            query = query.add_columns(table.c.record)
        query = query.where(table.c.run_id == run_id, table.c.sequence > after)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(table.c.sequence).limit(limit + 1)).all()
        shown = rows[:limit]
        return Page(
            items=tuple(_decode(kind, row.record) for row in shown),
            last=shown[-1].sequence if shown else after,
            has_more=len(rows) > limit,
        )

    def events(
        self, run_id: str, *, after: int | None = None, limit: int = 100
    ) -> Page[tuple[int, Event]]:
        """List a run's events with their places, newest first; `after` is the last place seen."""
        table = schema.events
        query = select(table.c.sequence, table.c.record).where(table.c.run_id == run_id)
        if after is not None:
            query = query.where(table.c.sequence < after)
        return self._event_listing(query.order_by(table.c.sequence.desc()), after or 0, limit)

    def events_since(self, run_id: str, sequence: int, limit: int = 100) -> Page[tuple[int, Event]]:
        """List what was appended after a place, in append order; for followers."""
        table = schema.events
        query = select(table.c.sequence, table.c.record).where(
            table.c.run_id == run_id, table.c.sequence > sequence
        )
        return self._event_listing(query.order_by(table.c.sequence), sequence, limit)

    def _event_listing(
        self, query: Select[Any, Any], after: int, limit: int
    ) -> Page[tuple[int, Event]]:
        with self._database.reading() as connection:
            rows = connection.execute(query.limit(limit + 1)).all()
        shown = rows[:limit]
        return Page(
            items=tuple((row.sequence, _decode(Event, row.record)) for row in shown),
            last=shown[-1].sequence if shown else after,
            has_more=len(rows) > limit,
        )

    def trajectories(
        self,
        run_id: str,
        *,
        stage: str | None = None,
        split: RolloutSplit | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Page[TrajectorySummary]:
        """List a run's trajectories in append order without reading their tokens."""
        table = schema.trajectories
        wanted: list[ColumnElement[bool]] = [table.c.run_id == run_id, table.c.sequence > after]
        if stage is not None:
            wanted.append(table.c.stage == stage)
        if split is not None:
            wanted.append(table.c.split == split)
        query = select(*_SUMMARY_COLUMNS).where(*wanted).order_by(table.c.sequence)
        with self._database.reading() as connection:
            rows = connection.execute(query.limit(limit + 1)).mappings().all()
        shown = tuple(_summary(row) for row in rows[:limit])
        return Page(
            items=shown,
            last=shown[-1].record_id if shown else after,
            has_more=len(rows) > limit,
        )

    def trajectory(self, record_id: int) -> RolloutRecord:
        """Return one whole record. Raises StoreError if there is none of this id."""
        bodies = schema.trajectory_bodies
        query = select(bodies.c.record).where(bodies.c.sequence == record_id)
        with self._database.reading() as connection:
            record = connection.execute(query).scalar()
        if record is None:
            raise no_trajectory(record_id)
        return _decode(RolloutRecord, record)

    def latest_checkpoint(self, run_id: str) -> Checkpoint | None:
        """Return the checkpoint of the highest step."""
        table = schema.checkpoints
        query = select(table.c.record).where(table.c.run_id == run_id)
        with self._database.reading() as connection:
            record = connection.execute(query.order_by(table.c.step.desc()).limit(1)).scalar()
        return None if record is None else _decode(Checkpoint, record)

    def rewind(self, run_id: str, step: int) -> Mapping[str, int]:
        """Remove every record of a later step, for resuming; return how many of each kind."""
        tables = (schema.events, schema.metrics, schema.checkpoints, schema.trajectories)
        removed: dict[str, int] = {}
        with self._writing() as connection:
            for table in tables:
                late = (table.c.run_id == run_id) & (table.c.step > step)
                removed[table.name] = connection.execute(delete(table).where(late)).rowcount
        return removed


def write_run(connection: Connection, run: Run) -> None:
    """Insert a run, and its project with it, or replace the row of the same id."""
    write_project(connection, run.project, run.created_at)
    columns = _run_columns(run)
    row = upsert(connection, schema.runs).values(columns)
    connection.execute(row.on_conflict_do_update(index_elements=["id"], set_=columns))


def insert_run(connection: Connection, run: Run) -> bool:
    """Insert a run, and its project with it; say whether the id was new."""
    write_project(connection, run.project, run.created_at)
    row = upsert(connection, schema.runs).values(_run_columns(run)).on_conflict_do_nothing()
    return connection.execute(row.returning(schema.runs.c.sequence)).first() is not None


def _run_columns(run: Run) -> Mapping[str, Any]:
    return {
        "id": run.id,
        "project": run.project,
        "method": run.method.value,
        "status": run.status.value,
        "created_at": run.created_at,
        "record": to_json(run),
    }


def write_project(connection: Connection, name: str, created_at: float) -> None:
    """Insert a project unless it is there."""
    row = upsert(connection, schema.projects).values(name=name, created_at=created_at)
    connection.execute(row.on_conflict_do_nothing())


def read_run(connection: Connection, run_id: str) -> Run | None:
    """Return one run, or None if there is none of this id."""
    query = select(schema.runs.c.record).where(schema.runs.c.id == run_id)
    record = connection.execute(query).scalar()
    return None if record is None else from_json(Run, record)


def _locked(connection: Connection, run_id: str) -> bool:
    """Lock the run, so that its records commit in the order of their numbers; say if it exists."""
    query = select(schema.runs.c.sequence).where(schema.runs.c.id == run_id)
    return connection.execute(query.with_for_update(key_share=True)).first() is not None


def _note_progress(connection: Connection, lease: Lease) -> None:
    """Count the workers that the job loses from here: this checkpoint is not done again."""
    table = schema.jobs
    connection.execute(update(table).where(table.c.id == lease.job.id).values(attempts=0))


def write_record(
    connection: Connection, run_id: str, record: Event | StepMetrics | Checkpoint
) -> None:
    """Append one record to a run that exists."""
    columns: dict[str, Any] = {"run_id": run_id, "step": record.step, "record": _body(record)}
    if isinstance(record, Event):
        columns["level"] = record.level
    table = schema.metadata.tables[kind_of(record)]
    connection.execute(insert(table).values(columns))


def _write_rollouts(connection: Connection, run_id: str, records: Sequence[RolloutRecord]) -> None:
    """Append rollouts, many with one statement: one for each takes longer than its insert."""
    if not records:
        return
    lines = [_line(record) | {"run_id": run_id} for record in records]
    written = insert(schema.trajectories).returning(
        schema.trajectories.c.sequence, sort_by_parameter_order=True
    )
    sequences = connection.execute(written, lines).scalars().all()
    bodies = [
        {"sequence": sequence, "record": _body(record)}
        for sequence, record in zip(sequences, records, strict=True)
    ]
    connection.execute(insert(schema.trajectory_bodies), bodies)


def _line(record: RolloutRecord) -> dict[str, Any]:
    """Return the columns that a listing reads."""
    summary = summary_of(0, record)
    return {name: getattr(summary, name) for name in _LINE_COLUMNS}


def _body(record: Record) -> bytes:
    return zlib.compress(to_json(record), _COMPRESSION)


def _table(kind: type[Record]) -> Table:
    if kind is Event:
        return schema.events
    if kind is StepMetrics:
        return schema.metrics
    if kind is Checkpoint:
        return schema.checkpoints
    return schema.trajectories


def _decode(kind: type[R], body: bytes) -> R:
    return from_json(kind, zlib.decompress(body))


def _summary(row: Mapping[Any, Any]) -> TrajectorySummary:
    columns = dict(row)
    return TrajectorySummary(
        record_id=columns.pop("sequence"),
        outcome=Outcome(columns.pop("outcome")),
        stop_reason=StopReason(columns.pop("stop_reason")),
        **columns,
    )
