"""Child processes of the server: started, started again when they die, and ended with it."""

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

FIRST_DELAY_S = 1.0
LONGEST_DELAY_S = 30.0
HEALTHY_S = 60.0
"""A child that lived this long is started again after the shortest delay."""
GRACE_S = 60.0
"""How long a child may take to end: a worker finishes its step and writes a snapshot."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """What to start, and its name in the log."""

    name: str
    command: Sequence[str]


async def keep_running(child: Child, stop: asyncio.Event) -> None:
    """Run a child until `stop`, starting it again whenever it ends; then end it."""
    delay_s = FIRST_DELAY_S
    while not stop.is_set():
        began = time.monotonic()
        # A group of its own: Ctrl-C reaches the server alone, which then ends its children in order.
        process = await asyncio.create_subprocess_exec(*child.command, process_group=0)
        ended = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({ended, stopping}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopping.cancel()
            if not ended.done():
                await _end(child, process)
        if stop.is_set():
            return
        delay_s = (
            FIRST_DELAY_S
            if time.monotonic() - began > HEALTHY_S
            else min(2 * delay_s, LONGEST_DELAY_S)
        )
        _log.warning(
            "%s ended with code %s; starting it again in %.0f s",
            child.name,
            process.returncode,
            delay_s,
        )
        with suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), delay_s)


async def _end(child: Child, process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.terminate()
    try:
        await asyncio.wait_for(process.wait(), GRACE_S)
    except TimeoutError:
        _log.warning("%s did not end within %.0f s; it is killed", child.name, GRACE_S)
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
