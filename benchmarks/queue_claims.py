"""How many claims a second the queue takes from many processes at once, and whether any was double.

    python benchmarks/queue_claims.py 100000
    python benchmarks/queue_claims.py 100000 --database-url postgresql://user@host/an_empty_database

Every claim is given back at once, so each counts two durable transactions. A double claim would
show as a pair of job and fence that two workers got, or as a lease that was lost while held.
"""

import argparse
import multiprocessing
import tempfile
import time
from dataclasses import dataclass, replace
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path

from agentrft.core.errors import LeaseLostError
from agentrft.core.job import FineTuningJob, JobStatus, SupervisedMethod
from agentrft.store.home import Home

JOBS = 64
"""More than processes, so that a claim rarely finds nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What one process got."""

    pairs: list[tuple[str, int]]
    lost: int
    latencies_s: list[float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("count", type=int, help="claims to make")
    parser.add_argument("--processes", type=int, default=16)
    parser.add_argument("--database-url", default="", help="PostgreSQL instead of SQLite")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report(Path(folder), options.database_url, options.count, options.processes)


def report(folder: Path, database_url: str, count: int, processes: int) -> None:
    """Run and print one line."""
    home = Home.open(folder, database_url)
    for number in range(JOBS):
        home.queue.submit(waiting_job(number), {})
    home.close()
    left = multiprocessing.Value("q", count)
    began = time.perf_counter()
    with multiprocessing.Pool(processes, share, (left,)) as pool:
        done = pool.starmap(work, [(folder, database_url, n) for n in range(processes)], 1)
    seconds = time.perf_counter() - began
    pairs = [pair for claims in done for pair in claims.pairs]
    doubles = len(pairs) - len(set(pairs)) + sum(claims.lost for claims in done)
    latencies = sorted(latency for claims in done for latency in claims.latencies_s)
    print(
        f"{'PostgreSQL' if database_url else 'SQLite'}: {len(pairs)} claims by {processes} "
        f"processes in {seconds:.1f} s, {len(pairs) / seconds:.0f} claims/s each with its return, "
        f"claim p50 {1e3 * latencies[len(latencies) // 2]:.1f} ms, "
        f"p99 {1e3 * latencies[len(latencies) * 99 // 100]:.1f} ms, {doubles} double claims"
    )


_left: "Synchronized[int]"


def share(left: "Synchronized[int]") -> None:
    """Give every process the count of claims that are still to be made."""
    # A pool hands a shared count to its processes through their initializer and nowhere else.
    global _left  # noqa: PLW0603
    _left = left


def work(folder: Path, database_url: str, number: int) -> Claims:
    """Claim and give back until the count is used up."""
    home = Home.open(folder, database_url)
    claims = Claims(pairs=[], lost=0, latencies_s=[])
    lost = 0
    while one_more():
        began = time.perf_counter()
        lease = home.queue.claim(f"w{number}", 3600)
        claims.latencies_s.append(time.perf_counter() - began)
        if lease is None:
            with _left.get_lock():
                _left.value += 1
            continue
        claims.pairs.append((lease.job.id, lease.fence))
        try:
            home.queue.release(lease, replace(lease.job, status=JobStatus.QUEUED))
        except LeaseLostError:
            lost += 1
    home.close()
    return replace(claims, lost=lost)


def one_more() -> bool:
    with _left.get_lock():
        _left.value -= 1
        return _left.value >= 0


def waiting_job(number: int) -> FineTuningJob:
    return FineTuningJob(
        id=f"ftjob-{number}",
        project="benchmark",
        model="m",
        base="m",
        method=SupervisedMethod(),
        training_file="file-1",
        seed=0,
        created_at=time.time(),
        status=JobStatus.QUEUED,
        validated=True,
    )


if __name__ == "__main__":
    main()
