"""Nothing is left of many calls: no process, file, group, descriptor; no worker without its parent.

A few hundred calls here; `make soak-sandbox` sets AGENTRFT_SANDBOX_CALLS=10000.
"""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Literal

import pytest

from agentrft.core.config import SandboxConfig
from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Function, FunctionFault
from agentrft.sandbox.local import LocalSandbox, open_sandbox

CALLS = int(os.environ.get("AGENTRFT_SANDBOX_CALLS", "300"))
LEVELS: tuple[Literal["L2", "L1"], ...] = ("L2", "L1")

GRADER = """
import os, signal, tempfile, threading, time

def grade(sample, item):
    match sample["deed"]:
        case 0:
            return sample["number"]
        case 1:
            raise ValueError(sample["number"])
        case 2:
            with tempfile.NamedTemporaryFile(delete=False) as file:
                file.write(b"x" * 100_000)
            return sample["number"]
        case 3:
            if not os.fork():
                os.setsid()
                time.sleep(60)
            return sample["number"]
        case 4:
            threading.Thread(target=time.sleep, args=[60]).start()
            return [os.open("/dev/null", os.O_RDONLY) for _ in range(100)] and sample["number"]
        case 5:
            os.kill(os.getpid(), signal.SIGSEGV)
        case 6:
            return "x" * 1_000_000
        case 7:
            time.sleep(60)
"""
FAULTS = {
    1: FunctionFault.RAISED,
    5: FunctionFault.RESOURCES,
    6: FunctionFault.RESULT,
    7: FunctionFault.TIMEOUT,
}


def opened(level: Literal["L2", "L1"], images: Path) -> LocalSandbox:
    try:
        return open_sandbox(SandboxConfig(level=level), images=images)
    except ConfigError as missing:
        pytest.skip(f"{level} is not to be had here: {missing}")


def descendants(ancestor: int) -> set[int]:
    """Living processes below one, whatever session they are in."""
    parents = dict[int, int]()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if fields[0] not in ("Z", "X"):
                parents[int(entry.name)] = int(fields[1])
    found = set[int]()
    waiting = {ancestor}
    while waiting:
        waiting = {child for child, parent in parents.items() if parent in waiting} - found
        found |= waiting
    return found


def groups_of(owner: int) -> set[Path]:
    """Control groups that a process made for its workers."""
    return set(Path("/sys/fs/cgroup").rglob(f"agentrft-{owner}-*"))


def open_descriptors(owner: int) -> set[str]:
    """Numbers and what they stand for, without the one that looks."""
    found = set[str]()
    for entry in Path(f"/proc/{owner}/fd").iterdir():
        try:
            found.add(f"{entry.name} {entry.readlink()}")
        except FileNotFoundError:
            continue
    return found


def left_by(owner: int) -> dict[str, set[str]]:
    """What there is besides memory."""
    folder = Path(tempfile.gettempdir())
    return {
        "descriptors": open_descriptors(owner),
        "processes": {str(process) for process in descendants(owner)},
        "groups": {str(group) for group in groups_of(owner)},
        "files": {str(path) for path in folder.glob(f"agentrft-sandbox-{owner}-*")},
    }


async def many_calls(sandbox: LocalSandbox) -> None:
    functions = [Function(source=GRADER, owner=owner, timeout_s=1.0) for owner in ("a", "b")]
    gate = asyncio.Semaphore(4)

    async def one(number: int) -> None:
        # A call that waits for its deadline takes a second, so there are few of them.
        deed = 7 if number % 97 == 0 else number % 7
        async with gate:
            result = await sandbox.call(
                functions[number % 2], [{"deed": deed, "number": number}, {}]
            )
        assert result.fault == FAULTS.get(deed), (deed, result)
        assert result.fault is not None or result.value == number

    try:
        await asyncio.gather(*(one(number) for number in range(CALLS)))
    finally:
        await sandbox.close()


@pytest.mark.parametrize("level", LEVELS)
def test_many_calls_leave_nothing(level: Literal["L2", "L1"], tmp_path: Path) -> None:
    asyncio.run(few_calls(opened(level, tmp_path)))  # what is opened once for good stands before
    before = left_by(os.getpid())
    asyncio.run(many_calls(opened(level, tmp_path)))
    after = left_by(os.getpid())
    assert {kind: after[kind] - before[kind] for kind in after} == {kind: set() for kind in after}


async def few_calls(sandbox: LocalSandbox) -> None:
    await sandbox.call(Function(source=GRADER), [{"deed": 0, "number": 1}, {}])
    await sandbox.close()


PARENT = """
import asyncio, sys
from pathlib import Path
from typing import Literal
from agentrft.core.config import SandboxConfig
from agentrft.core.protocols import Function
from agentrft.sandbox.local import open_sandbox

GRADER = '''
import os, time

def grade(sample, item):
    if sample["busy"]:
        if not os.fork():
            os.setsid()
        time.sleep(60)
    return 1
'''

async def main():
    sandbox = open_sandbox(SandboxConfig(level=sys.argv[1]), images=Path(sys.argv[2]))
    idle = Function(source=GRADER)
    busy = Function(source=GRADER, owner="busy", timeout_s=100)
    assert (await sandbox.call(idle, [{"busy": False}, {}])).value == 1
    call = asyncio.create_task(sandbox.call(busy, [{"busy": True}, {}]))
    await asyncio.sleep(0.5)
    print("working", flush=True)
    await call

asyncio.run(main())
"""


@pytest.mark.parametrize("level", LEVELS)
def test_no_worker_outlives_a_killed_parent(level: Literal["L2", "L1"], tmp_path: Path) -> None:
    asyncio.run(opened(level, tmp_path).close())
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, level, str(tmp_path)], stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    with parent.stdout:
        assert parent.stdout.readline() == b"working\n"
    workers = descendants(parent.pid)
    assert workers, "the parent has no workers to lose"
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    end = time.monotonic() + 10
    while (alive := {pid for pid in workers if runs(pid)}) and time.monotonic() < end:
        time.sleep(0.05)
    assert not alive, [Path(f"/proc/{pid}/cmdline").read_text() for pid in alive]


def runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in ("Z", "X")
