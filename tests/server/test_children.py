import asyncio
import sys
import time
from pathlib import Path

from agentrft.server.children import Child, keep_running

ONCE_THEN_STAY = """
import pathlib, sys, time
log = pathlib.Path(sys.argv[1])
first = not log.exists()
log.open("a").write("started\\n")
if first:
    sys.exit(3)
time.sleep(600)
"""


def test_a_child_that_dies_is_started_again_and_ends_with_the_server(tmp_path: Path) -> None:
    log = tmp_path / "log"

    async def main() -> None:
        stop = asyncio.Event()
        child = Child(name="worker", command=(sys.executable, "-c", ONCE_THEN_STAY, str(log)))
        running = asyncio.create_task(keep_running(child, stop))
        deadline = time.monotonic() + 30
        while not log.exists() or log.read_text().count("started") < 2:
            assert time.monotonic() < deadline, "the child was not started again"
            await asyncio.sleep(0.05)
        stop.set()
        await asyncio.wait_for(running, 30)

    asyncio.run(main())
    assert log.read_text() == "started\nstarted\n"
