"""Runs attacks in a sandbox, and in a host that trusts graders, where they must succeed."""

import asyncio
import base64
import contextlib
import json
import os
import pickle
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from attacks.attack import Attack, Outcome
from attacks.world import Caller, MemoryPeak, World, wait_until_gone

from agentrft.core.protocols import Function, FunctionFault, FunctionResult, Sandbox

PATIENCE_S = 20.0
"""Beyond its deadline, before a call counts as one that does not come back."""

TRUSTING_HOST = """
import base64, errno, json, pickle, sys, time
space = {"__name__": "grader"}
history = []
exec(json.loads(sys.stdin.readline()), space)
for line in sys.stdin:
    start = time.perf_counter()
    history.append(json.loads(line))
    try:
        reply = ("value", space["grade"](*history[-1]))
    except Exception as error:
        code = errno.errorcode.get(getattr(error, "errno", None), "")
        reply = ("raised", f"{code} {type(error).__name__}: {error}")
    reply = (*reply, time.perf_counter() - start)
    sys.stdout.write(base64.b64encode(pickle.dumps(reply)).decode() + "\\n")
    sys.stdout.flush()
"""


def arguments(number: int, item: dict[str, Any]) -> list[dict[str, Any]]:
    """Sample and item of one call."""
    return [{"output_text": f"sample {number}", "number": number}, item]


STILL_RUNNING = "still running"
HONEST_SAMPLE = [{"well": True}, dict[str, Any]()]


async def attacked(sandbox: Sandbox, attack: Attack, world: World) -> Outcome:
    """Run an attack in a sandbox and look at the outside."""
    item = world.item()
    hung = False

    async def call(number: int) -> FunctionResult:
        nonlocal hung
        function = Function(
            source=attack.module,
            owner=attack.owners[number % len(attack.owners)],
            timeout_s=attack.timeout_s,
            import_timeout_s=attack.import_timeout_s,
        )
        patience = attack.timeout_s + attack.import_timeout_s + PATIENCE_S
        given = arguments(number, item) if number >= 0 else HONEST_SAMPLE
        try:
            return await asyncio.wait_for(sandbox.call(function, given), patience)
        except TimeoutError:
            hung = True
            return FunctionResult(fault=FunctionFault.TIMEOUT)

    peak = MemoryPeak()
    with Caller(item):
        if attack.at_once:
            results = await asyncio.gather(*(call(number) for number in range(attack.calls)))
        else:
            results = [await call(number) for number in range(attack.calls)]
    grown = peak.grown_bytes()
    survivors = wait_until_gone(world, patience_s=1.0)
    return Outcome(
        results=tuple(results),
        hung=hung,
        well=attack.spoils_import or (await call(-1)).value == 7,
        survivors=survivors,
        left_files=(),
        grown_bytes=grown,
        world=world,
    )


class TrustingHost:
    """A grader host as one would write it without a second thought. It believes every line."""

    def __init__(self, source: str, folder: Path) -> None:
        for name in ("pyproject.toml", "Makefile"):
            (folder / name).touch()
        self._process = subprocess.Popen(
            [sys.executable, "-c", TRUSTING_HOST],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            bufsize=0,
            close_fds=False,
            start_new_session=True,
            cwd=folder,
        )
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._selector = selectors.DefaultSelector()
        self._said = bytearray()
        self._complained = bytearray()
        for stream, buffer in (
            (self._process.stdout, self._said),
            (self._process.stderr, self._complained),
        ):
            os.set_blocking(stream.fileno(), False)
            self._selector.register(stream, selectors.EVENT_READ, buffer)
        self.does_not_end = False
        self._send(source)

    @property
    def held_bytes(self) -> int:
        """What it keeps of all that was poured out."""
        return len(self._said) + len(self._complained)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        # Its children live on, as they would behind any host that waits for one process only.
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self.does_not_end = True
            self._process.kill()
            self._process.wait()
        self._selector.close()
        for stream in (self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def call(self, given: Sequence[Any], timeout_s: float) -> FunctionResult:
        """Grade; a clean exit counts as passed, and a call that goes on and on as a value."""
        self._send(given)
        if reply := self._reply():  # one too many for the call before
            return reply
        end = time.monotonic() + timeout_s
        while time.monotonic() < end:
            for key, _ in self._selector.select(timeout=0.02):
                block = os.read(key.fd, 1 << 20)
                if not block:
                    self._selector.unregister(key.fileobj)
                key.data.extend(block)
                if b"\n" in block and (reply := self._reply()):
                    return reply
            if self._process.poll() is not None:
                if self._process.returncode == 0:
                    return FunctionResult(value=1.0, detail="it exited with status 0")
                return FunctionResult(fault=FunctionFault.RESOURCES)
        return FunctionResult(value=STILL_RUNNING, duration_s=timeout_s)

    def _send(self, message: object) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps(message).encode() + b"\n")

    def _reply(self) -> FunctionResult | None:
        while b"\n" in self._said:
            line, _, rest = self._said.partition(b"\n")
            self._said[:] = rest
            try:
                kind, value, *took = pickle.loads(base64.b64decode(line))
            except Exception:  # what a grader prints besides
                continue
            if kind == "raised":
                return FunctionResult(fault=FunctionFault.RAISED, detail=value)
            return FunctionResult(value=value, duration_s=took[0] if took else 0.0)
        return None


def unleashed(attack: Attack, world: World, folder: Path) -> Outcome:
    """Run an attack in the trusting host and look at the outside."""
    item = world.item()
    peak = MemoryPeak()
    with Caller(item), TrustingHost(attack.module, folder) as host:
        results = tuple(
            host.call(arguments(number, item), attack.timeout_s + 1.0)
            for number in range(attack.calls)
        )
        # What stays is counted, too: garbage of other tests may leave this process's memory meanwhile.
        grown = max(peak.grown_bytes(), host.held_bytes)
        well = results[-1].value != STILL_RUNNING and host.call(HONEST_SAMPLE, 2.0).value == 7
    return Outcome(
        results=results,
        hung=False,
        well=well,
        survivors=(*world.survivors(), *([0] if host.does_not_end else [])),
        left_files=world.take_left_files() if attack.leaves_files else (),
        grown_bytes=grown,
        world=world,
    )
