import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from builders import yes_or_no
from tuning import PROJECT, SUPERVISED, FakeModel, a_home, messages, submitted

from agentrft.core.job import JobStatus, Wish
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import StepMetrics
from agentrft.jobs.worker import WorkerConfig, work
from agentrft.store.home import Home

QUICK = WorkerConfig(heartbeat_s=0.02, lease_s=30.0, idle_s=0.01)


@asynccontextmanager
async def working(
    home: Home, model: FakeModel, config: WorkerConfig = QUICK
) -> AsyncIterator[asyncio.Event]:
    """Run a worker; it is asked to end when the block is left."""
    stop = asyncio.Event()
    worker = asyncio.create_task(work(home, config, stop, open_model=model))
    try:
        yield stop
    finally:
        stop.set()
        await worker


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(30.0):
        while True:
            if condition():
                return
            await asyncio.sleep(0.005)


def status(home: Home, job_id: str = "ftjob-1") -> JobStatus:
    return home.queue.get(job_id).job.status


def test_jobs_are_done_one_after_the_other(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    for number in (1, 2, 3):
        submitted(home, SUPERVISED, job_id=f"ftjob-{number}")

    async def main() -> None:
        async with working(home, FakeModel()):
            await until(lambda: home.queue.counts()["succeeded"] == 3)

    asyncio.run(main())


def test_one_bad_job_does_not_end_the_worker(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, SUPERVISED, job_id="ftjob-1")
    submitted(home, SUPERVISED, job_id="ftjob-2")
    luck = iter([False])

    def break_down_once(steps_done: int) -> None:
        if not next(luck, True):
            raise ZeroDivisionError("no luck")

    model.on_step = break_down_once

    async def main() -> None:
        async with working(home, model):
            await until(lambda: home.queue.counts()["succeeded"] == 1)

    asyncio.run(main())
    assert home.queue.counts()["failed"] == 1


def test_a_users_wishes_reach_a_job_under_way(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home)
    resumed = asyncio.Event()

    async def wait_in_third_step(request: SampleRequest) -> None:
        if model.trainers and model.trainers[-1].steps_done == 2:
            await resumed.wait()

    model.before = wait_in_third_step

    async def main() -> None:
        async with working(home, model):
            await until(lambda: bool(model.trainers) and model.trainers[-1].steps_done == 2)
            home.queue.wish("ftjob-1", PROJECT, Wish.PAUSE)
            await until(lambda: status(home) is JobStatus.PAUSED)
            resumed.set()
            home.queue.resume("ftjob-1", PROJECT)
            await until(lambda: status(home).is_final)

    asyncio.run(main())
    assert status(home) is JobStatus.SUCCEEDED
    assert [s.step for s in home.store.read("ftjob-1", StepMetrics).items] == list(range(1, 11))


def test_a_worker_asked_to_end_gives_its_job_back(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home)

    async def main() -> None:
        async with working(home, model):
            await until(lambda: bool(model.trainers) and model.trainers[-1].steps_done >= 2)

    async def wait_a_moment(request: SampleRequest) -> None:
        await asyncio.sleep(0.001)

    model.before = wait_a_moment
    asyncio.run(main())
    left = home.queue.get("ftjob-1")
    assert left.job.status is JobStatus.QUEUED
    assert left.worker is None
    assert "was asked to end" in messages(home)[-1]


def test_the_lease_is_kept_alive_while_the_event_loop_is_blocked(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home)
    began: list[float | None] = []

    def block_once(request: SampleRequest) -> tuple[int, ...]:
        if not began:
            began.append(home.queue.get("ftjob-1").heartbeat_at)
            while home.queue.get("ftjob-1").heartbeat_at == began[0]:
                time.sleep(0.005)
        return yes_or_no(request)

    model.script = block_once

    async def main() -> None:
        async with working(home, model):
            await until(lambda: status(home).is_final)

    asyncio.run(main())
    assert began
    assert status(home) is JobStatus.SUCCEEDED


def test_a_job_whose_worker_fell_silent_is_taken_up_by_another(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, SUPERVISED)
    assert home.queue.claim("gone", 0.0) is not None

    async def main() -> None:
        async with working(home, model):
            await until(lambda: status(home).is_final)

    asyncio.run(main())
    assert status(home) is JobStatus.SUCCEEDED
    assert any("gone was silent" in message for message in messages(home))
