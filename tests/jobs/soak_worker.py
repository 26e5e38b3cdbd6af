"""A worker on shipped fakes, as a process of its own that may be killed: python soak_worker.py HOME."""

import asyncio
import sys
from pathlib import Path

from tuning import FakeModel

from agentrft.jobs.worker import WorkerConfig, work
from agentrft.store.home import Home

if __name__ == "__main__":
    config = WorkerConfig(heartbeat_s=0.1, lease_s=1.0, idle_s=0.02)
    asyncio.run(work(Home.open(Path(sys.argv[1])), config, asyncio.Event(), open_model=FakeModel()))
