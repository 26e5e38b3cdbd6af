"""What a search has rolled out: an append-only file that outlives the process at any moment.

A line before a rollout opens its environment, another after the rollout is stored. What began and
never ended was interrupted; it cost something and answers nothing.
"""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, Literal, cast

from agentrft.core.errors import StoreError
from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.usage import TokenUsage
from agentrft.optimize.trials import SearchSplit, Spent
from agentrft.store.codec import from_json, to_json

ATTEMPTS = 2
"""Tries of a rollout that infrastructure spoils; the last one is the answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutKey:
    """What makes two requests the same rollout."""

    spec: str
    """Hash."""
    split: SearchSplit
    task: str
    seed: int
    """Of the search."""
    sample: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A line: an environment is about to be opened."""

    line: Literal["begin"] = "begin"
    key: RolloutKey
    attempt: int
    trajectory: str
    purpose: str
    clock_s: float
    """Wall clock of the search so far, over all its processes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """A line: the rollout is in the store."""

    line: Literal["end"] = "end"
    trajectory: str
    lost: bool
    """To infrastructure."""
    sampled_tokens: int
    observed_tokens: int
    tool_calls: int
    clock_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A line: one completion of plain text."""

    line: Literal["ask"] = "ask"
    question: str
    """Hash."""
    sample: int
    text: str
    usage: TokenUsage
    clock_s: float
    model: str = ""
    """Empty for the agent's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Storm:
    """A line: infrastructure spoiled all of a batch; what it spoiled so far may be tried again."""

    line: Literal["storm"] = "storm"
    clock_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Decided:
    """A line: whether the budget held what was asked for at this place of the search."""

    line: Literal["decide"] = "decide"
    number: int
    holds: bool
    clock_s: float


Line = Begun | Ended | Asked | Storm | Decided
_KINDS: dict[str, type[Line]] = {
    "begin": Begun,
    "end": Ended,
    "ask": Asked,
    "storm": Storm,
    "decide": Decided,
}


class Ledger:
    """The ledger of one search. One process writes it at a time."""

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Read what is there. Raises StoreError for a line that nobody can read, but for the last."""
        self._path, self._clock = path, clock
        self._began = clock()
        self._clock_s = 0.0
        """Wall clock when the last process wrote last."""
        self.attempts = ATTEMPTS
        """Tries that a rollout has by now."""
        self._begins = 0
        self._running: set[str] = set()
        self._begun: dict[str, Begun] = {}
        self._ended: dict[str, Ended] = {}
        self._attempts: dict[tuple[RolloutKey, int], str] = {}
        self._asked: dict[tuple[str, int], Asked] = {}
        self._decided: dict[int, bool] = {}
        for line in self._lines():
            self._take(line)
            self._clock_s = line.clock_s

    @contextmanager
    def rollout(
        self, key: RolloutKey, attempt: int, trajectory: str, purpose: str
    ) -> Iterator[Callable[[GradedTrajectory], None]]:
        """Write that a rollout begins; call what this yields once it is stored."""
        self._write(
            Begun(
                key=key,
                attempt=attempt,
                trajectory=trajectory,
                purpose=purpose,
                clock_s=self.seconds,
            )
        )
        self._running.add(trajectory)
        try:
            yield self.end
        finally:
            self._running.discard(trajectory)

    def end(self, graded: GradedTrajectory) -> None:
        """Write that a rollout is in the store."""
        trajectory = graded.trajectory
        self._write(
            Ended(
                trajectory=trajectory.id,
                lost=graded.outcome is Outcome.INFRASTRUCTURE_FAULT,
                sampled_tokens=trajectory.sampled_tokens,
                observed_tokens=trajectory.observed_tokens,
                tool_calls=len(trajectory.tool_calls),
                clock_s=self.seconds,
            )
        )

    def ask(
        self, question: str, sample: int, text: str, *, usage: TokenUsage, model: str = ""
    ) -> None:
        """Write a completion; `model` is empty for the agent's own."""
        self._write(
            Asked(
                question=question,
                sample=sample,
                text=text,
                usage=usage,
                clock_s=self.seconds,
                model=model,
            )
        )

    def decide(self, number: int, *, holds: bool) -> bool:
        """Return what was decided at this place of the search; what was not is decided now."""
        if number not in self._decided:
            self._write(Decided(number=number, holds=holds, clock_s=self.seconds))
        return self._decided[number]

    def storm(self) -> None:
        """Write that all of a batch was lost."""
        self._write(Storm(clock_s=self.seconds))

    def answer(self, key: RolloutKey) -> str | None:
        """Return the trajectory that answers a request; None if it must be run."""
        attempt = self.next_attempt(key)
        if attempt == 0:
            return None
        last = self._ended[self._attempts[key, attempt - 1]]
        return None if last.lost and attempt < self.attempts else last.trajectory

    def next_attempt(self, key: RolloutKey) -> int:
        """Return how many attempts of a request have ended."""
        return next(n for n in count() if (key, n) not in self._attempts)

    def completion(self, question: str, sample: int) -> str | None:
        """Return a completion that is kept."""
        asked = self._asked.get((question, sample))
        return asked.text if asked else None

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Trajectories that began and have no end, those that run now besides."""
        return tuple(self._begun.keys() - self._ended.keys() - self._running)

    @property
    def seconds(self) -> float:
        """Wall clock of the search, over all its processes."""
        return self._clock_s + self._clock() - self._began

    def spent(self, *, reused: int) -> Spent:
        """Return the totals; tokens are those of the agent's own model."""
        ended, asked = self._ended.values(), self._asked.values()
        own = sum((line.usage for line in asked if not line.model), TokenUsage())
        return Spent(
            rollouts=len(ended),
            interrupted=self._begins - len(ended) - len(self._running),
            reused=reused,
            questions=len(asked),
            sampled_tokens=own.completion_tokens + sum(line.sampled_tokens for line in ended),
            observed_tokens=own.prompt_tokens + sum(line.observed_tokens for line in ended),
            tool_calls=sum(line.tool_calls for line in ended),
            seconds=self.seconds,
            by_purpose=dict(Counter(self._begun[line.trajectory].purpose for line in ended)),
        )

    def _lines(self) -> Iterator[Line]:
        if not self._path.exists():
            return
        text = self._path.read_bytes()
        whole, _, torn = text.rpartition(b"\n")
        if torn:
            # The process died while it wrote; what it wrote of had not begun or is run again.
            with self._path.open("r+b") as file:
                file.truncate(len(text) - len(torn))
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                kind = cast(dict[str, Any], json.loads(line))["line"]
                yield from_json(_KINDS[kind], line)
            except (ValueError, KeyError, StoreError) as error:
                raise StoreError(
                    f"{self._path} line {number} cannot be read: {error}; start a new run"
                ) from error

    def _write(self, line: Line) -> None:
        # Unbuffered: one write for a line, so that no kill leaves half of two.
        with self._path.open("ab", buffering=0) as file:
            file.write(to_json(line) + b"\n")
        self._take(line)

    def _take(self, line: Line) -> None:
        match line:
            case Begun():
                self._begins += 1
                self._begun[line.trajectory] = line
            case Ended():
                begun = self._begun[line.trajectory]
                self._ended[line.trajectory] = line
                self._attempts[begun.key, begun.attempt] = line.trajectory
            case Asked():
                self._asked[line.question, line.sample] = line
            case Decided():
                self._decided[line.number] = line.holds
            case Storm():
                self.attempts += ATTEMPTS
