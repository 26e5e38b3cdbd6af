"""Two workers, many jobs, SIGKILL at random moments. `make soak` runs the long version."""

import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from tuning import PROJECT, REINFORCEMENT, SUPERVISED, a_home, callable_names, events, submitted

from agentrft.core.job import JobStatus
from agentrft.core.run import StepMetrics
from agentrft.store.home import Home

JOBS = int(os.environ.get("AGENTRFT_SOAK_JOBS", "8"))
STEPS = {"reinforcement": 10, "supervised": 6}
FOLDERS = (Path(__file__).parent, Path(__file__).parents[1] / "rollout")


def a_worker(home: Home) -> "subprocess.Popen[bytes]":
    path = os.pathsep.join(map(str, FOLDERS))
    return subprocess.Popen(
        [sys.executable, str(FOLDERS[0] / "soak_worker.py"), str(home.path)],
        env={**os.environ, "PYTHONPATH": path},
    )


def test_every_job_ends_once_and_no_step_counts_twice_however_often_workers_are_killed(
    tmp_path: Path,
) -> None:
    home = a_home(tmp_path)
    home.outbox.add_webhook(PROJECT, "http://127.0.0.1:9/hook")
    names = [f"ftjob-{number}" for number in range(JOBS)]
    for number, name in enumerate(names):
        submitted(home, SUPERVISED if number % 2 else REINFORCEMENT, job_id=name)
    draw = random.Random(1)
    workers = [a_worker(home), a_worker(home)]
    kills = 0
    deadline = time.monotonic() + 60 + 15 * JOBS
    try:
        while any(not home.queue.get(name).job.status.is_final for name in names):
            assert time.monotonic() < deadline, Counter(home.queue.counts())
            time.sleep(draw.uniform(0.8, 2.5))
            unlucky = draw.randrange(len(workers))
            workers[unlucky].kill()
            workers[unlucky].wait()
            workers[unlucky] = a_worker(home)
            kills += 1
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()

    ends = Counter(home.queue.get(name).job.status for name in names)
    sys.stdout.write(f"{JOBS} jobs, {kills} kills: {dict(ends)}\n")
    assert kills > 0
    for name in names:
        job = home.queue.get(name).job
        error = job.error.code if job.error else ""
        assert (job.status, error) in {
            (JobStatus.SUCCEEDED, ""),
            (JobStatus.FAILED, "worker_lost"),
        }, job
        steps = [one.step for one in home.store.read(name, StepMetrics, limit=100).items]
        shown = [event.data["step"] for event in events(home, name) if event.kind == "metrics"]
        assert steps == shown == list(range(1, len(steps) + 1))
        if job.status is JobStatus.SUCCEEDED:
            assert len(steps) == STEPS[job.method.type]
            assert job.fine_tuned_model in callable_names(home, name)
    announced = [delivery.event_id for delivery in home.outbox.due(1000)]
    assert len(announced) == len(set(announced)) == JOBS
