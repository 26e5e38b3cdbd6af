"""Progress for people: one line per phase with reward, tokens per second and time left."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as RichProgress

from agentrft.core.grade import GradedTrajectory


class Phase(Protocol):
    """One bar."""

    def advance(self, count: int = 1) -> None:
        """Count units of work as done."""
        ...

    def rollout(self, graded: GradedTrajectory) -> None:
        """Show a finished rollout in the running figures (does not advance)."""
        ...

    def note(self, text: str) -> None:
        """Replace the text behind the bar."""
        ...


class Progress(Protocol):
    """Where a job reports."""

    @contextmanager
    def phase(self, label: str, total: int) -> Iterator[Phase]:
        """Open a bar of `total` units."""
        ...


class RunningFigures:
    """Mean score and sampled tokens per second since the phase began."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._scores: list[float] = []
        self._tokens = 0

    def add(self, graded: GradedTrajectory) -> str:
        """Take a rollout in and return the figures as text."""
        if graded.grade.score is not None:
            self._scores.append(graded.grade.score)
        self._tokens += graded.trajectory.sampled_tokens
        recent = self._scores[-64:]
        reward = f"{sum(recent) / len(recent):.2f}" if recent else "-"
        seconds = max(time.monotonic() - self._started, 1e-6)
        return f"reward {reward} · {self._tokens / seconds:.0f} tok/s"


class BarPhase:
    """A bar in a terminal."""

    def __init__(self, bars: RichProgress, task: TaskID) -> None:
        self._bars, self._task, self._figures = bars, task, RunningFigures()

    def advance(self, count: int = 1) -> None:
        """Count units of work as done."""
        self._bars.advance(self._task, count)

    def rollout(self, graded: GradedTrajectory) -> None:
        """Show a finished rollout in the running figures."""
        self.note(self._figures.add(graded))

    def note(self, text: str) -> None:
        """Replace the text behind the bar."""
        self._bars.update(self._task, note=text)


class BarProgress:
    """Bars on a console; plain lines where the output is no terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def phase(self, label: str, total: int) -> Iterator[Phase]:
        """Open a bar of `total` units."""
        if not self._console.is_terminal:
            with LineProgress(self._console).phase(label, total) as lines:
                yield lines
            return
        columns = (
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        with RichProgress(*columns, console=self._console) as bars:
            yield BarPhase(bars, bars.add_task(label, total=total, note=""))


class LinePhase:
    """A few printed lines instead of a bar: at each eighth of the work."""

    def __init__(self, console: Console, label: str, total: int) -> None:
        self._console, self._label, self._total = console, label, total
        self._started, self._done, self._note = time.monotonic(), 0, ""
        self._figures = RunningFigures()

    def advance(self, count: int = 1) -> None:
        """Count units of work as done; print when another eighth is full."""
        before, self._done = self._done, self._done + count
        if self._done * 8 // self._total == before * 8 // self._total:
            return
        seconds = time.monotonic() - self._started
        left = seconds / self._done * (self._total - self._done)
        self._console.print(
            f"{self._label} {self._done}/{self._total} · {seconds:.0f} s, {left:.0f} s left"
            + (f" · {self._note}" if self._note else ""),
            highlight=False,
        )

    def rollout(self, graded: GradedTrajectory) -> None:
        """Take a finished rollout into the running figures."""
        self._note = self._figures.add(graded)

    def note(self, text: str) -> None:
        """Replace the text behind the figures."""
        self._note = text


class LineProgress:
    """Plain lines, for logs and pipes."""

    def __init__(self, console: Console) -> None:
        self._console = console

    @contextmanager
    def phase(self, label: str, total: int) -> Iterator[Phase]:
        """Report a phase of `total` units."""
        yield LinePhase(self._console, label, total)


class SilentPhase:
    """No output."""

    def advance(self, count: int = 1) -> None:
        """Do nothing."""

    def rollout(self, graded: GradedTrajectory) -> None:
        """Do nothing."""

    def note(self, text: str) -> None:
        """Do nothing."""


class SilentProgress:
    """No output; for tests and library use."""

    @contextmanager
    def phase(self, label: str, total: int) -> Iterator[Phase]:
        """Report nothing."""
        del label, total
        yield SilentPhase()
