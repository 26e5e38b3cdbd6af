"""A worker: leases jobs from the queue, one after the other, and does them.

A thread of its own keeps the lease alive and hears the user's wishes, since opening a model or
a step may hold the event loop for seconds.
"""

import asyncio
import ctypes
import gc
import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Self

from agentrft.core.config import AuditConfig
from agentrft.core.errors import AgentRFTError, LeaseLostError, StoreError, boundary
from agentrft.core.job import Lease, Wish
from agentrft.graders.backends import Backends
from agentrft.jobs.fine_tuning import Interruption, LeasedJob
from agentrft.jobs.serving import OpenModel, served_model
from agentrft.store.home import Home

_log = logging.getLogger(__name__)

_INTERRUPTIONS = {Wish.PAUSE: Interruption.PAUSE, Wish.CANCEL: Interruption.CANCEL}


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerConfig:
    """How a worker behaves."""

    heartbeat_s: float = 2.0
    lease_s: float = 10.0
    """Silence after which another worker may take the job."""
    idle_s: float = 0.5
    """Between two looks for a job."""
    backends: Backends = field(default_factory=Backends)
    """What graders reach; its policy says where tools and graders may be."""
    audit: AuditConfig = field(default_factory=AuditConfig)
    """What a grader must withstand before a job trains with it."""


async def work(
    home: Home,
    config: WorkerConfig,
    stop: asyncio.Event,
    *,
    open_model: OpenModel = served_model,
) -> None:
    """Do jobs until asked to stop; then let go of the current one after its step."""
    name = f"{socket.gethostname()}:{os.getpid()}:{secrets.token_hex(3)}"
    with Pulse(home, config) as pulse:
        while not stop.is_set():
            try:
                with boundary(StoreError, f"worker {name}"):
                    lease = home.queue.claim(name, config.lease_s)
                    if lease is not None:
                        await _carry_out(home, lease, config, stop, pulse, open_model)
            except AgentRFTError as error:
                # The lease runs out, and whoever takes the job next goes on with it.
                _log.error("%s", error, exc_info=error)
                lease = None
            if lease is None:
                await _wait(stop, config.idle_s)


async def _carry_out(
    home: Home,
    lease: Lease,
    config: WorkerConfig,
    stop: asyncio.Event,
    pulse: "Pulse",
    open_model: OpenModel,
) -> None:
    """Do one leased job to its end, or until this worker must let go."""
    loop = asyncio.get_running_loop()
    job = LeasedJob(
        home, lease, open_model=open_model, backends=config.backends, audit=config.audit
    )
    working = asyncio.ensure_future(job.carry_out())
    leaving = asyncio.ensure_future(stop.wait())
    try:
        with pulse.holding(lease, partial(loop.call_soon_threadsafe, job.interrupt)):
            await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                job.interrupt(Interruption.LEAVE)
            await working
    except LeaseLostError as error:
        _log.warning("%s", error)
    finally:
        leaving.cancel()
        working.cancel()
        del job, working
        _free_memory()


def _free_memory() -> None:
    """Give back what a model held: it is part of cycles, and glibc keeps freed gigabytes to itself."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


async def _wait(stop: asyncio.Event, seconds: float) -> None:
    """Sleep, but not through being asked to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        return


Notify = Callable[[Interruption], object]


class Pulse:
    """The thread that shows that the worker lives, and takes jobs from those that do not."""

    def __init__(self, home: Home, config: WorkerConfig) -> None:
        self._queue, self._config = home.queue, config
        self._held: tuple[Lease, Notify] | None = None
        self._beating = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    @contextmanager
    def holding(self, lease: Lease, notify: Notify) -> Iterator[None]:
        """Keep a lease alive; `notify` is called, on the thread, when it must be let go."""
        self._hold((lease, notify))
        try:
            yield
        finally:
            self._hold(None)

    def _hold(self, held: tuple[Lease, Notify] | None) -> None:
        with self._beating:
            self._held = held

    def _run(self) -> None:
        while not self._ended.wait(self._config.heartbeat_s):
            try:
                with boundary(StoreError, "heartbeat"), self._beating:
                    self._beat()
            except AgentRFTError as error:
                # The lease may outlive it; if not, the next write is refused.
                _log.warning("%s", error)

    def _beat(self) -> None:
        if self._held is not None:
            lease, notify = self._held
            try:
                wish = self._queue.heartbeat(lease, self._config.lease_s)
            except LeaseLostError:
                notify(Interruption.LOST)
            else:
                if wish is not None:
                    notify(_INTERRUPTIONS[wish])
        # After the own heartbeat: a machine that slept must not take its job from itself.
        self._queue.reap()
