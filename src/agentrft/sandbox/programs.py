"""One program, cold: started, fed, listened to, ended."""

import base64
import math
import os
import secrets
import selectors
import signal
import tempfile
import time
from pathlib import Path

from agentrft.core.protocols import Function, Program, ProgramResult
from agentrft.sandbox.confinement import Plan
from agentrft.sandbox.process import ConfinedProcess, Limits, SandboxError
from agentrft.sandbox.worker import open_pipe, read_answer

STREAM_BYTES = 1 << 20
"""Kept of each stream; the rest is read and dropped."""
CONFINED_WITHIN_S = 10.0
_PART = 1 << 16
_USUAL = Function(source="")


def run_program(plan: Plan, program: Program, packages: tuple[str, ...]) -> ProgramResult:
    """Run it to its end or its deadline; raises SandboxError if it cannot be started."""
    limits = Limits(
        memory_bytes=program.memory_bytes,
        disk_bytes=_USUAL.disk_bytes,
        processes=_USUAL.processes,
        cpu_s=math.ceil(program.timeout_s) + 1,
    )
    with tempfile.TemporaryFile() as file:
        file.write(program.stdin)
        file.flush()
        with Path(f"/proc/self/fd/{file.fileno()}").open("rb") as stdin:  # to read only
            process = ConfinedProcess(plan, limits, packages, stdin=stdin)
    try:
        _begin(process, program)
        deadline = time.monotonic() + program.timeout_s
        stdout, stderr = _listen(process, deadline)
        exit_code = _exit_code(process, deadline)
        return ProgramResult(exit_code=exit_code, stdout=stdout, stderr=stderr)
    finally:
        process.close()


def _begin(process: ConfinedProcess, program: Program) -> None:
    files = {name: base64.b64encode(data).decode() for name, data in program.files.items()}
    nonce = secrets.token_bytes(16)
    with open_pipe() as (reading, writing):
        try:
            process.begin(writing.fileno(), nonce, {"argv": program.argv, "files": files})
        except OSError as error:
            raise SandboxError("the sandbox ended before it was told what to run") from error
        writing.close()
        # The pipe closes as the program starts; an answer says which layer failed.
        _, _, detail = read_answer(reading, nonce, time.monotonic() + CONFINED_WITHIN_S)
    if detail:
        raise SandboxError(f"the program cannot be confined: {detail}")


def _listen(process: ConfinedProcess, deadline: float) -> tuple[bytes, bytes]:
    """Read both streams until they end or time is up; keep the beginning of each."""
    streams = (process.popen.stdout, process.popen.stderr)
    kept = (bytearray(), bytearray())
    with selectors.DefaultSelector() as selector:
        for stream, data in zip(streams, kept, strict=True):
            assert stream is not None
            selector.register(stream, selectors.EVENT_READ, data)
        while selector.get_map():
            left = deadline - time.monotonic()
            ready = selector.select(left) if left > 0 else []
            if not ready:
                break
            for key, _ in ready:
                part = os.read(key.fd, _PART)
                key.data.extend(part[: STREAM_BYTES - len(key.data)])
                if not part:
                    selector.unregister(key.fileobj)
    return bytes(kept[0]), bytes(kept[1])


def _exit_code(process: ConfinedProcess, deadline: float) -> int | None:
    swept = process.swept(max(0.001, deadline - time.monotonic()))
    if swept is not None:
        return os.waitstatus_to_exitcode(swept.status)
    # No word from the guard: it was killed with the program, or both still run.
    return None if process.popen.poll() is None else -signal.SIGKILL
