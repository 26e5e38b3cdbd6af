"""Any order of calls and any passing of time: the queue against a model of a few lines."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
import sqlalchemy as sa
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from job_builders import Clock, checkpoint, job

from agentrft.core.errors import LeaseLostError
from agentrft.core.job import NEXT, JobStatus, Lease, Wish
from agentrft.store import schema
from agentrft.store.errors import ConflictError
from agentrft.store.home import Home
from agentrft.store.queue import MAX_ATTEMPTS, JobQueue

LEASE_S = 30.0
WEBHOOKS = {"desk": 2, "shop": 0}
WAITING = {JobStatus.VALIDATING_FILES, JobStatus.QUEUED}
WISHED = {Wish.PAUSE: JobStatus.PAUSED, Wish.CANCEL: JobStatus.CANCELLED}


@dataclass
class Believed:
    """What the model believes of one job."""

    project: str
    status: JobStatus
    validated: bool
    fence: int = 0
    holder: Lease | None = None
    expires_at: float = 0.0
    wish: Wish | None = None
    attempts: int = 0
    steps: int = 0
    history: list[JobStatus] = field(default_factory=list[JobStatus])

    def become(self, status: JobStatus) -> None:
        self.status = status
        self.history.append(status)

    def free(self, *, lost: bool = False) -> None:
        self.holder = self.wish = None
        if not lost:
            self.attempts = 0

    def obey(self, wish: Wish) -> None:
        self.become(WISHED[wish])
        self.free()


class QueueMachine(RuleBasedStateMachine):
    """Workers come, work, vanish and come back; users wish; time jumps."""

    def __init__(self, home: Home) -> None:
        super().__init__()
        self.home = home
        self.clock = Clock()
        self.queue = JobQueue(home.database, home.vault, clock=self.clock)
        self.believed: dict[str, Believed] = {}
        self.leases: list[Lease] = []
        with home.database.writing() as connection:
            connection.execute(sa.delete(schema.runs))
            connection.execute(sa.delete(schema.outbox))

    @initialize(validated=st.booleans())
    def start(self, validated: bool) -> None:
        self.submit("desk", validated)

    # Few jobs, so that much happens to each.
    @precondition(lambda self: len(self.believed) < 3)
    @rule(project=st.sampled_from(["desk", "shop"]), validated=st.booleans())
    def submit(self, project: str, validated: bool) -> None:
        status = JobStatus.QUEUED if validated else JobStatus.VALIDATING_FILES
        given = job(str(len(self.believed)), project=project, status=status)
        self.queue.submit(given, {})
        self.believed[given.id] = Believed(
            project=project, status=status, validated=validated, history=[status]
        )

    @rule(seconds=st.sampled_from([1.0, LEASE_S / 2, LEASE_S, 3600.0, -5.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.now += seconds

    @rule(worker=st.sampled_from(["w1", "w2"]))
    def claim(self, worker: str) -> None:
        lease = self.queue.claim(worker, LEASE_S)
        waiting = [
            job_id
            for job_id, one in self.believed.items()
            if one.status in WAITING and one.holder is None
        ]
        if lease is None:
            assert waiting == []
            return
        assert lease.job.id == waiting[0]
        one = self.believed[lease.job.id]
        if one.status is JobStatus.QUEUED:
            one.become(JobStatus.RUNNING)
        one.fence += 1
        one.attempts += 1
        one.holder, one.expires_at = lease, self.clock.now + LEASE_S
        assert (lease.job.status, lease.fence) == (one.status, one.fence)
        self.leases.append(lease)

    def one_lease(self, data: st.DataObject) -> Lease:
        """Return a lease, as often one that is held as one that may be lost."""
        held = [lease for lease in self.leases if self.believed[lease.job.id].holder == lease]
        anyone = st.sampled_from(self.leases)
        return data.draw(st.sampled_from(held) | anyone if held else anyone)

    def as_holder(self, lease: Lease, write: Callable[[], object]) -> Believed | None:
        """Do it, and return the job if it was the holder who did; others must be refused."""
        one = self.believed[lease.job.id]
        if one.holder == lease:
            write()
            return one
        with pytest.raises(LeaseLostError):
            write()
        return None

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def heartbeat(self, data: st.DataObject) -> None:
        lease = self.one_lease(data)
        told: list[Wish | None] = []
        one = self.as_holder(lease, lambda: told.append(self.queue.heartbeat(lease, LEASE_S)))
        if one is not None:
            assert told == [one.wish]
            one.expires_at = self.clock.now + LEASE_S

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def commit_a_step(self, data: st.DataObject) -> None:
        lease = self.one_lease(data)
        step = self.believed[lease.job.id].steps
        store = self.home.fenced(lease).store
        records = [checkpoint(lease.job.id, step)]
        one = self.as_holder(lease, lambda: store.append(lease.job.id, records))
        if one is not None:
            one.steps += 1
            one.attempts = 0

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        keeps = {JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.RUNNING}
        self.move(data, keeps, self.queue.save)

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        gives = {JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.PAUSED}
        one = self.move(data, gives, self.queue.release)
        if one is not None and one.wish is not None:
            one.history.pop()
            one.obey(one.wish)
        elif one is not None:
            one.free()

    @precondition(lambda self: self.leases)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        final = {status for status in JobStatus if status.is_final}
        one = self.move(data, final, self.queue.finish)
        if one is not None:
            one.free()

    def move(
        self, data: st.DataObject, fitting: set[JobStatus], verb: Callable[..., None]
    ) -> Believed | None:
        """Let somebody move a job somewhere, and return it if that was the holder and legal."""
        lease = self.one_lease(data)
        one = self.believed[lease.job.id]
        legal = [
            s for s in JobStatus if s in fitting and (s is one.status or s in NEXT[one.status])
        ]
        anywhere = st.sampled_from(JobStatus)
        status = data.draw(st.sampled_from(legal) | anywhere if legal else anywhere)
        moved = replace(lease.job, status=status, validated=one.validated)
        if one.holder == lease and status not in legal:
            with pytest.raises(ConflictError):
                verb(lease, moved)
            return None
        if self.as_holder(lease, lambda: verb(lease, moved)) is None:
            return None
        one.become(status)
        return one

    @rule(data=st.data(), wish=st.sampled_from(Wish))
    def wish(self, data: st.DataObject, wish: Wish) -> None:
        job_id = data.draw(st.sampled_from(list(self.believed)))
        one = self.believed[job_id]
        if WISHED[wish] not in NEXT[one.status]:
            with pytest.raises(ConflictError):
                self.queue.wish(job_id, one.project, wish)
            return
        self.queue.wish(job_id, one.project, wish)
        if one.holder is None:
            one.obey(wish)
        elif one.wish is not Wish.CANCEL:
            one.wish = wish

    @rule(data=st.data())
    def resume(self, data: st.DataObject) -> None:
        job_id = data.draw(st.sampled_from(list(self.believed)))
        one = self.believed[job_id]
        if one.status is not JobStatus.PAUSED:
            with pytest.raises(ConflictError):
                self.queue.resume(job_id, one.project)
            return
        self.queue.resume(job_id, one.project)
        one.become(JobStatus.QUEUED if one.validated else JobStatus.VALIDATING_FILES)
        one.free()

    @rule()
    def reap(self) -> None:
        silent = {
            job_id: one
            for job_id, one in self.believed.items()
            if one.holder is not None and one.expires_at <= self.clock.now
        }
        assert set(self.queue.reap()) == set(silent)
        for one in silent.values():
            if one.wish is not None:
                one.obey(one.wish)
            elif one.attempts >= MAX_ATTEMPTS:
                one.become(JobStatus.FAILED)
                one.free()
            else:
                if one.status is JobStatus.RUNNING:
                    one.become(JobStatus.QUEUED)
                one.free(lost=True)

    @invariant()
    def the_queue_says_what_the_model_believes(self) -> None:
        states = {state.job.id: state for state in self.queue.list(limit=1000).items}
        assert set(states) == set(self.believed)
        for job_id, one in self.believed.items():
            state = states[job_id]
            holder = None if one.holder is None else one.holder.worker
            assert state.job.status is one.status
            assert (state.worker, state.wish, state.attempts) == (holder, one.wish, one.attempts)
            run = self.home.store.run(job_id)
            if one.holder is None and one.status is not JobStatus.VALIDATING_FILES:
                assert run.status.value == one.status.value

    @invariant()
    def a_job_ends_once_and_every_step_on_the_way_is_legal(self) -> None:
        for one in self.believed.values():
            steps = zip(one.history, one.history[1:], strict=False)
            assert all(after is before or after in NEXT[before] for before, after in steps)
            assert sum(status.is_final for status in one.history) == int(one.status.is_final)

    @invariant()
    def every_end_is_announced_once_to_each_webhook(self) -> None:
        query = sa.select(schema.outbox.c.id, schema.outbox.c.webhook_id)
        with self.home.database.reading() as connection:
            rows = connection.execute(query).all()
        owed = [
            f"evt_{job_id.removeprefix('ftjob-')}"
            for job_id, one in self.believed.items()
            if one.status.is_final
            for _ in range(WEBHOOKS[one.project])
        ]
        assert sorted(row.id for row in rows) == sorted(owed)
        assert len({tuple(row) for row in rows}) == len(rows)


def test_no_order_of_calls_loses_a_job_or_ends_one_twice(home: Home) -> None:
    for project, count in WEBHOOKS.items():
        for number in range(count):
            home.outbox.add_webhook(project, f"http://{number}")

    class OnThisHome(QueueMachine):
        def __init__(self) -> None:
            super().__init__(home)

    run_state_machine_as_test(
        OnThisHome,
        settings=settings(max_examples=100, stateful_step_count=40, deadline=None),
    )
