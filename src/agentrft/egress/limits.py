"""How fast an endpoint may be called, and when to leave it alone. Clocks are passed in."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from agentrft.egress.errors import EndpointError, LeftAloneError

Clock = Callable[[], float]
"""Seconds that only grow."""

WINDOW_S = 30.0
"""How far back outcomes count."""
ENOUGH_CALLS = 20
"""In the window, before a share of failures means anything."""
FAILED_SHARE = 0.5
FIRST_OPEN_S = 30.0
LONGEST_OPEN_S = 300.0
PROBES = 3


class Pace:
    """A bucket of one token that fills `per_s` times a second: calls are spread, never bunched."""

    def __init__(self, per_s: float, clock: Clock) -> None:
        self._interval_s = 1.0 / per_s
        self._clock = clock
        self._next = clock()

    def reserve(self) -> float:
        """Take the next free moment; return the seconds until then."""
        now = self._clock()
        start = max(now, self._next)
        self._next = start + self._interval_s
        return start - now


class Breaker:
    """Stops calls to an endpoint that fails most of them; later a few probes decide.

    Half of at least 20 calls in 30 s opens it for 30 s, then twice as long each time, 5 min at most.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._outcomes: deque[tuple[float, bool]] = deque()
        self._open_until: float | None = None
        self._open_s = 0.0
        self._probes = 0
        self._good_probes = 0
        self._era = 0
        """Counts changes of state; who was admitted in an earlier one has no say any more."""

    @contextmanager
    def watch(self, where: str) -> Iterator[None]:
        """Run one call and learn from it. Raises LeftAloneError while open.

        Any answer is a good outcome, even one the caller cannot use; no answer in time is a bad one.
        """
        if not self._admits():
            left_s = max((self._open_until or 0.0) - self._clock(), 0.0)
            raise LeftAloneError(where, left_s)
        era = self._era
        try:
            yield
        except EndpointError:
            self._record(era, good=True)
            raise
        except BaseException:
            self._record(era, good=False)
            raise
        self._record(era, good=True)

    def _admits(self) -> bool:
        if self._open_until is None:
            return True
        if self._clock() < self._open_until or self._probes == PROBES:
            return False
        self._probes += 1
        return True

    def _record(self, era: int, *, good: bool) -> None:
        if era != self._era:
            return
        if self._open_until is not None:
            self._good_probes += good
            if not good:
                self._open(min(2 * self._open_s, LONGEST_OPEN_S))
            elif self._good_probes == PROBES:
                self._open_until = None
                self._era += 1
            return
        now = self._clock()
        self._outcomes.append((now, good))
        while self._outcomes[0][0] < now - WINDOW_S:
            self._outcomes.popleft()
        failed = sum(not good for _, good in self._outcomes)
        if len(self._outcomes) >= ENOUGH_CALLS and failed >= FAILED_SHARE * len(self._outcomes):
            self._open(FIRST_OPEN_S)

    def _open(self, duration_s: float) -> None:
        self._open_s = duration_s
        self._open_until = self._clock() + duration_s
        self._outcomes.clear()
        self._probes = self._good_probes = 0
        self._era += 1
