"""Load on a running server: steady reads, many followers of one job, one large upload.

    python benchmarks/load.py --base-url http://127.0.0.1:8000 --token art-... --pid PID

Needs the dependency group `load`. See benchmarks/README.md.
"""

import argparse
import asyncio
import csv
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx2
import psutil

MIB = 1 << 20
READERS = 40
"""Locust users; a request may take `READERS / rate` seconds before the rate falls."""
RESUMES = 20
"""Events written while everybody follows."""
CONNECTING = 100
"""Followers that connect at the same time."""
PATIENCE_S = 300.0

Row = Mapping[str, str | float | int]


def main() -> None:
    """Run what was asked for and print a table."""
    options = read_options()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 65536)), hard))
    results: dict[str, Row] = {}
    with httpx2.Client(
        base_url=options.base_url,
        headers={"authorization": f"Bearer {options.token}"},
        timeout=PATIENCE_S,
    ) as client:
        file_id = upload_rows(client)
        job = create_job(client, file_id)
        try:
            if options.rate:
                with resident_memory(options.pid) as memory:
                    rows = reads(options, ids_of(client))
                results |= rows
                results["memory while reading"] = memory.row()
            if options.followers:
                with resident_memory(options.pid) as memory:
                    results["followers"] = asyncio.run(followers(options, client, job))
                results["memory while followed"] = memory.row()
        finally:
            client.post(f"/v1/fine_tuning/jobs/{job}/cancel")
            client.delete(f"/v1/files/{file_id}")
        if options.upload_mb:
            with resident_memory(options.pid) as memory:
                results["upload"] = large_upload(client, options.upload_mb)
            results["memory while uploading"] = memory.row()
    show(results)
    options.output.write_text(json.dumps(results, indent=2) + "\n")


def read_options() -> argparse.Namespace:
    """Return the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--base-url", default="http://127.0.0.1:8000")
    parser.add_argument("--token", default=os.environ.get("AGENTRFT_TOKEN"), help="Role submit.")
    parser.add_argument("--pid", type=int, help="The server's process, to watch its memory.")
    parser.add_argument("--rate", type=float, default=200, help="Reads per second; 0 for none.")
    parser.add_argument("--seconds", type=int, default=30, help="How long to read.")
    parser.add_argument("--followers", type=int, default=1000, help="Of one job; 0 for none.")
    parser.add_argument("--upload-mb", type=int, default=512, help="MiB; 0 for none.")
    parser.add_argument("--output", type=Path, default=Path("load.json"))
    options = parser.parse_args()
    if not options.token:
        parser.error("--token or AGENTRFT_TOKEN is needed")
    return options


def rows_of(size: int) -> Iterator[bytes]:
    """Yield lines of conversations to imitate, about `size` bytes in all and never more."""
    text = "The order W1234567 has left the warehouse and will arrive on Thursday. " * 140
    messages = [{"role": "user", "content": "Where is it?"}, {"role": "assistant", "content": text}]
    line = json.dumps({"messages": messages}).encode() + b"\n"
    for _ in range(max(size // len(line), 1)):
        yield line


def upload_rows(client: httpx2.Client) -> str:
    """Upload a file that is just large enough to train on."""
    content = b"".join(list(rows_of(0)) * 10)
    return upload(client, content)


def upload(client: httpx2.Client, content: Any) -> str:
    """Upload bytes or an open file; return the id."""
    reply = client.post(
        "/v1/files",
        files={"file": ("load.jsonl", content)},
        data={"purpose": "fine-tune"},
    )
    reply.raise_for_status()
    return str(reply.json()["id"])


def create_job(client: httpx2.Client, file_id: str) -> str:
    """Create a job to look at, and pause it: this measures the API, not training."""
    models = client.get("/v1/models").raise_for_status().json()["data"]
    method = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}}
    body = {"model": models[0]["id"], "training_file": file_id, "method": method}
    job = client.post("/v1/fine_tuning/jobs", json=body).raise_for_status().json()["id"]
    pause(client, job)
    return str(job)


def pause(client: httpx2.Client, job: str) -> None:
    """Pause a job and wait until it is; a worker may have taken it up."""
    client.post(f"/v1/fine_tuning/jobs/{job}/pause").raise_for_status()
    deadline = time.monotonic() + PATIENCE_S
    while client.get(f"/v1/fine_tuning/jobs/{job}").json()["status"] != "paused":
        if time.monotonic() > deadline:
            raise SystemExit(f"job {job} was not paused in {PATIENCE_S:g} s; look at its events")
        time.sleep(0.2)


def ids_of(client: httpx2.Client) -> dict[str, list[str]]:
    """Return what there is to look at."""
    paths = {"jobs": "fine_tuning/jobs?limit=100", "models": "models", "files": "files?limit=100"}
    pages = {kind: client.get(f"/v1/{path}").raise_for_status() for kind, path in paths.items()}
    return {kind: [one["id"] for one in page.json()["data"]] for kind, page in pages.items()}


def reads(options: argparse.Namespace, ids: Mapping[str, Sequence[str]]) -> dict[str, Row]:
    """Read at a fixed rate with locust, in a process of its own; milliseconds by route."""
    environment = os.environ | {
        "LOAD_TOKEN": options.token,
        "LOAD_RATE": str(options.rate),
        "LOAD_IDS": json.dumps(ids),
    }
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "locust", "-f", str(Path(__file__).with_name("reads.py"))]
        command += ["--headless", "--host", options.base_url, "--csv", f"{folder}/reads"]
        command += ["-u", str(READERS), "-r", str(READERS), "-t", f"{options.seconds}s"]
        command += ["--only-summary", "--exit-code-on-error", "0"]
        done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(f"locust failed:\n{done.stderr[-2000:]}")
        with (Path(folder) / "reads_stats.csv").open() as table:
            entries = list(csv.DictReader(table))
    return {
        f"GET {entry['Name']}" if entry["Type"] else "all reads": {
            "requests": int(entry["Request Count"]),
            "failures": int(entry["Failure Count"]),
            "per_s": round(float(entry["Requests/s"]), 1),
            **{f"p{level}_ms": int(entry[f"{level}%"]) for level in (50, 95, 99)},
        }
        for entry in entries
    }


@dataclass(slots=True)
class Follower:
    """When each event of the job arrived."""

    arrived_s: dict[str, float] = field(default_factory=dict[str, float])
    ended: bool = False
    failure: str = ""


async def followers(options: argparse.Namespace, client: httpx2.Client, job: str) -> Row:
    """Follow one job many times over while events are written; seconds from write to arrival."""
    everybody = [Follower() for _ in range(options.followers)]
    door = asyncio.Semaphore(CONNECTING)
    # The history that everybody gets first tells that a follower is connected.
    first = newest_events(client, job)[-1]
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with httpx2.AsyncClient(
        base_url=options.base_url, headers=client.headers, timeout=PATIENCE_S, limits=limits
    ) as connections:
        following = [
            asyncio.create_task(follow(connections, job, follower, door)) for follower in everybody
        ]
        began_s = time.monotonic()
        while not all(first in one.arrived_s or one.failure for one in everybody):
            if time.monotonic() - began_s > PATIENCE_S:
                raise SystemExit(
                    "not every follower could connect; is `ulimit -n` of the server low?"
                )
            await asyncio.sleep(0.1)
        connected_s = time.monotonic() - began_s
        written_s = await asyncio.to_thread(write_events, client, job)
        await asyncio.gather(*following)
    return delivery(everybody, written_s, all_events(client, job), connected_s)


async def follow(
    client: httpx2.AsyncClient, job: str, follower: Follower, door: asyncio.Semaphore
) -> None:
    """Read a job's event stream to its end."""
    path = f"/v1/fine_tuning/jobs/{job}/events?stream=true"
    try:
        async with AsyncExitStack() as held:
            async with door:
                reply = await held.enter_async_context(client.stream("GET", path))
            reply.raise_for_status()
            async for line in reply.aiter_lines():
                if line.startswith("id: "):
                    follower.arrived_s[line.removeprefix("id: ")] = time.monotonic()
                follower.ended = follower.ended or line == "data: [DONE]"
    except httpx2.HTTPError as error:
        follower.failure = f"{type(error).__name__}: {error}"


def write_events(client: httpx2.Client, job: str) -> dict[str, float]:
    """Resume and pause the job, then cancel it; return when each resuming was asked for."""
    written_s: dict[str, float] = {}
    for _ in range(RESUMES):
        before = newest_events(client, job)[0]
        asked_s = time.monotonic()
        client.post(f"/v1/fine_tuning/jobs/{job}/resume").raise_for_status()
        newest = newest_events(client, job)
        written_s[newest[newest.index(before) - 1]] = asked_s
        pause(client, job)
    client.post(f"/v1/fine_tuning/jobs/{job}/cancel").raise_for_status()
    return written_s


def newest_events(client: httpx2.Client, job: str, after: str | None = None) -> list[str]:
    """Return ids of a job's events, newest first."""
    query = {"limit": "100"} | ({"after": after} if after else {})
    reply = client.get(f"/v1/fine_tuning/jobs/{job}/events", params=query)
    return [str(event["id"]) for event in reply.raise_for_status().json()["data"]]


def all_events(client: httpx2.Client, job: str) -> set[str]:
    """Return ids of all events of a job."""
    ids = page = newest_events(client, job)
    while page:
        page = newest_events(client, job, page[-1])
        ids = [*ids, *page]
    return set(ids)


def delivery(
    everybody: Sequence[Follower],
    written_s: Mapping[str, float],
    events: set[str],
    connected_s: float,
) -> Row:
    """Sum up who got what, and when the last of them had it."""
    complete = [one for one in everybody if one.ended and one.arrived_s.keys() >= events]
    last_s = [
        max(one.arrived_s[event] for one in complete) - asked_s
        for event, asked_s in written_s.items()
        if complete
    ]
    every = [quantiles(last_s, n=20)[index] if len(last_s) > 1 else 0.0 for index in (9, 18)]
    return {
        "followers": len(everybody),
        "complete": len(complete),
        "failed": sum(bool(one.failure) for one in everybody),
        "events": len(events),
        "connected_s": round(connected_s, 2),
        "last_delivery_p50_s": round(every[0], 3),
        "last_delivery_p95_s": round(every[1], 3),
        "last_delivery_max_s": round(max(last_s, default=0.0), 3),
    }


def large_upload(client: httpx2.Client, size_mib: int) -> Row:
    """Upload a file of valid rows from disk."""
    with tempfile.NamedTemporaryFile(suffix=".jsonl") as file:
        for line in rows_of(size_mib * MIB):
            file.write(line)
        size = file.tell()
        file.seek(0)
        began_s = time.monotonic()
        file_id = upload(client, file)
        took_s = time.monotonic() - began_s
    client.delete(f"/v1/files/{file_id}")
    return {
        "mib": round(size / MIB, 1),
        "seconds": round(took_s, 1),
        "mib_per_s": round(size / MIB / took_s, 1),
    }


@dataclass(slots=True)
class Memory:
    """Resident memory of the server's process, in bytes."""

    samples: list[int] = field(default_factory=list[int])

    def row(self) -> Row:
        """Return what it was before and at most."""
        if not self.samples:
            return {"rss_mib": "no --pid"}
        return {
            "rss_before_mib": round(self.samples[0] / MIB, 1),
            "rss_most_mib": round(max(self.samples) / MIB, 1),
        }


@contextmanager
def resident_memory(pid: int | None) -> Iterator[Memory]:
    """Watch a process every 20 ms."""
    memory, done = Memory(), threading.Event()

    def watch() -> None:
        process = psutil.Process(pid)
        while not done.wait(0.02):
            memory.samples.append(process.memory_info().rss)

    watcher = threading.Thread(target=watch)
    if pid is not None:
        watcher.start()
    try:
        yield memory
    finally:
        done.set()
        if pid is not None:
            watcher.join()


def show(results: Mapping[str, Row]) -> None:
    """Print one line per measurement."""
    width = max(map(len, results))
    for name, row in results.items():
        facts = "  ".join(f"{key} {value}" for key, value in row.items())
        print(f"{name:<{width}}  {facts}")


if __name__ == "__main__":
    main()
