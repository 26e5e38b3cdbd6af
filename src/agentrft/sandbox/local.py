"""The sandbox of this machine: warm workers by function, cold runs of programs."""

import asyncio
import json
import os
import threading
import time
import warnings
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from agentrft.core.config import SandboxConfig
from agentrft.core.errors import ConfigError
from agentrft.core.protocols import (
    Function,
    FunctionFault,
    FunctionResult,
    Program,
    ProgramResult,
)
from agentrft.sandbox.confinement import Level, Plan
from agentrft.sandbox.images import packages_of
from agentrft.sandbox.levels import plan_for
from agentrft.sandbox.process import SandboxError, remove_stale_folders
from agentrft.sandbox.programs import run_program
from agentrft.sandbox.worker import Worker

SOURCE_BYTES = 256 << 10
MOST_TIMEOUT_S = 120.0
MOST_MEMORY_BYTES = 2 << 30
FUNCTIONS = 16
"""Functions with warm workers; the one that was called longest ago makes room."""
IDLE_S = 120.0
"""A worker without calls for so long ends."""


def open_sandbox(config: SandboxConfig, *, images: Path, unsafe: bool = False) -> "LocalSandbox":
    """Return a sandbox at the configured level; it starts no worker before the first call.

    `images` holds package sets by `image_tag`. Raises ConfigError for limits out of bounds and for
    a level that this machine does not offer; `unsafe` then takes L0, which stops no attack.
    """
    if not 0 < config.timeout_s <= MOST_TIMEOUT_S:
        raise ConfigError(f"sandbox.timeout_s: {config.timeout_s:g} is not in (0, 120]")
    if not 0 < config.memory_bytes <= MOST_MEMORY_BYTES:
        raise ConfigError(f"sandbox.memory_bytes: {config.memory_bytes} is not in (0, 2 GiB]")
    if config.workers < 0:
        raise ConfigError(f"sandbox.workers: {config.workers} is negative; 0 takes all cores")
    plan = plan_for(config.level, unsafe=unsafe)
    remove_stale_folders()
    if plan.level == Level.L0:
        warnings.warn(
            "graders run WITHOUT a sandbox: their code and whatever it evaluates can read every "
            "file and secret of this user; `agentrft doctor` says what is missing",
            stacklevel=2,
        )
    return LocalSandbox(plan, images, workers=config.workers or len(os.sched_getaffinity(0)))


class LocalSandbox:
    """Runs functions in warm workers and programs cold, behind the layers of one plan."""

    def __init__(self, plan: Plan, images: Path, *, workers: int) -> None:
        self._plan = plan
        self._images = images
        self._workers = workers
        self._lanes: dict[Function, _Lane] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _end_lanes, self._lanes)

    @property
    def level(self) -> Level:
        """How strongly it holds."""
        return self._plan.level

    async def call(self, function: Function, arguments: Sequence[Any]) -> FunctionResult:
        """Call in a fresh fork of a warm worker; never raises for what the function does.

        Raises ConfigError for an `image_tag` that is not installed and a source that is too long.
        """
        if len(function.source.encode()) > SOURCE_BYTES:
            raise ConfigError(f"the source of {function.name!r} has more than 256 KiB; shorten it")
        packages = packages_of(function.image_tag, self._images)
        payload = json.dumps(arguments).encode()
        with self._lock:
            lane = self._lanes.pop(function, None)
            lane = lane or _Lane(self._plan, function, packages, self._workers)
            self._lanes[function] = lane  # the newest stands last
            self._make_room()
            pending = lane.submit(payload)
        return await asyncio.wrap_future(pending)

    def _make_room(self) -> None:
        """End workers that nobody called for long, and those of the oldest functions too many."""
        too_old = time.monotonic() - IDLE_S
        for function, lane in list(self._lanes.items())[:-1]:
            if lane.idle and (len(self._lanes) > FUNCTIONS or lane.used_at < too_old):
                # Elsewhere: it waits for processes to end, and here the event loop waits.
                threading.Thread(target=self._lanes.pop(function).close).start()

    async def run(self, program: Program) -> ProgramResult:
        """Run a program to its end or its deadline; raises SandboxError if it cannot be started."""
        packages = packages_of("", self._images)
        return await asyncio.to_thread(run_program, self._plan, program, packages)

    async def close(self) -> None:
        """End every worker, busy or not."""
        with self._lock:
            lanes = dict(self._lanes)
            self._lanes.clear()
        await asyncio.to_thread(_end_lanes, lanes)


class _Lane:
    """The workers of one function, and the threads that wait for them."""

    def __init__(
        self, plan: Plan, function: Function, packages: tuple[str, ...], workers: int
    ) -> None:
        self._make = partial(Worker, plan, function, packages)
        # A worker dies with the thread that started it, so these threads live as long as the lane.
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix="sandbox")
        self._workers: set[Worker] = set()
        self._free: list[Worker] = []
        self._pending: set[Future[FunctionResult]] = set()
        self._closing = False
        self.used_at = time.monotonic()

    @property
    def idle(self) -> bool:
        return not self._pending

    def submit(self, payload: bytes) -> Future[FunctionResult]:
        """Queue a call."""
        self.used_at = time.monotonic()
        future = self._threads.submit(self._call, payload)
        self._pending.add(future)
        future.add_done_callback(self._pending.discard)
        return future

    def _call(self, payload: bytes) -> FunctionResult:
        result = self._try(payload)
        if result.fault == FunctionFault.SANDBOX and not self._closing:
            return self._try(payload)  # a fresh worker may do; nothing came of the call
        return result

    def _try(self, payload: bytes) -> FunctionResult:
        try:
            worker = self._free.pop()
        except IndexError:
            try:
                worker = self._make()
            except SandboxError as error:
                return FunctionResult(fault=FunctionFault.SANDBOX, detail=str(error))
            self._workers.add(worker)
        result = worker.call(payload)
        if worker.spent:
            self._workers.discard(worker)
            worker.close()
        else:
            self._free.append(worker)
        return result

    def close(self) -> None:
        """End the workers, then the threads."""
        self._closing = True
        for worker in list(self._workers):
            worker.kill()
        self._threads.shutdown(cancel_futures=True)
        for worker in self._workers:
            worker.close()
        self._workers.clear()


def _end_lanes(lanes: dict[Function, _Lane]) -> None:
    for lane in lanes.values():
        lane.close()
