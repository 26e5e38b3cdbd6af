"""How many threads a step computes on: all, or one while somebody else wants the cores.

Threads meet some 250 times in a step. Where each has a core they wait for each other by spinning,
which halves the time of a small step; where they share cores with others they wait for their turn
each time, and one thread alone is faster. Nothing tells which is the case but trying.
"""

_FIRST_STEPS = 8
_MOST_STEPS = 128
_TRIAL_STEPS = 4
"""Of a trial, both choices in turn."""
_ALIKE = 1.25
"""Steps of a trial may differ by this factor in tokens; else it begins anew."""
_CLEARLY = 0.9
"""A choice is given up if the other takes less than this share of its time."""


class Pace:
    """Hears how long steps took and says on how many threads to compute the next."""

    def __init__(self, most_threads: int) -> None:
        self._most = most_threads
        self._chosen = most_threads
        self._every = self._left = _FIRST_STEPS
        """Steps between trials, doubled as long as they confirm the choice."""
        self._trial: list[tuple[float, int]] = []

    @property
    def threads(self) -> int:
        """For the next step."""
        trying = self._left <= 0 and len(self._trial) % 2 == 0
        return self._other if trying else self._chosen

    @property
    def _other(self) -> int:
        return 1 if self._chosen > 1 else self._most

    def took(self, seconds: float, tokens: int) -> None:
        """Take note of a step on `threads` threads that computed so many tokens."""
        self._left -= 1
        if self._most == 1 or self._left >= 0:
            return
        self._trial.append((seconds, tokens))
        counts = [tokens for _, tokens in self._trial]
        if max(counts) > _ALIKE * min(counts):
            self._trial = []
        if len(self._trial) == _TRIAL_STEPS:
            times = [seconds for seconds, _ in self._trial]
            if min(times[::2]) < _CLEARLY * min(times[1::2]):
                self._chosen, self._every = self._other, _FIRST_STEPS
            else:
                self._every = min(_MOST_STEPS, 2 * self._every)
            self._left, self._trial = self._every, []
