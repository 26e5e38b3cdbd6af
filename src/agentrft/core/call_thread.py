"""Daemon threads for code of users that is not async: environments, and grader functions.

A thread that hangs never blocks the event loop or the exit of the process. Everything of one
environment shares its thread, so objects bound to a thread (SQLite connections) work and two
parallel calls cannot race on the state of one rollout.
"""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")


class CallThread(threading.Thread):
    """A daemon thread that runs what it is given, one after the other, until stopped."""

    def __init__(self, name: str) -> None:
        super().__init__(name=name, daemon=True)
        self._queue: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._abandoned: list[Future[Any]] = []
        self.kept = False
        """Whether what was made on it lives there and will stop it."""
        self.start()

    @staticmethod
    def current() -> "CallThread | None":
        """Return the call thread this code runs on, if any."""
        thread = threading.current_thread()
        return thread if isinstance(thread, CallThread) else None

    def submit(self, call: Callable[[], T]) -> "Future[T]":
        """Queue a call; what it raises arrives in the future."""
        future: Future[T] = Future()
        self._queue.put(lambda: _settle(future, call))
        return future

    async def call(self, call: Callable[[], T]) -> T:
        """Run a call and await its result. Cancelling stops the waiting, not the call."""
        future = self.submit(call)
        try:
            return await asyncio.wrap_future(future)
        except asyncio.CancelledError:
            self._abandoned.append(future)
            raise

    @property
    def stuck(self) -> bool:
        """Whether a call that nobody waits for any more still runs."""
        return any(future.running() for future in self._abandoned)

    def stop(self) -> None:
        """End the thread once it has done what is queued."""
        self._queue.put(None)

    def run(self) -> None:
        """Work until stopped."""
        while (work := self._queue.get()) is not None:
            work()
            # An idle thread must not keep the last call's environment alive.
            del work


async def in_thread(call: Callable[[], T], *, name: str) -> T:
    """Run one blocking call on a thread of its own, which ends with it unless it was `kept`."""
    thread = CallThread(name)
    try:
        return await thread.call(call)
    finally:
        if not thread.kept:
            thread.stop()


def _settle(future: "Future[T]", call: Callable[[], T]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        result = call()
    except BaseException as error:
        future.set_exception(error)
    else:
        future.set_result(result)
