"""The store that forgets: a fake with the semantics of `SqlStore`, for tests and throw-away runs."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Page
from agentrft.core.run import Event, Record, RolloutRecord, RolloutSplit, Run, StepMetrics
from agentrft.store.errors import no_run, no_trajectory, second_result
from agentrft.store.listing import TrajectorySummary, kind_of, summary_of

R = TypeVar("R", bound=Record)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Stored:
    sequence: int
    run_id: str
    record: Record


class MemoryStore:
    """`RunStore` in lists; nothing is copied, since records are frozen."""

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        self._stored: list[_Stored] = []
        self._last = 0

    def put_run(self, run: Run) -> None:
        """Insert a run or replace the one of the same id, which keeps its place."""
        self._runs[run.id] = run

    def run(self, run_id: str) -> Run:
        """Return one run. Raises StoreError if there is none of this id."""
        run = self.find_run(run_id)
        if run is None:
            raise no_run(run_id)
        return run

    def find_run(self, run_id: str) -> Run | None:
        """Return one run, or None if there is none of this id."""
        return self._runs.get(run_id)

    def runs(self, project: str | None = None, *, after: int = 0, limit: int = 100) -> Page[Run]:
        """List runs, newest first."""
        found = [
            (sequence, run)
            for sequence, run in enumerate(self._runs.values(), start=1)
            if project in (None, run.project) and (not after or sequence < after)
        ]
        items, last, has_more = _slice(found[::-1], after, limit)
        return Page(items=items, last=last, has_more=has_more)

    def append(self, run_id: str, records: Sequence[Record]) -> None:
        """Append records: all or none."""
        self.run(run_id)
        taken = {(kind_of(s.record), s.record.step) for s in self._stored if s.run_id == run_id}
        for record in records:
            key = (kind_of(record), record.step)
            if isinstance(record, StepMetrics | Checkpoint) and key in taken:
                raise second_result(run_id, record)
            taken.add(key)
        for record in records:
            self._last += 1
            self._stored.append(_Stored(self._last, run_id, record))

    def read(self, run_id: str, kind: type[R], *, after: int = 0, limit: int = 100) -> Page[R]:
        """Read records of one kind in append order."""
        found = [(s, r) for s, r in self._of(run_id, kind) if s > after]
        items, last, has_more = _slice(found, after, limit)
        return Page(items=items, last=last, has_more=has_more)

    def events(
        self, run_id: str, *, after: int | None = None, limit: int = 100
    ) -> Page[tuple[int, Event]]:
        """List a run's events with their places, newest first."""
        found = [e for e in self._of(run_id, Event) if after is None or e[0] < after]
        return _placed(found[::-1], after or 0, limit)

    def events_since(self, run_id: str, sequence: int, limit: int = 100) -> Page[tuple[int, Event]]:
        """List what was appended after a place, in append order."""
        found = [e for e in self._of(run_id, Event) if e[0] > sequence]
        return _placed(found, sequence, limit)

    def trajectories(
        self,
        run_id: str,
        *,
        stage: str | None = None,
        split: RolloutSplit | None = None,
        after: int = 0,
        limit: int = 100,
    ) -> Page[TrajectorySummary]:
        """List a run's trajectories in append order."""
        found = [
            (sequence, summary_of(sequence, record))
            for sequence, record in self._of(run_id, RolloutRecord)
            if sequence > after and stage in (None, record.stage) and split in (None, record.split)
        ]
        items, last, has_more = _slice(found, after, limit)
        return Page(items=items, last=last, has_more=has_more)

    def trajectory(self, record_id: int) -> RolloutRecord:
        """Return one whole record. Raises StoreError if there is none of this id."""
        for stored in self._stored:
            if stored.sequence == record_id and isinstance(stored.record, RolloutRecord):
                return stored.record
        raise no_trajectory(record_id)

    def latest_checkpoint(self, run_id: str) -> Checkpoint | None:
        """Return the checkpoint of the highest step."""
        checkpoints = [record for _, record in self._of(run_id, Checkpoint)]
        return max(checkpoints, key=lambda checkpoint: checkpoint.step, default=None)

    def rewind(self, run_id: str, step: int) -> Mapping[str, int]:
        """Remove every record of a later step; return how many of each kind."""

        def late(stored: _Stored) -> bool:
            return stored.run_id == run_id and stored.record.step > step

        removed = Counter(kind_of(stored.record) for stored in self._stored if late(stored))
        self._stored = [stored for stored in self._stored if not late(stored)]
        return {
            kind: removed[kind] for kind in ("events", "metrics", "checkpoints", "trajectories")
        }

    def _of(self, run_id: str, kind: type[R]) -> list[tuple[int, R]]:
        return [
            (stored.sequence, stored.record)
            for stored in self._stored
            if stored.run_id == run_id and isinstance(stored.record, kind)
        ]


def _slice(
    found: Sequence[tuple[int, T]], after: int, limit: int
) -> tuple[tuple[T, ...], int, bool]:
    shown = found[:limit]
    last = shown[-1][0] if shown else after
    return tuple(item for _, item in shown), last, len(found) > limit


def _placed(found: Sequence[tuple[int, T]], after: int, limit: int) -> Page[tuple[int, T]]:
    items, last, has_more = _slice([(place, (place, item)) for place, item in found], after, limit)
    return Page(items=items, last=last, has_more=has_more)
