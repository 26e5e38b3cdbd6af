"""Functions and programs in the real sandbox, at every level that this machine offers."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentrft.core.config import SandboxConfig
from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Function, FunctionFault, FunctionResult, Program, ProgramResult
from agentrft.sandbox.cgroups import find_root
from agentrft.sandbox.levels import Level, survey
from agentrft.sandbox.local import LocalSandbox, open_sandbox

OFFERED = {None: (), Level.L2: ("L2", "L1"), Level.L1: ("L1",), Level.L0: ()}[survey().level]


@pytest.fixture(params=["L2", "L1"])
def sandbox(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[LocalSandbox]:
    if request.param not in OFFERED:
        pytest.skip(f"{request.param} is not to be had here; `agentrft doctor` says why")
    opened = open_sandbox(SandboxConfig(level=request.param, workers=2), images=tmp_path)
    yield opened
    asyncio.run(opened.close())


def called(sandbox: LocalSandbox, source: str, *arguments: Any, **limits: Any) -> FunctionResult:
    return asyncio.run(sandbox.call(Function(source=source, **limits), arguments))


def ran(sandbox: LocalSandbox, *argv: str, **options: Any) -> ProgramResult:
    return asyncio.run(sandbox.run(Program(argv=argv, **options)))


def test_a_function_gets_json_and_gives_json(sandbox: LocalSandbox) -> None:
    source = "def grade(sample, item): return {'score': 0.5, 'both': [sample, item], 'none': None}"
    result = called(sandbox, source, {"text": "ä"}, [1, 2.5, True])
    assert result.fault is None, result.detail
    assert result.value == {"score": 0.5, "both": [{"text": "ä"}, [1, 2.5, True]], "none": None}
    assert result.duration_s > 0


def test_packages_of_this_interpreter_can_be_imported(sandbox: LocalSandbox) -> None:
    source = "import numpy, scipy, rapidfuzz\ndef grade(): return numpy.float32(0.5)"
    assert called(sandbox, source).value == 0.5


@pytest.mark.parametrize(
    ("source", "detail"),
    [
        (
            "def grade():\n    return 1 / 0",
            "ZeroDivisionError: division by zero (line 2: return 1 / 0)",
        ),
        ("def other(): ...", "the source defines no function 'grade'"),
        ("def grade(:", "SyntaxError"),
        ("import no_such_package", "ModuleNotFoundError"),
        ("import sys\nsys.exit(0)", "SystemExit: 0"),
        ("import sys\ndef grade(): sys.exit(0)", "SystemExit: 0"),
        ("def grade(): raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("class Odd(Exception):\n    __str__ = None\ndef grade(): raise Odd", "Odd"),
    ],
)
def test_what_is_raised_is_told_to_the_author(
    sandbox: LocalSandbox, source: str, detail: str
) -> None:
    result = called(sandbox, source)
    assert result.fault == FunctionFault.RAISED
    assert detail in result.detail


@pytest.mark.parametrize(
    "value",
    ["float('nan')", "float('inf')", "[1e308 * 10]", "{1}", "object()", "'x' * 70_000", "b'1'"],
)
def test_what_is_not_finite_json_within_the_cap_is_no_result(
    sandbox: LocalSandbox, value: str
) -> None:
    result = called(sandbox, f"def grade(): return {value}")
    assert result.fault == FunctionFault.RESULT
    assert result.value is None


def test_text_that_reads_as_infinity_is_no_result(sandbox: LocalSandbox) -> None:
    source = (
        "import json\n"
        "json.dumps = lambda *_, **__: '{\"value\": 1e999}'\n"  # passes every check made inside
        "def grade(): return 1"
    )
    assert called(sandbox, source).fault == FunctionFault.RESULT


def test_printing_is_no_result_and_does_no_harm(sandbox: LocalSandbox) -> None:
    source = "import os\ndef grade():\n  print('1.0' * 10**7)\n  os.write(2, b'1.0')\n  return 0.25"
    assert called(sandbox, source).value == 0.25


def test_time_runs_out_for_calls_and_for_imports(sandbox: LocalSandbox) -> None:
    spinning = "def grade():\n  while True: pass"
    assert called(sandbox, spinning, timeout_s=0.5).fault == FunctionFault.TIMEOUT
    sleeping = "import time\ntime.sleep(60)"
    assert called(sandbox, sleeping, import_timeout_s=0.5).fault == FunctionFault.TIMEOUT


def test_a_function_that_dies_says_how(sandbox: LocalSandbox) -> None:
    ended = called(sandbox, "import os\ndef grade(): os._exit(3)")
    assert (ended.fault, ended.detail) == (
        FunctionFault.RESOURCES,
        "it ended without an answer (exit code 3)",
    )
    crashed = called(sandbox, "import ctypes\ndef grade(): return ctypes.string_at(0)")
    assert (crashed.fault, crashed.detail) == (FunctionFault.RESOURCES, "killed by SIGSEGV")
    odd = called(sandbox, "import os\ndef grade(): os.kill(os.getpid(), 40)")
    assert (odd.fault, odd.detail) == (FunctionFault.RESOURCES, "killed by signal 40")
    greedy = called(sandbox, "def grade(): return len(bytearray(10**9))")
    assert greedy.fault == FunctionFault.RESOURCES
    assert "memory" in greedy.detail


def test_memory_of_all_processes_of_a_call_is_limited_together(sandbox: LocalSandbox) -> None:
    try:
        find_root()
    except OSError as missing:
        pytest.skip(f"cgroups are not to be had here: {missing}")
    source = """
import os, time
def grade():
    for _ in range(6):
        if os.fork() == 0:
            block = bytearray(b"x") * 150_000_000
            time.sleep(30)
    return os.wait()[1]
"""
    result = called(sandbox, source, memory_bytes=256 << 20, timeout_s=20)
    assert result.value == signal.SIGKILL


def test_nothing_is_left_for_the_next_call(sandbox: LocalSandbox) -> None:
    source = """
import os, subprocess, tempfile
seen = []
def grade():
    seen.append(1)
    left, note = os.listdir(tempfile.gettempdir()), os.environ.get("NOTE")
    deep = tempfile.mkdtemp()
    open(os.path.join(deep, "note"), "w").write("remember")
    os.environ["NOTE"] = "remember"
    subprocess.Popen(["sleep", "60"], start_new_session=True)
    return [len(seen), left, note]
"""
    for _ in range(3):
        assert called(sandbox, source).value == [1, [], None]


def test_state_in_shared_memory_threads_and_pipes_of_the_import_is_lost_too(
    sandbox: LocalSandbox,
) -> None:
    source = """
import mmap, os, threading, time
shared = mmap.mmap(-1, 4096)
reading, writing = os.pipe()
os.set_blocking(reading, False)
threading.Thread(target=lambda: time.sleep(1000), daemon=True).start()
def grade():
    shared[0] += 1
    try:
        os.write(writing, b"1")
        piped = True
    except OSError:
        piped = False
    return [shared[0], piped, threading.active_count()]
"""
    for _ in range(3):
        assert called(sandbox, source).value == [1, False, 1]


def test_calls_run_side_by_side_and_in_order_of_workers(sandbox: LocalSandbox) -> None:
    function = Function(source="import os\ndef grade(n): return [n, os.getpid()]")

    async def many() -> Sequence[FunctionResult]:
        return await asyncio.gather(*(sandbox.call(function, [n]) for n in range(40)))

    assert [result.value[0] for result in asyncio.run(many())] == list(range(40))


def test_functions_of_two_owners_share_no_worker(sandbox: LocalSandbox) -> None:
    source = "import secrets\nmine = secrets.token_hex()\ndef grade(): return mine"
    one, same, other = (
        called(sandbox, source, owner=owner).value for owner in ("ann", "ann", "bob")
    )
    assert other not in {one, same}


def test_more_functions_than_have_room_are_all_served(sandbox: LocalSandbox) -> None:
    async def many() -> list[Any]:
        functions = [Function(source=f"def grade(): return {n}") for n in range(20)]
        return [(await sandbox.call(each, [])).value for each in (*functions, *functions)]

    assert asyncio.run(many()) == [*range(20), *range(20)]


def test_a_worker_that_is_killed_from_outside_is_replaced(sandbox: LocalSandbox) -> None:
    function = Function(source="def grade(): return 1")
    for _ in range(3):
        assert asyncio.run(sandbox.call(function, [])).value == 1
        for child in children_of(os.getpid()):
            os.kill(child, signal.SIGKILL)


def test_a_closed_sandbox_ends_its_calls(sandbox: LocalSandbox) -> None:
    async def close_while_it_sleeps() -> FunctionResult:
        source = "import time\ndef grade(): time.sleep(60)"
        call = asyncio.ensure_future(sandbox.call(Function(source=source, timeout_s=60), []))
        await asyncio.sleep(0.5)
        await sandbox.close()
        return await call

    assert asyncio.run(close_while_it_sleeps()).fault is not None
    assert children_of(os.getpid()) == []


def test_a_long_source_and_a_missing_image_are_refused_by_name(sandbox: LocalSandbox) -> None:
    with pytest.raises(ConfigError, match="256 KiB"):
        called(sandbox, "#" * 300_000)
    with pytest.raises(ConfigError, match="agentrft images install 2025-05-08"):
        called(sandbox, "", image_tag="2025-05-08")
    with pytest.raises(ConfigError, match="no package set is named 'other'"):
        called(sandbox, "", image_tag="other")


def test_a_program_gets_files_and_input_and_gives_its_streams(sandbox: LocalSandbox) -> None:
    code = "import sys; print(sys.stdin.read() + open('a/b.txt').read()); sys.exit(3)"
    result = ran(sandbox, "python3", "-c", code, stdin=b"in, ", files={"a/b.txt": b"file"})
    assert result == ProgramResult(exit_code=3, stdout=b"in, file\n", stderr=b"")


def test_programs_that_run_on_write_on_or_do_not_exist_are_ended(sandbox: LocalSandbox) -> None:
    assert ran(sandbox, "sleep", "60", timeout_s=0.5).exit_code is None
    closing = "import os, time; os.close(1); os.close(2); time.sleep(60)"
    assert ran(sandbox, "python3", "-c", closing, timeout_s=1.0).exit_code is None
    flood = ran(sandbox, "sh", "-c", "yes; exit 0", timeout_s=1.0)
    assert (flood.exit_code, len(flood.stdout)) == (None, 1 << 20)
    missing = ran(sandbox, "no-such-program")
    assert (missing.exit_code, b"no-such-program" in missing.stderr) == (127, True)
    assert ran(sandbox, "sh", "-c", "kill -9 $$").exit_code == -9


def test_a_program_leaves_no_child(sandbox: LocalSandbox) -> None:
    result = ran(sandbox, "sh", "-c", "setsid sleep 60 >/dev/null 2>&1 & exit 0")
    assert result.exit_code == 0
    assert children_of(os.getpid()) == []


@pytest.mark.parametrize("level", OFFERED)
def test_no_worker_outlives_a_parent_that_is_killed(level: str, tmp_path: Path) -> None:
    code = """
import asyncio, os, sys
from pathlib import Path
from agentrft.core.config import SandboxConfig
from agentrft.core.protocols import Function
from agentrft.sandbox.local import open_sandbox
source = '''
import os, time
def grade():
    for _ in range(3):
        if os.fork() == 0:
            os.setsid()
            os.fork()
            time.sleep(60)
    time.sleep(60)
'''
sandbox = open_sandbox(SandboxConfig(level=sys.argv[1]), images=Path("none"))
asyncio.run(sandbox.call(Function(source=source, timeout_s=60), []))
"""
    parent = subprocess.Popen([sys.executable, "-c", code, level])
    wait_for(lambda: len(descendants_of(parent.pid)) > 6)
    inside = descendants_of(parent.pid)
    parent.kill()
    parent.wait()
    wait_for(lambda: not any(is_running(process) for process in inside))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (SandboxConfig(timeout_s=121), "sandbox.timeout_s"),
        (SandboxConfig(timeout_s=0), "sandbox.timeout_s"),
        (SandboxConfig(memory_bytes=3 << 30), "sandbox.memory_bytes"),
        (SandboxConfig(workers=-1), "sandbox.workers"),
    ],
)
def test_settings_out_of_bounds_are_refused_by_name(
    tmp_path: Path, config: SandboxConfig, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        open_sandbox(config, images=tmp_path)


def test_two_hundred_calls_leave_no_process_descriptor_group_or_folder(
    sandbox: LocalSandbox,
) -> None:
    source = """
import subprocess, tempfile
def grade(n):
    tempfile.mkdtemp()
    if n % 20 == 0:
        subprocess.Popen(["sleep", "60"], start_new_session=True)
    if n % 50 == 0:
        while True: pass
    return n
"""
    function = Function(source=source, timeout_s=0.3)

    async def many() -> None:
        await sandbox.call(function, [1])
        await sandbox.close()
        before = leftovers()
        for number in range(200):
            await sandbox.call(function, [number])
        await sandbox.close()
        assert leftovers() == before

    asyncio.run(many())


def leftovers() -> dict[str, Any]:
    folders: list[Path] = []
    with contextlib.suppress(OSError):
        folders = [folder for _, folder in find_root().folders]
    groups = [group for folder in folders for group in folder.glob(f"agentrft-{os.getpid()}-*")]
    return {
        "children": children_of(os.getpid()),
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "groups": groups,
        "folders": list(Path(os.environ.get("TMPDIR", "/tmp")).glob(f"agentrft-*-{os.getpid()}-*")),
    }


def parents() -> dict[int, int]:
    """Parent of every process that is there and no zombie."""
    found: dict[int, int] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:
            continue
        if state != "Z":
            found[int(stat.parent.name)] = int(parent)
    return found


def children_of(process: int) -> list[int]:
    return [child for child, parent in parents().items() if parent == process]


def descendants_of(process: int) -> set[int]:
    table, found = parents(), {process}
    while more := {child for child, parent in table.items() if parent in found} - found:
        found |= more
    return found - {process}


def is_running(process: int) -> bool:
    return process in parents()


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.05)
