"""A run's status is true whenever it is looked at."""

import asyncio
from pathlib import Path

import pytest
from builders import a_job

from agentrft.core.errors import UserError
from agentrft.core.run import RunStatus


def test_a_run_is_checked_before_it_counts_as_succeeded(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    seen: list[RunStatus] = []

    def check() -> None:
        seen.append(job.home.store.run("run-1").status)
        raise UserError("nothing changed")

    async def work() -> None:
        async with job.running():
            pass

    job.check = check
    with pytest.raises(UserError, match="nothing changed"):
        asyncio.run(work())
    assert seen == [RunStatus.RUNNING]
    assert job.home.store.run("run-1").status is RunStatus.FAILED
