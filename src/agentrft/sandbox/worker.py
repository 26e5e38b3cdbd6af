"""A warm worker: one function, imported once, forked for every call.

What comes back is read here, from a pipe that only the one call got, and checked here.
"""

import contextlib
import json
import math
import os
import secrets
import select
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from io import FileIO
from pathlib import Path
from typing import Any

from agentrft.core.protocols import Function, FunctionFault, FunctionResult
from agentrft.sandbox import inside
from agentrft.sandbox.confinement import Plan
from agentrft.sandbox.process import ConfinedProcess, Limits, SandboxError

CALLS_PER_WORKER = 1000
SWEEP_S = 2.0
AT_REST = 2
"""Processes inside between calls: guard and stem."""
LARGEST_NESTING = 64

_SIGNAL_NAMES = {each.value: each.name for each in signal.Signals}
"""Real-time signals have none."""

Outcome = tuple[Any, FunctionFault | None, str]


class Worker:
    """Serves one function; `spent` says that it must not serve another call."""

    def __init__(self, plan: Plan, function: Function, packages: tuple[str, ...]) -> None:
        """Start it and import the source; a fault of the source shows at the first call.

        Raises SandboxError if the worker does not come up.
        """
        self._function = function
        self._calls = 0
        self.spent = False
        limits = Limits(
            memory_bytes=function.memory_bytes,
            disk_bytes=function.disk_bytes,
            processes=function.processes,
            cpu_s=math.ceil(max(function.import_timeout_s, function.timeout_s)) + 1,
        )
        self._process = ConfinedProcess(plan, limits, packages)
        try:
            self._unusable = self._import()
        except BaseException:
            self._process.close()
            raise

    def _import(self) -> FunctionResult | None:
        function, process = self._function, self._process
        what = {
            "source": function.source,
            "name": function.name,
            "call_cpu_s": math.ceil(function.timeout_s) + 1,
        }
        nonce = secrets.token_bytes(16)
        began = time.monotonic()
        with open_pipe() as (reading, writing):
            try:
                process.begin(writing.fileno(), nonce, what)
            except OSError as error:
                raise SandboxError("the worker ended before it was told what to do") from error
            writing.close()
            deadline = began + function.import_timeout_s
            _, fault, detail = read_answer(reading, nonce, deadline)
        if fault is None:
            ready = process.swept(SWEEP_S)
            if ready is not None and ready.clean:
                if _shares_memory(ready.sender):
                    # What one call writes there the next would read: one call and no more.
                    self._calls = CALLS_PER_WORKER - 1
                return None
            fault, detail = FunctionFault.RESOURCES, "it ended after it was imported"
        if fault == FunctionFault.SANDBOX:
            raise SandboxError(detail)
        self.spent = True
        detail = detail or self._died(-1)
        where = "" if "import" in detail else " while it was imported"
        return FunctionResult(
            fault=fault, detail=detail + where, duration_s=time.monotonic() - began
        )

    def call(self, payload: bytes) -> FunctionResult:
        """Make one call in a fresh fork, arguments as JSON, and leave nothing of it behind."""
        if self._unusable is not None:
            return self._unusable
        self._calls += 1
        began = time.monotonic()
        try:
            value, fault, detail = self._call(payload, began)
        except OSError as error:
            self.spent = True
            value, fault, detail = None, FunctionFault.SANDBOX, f"the worker is gone: {error}"
        self.spent |= self._calls >= CALLS_PER_WORKER
        return FunctionResult(
            value=value, fault=fault, detail=detail, duration_s=time.monotonic() - began
        )

    def _call(self, payload: bytes, began: float) -> Outcome:
        process, nonce = self._process, secrets.token_bytes(16)
        deadline = began + self._function.timeout_s
        with open_pipe() as (reading, writing):
            process.control.settimeout(self._function.timeout_s)
            process.send(inside.CALL, nonce, payload, writing.fileno())
            writing.close()
            outcome = read_answer(reading, nonce, deadline)
            with contextlib.suppress(OSError):  # gone with the call: no sweep comes back then
                process.send(inside.SWEEP, nonce)
            swept = process.swept(SWEEP_S)
            trailing = swept is not None and _has_more(reading)
        value, fault, detail = outcome
        if trailing and fault is None:
            value, fault, detail = None, FunctionFault.RESULT, "it answered more than once"
        status = -1 if swept is None else swept.status
        if fault == FunctionFault.RESOURCES and not detail:
            detail = self._died(status)
            if swept is None and not self._out_of_memory():
                fault = FunctionFault.SANDBOX  # what forked the call is gone too
            if status >= 0 and os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU:
                fault = FunctionFault.TIMEOUT
        self.spent |= (
            swept is None
            or not swept.clean
            or fault not in {None, FunctionFault.RAISED}
            or self._more_than_at_rest()
        )
        return value, fault, detail

    def _more_than_at_rest(self) -> bool:
        group = self._process.group
        return group is not None and group.processes() > AT_REST

    def _out_of_memory(self) -> bool:
        group = self._process.group
        return group is not None and group.ran_out_of_memory()

    def _died(self, status: int) -> str:
        """Say how a call ended that gave no answer."""
        if self._out_of_memory():
            return f"killed: over {self._function.memory_bytes >> 20} MiB of memory"
        if status >= 0 and os.WIFSIGNALED(status):
            number = os.WTERMSIG(status)
            return f"killed by {_SIGNAL_NAMES.get(number, f'signal {number}')}"
        if status >= 0:
            return f"it ended without an answer (exit code {os.WEXITSTATUS(status)})"
        return "it ended without an answer"

    def kill(self) -> None:
        """Make a call that is under way end; the worker must still be closed."""
        self.spent = True
        self._process.kill()

    def close(self) -> None:
        """End it with all that runs inside."""
        self._process.close()


@contextmanager
def open_pipe() -> Iterator[tuple[FileIO, FileIO]]:
    """Open a pipe; its second end is the worker's, and ours is closed once it is handed over."""
    descriptors = os.pipe()
    with FileIO(descriptors[0]) as reading, FileIO(descriptors[1], "w") as writing:
        os.set_blocking(descriptors[0], False)
        yield reading, writing


def read_answer(reading: FileIO, nonce: bytes, deadline: float) -> Outcome:
    """Read one framed answer; everything else is a fault."""
    data, size = b"", inside.ANSWER.size
    wanted = size
    while len(data) < wanted:
        left = deadline - time.monotonic()
        if left <= 0 or not _readable(reading.fileno(), left):
            return None, FunctionFault.TIMEOUT, "it was not done in time"
        part = reading.read(wanted - len(data))
        if not part:
            break
        data += part
        if len(data) == size:
            given, length = inside.ANSWER.unpack(data)
            if given != nonce or not 0 < length <= inside.ANSWER_BYTES:
                return None, FunctionFault.RESULT, "what came back is not an answer to this call"
            wanted = size + length
    if not data:
        return None, FunctionFault.RESOURCES, ""
    if len(data) < wanted:
        return None, FunctionFault.RESULT, "what came back is not complete"
    return _parsed(data[size:])


def _readable(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(math.ceil(timeout_s * 1000)))


def _has_more(reading: FileIO) -> bool:
    """Whether anything follows the answer; nobody who could write is left."""
    return bool(reading.read(1))


def _parsed(text: bytes) -> Outcome:
    try:
        fields = json.loads(text, parse_constant=_refuse)
        if not _is_plain(fields, LARGEST_NESTING):
            return None, FunctionFault.RESULT, _NOT_PLAIN
        if set(fields) == {"value"}:
            return fields["value"], None, ""
        return None, FunctionFault(fields["fault"]), _printable(str(fields["detail"]))
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        return None, FunctionFault.RESULT, _printable(f"the value is not JSON: {error}")


def _refuse(constant: str) -> Any:
    raise ValueError(f"{constant} is not a finite number")


def _printable(text: str) -> str:
    """Return text that does nothing to the terminal or the page of who reads it."""
    shown = (c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return "".join(shown)[: inside.DETAIL_CHARACTERS]


_NOT_PLAIN = "the value is nested too deep, not finite, or holds half a surrogate pair"


def _is_plain(value: Any, depth: int) -> bool:
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, str):
        return not any("\ud800" <= character <= "\udfff" for character in value)
    if isinstance(value, dict):
        parts = [*value, *value.values()]
        return depth > 0 and all(_is_plain(part, depth - 1) for part in parts)
    if isinstance(value, list):
        return depth > 0 and all(_is_plain(item, depth - 1) for item in value)
    return True


def _shares_memory(process: int) -> bool:
    """Whether the import left memory that forks would share and not copy, or nobody can tell."""
    try:
        maps = Path(f"/proc/{process}/maps").read_text().splitlines()
    except OSError:
        return True
    return any(line.split()[1] == "rw-s" for line in maps)
