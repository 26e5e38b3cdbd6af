"""Fine-tuning jobs in line: who waits, who holds a lease, what a user wished, how each one ended.

Every call is one transaction, and every change of status is one that `core.job.NEXT` allows.
What the queue itself decides, it explains in the events of the run of the same id.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sqlalchemy import Connection, Row, case, delete, func, insert, select, update

from agentrft.core.job import NEXT, FineTuningJob, JobError, JobState, JobStatus, Lease, Wish
from agentrft.core.protocols import Page
from agentrft.core.run import Event, Method, Run, RunStatus
from agentrft.store import schema
from agentrft.store.codec import from_json, to_json
from agentrft.store.database import Database
from agentrft.store.errors import ConflictError, no_job
from agentrft.store.leases import hold
from agentrft.store.outbox import announce
from agentrft.store.sql import insert_run, read_run, write_record, write_run
from agentrft.store.vault import Vault

MAX_ATTEMPTS = 5
"""Workers that a job may lose in a row, without a checkpoint in between, before it fails."""

_jobs = schema.jobs
_WISHED = {Wish.PAUSE: JobStatus.PAUSED, Wish.CANCEL: JobStatus.CANCELLED}
_METHODS = {
    "supervised": Method.SUPERVISED,
    "dpo": Method.PREFERENCE,
    "reinforcement": Method.REINFORCEMENT,
}
_HELD = {JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.RUNNING}
_GIVEN_BACK = {JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.PAUSED}

_UNLEASED: Mapping[str, Any] = {
    "worker": None,
    "heartbeat_at": None,
    "lease_expires_at": None,
    "wish": None,
}
_AT_REST: Mapping[str, Any] = {**_UNLEASED, "attempts": 0}

_NEXT_IN_LINE = (
    select(_jobs.c.sequence)
    .where(schema.CLAIMABLE)
    .order_by(_jobs.c.sequence)
    .limit(1)
    .with_for_update(key_share=True, skip_locked=True)
    .correlate(None)
    .scalar_subquery()
)
_CLAIM = (
    update(_jobs)
    .where(_jobs.c.sequence == _NEXT_IN_LINE)
    .values(
        status=case((_jobs.c.status == "queued", "running"), else_=_jobs.c.status),
        fence=_jobs.c.fence + 1,
        attempts=_jobs.c.attempts + 1,
    )
    .returning(*_jobs.c)
)


class JobQueue:
    """The jobs of one home. Rows that other machines wrote are compared with this one's clock."""

    def __init__(
        self, database: Database, vault: Vault, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock

    def submit(
        self, job: FineTuningJob, secrets: Mapping[str, str], events: Sequence[Event] = ()
    ) -> FineTuningJob:
        """Take in a job, its run, its secrets and its first events, in one transaction.

        If the id is known, nothing changes and the job is returned as it stands.

        Raises NotFoundError if the id is another project's.
        """
        sealed = self._vault.seal(secrets) if secrets else None
        with self._database.writing() as connection:
            if not insert_run(connection, _run_of(job)):
                return _job(_find(connection, job.id, job.project))
            row = {"id": job.id, "project": job.project, "created_at": job.created_at}
            row |= {"status": job.status.value, "record": to_json(job)}
            connection.execute(insert(_jobs).values(row))
            for key, value in (job.metadata or {}).items():
                pair = {"job_id": job.id, "key": key, "value": value}
                connection.execute(insert(schema.job_metadata).values(pair))
            if sealed is not None:
                connection.execute(insert(schema.secrets).values(owner=job.id, sealed=sealed))
            for message in _first_messages(job):
                _note(connection, job.id, message, at=job.created_at)
            for event in events:
                write_record(connection, job.id, event)
        return job

    def get(self, job_id: str, project: str | None = None) -> JobState:
        """Return one job. Raises NotFoundError if there is none of this id, or another project's."""
        with self._database.reading() as connection:
            return _state(_find(connection, job_id, project))

    def counts(self) -> Mapping[str, int]:
        """Return how many jobs of all projects are in each status."""
        query = select(_jobs.c.status, func.count().label("jobs")).group_by(_jobs.c.status)
        with self._database.reading() as connection:
            found = {row.status: row.jobs for row in connection.execute(query)}
        return {status.value: found.get(status.value, 0) for status in JobStatus}

    def claim(self, worker: str, lease_s: float) -> Lease | None:
        """Lease the oldest job that waits for a worker; None if none does.

        A queued job is running from here on, one whose files are to be validated stays so.
        """
        now = self._clock()
        held = {"worker": worker, "heartbeat_at": now, "lease_expires_at": now + lease_s}
        with self._database.writing() as connection:
            row = connection.execute(_CLAIM.values(held)).first()
        return None if row is None else Lease(job=_job(row), worker=worker, fence=row.fence)

    def heartbeat(self, lease: Lease, lease_s: float) -> Wish | None:
        """Prolong a lease and return what the user wishes. Raises LeaseLostError if it is lost."""
        now = self._clock()
        with self._database.writing() as connection:
            row = hold(connection, lease)
            _set(connection, lease.job.id, heartbeat_at=now, lease_expires_at=now + lease_s)
        return None if row.wish is None else Wish(row.wish)

    def save(self, lease: Lease, job: FineTuningJob) -> None:
        """Replace the record of a job that its worker goes on with.

        Raises LeaseLostError, and ConflictError if the status may not follow or ends the work.
        """
        with self._database.writing() as connection:
            row = hold(connection, lease)
            _require(job, _HELD, "saved; release or finish it")
            _move(connection, JobStatus(row.status), job)

    def finish(self, lease: Lease, job: FineTuningJob, events: Sequence[Event] = ()) -> None:
        """End a job: record, events, lease and announcements in one transaction.

        Raises LeaseLostError, and ConflictError if the status may not follow or is not final.
        """
        with self._database.writing() as connection:
            row = hold(connection, lease)
            _require(job, {s for s in JobStatus if s.is_final}, "finished; save or release it")
            for event in events:
                write_record(connection, job.id, event)
            self._end(connection, JobStatus(row.status), job)

    def release(self, lease: Lease, job: FineTuningJob) -> None:
        """Give a job back that another worker will go on with, or nobody until it is resumed.

        A wish that came too late for the worker is obeyed here.
        Raises LeaseLostError, and ConflictError if the status may not follow.
        """
        with self._database.writing() as connection:
            row = hold(connection, lease)
            _require(job, _GIVEN_BACK, "given back; save or finish it")
            before = JobStatus(row.status)
            wish = None if row.wish is None else Wish(row.wish)
            if wish is None or _WISHED[wish] is job.status:
                _move(connection, before, job, **_AT_REST)
            else:
                self._obey(connection, before, job, wish)

    def wish(self, job_id: str, project: str, wish: Wish) -> JobState:
        """Pause or cancel: at once if no worker holds the job, else recorded for the worker.

        Raises NotFoundError, and ConflictError if the job has ended or is paused already.
        """
        with self._database.writing() as connection:
            row = _find(connection, job_id, project, lock=True)
            before = JobStatus(row.status)
            if _WISHED[wish] not in NEXT[before]:
                raise _refusal(job_id, before, _WISHED[wish])
            if row.worker is None:
                self._obey(connection, before, _job(row), wish)
            elif row.wish != Wish.CANCEL:  # a job that is being cancelled is not paused any more
                _set(connection, job_id, wish=wish.value)
            return _state(_find(connection, job_id, project))

    def resume(self, job_id: str, project: str) -> JobState:
        """Put a paused job back in line, where it stood. Raises NotFoundError or ConflictError."""
        with self._database.writing() as connection:
            row = _find(connection, job_id, project, lock=True)
            job, before = _job(row), JobStatus(row.status)
            if before is not JobStatus.PAUSED:
                raise ConflictError(f"job {job_id} is {before}; only a paused job can be resumed")
            after = JobStatus.QUEUED if job.validated else JobStatus.VALIDATING_FILES
            _move(connection, before, replace(job, status=after), **_AT_REST)
            _note(connection, job_id, "Fine-tuning job resumed", at=self._clock())
            return _state(_find(connection, job_id, project))

    def reap(self) -> Sequence[str]:
        """Take jobs from workers that fell silent, and return their ids.

        A job goes back in line, or where its user wished it; after MAX_ATTEMPTS such losses in a
        row it fails.
        """
        reaped: list[str] = []
        while (job_id := self._reap_one()) is not None:
            reaped.append(job_id)
        return reaped

    def secrets(self, lease: Lease) -> Mapping[str, str]:
        """Return the values that stand as REDACTED in the job. Raises LeaseLostError."""
        table = schema.secrets
        query = select(table.c.sealed).where(table.c.owner == lease.job.id)
        with self._database.writing() as connection:
            hold(connection, lease)
            sealed = connection.execute(query).scalar()
        return {} if sealed is None else self._vault.open(sealed)

    def list(
        self,
        project: str | None = None,
        *,
        after: str | None = None,
        limit: int = 20,
        metadata: Mapping[str, str] | Literal["null"] | None = None,
    ) -> Page[JobState]:
        """List jobs, newest first: of a project, from a job on, with this metadata ("null": none).

        Raises NotFoundError if there is no job `after`.
        """
        query = select(_jobs).order_by(_jobs.c.sequence.desc())
        if project is not None:
            query = query.where(_jobs.c.project == project)
        pairs = schema.job_metadata
        pair_of_job = select(pairs.c.key).where(pairs.c.job_id == _jobs.c.id)
        if metadata == "null":
            query = query.where(~pair_of_job.exists())
        for key, value in metadata.items() if isinstance(metadata, Mapping) else ():
            wanted = pair_of_job.where(pairs.c.key == key, pairs.c.value == value)
            query = query.where(wanted.exists())
        with self._database.reading() as connection:
            if after is not None:
                last_seen = _find(connection, after, project).sequence
                query = query.where(_jobs.c.sequence < last_seen)
            rows = connection.execute(query.limit(limit + 1)).all()
        shown = rows[:limit]
        return Page(
            items=tuple(_state(row) for row in shown),
            last=shown[-1].sequence if shown else 0,
            has_more=len(rows) > limit,
        )

    def _reap_one(self) -> str | None:
        now = self._clock()
        silent = (
            select(_jobs)
            .where(schema.LEASED, _jobs.c.lease_expires_at <= now)
            .order_by(_jobs.c.lease_expires_at)
            .limit(1)
            .with_for_update(key_share=True, skip_locked=True)
        )
        with self._database.writing() as connection:
            row = connection.execute(silent).first()
            if row is None:
                return None
            self._take_away(connection, row, now)
        return row.id

    def _take_away(self, connection: Connection, row: Row[Any], now: float) -> None:
        job, before = _job(row), JobStatus(row.status)
        lost = f"Worker {row.worker} was silent for {now - row.heartbeat_at:.0f} s"
        if row.wish is not None:
            _note(connection, job.id, lost, at=now, level="warn")
            self._obey(connection, before, job, Wish(row.wish))
        elif row.attempts >= MAX_ATTEMPTS:
            message = (
                f"{row.attempts} workers in a row were lost before the job reached another "
                f"checkpoint, the last was {row.worker}; look for the reason in the workers' logs "
                "(often memory), then create the job again"
            )
            _note(connection, job.id, f"{lost}; {message}", at=now, level="error")
            error = JobError(code="worker_lost", message=message)
            self._end(connection, before, replace(job, status=JobStatus.FAILED, error=error))
        else:
            validating = before is JobStatus.VALIDATING_FILES
            again = "the checks start again" if validating else "queued again"
            _note(connection, job.id, f"{lost}; {again}", at=now, level="warn")
            after = before if validating else JobStatus.QUEUED
            _move(connection, before, replace(job, status=after), **_UNLEASED)

    def _obey(
        self, connection: Connection, before: JobStatus, job: FineTuningJob, wish: Wish
    ) -> None:
        after = _WISHED[wish]
        _note(connection, job.id, f"Fine-tuning job {after}", at=self._clock())
        if after.is_final:
            self._end(connection, before, replace(job, status=after))
        else:
            _move(connection, before, replace(job, status=after), **_AT_REST)

    def _end(self, connection: Connection, before: JobStatus, job: FineTuningJob) -> None:
        now = self._clock()
        if job.finished_at is None:
            job = replace(job, finished_at=now)
        _move(connection, before, job, **_AT_REST)
        keys = schema.secrets
        connection.execute(delete(keys).where(keys.c.owner == job.id))
        announce(connection, job, now)


def _find(
    connection: Connection, job_id: str, project: str | None, *, lock: bool = False
) -> Row[Any]:
    query = select(_jobs).where(_jobs.c.id == job_id)
    if project is not None:
        query = query.where(_jobs.c.project == project)
    if lock:
        query = query.with_for_update(key_share=True)
    row = connection.execute(query).first()
    if row is None:
        raise no_job(job_id)
    return row


def _move(connection: Connection, before: JobStatus, job: FineTuningJob, **columns: Any) -> None:
    """Write a locked job's record and status, and keep the status of its run in line."""
    if job.status is not before and job.status not in NEXT[before]:
        raise _refusal(job.id, before, job.status)
    if job.status is not JobStatus.RUNNING:
        job = replace(job, estimated_finish=None)
    _set(connection, job.id, status=job.status.value, record=to_json(job), **columns)
    run = read_run(connection, job.id)
    if job.status is before or run is None:
        return
    error = None if job.error is None else job.error.message
    status = _run_status(job.status)
    write_run(connection, replace(run, status=status, finished_at=job.finished_at, error=error))


def _refusal(job_id: str, before: JobStatus, after: JobStatus) -> ConflictError:
    if before is after or before.is_final:
        return ConflictError(f"job {job_id} is {before} already")
    return ConflictError(f"job {job_id} is {before}; it cannot become {after} from there")


def _require(job: FineTuningJob, allowed: set[JobStatus], verb: str) -> None:
    if job.status not in allowed:
        raise ConflictError(f"a job that is {job.status} cannot be {verb}")


def _set(connection: Connection, job_id: str, **columns: Any) -> None:
    connection.execute(update(_jobs).where(_jobs.c.id == job_id).values(columns))


def _note(
    connection: Connection,
    job_id: str,
    message: str,
    *,
    at: float,
    level: Literal["info", "warn", "error"] = "info",
) -> None:
    write_record(connection, job_id, Event(level=level, message=message, created_at=at))


def _job(row: Row[Any]) -> FineTuningJob:
    # A claim changes the column alone, so that it stays one statement.
    return replace(from_json(FineTuningJob, row.record), status=JobStatus(row.status))


def _state(row: Row[Any]) -> JobState:
    return JobState(
        job=_job(row),
        worker=row.worker,
        heartbeat_at=row.heartbeat_at,
        wish=None if row.wish is None else Wish(row.wish),
        attempts=row.attempts,
    )


def _run_of(job: FineTuningJob) -> Run:
    return Run(
        id=job.id,
        project=job.project,
        method=_METHODS[job.method.type],
        status=_run_status(job.status),
        seed=job.seed,
        created_at=job.created_at,
    )


def _run_status(status: JobStatus) -> RunStatus:
    if status is JobStatus.VALIDATING_FILES:
        return RunStatus.QUEUED
    return RunStatus(status.value)


def _first_messages(job: FineTuningJob) -> Sequence[str]:
    messages = [
        f"Created fine-tuning job: {job.id}",
        f"Validating training file: {job.training_file}",
    ]
    if job.validation_file is not None:
        messages.append(f"Validating validation file: {job.validation_file}")
    return messages
