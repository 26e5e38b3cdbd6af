"""Memory that a step on one thread gave back is there for a step on the next one."""

import os
import subprocess
import sys

PROGRAM = """
import sys, threading
from pathlib import Path
from agentrft.core.allocator import share_arenas

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

def step(kept, mine, done):
    blocks = [bytearray(64 << 10) for _ in range(800)]
    kept.append(bytearray(64 << 10))  # what stays lies above what is freed
    del blocks
    mine.set()
    done.wait()

if sys.argv[1] == "shared":
    share_arenas()
before, kept, done = resident(), [], threading.Event()
threads = []
for _ in range(6):
    mine = threading.Event()
    threads.append(threading.Thread(target=step, args=(kept, mine, done)))
    threads[-1].start()
    mine.wait()
print(resident() - before)
done.set()
for thread in threads:
    thread.join()
"""


def held(how: str) -> int:
    """Return the resident bytes that six such steps leave."""
    environment = {k: v for k, v in os.environ.items() if k != "MALLOC_ARENA_MAX"}
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return int(done.stdout)


def test_steps_on_changing_threads_do_not_each_keep_their_own_memory() -> None:
    assert held("shared") < held("apart") / 2
