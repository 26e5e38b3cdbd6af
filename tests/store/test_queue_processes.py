"""The queue between real processes: many at once, and killed at any moment."""

import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from job_builders import queued
from private_postgres import PrivatePostgres

from agentrft.core.job import JobStatus
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event
from agentrft.store import schema
from agentrft.store.home import Home

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "queue_claims.py"

WORKER = """
import sys
from dataclasses import replace
from pathlib import Path
from agentrft.core.job import JobStatus
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event
from agentrft.store.home import Home

home = Home.open(Path(sys.argv[1]), sys.argv[2])
while True:
    home.queue.reap()
    lease = home.queue.claim(sys.argv[3], 0.2)
    if lease is None:
        if not any(home.queue.counts()[status] for status in ("queued", "running")):
            break
        continue
    job_id, store = lease.job.id, home.fenced(lease).store
    print("claimed", job_id, lease.fence, flush=True)
    last = store.latest_checkpoint(job_id)
    for step in range(1 if last is None else last.step + 1, 4):
        said = Event(level="info", message=f"step {step}", created_at=0.0, step=step)
        done = Checkpoint(run_id=job_id, step=step, path="", policy_version=step)
        home.queue.heartbeat(lease, 0.2)
        store.append(job_id, [said, done])
        print("step", job_id, step, flush=True)
    home.queue.finish(lease, replace(lease.job, status=JobStatus.SUCCEEDED))
    print("finished", job_id, lease.fence, flush=True)
"""


def test_sixteen_processes_never_get_the_same_lease(database_url: str) -> None:
    argv = [sys.executable, str(BENCHMARK), "2000", "--processes", "16"]
    argv += ["--database-url", database_url] if database_url else []
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert ": 2000 claims by 16 processes in " in done.stdout
    assert done.stdout.endswith(", 0 double claims\n")


def test_workers_killed_at_any_moment_lose_nothing_that_was_confirmed(
    open_home: Callable[[], Home], tmp_path: Path, database_url: str
) -> None:
    home = open_home()
    home.outbox.add_webhook("desk", "http://x")
    names = [str(n) for n in range(40)]
    for name in names:
        home.queue.submit(queued(name), {})
    dice = random.Random(4)
    confirmed: list[list[str]] = []
    for number in range(12):
        argv = [sys.executable, "-c", WORKER, str(tmp_path / "home"), database_url, f"w{number}"]
        worker = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        assert worker.stdout is not None
        # After a random number of confirmations it dies wherever it happens to be.
        patience = dice.randrange(1, 25) if number < 11 else 10_000
        for line in worker.stdout:
            confirmed.append(line.split())
            patience -= 1
            if patience == 0:
                worker.send_signal(signal.SIGKILL)
        worker.stdout.close()
        assert worker.wait(timeout=60) == (0 if patience > 0 else -signal.SIGKILL)
    assert_all_ended_once(home, names, confirmed)
    if not database_url:
        with home.database.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar() == "ok"


def assert_all_ended_once(home: Home, names: list[str], confirmed: list[list[str]]) -> None:
    claims = [(job_id, fence) for verb, job_id, fence in confirmed if verb == "claimed"]
    assert len(claims) == len(set(claims))
    steps = [(job_id, step) for verb, job_id, step in confirmed if verb == "step"]
    assert len(steps) == len(set(steps))
    for name in names:
        job_id = f"ftjob-{name}"
        assert home.queue.get(job_id).job.status is JobStatus.SUCCEEDED
        assert [c.step for c in home.store.read(job_id, Checkpoint).items] == [1, 2, 3]
        said = [e.message for e in home.store.read(job_id, Event).items if e.step]
        assert said == ["step 1", "step 2", "step 3"]
    with home.database.reading() as connection:
        owed = connection.execute(sa.select(schema.outbox.c.id)).scalars().all()
    assert sorted(owed) == sorted(f"evt_{name}" for name in names)


def test_a_server_that_crashes_keeps_what_it_confirmed(
    tmp_path: Path, postgres_server: PrivatePostgres
) -> None:
    url = postgres_server.create("crashing")
    home = Home.open(tmp_path / "home", url)
    for number in range(200):
        home.queue.submit(queued(str(number)), {})
    argv = [sys.executable, "-c", WORKER, str(tmp_path / "home"), url, "w"]
    worker = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert worker.stdout is not None
    confirmed = [worker.stdout.readline().split() for _ in range(9)]
    postgres_server.crash()
    rest, errors = worker.communicate(timeout=60)
    assert "StoreError: PostgreSQL database 'crashing'" in errors
    confirmed += [line.split() for line in rest.splitlines()]
    for verb, job_id, number in confirmed:
        if verb == "step":
            latest = home.store.latest_checkpoint(job_id)
            assert latest is not None
            assert latest.step >= int(number)
        if verb == "finished":
            assert home.queue.get(job_id).job.status is JobStatus.SUCCEEDED
    home.close()


@pytest.mark.parametrize("writes", [1, 2, 5])
def test_a_transaction_cut_by_a_kill_leaves_nothing(
    open_home: Callable[[], Home], tmp_path: Path, database_url: str, writes: int
) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path\n"
        "import sqlalchemy as sa; from agentrft.store import schema\n"
        "from agentrft.store.home import Home\n"
        "home = Home.open(Path(sys.argv[1]), sys.argv[2])\n"
        "with home.database.writing() as connection:\n"
        "    for number in range(int(sys.argv[3])):\n"
        "        row = {'name': f'p{number}', 'created_at': 0.0}\n"
        "        connection.execute(sa.insert(schema.projects).values(row))\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    home = open_home()
    argv = [sys.executable, "-c", code, str(tmp_path / "home"), database_url, str(writes)]
    assert subprocess.run(argv, check=False).returncode == -signal.SIGKILL
    assert home.access.projects() == ()
    home.queue.submit(queued(), {})
