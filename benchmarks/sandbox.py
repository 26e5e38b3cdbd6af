"""How fast graders run in the sandbox, warm and cold, and what is left of ten thousand calls.

    python benchmarks/sandbox.py 10000
    python benchmarks/sandbox.py 10000 --level L1

Warm calls go one after the other to one worker, so their rate is that of one core. A cold start
is a worker from nothing to its first result, for a function that imports nothing.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

from agentrft.core.config import SandboxConfig
from agentrft.core.protocols import Function
from agentrft.sandbox.cgroups import find_root
from agentrft.sandbox.confinement import SLOTS, uid_of
from agentrft.sandbox.local import LocalSandbox, open_sandbox

GRADER = """
import json, os, re, subprocess

def grade(sample, item):
    open(os.environ["TMPDIR"] + "/note", "w").write(sample["output_text"])
    if item["number"] % 100 == 0:
        subprocess.Popen(["sleep", "60"], start_new_session=True)
    words = re.findall(r"[a-z]+", sample["output_text"].lower())
    return len(set(words) & set(item["words"])) / len(item["words"])
"""
SAMPLE = {"output_text": "Your order W1234567 has been refunded. " * 20}
COLD_STARTS = 20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("calls", type=int)
    parser.add_argument("--level", default="auto", choices=("auto", "L2", "L1"))
    options = parser.parse_args()
    level = cast("Literal['auto', 'L2', 'L1']", options.level)
    sandbox = open_sandbox(SandboxConfig(level=level, workers=1), images=Path("none"))
    before = leftovers()
    asyncio.run(measure(sandbox, options.calls))
    time.sleep(1.0)
    print(f"left behind after all of it: {minus(leftovers(), before)}")


async def measure(sandbox: LocalSandbox, calls: int) -> None:
    cold = [await cold_start(sandbox, number) for number in range(COLD_STARTS)]
    print(f"{sandbox.level}: cold start and first call {shown(cold)}")
    warm: list[float] = []
    began = time.perf_counter()
    for number in range(calls):
        started = time.perf_counter()
        item = {"words": ["order", "refunded", "sorry"], "number": number}
        result = await sandbox.call(Function(source=GRADER), [SAMPLE, item])
        warm.append(time.perf_counter() - started)
        if result.fault is not None:
            raise SystemExit(f"call {number}: {result.fault}: {result.detail}")
    seconds = time.perf_counter() - began
    print(f"{sandbox.level}: {calls} warm calls {shown(warm)}, {calls / seconds:.0f}/s")
    await sandbox.close()


async def cold_start(sandbox: LocalSandbox, number: int) -> float:
    started = time.perf_counter()
    await sandbox.call(Function(source=f"def grade(): return {number}"), [])
    return time.perf_counter() - started


def leftovers() -> dict[str, int]:
    """Count what a worker could leave: processes, descriptors here, groups, folders."""
    return {
        "processes": sum(
            process.stat().st_uid - uid_of(0) in range(SLOTS)
            for process in Path("/proc").iterdir()
            if process.name.isdigit() and process.exists()
        ),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "groups": len(
            [g for _, f in find_root().folders for g in f.glob(f"agentrft-{os.getpid()}-*")]
        ),
        "folders": len(list(Path(tempfile.gettempdir()).glob(f"agentrft-sandbox-{os.getpid()}-*"))),
    }


def minus(after: dict[str, int], before: dict[str, int]) -> dict[str, int]:
    return {name: count - before[name] for name, count in after.items()}


def shown(seconds: Sequence[float]) -> str:
    ordered = [1e3 * second for second in sorted(seconds)]
    p50, p95 = ordered[len(ordered) // 2], ordered[len(ordered) * 95 // 100]
    return f"p50 {p50:.1f} ms, p95 {p95:.1f} ms"


if __name__ == "__main__":
    main()
