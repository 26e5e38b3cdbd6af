"""What a running job may touch: its row in the store, its folder, its progress bar, its stop signal.

The one place that turns an exception into a failed run.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

from agentrft.core.errors import AgentRFTError, PausedError, StoreError
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event, Method, Record, Run, RunStatus
from agentrft.jobs.progress import Progress
from agentrft.store.home import Home

T = TypeVar("T")
R = TypeVar("R", bound=Record)


class Stopped(AgentRFTError):
    """The user asked to stop; everything committed is kept and the run can be resumed."""


@dataclass(kw_only=True)
class Job:
    """One run while it runs."""

    home: Home
    run: Run
    progress: Progress
    stop: asyncio.Event
    abandoned: bool = False
    """Whether a stop means that nothing more is to be written."""
    check: Callable[[], None] = lambda: None
    """Called before the run counts as succeeded; what it raises fails the run."""

    @classmethod
    def start(
        cls,
        home: Home,
        project: str,
        method: Method,
        *,
        config: Mapping[str, Any],
        seed: int,
        progress: Progress,
        stop: asyncio.Event,
        run_id: str = "",
    ) -> "Job":
        """Open the run of this id if the home knows it, else a new one."""
        run = home.store.find_run(run_id) if run_id else None
        if run is None:
            run = Run(
                id=run_id or f"run-{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}",
                project=project,
                method=method,
                status=RunStatus.QUEUED,
                config=config,
                seed=seed,
                created_at=time.time(),
            )
            home.store.put_run(run)
        return cls(home=home, run=run, progress=progress, stop=stop)

    def child_id(self, name: str) -> str:
        """Return the run id of the stage of this name."""
        return f"{self.run.id}.{name.replace(' ', '-')}"

    def child(self, name: str, method: Method) -> "Job":
        """Open the stage of this name, as it was left or new."""
        child_id = self.child_id(name)
        run = self.home.store.find_run(child_id)
        if run is None:
            run = replace(
                self.run,
                id=child_id,
                method=method,
                status=RunStatus.QUEUED,
                parent_id=self.run.id,
                created_at=time.time(),
                finished_at=None,
                error=None,
                result={},
            )
            self.home.store.put_run(run)
        return Job(home=self.home, run=run, progress=self.progress, stop=self.stop)

    def abandon(self) -> None:
        """Ask the run to stop without a snapshot."""
        self.abandoned = True
        self.stop.set()

    @property
    def is_done(self) -> bool:
        """Whether the run succeeded."""
        return self.run.status is RunStatus.SUCCEEDED

    def checkpoint(self) -> Checkpoint:
        """Return the newest checkpoint of the run. Raises StoreError if there is none."""
        checkpoint = self.home.store.latest_checkpoint(self.run.id)
        if checkpoint is None:
            raise StoreError(f"run {self.run.id} has no checkpoint; it trained no step")
        return checkpoint

    def read_all(self, kind: type[R]) -> list[R]:
        """Read every record of a kind."""
        records: list[R] = []
        after, more = 0, True
        while more:
            page = self.home.store.read(self.run.id, kind, after=after, limit=200)
            records += page.items
            after, more = page.last, page.has_more
        return records

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.home.run_folder(self.run.id)

    def event(
        self,
        message: str,
        *,
        level: Literal["info", "warn", "error"] = "info",
        step: int = 0,
        **data: Any,
    ) -> None:
        """Write one line of the run's log."""
        self.append(
            [Event(level=level, message=message, created_at=time.time(), step=step, data=data)]
        )

    def append(self, records: Sequence[Record]) -> None:
        """Append records in one transaction."""
        self.home.store.append(self.run.id, records)

    def note_result(self, **result: Any) -> None:
        """Merge figures into the run's result."""
        self._put(replace(self.run, result={**self.run.result, **result}))

    @property
    def seconds(self) -> float:
        """Wall clock the run has taken, over all its tries."""
        return float(self.run.result.get("seconds", 0.0))

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the run's status true: running, then succeeded, paused or failed."""
        self._put(replace(self.run, status=RunStatus.RUNNING, error=None))
        began = time.monotonic()
        try:
            yield
            self.check()
        except (Stopped, asyncio.CancelledError):
            self._end(RunStatus.PAUSED, began)
            raise
        except BaseException as error:
            self.event(f"{type(error).__name__}: {error}", level="error")
            status = RunStatus.PAUSED if isinstance(error, PausedError) else RunStatus.FAILED
            self._end(status, began, error=str(error) or type(error).__name__)
            raise
        self._end(RunStatus.SUCCEEDED, began)

    def _end(self, status: RunStatus, began: float, *, error: str | None = None) -> None:
        self.note_result(seconds=self.seconds + time.monotonic() - began)
        finished_at = None if status is RunStatus.PAUSED else time.time()
        self._put(replace(self.run, status=status, error=error, finished_at=finished_at))

    def _put(self, run: Run) -> None:
        self.run = run
        self.home.store.put_run(run)

    async def unless_stopped(self, work: Coroutine[Any, Any, T]) -> T:
        """Await `work`; if the user asks to stop first, cancel it and raise Stopped."""
        task = asyncio.ensure_future(work)
        stopping = asyncio.ensure_future(self.stop.wait())
        try:
            await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            raise Stopped(f"run {self.run.id} was interrupted; continue it with --resume")
        finally:
            for pending in (task, stopping):
                pending.cancel()
            await asyncio.gather(task, stopping, return_exceptions=True)
