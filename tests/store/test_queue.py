"""The queue over SQLite and PostgreSQL, call by call."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import sqlalchemy as sa
import sqlalchemy.event as sa_event
from job_builders import Clock, checkpoint, event, job, queued

from agentrft.core.config import HttpTool
from agentrft.core.errors import LeaseLostError
from agentrft.core.job import (
    NEXT,
    REDACTED,
    FineTuningJob,
    JobError,
    JobStatus,
    Lease,
    ReinforcementMethod,
    Wish,
)
from agentrft.core.run import Event, Method, Run, RunStatus, StepMetrics
from agentrft.store import schema
from agentrft.store.errors import ConflictError, NotFoundError
from agentrft.store.home import Home
from agentrft.store.queue import MAX_ATTEMPTS, JobQueue


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(home: Home, clock: Clock) -> JobQueue:
    return JobQueue(home.database, home.vault, clock=clock)


def taken(queue: JobQueue, worker: str = "w1", lease_s: float = 30.0) -> Lease:
    lease = queue.claim(worker, lease_s)
    assert lease is not None
    return lease


def ended(lease: Lease, status: JobStatus = JobStatus.SUCCEEDED) -> FineTuningJob:
    return replace(lease.job, status=status)


def messages(home: Home, job_id: str) -> list[str]:
    return [e.message for _, e in home.store.events_since(job_id, 0).items]


def announced(home: Home) -> list[str]:
    with home.database.reading() as connection:
        return list(connection.execute(sa.select(schema.outbox.c.webhook_id)).scalars())


def test_a_submitted_job_comes_back_with_its_run_and_first_events(
    queue: JobQueue, home: Home
) -> None:
    tool = HttpTool(name="t", server_url="http://t", headers={"Authorization": REDACTED})
    method = ReinforcementMethod(
        grader={"type": "multi", "graders": {"a": {"weight": 0.5}}},
        tools=(tool,),
        response_format={"name": "n", "schema": {}, "strict": True},
        n_epochs=3,
    )
    given = replace(
        job(metadata={"k": "v"}),
        method=method,
        validation_file="file-valid",
        integrations=({"type": "wandb", "wandb": {"project": "p"}},),
    )
    assert queue.submit(given, {}) == given
    state = queue.get("ftjob-a", "desk")
    assert (state.job, state.worker, state.wish, state.attempts) == (given, None, None, 0)
    assert home.store.run("ftjob-a") == Run(
        id="ftjob-a",
        project="desk",
        method=Method.REINFORCEMENT,
        status=RunStatus.QUEUED,
        seed=7,
        created_at=given.created_at,
    )
    assert messages(home, "ftjob-a") == [
        "Created fine-tuning job: ftjob-a",
        "Validating training file: file-train",
        "Validating validation file: file-valid",
    ]


def test_submitting_an_id_again_returns_the_job_as_it_stands(queue: JobQueue, home: Home) -> None:
    warned = [Event(level="warn", message="Mind the gap.", created_at=1.0)]
    queue.submit(queued(), {"k": "secret"}, warned)
    taken(queue)
    again = queue.submit(queued(), {"k": "other"}, warned)
    assert again.status is JobStatus.RUNNING
    assert messages(home, "ftjob-a")[2:] == ["Mind the gap."]
    assert len(queue.list().items) == 1


def test_jobs_of_another_project_are_not_there(queue: JobQueue) -> None:
    queue.submit(job(), {})
    foreign: list[Callable[[], object]] = [
        lambda: queue.get("ftjob-a", "shop"),
        lambda: queue.get("ftjob-none"),
        lambda: queue.submit(job(project="shop"), {}),
        lambda: queue.wish("ftjob-a", "shop", Wish.CANCEL),
        lambda: queue.resume("ftjob-a", "shop"),
        lambda: queue.list("shop", after="ftjob-a"),
    ]
    for call in foreign:
        with pytest.raises(NotFoundError, match=r"no fine-tuning job 'ftjob-\w+'; list the jobs"):
            call()
    assert queue.get("ftjob-a", "desk").job == job()


def test_jobs_are_claimed_oldest_first_and_once(queue: JobQueue) -> None:
    for name in "abc":
        queue.submit(queued(name), {})
    claimed = [taken(queue, f"w{n}") for n in range(3)]
    assert [lease.job.id for lease in claimed] == ["ftjob-a", "ftjob-b", "ftjob-c"]
    assert [lease.fence for lease in claimed] == [1, 1, 1]
    assert queue.claim("w9", 30) is None


def test_a_claimed_job_is_running_unless_its_files_are_to_be_validated(
    queue: JobQueue, clock: Clock
) -> None:
    queue.submit(job("new"), {})
    queue.submit(queued("checked"), {})
    assert taken(queue).job.status is JobStatus.VALIDATING_FILES
    assert taken(queue).job.status is JobStatus.RUNNING
    state = queue.get("ftjob-checked")
    assert (state.job.status, state.worker, state.attempts) == (JobStatus.RUNNING, "w1", 1)
    assert state.heartbeat_at == clock.now


def test_a_heartbeat_prolongs_the_lease_and_brings_the_wish(queue: JobQueue, clock: Clock) -> None:
    queue.submit(queued(), {})
    lease = taken(queue, lease_s=30)
    clock.now += 20
    assert queue.heartbeat(lease, 30) is None
    clock.now += 20
    assert queue.reap() == []
    queue.wish("ftjob-a", "desk", Wish.PAUSE)
    assert queue.heartbeat(lease, 30) is Wish.PAUSE
    assert queue.get("ftjob-a").heartbeat_at == clock.now


def test_a_worker_that_woke_up_before_anybody_noticed_goes_on(
    queue: JobQueue, clock: Clock
) -> None:
    queue.submit(queued(), {})
    lease = taken(queue, lease_s=30)
    clock.now += 1000
    queue.heartbeat(lease, 30)
    assert queue.reap() == []


def test_a_worker_that_lost_its_lease_changes_nothing(
    queue: JobQueue, home: Home, clock: Clock
) -> None:
    queue.submit(queued(), {"k": "v"})
    zombie = taken(queue, "w1", lease_s=30)
    clock.now += 31
    queue.reap()
    holder = taken(queue, "w2", lease_s=30)
    before = queue.get("ftjob-a"), messages(home, "ftjob-a"), home.store.run("ftjob-a")
    store = home.fenced(zombie).store
    writes: list[Callable[[], object]] = [
        lambda: queue.heartbeat(zombie, 30),
        lambda: queue.save(zombie, replace(zombie.job, trained_tokens=5)),
        lambda: queue.finish(zombie, ended(zombie), [event()]),
        lambda: queue.release(zombie, replace(zombie.job, status=JobStatus.QUEUED)),
        lambda: queue.secrets(zombie),
        lambda: store.put_run(replace(before[2], status=RunStatus.SUCCEEDED)),
        lambda: store.put_run(replace(before[2], id="ftjob-a.child")),
        lambda: store.append("ftjob-a", [event("zombie")]),
        lambda: store.rewind("ftjob-a", -1),
    ]
    for write in writes:
        with pytest.raises(LeaseLostError, match=r"ftjob-a: worker 'w1' no longer .* 'w2' took"):
            write()
    after = queue.get("ftjob-a"), messages(home, "ftjob-a"), home.store.run("ftjob-a")
    assert after == before
    assert home.store.find_run("ftjob-a.child") is None
    assert queue.secrets(holder) == {"k": "v"}


def test_a_lease_ends_with_the_work(queue: JobQueue, home: Home) -> None:
    queue.submit(queued(), {})
    lease = taken(queue)
    home.fenced(lease).store.append("ftjob-a", [event("mine")])
    queue.finish(lease, ended(lease))
    with pytest.raises(LeaseLostError, match="the job is succeeded"):
        home.fenced(lease).store.append("ftjob-a", [event("late")])
    with pytest.raises(LeaseLostError, match="the job is succeeded"):
        queue.finish(lease, ended(lease, JobStatus.FAILED))
    assert messages(home, "ftjob-a")[-1] == "mine"


def test_saving_keeps_what_a_worker_found_out(queue: JobQueue) -> None:
    queue.submit(job(), {})
    lease = taken(queue)
    found = replace(
        lease.job, status=JobStatus.QUEUED, validated=True, hyperparameters={"n_epochs": 2}
    )
    queue.save(lease, found)
    queue.save(lease, replace(found, status=JobStatus.RUNNING, trained_tokens=9))
    state = queue.get("ftjob-a")
    assert state.job == replace(found, status=JobStatus.RUNNING, trained_tokens=9)
    assert state.worker == "w1"


@pytest.mark.parametrize("start", [JobStatus.VALIDATING_FILES, JobStatus.RUNNING])
@pytest.mark.parametrize("target", JobStatus)
def test_a_worker_moves_a_job_only_as_the_states_allow(
    queue: JobQueue, start: JobStatus, target: JobStatus
) -> None:
    keeps = {JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.RUNNING}
    gives = {JobStatus.VALIDATING_FILES, JobStatus.QUEUED, JobStatus.PAUSED}
    legal = target is start or target in NEXT[start]
    for number, (verb, fits) in enumerate(
        [
            (queue.save, target in keeps),
            (queue.release, target in gives),
            (queue.finish, target.is_final),
        ]
    ):
        first = JobStatus.QUEUED if start is JobStatus.RUNNING else start
        queue.submit(job(str(number), status=first), {})
        lease = taken(queue)
        assert lease.job.status is start
        if fits and legal:
            verb(lease, replace(lease.job, status=target))
            assert queue.get(lease.job.id).job.status is target
        else:
            with pytest.raises(ConflictError):
                verb(lease, replace(lease.job, status=target))
            assert queue.get(lease.job.id).job.status is start
        # Out of the way of the next verb.
        if queue.get(lease.job.id).worker is not None:
            queue.finish(lease, ended(lease, JobStatus.CANCELLED))
        elif not queue.get(lease.job.id).job.status.is_final:
            queue.wish(lease.job.id, "desk", Wish.CANCEL)


def test_finishing_leaves_everything_in_one_piece(
    queue: JobQueue, home: Home, clock: Clock
) -> None:
    mine = [home.outbox.add_webhook("desk", f"http://{n}")[0].id for n in range(2)]
    home.outbox.add_webhook("shop", "http://shop")
    queue.submit(queued(), {"k": "v"})
    lease = taken(queue)
    clock.now += 5
    queue.finish(lease, replace(ended(lease), fine_tuned_model="ft:m"), [event("done")])
    state = queue.get("ftjob-a")
    assert (state.job.status, state.job.finished_at) == (JobStatus.SUCCEEDED, clock.now)
    assert (state.job.fine_tuned_model, state.worker) == ("ft:m", None)
    run = home.store.run("ftjob-a")
    assert (run.status, run.finished_at) == (RunStatus.SUCCEEDED, clock.now)
    assert messages(home, "ftjob-a")[-1] == "done"
    assert sorted(announced(home)) == sorted(mine)
    with home.database.reading() as connection:
        owners = connection.execute(sa.select(schema.secrets.c.owner)).scalars().all()
    assert "ftjob-a" not in owners


def test_a_failure_is_told_to_the_run_too(queue: JobQueue, home: Home) -> None:
    queue.submit(job(), {})
    lease = taken(queue)
    error = JobError(code="invalid_training_file", message="line 3 is empty")
    queue.finish(lease, replace(ended(lease, JobStatus.FAILED), error=error))
    assert home.store.run("ftjob-a").error == "line 3 is empty"
    assert queue.get("ftjob-a").job.error == error


def test_a_refused_end_leaves_nothing_behind(queue: JobQueue, home: Home) -> None:
    home.outbox.add_webhook("desk", "http://x")
    queue.submit(job(), {"k": "v"})
    lease = taken(queue)
    with pytest.raises(ConflictError, match="validating_files; it cannot become succeeded"):
        queue.finish(lease, ended(lease), [event("done")])
    assert "done" not in messages(home, "ftjob-a")
    assert announced(home) == []
    assert queue.secrets(lease) == {"k": "v"}


def test_a_validated_job_is_given_back_and_taken_by_another(queue: JobQueue) -> None:
    queue.submit(job(), {})
    first = taken(queue, "w1")
    queue.release(first, replace(first.job, status=JobStatus.QUEUED, validated=True))
    assert queue.get("ftjob-a").attempts == 0
    second = taken(queue, "w2")
    assert (second.job.status, second.job.validated) == (JobStatus.RUNNING, True)
    assert second.fence == first.fence + 1


@pytest.mark.parametrize("wish", Wish)
def test_a_wish_for_a_job_that_nobody_holds_comes_true_at_once(
    queue: JobQueue, home: Home, wish: Wish
) -> None:
    home.outbox.add_webhook("desk", "http://x")
    queue.submit(job(), {})
    state = queue.wish("ftjob-a", "desk", wish)
    wished = JobStatus.PAUSED if wish is Wish.PAUSE else JobStatus.CANCELLED
    assert (state.job.status, state.wish) == (wished, None)
    assert home.store.run("ftjob-a").status == RunStatus(wished.value)
    assert messages(home, "ftjob-a")[-1] == f"Fine-tuning job {wished}"
    assert len(announced(home)) == (1 if wished.is_final else 0)
    assert queue.claim("w1", 30) is None


def test_a_worker_is_told_what_the_user_wishes_and_cancelling_wins(queue: JobQueue) -> None:
    queue.submit(queued(), {})
    lease = taken(queue)
    assert queue.wish("ftjob-a", "desk", Wish.PAUSE).wish is Wish.PAUSE
    assert queue.wish("ftjob-a", "desk", Wish.CANCEL).job.status is JobStatus.RUNNING
    assert queue.wish("ftjob-a", "desk", Wish.PAUSE).wish is Wish.CANCEL
    assert queue.heartbeat(lease, 30) is Wish.CANCEL


@pytest.mark.parametrize(
    ("wish", "given_back", "after"),
    [
        (Wish.CANCEL, JobStatus.QUEUED, JobStatus.CANCELLED),
        (Wish.CANCEL, JobStatus.PAUSED, JobStatus.CANCELLED),
        (Wish.PAUSE, JobStatus.QUEUED, JobStatus.PAUSED),
        (Wish.PAUSE, JobStatus.PAUSED, JobStatus.PAUSED),
    ],
)
def test_a_wish_that_crosses_the_worker_giving_back_is_not_lost(
    queue: JobQueue, home: Home, wish: Wish, given_back: JobStatus, after: JobStatus
) -> None:
    home.outbox.add_webhook("desk", "http://x")
    queue.submit(queued(), {})
    lease = taken(queue)
    queue.wish("ftjob-a", "desk", wish)
    queue.release(lease, replace(lease.job, status=given_back))
    state = queue.get("ftjob-a")
    assert (state.job.status, state.wish, state.worker) == (after, None, None)
    assert len(announced(home)) == (1 if after.is_final else 0)


def test_what_cannot_be_wished_is_refused_with_the_reason(queue: JobQueue) -> None:
    queue.submit(job(), {})
    queue.wish("ftjob-a", "desk", Wish.PAUSE)
    with pytest.raises(ConflictError, match="ftjob-a is paused already"):
        queue.wish("ftjob-a", "desk", Wish.PAUSE)
    queue.wish("ftjob-a", "desk", Wish.CANCEL)
    for wish in Wish:
        with pytest.raises(ConflictError, match="ftjob-a is cancelled already"):
            queue.wish("ftjob-a", "desk", wish)
    with pytest.raises(ConflictError, match="is cancelled; only a paused job can be resumed"):
        queue.resume("ftjob-a", "desk")


@pytest.mark.parametrize("start", [JobStatus.VALIDATING_FILES, JobStatus.QUEUED])
def test_a_resumed_job_goes_on_where_it_stood(
    queue: JobQueue, home: Home, start: JobStatus
) -> None:
    queue.submit(job(status=start), {})
    queue.submit(queued("b"), {})
    queue.wish("ftjob-a", "desk", Wish.PAUSE)
    state = queue.resume("ftjob-a", "desk")
    assert state.job.status is start
    assert messages(home, "ftjob-a")[-1] == "Fine-tuning job resumed"
    assert home.store.run("ftjob-a").status is RunStatus.QUEUED
    assert taken(queue).job.id == "ftjob-a"


def test_the_job_of_a_silent_worker_is_queued_again_and_its_user_told(
    queue: JobQueue, home: Home, clock: Clock
) -> None:
    queue.submit(queued(), {})
    lease = taken(queue, "w1", lease_s=30)
    running = replace(home.store.run("ftjob-a"), status=RunStatus.RUNNING, config={"steps": 4})
    home.fenced(lease).store.put_run(running)
    clock.now += 29.9
    assert queue.reap() == []
    clock.now += 12.1
    assert queue.reap() == ["ftjob-a"]
    assert queue.reap() == []
    state = queue.get("ftjob-a")
    assert (state.job.status, state.worker, state.attempts) == (JobStatus.QUEUED, None, 1)
    assert home.store.run("ftjob-a") == replace(running, status=RunStatus.QUEUED)
    ((_, said),) = home.store.events("ftjob-a", limit=1).items
    assert (said.level, said.message) == ("warn", "Worker w1 was silent for 42 s; queued again")


def test_a_validation_whose_worker_fell_silent_starts_again(
    queue: JobQueue, home: Home, clock: Clock
) -> None:
    queue.submit(job(), {})
    taken(queue, "w1", lease_s=30)
    assert queue.claim("w2", 30) is None
    clock.now += 40
    assert queue.reap() == ["ftjob-a"]
    assert messages(home, "ftjob-a")[-1] == "Worker w1 was silent for 40 s; the checks start again"
    assert taken(queue, "w2").job.status is JobStatus.VALIDATING_FILES


@pytest.mark.parametrize("wish", Wish)
def test_what_was_wished_of_a_silent_worker_comes_true(
    queue: JobQueue, home: Home, clock: Clock, wish: Wish
) -> None:
    home.outbox.add_webhook("desk", "http://x")
    queue.submit(queued(), {})
    taken(queue, lease_s=30)
    queue.wish("ftjob-a", "desk", wish)
    clock.now += 31
    queue.reap()
    wished = JobStatus.PAUSED if wish is Wish.PAUSE else JobStatus.CANCELLED
    assert queue.get("ftjob-a").job.status is wished
    assert len(announced(home)) == (1 if wished.is_final else 0)


def lose(queue: JobQueue, clock: Clock) -> None:
    taken(queue, lease_s=30)
    clock.now += 31
    queue.reap()


def test_a_job_that_keeps_losing_workers_fails(queue: JobQueue, home: Home, clock: Clock) -> None:
    home.outbox.add_webhook("desk", "http://x")
    queue.submit(queued(), {})
    for _ in range(MAX_ATTEMPTS - 1):
        lose(queue, clock)
    assert queue.get("ftjob-a").job.status is JobStatus.QUEUED
    lose(queue, clock)
    failed = queue.get("ftjob-a").job
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == "worker_lost"
    assert failed.error.message.startswith("5 workers in a row were lost before the job reached")
    assert home.store.run("ftjob-a").error == failed.error.message
    ((_, said),) = home.store.events("ftjob-a", limit=1).items
    assert said.level == "error"
    assert len(announced(home)) == 1


def test_a_checkpoint_starts_the_count_of_lost_workers_anew(
    queue: JobQueue, home: Home, clock: Clock
) -> None:
    queue.submit(queued(), {})
    for _ in range(MAX_ATTEMPTS - 1):
        lose(queue, clock)
    lease = taken(queue, lease_s=30)
    store = home.fenced(lease).store
    store.append("ftjob-a", [StepMetrics(step=1, values={})])
    assert queue.get("ftjob-a").attempts == MAX_ATTEMPTS
    store.append("ftjob-a", [checkpoint("ftjob-a", 1)])
    assert queue.get("ftjob-a").attempts == 0
    clock.now += 31
    queue.reap()
    assert queue.get("ftjob-a").job.status is JobStatus.QUEUED


def test_what_the_queue_said_survives_a_rewind(queue: JobQueue, home: Home, clock: Clock) -> None:
    queue.submit(queued(), {})
    lease = taken(queue, lease_s=30)
    home.fenced(lease).store.append("ftjob-a", [event("step 3", step=3)])
    clock.now += 31
    queue.reap()
    home.fenced(taken(queue)).store.rewind("ftjob-a", 0)
    said = messages(home, "ftjob-a")
    assert said[-1] == "Worker w1 was silent for 31 s; queued again"
    assert "step 3" not in said


def test_secrets_reach_the_worker_and_nothing_else(
    queue: JobQueue, home: Home, database_url: str
) -> None:
    headers = {"tools[0].headers.Authorization": "Bearer canary-4711"}
    queue.submit(job(), headers)
    assert queue.secrets(taken(queue)) == headers
    with home.database.reading() as connection:
        everything = [
            repr(connection.execute(sa.select(table)).all())
            for table in schema.metadata.sorted_tables
        ]
    assert "canary" not in "".join(everything)


def test_jobs_are_listed_newest_first_by_page_and_project(queue: JobQueue) -> None:
    for name in "abcde":
        queue.submit(job(name, project="shop" if name == "c" else "desk"), {})
    first = queue.list("desk", limit=2)
    assert ([s.job.id for s in first.items], first.has_more) == (["ftjob-e", "ftjob-d"], True)
    rest = queue.list("desk", after="ftjob-d", limit=2)
    assert ([s.job.id for s in rest.items], rest.has_more) == (["ftjob-b", "ftjob-a"], False)
    assert len(queue.list().items) == 5


def test_jobs_are_found_by_their_metadata(queue: JobQueue) -> None:
    queue.submit(job("a", metadata={"team": "x", "run": "1"}), {})
    queue.submit(job("b", metadata={"team": "x"}), {})
    queue.submit(job("c", metadata={"team": "y"}), {})
    queue.submit(job("d"), {})
    asked: list[tuple[dict[str, str], list[str]]] = [
        ({"team": "x"}, ["ftjob-b", "ftjob-a"]),
        ({"team": "x", "run": "1"}, ["ftjob-a"]),
        ({"team": "z"}, []),
        ({}, ["ftjob-d", "ftjob-c", "ftjob-b", "ftjob-a"]),
    ]
    for metadata, expected in asked:
        assert [s.job.id for s in queue.list("desk", metadata=metadata).items] == expected
    assert [s.job.id for s in queue.list("desk", metadata="null").items] == ["ftjob-d"]


def test_jobs_are_counted_by_status(queue: JobQueue) -> None:
    queue.submit(job("a"), {})
    queue.submit(queued("b", project="shop"), {})
    queue.wish("ftjob-a", "desk", Wish.CANCEL)
    counts = queue.counts()
    assert set(counts) == {status.value for status in JobStatus}
    assert {status: n for status, n in counts.items() if n} == {"cancelled": 1, "queued": 1}


def test_the_next_jobs_are_found_by_index(queue: JobQueue, home: Home, clock: Clock) -> None:
    queue.submit(queued(), {})
    sent: list[tuple[str, Any]] = []

    def note(*about: Any) -> None:
        sent.append((about[2], about[3]))

    sa_event.listen(home.database.engine, "after_cursor_execute", note)
    taken(queue)
    clock.now += 31
    queue.reap()
    sa_event.remove(home.database.engine, "after_cursor_execute", note)
    with home.database.reading() as connection:
        explain = "EXPLAIN QUERY PLAN"
        if connection.dialect.name == "postgresql":
            # A table this small is read whole unless that is forbidden.
            connection.exec_driver_sql("SET enable_seqscan = off")
            explain = "EXPLAIN"
        plans = [
            str(connection.exec_driver_sql(f"{explain} {statement}", parameters).all())
            for statement, parameters in sent
            if "LIMIT" in statement
        ]
    assert "jobs_to_claim" in plans[0]
    assert "jobs_by_lease" in plans[1]
