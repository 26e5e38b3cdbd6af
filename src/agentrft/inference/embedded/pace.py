"""How a step is spread over the cores, found by trying what takes less time.

All threads may compute every operation together: then each reads its part of the weights, and they
meet some 250 times in a step. That halves a small step where each thread has a core and waits for the
others awake. Or each thread computes a part of the sequences and they meet once: every one reads all
weights, which many sequences repay. Where other processes want the cores, one thread is best.
"""

from typing import NamedTuple

_FIRST_STEPS = 8
_MOST_STEPS = 128
_TRIAL_STEPS = 4
"""Of a trial, with the other and the usual way in turn."""
_ALIKE = 1.25
"""Steps of a trial may differ by this factor in tokens; else it begins anew."""
_CLEARLY = 0.9
"""A way is given up if another takes less than this share of its time."""


class Way(NamedTuple):
    """Parts of a step that are computed side by side, and the threads of each."""

    lanes: int
    threads: int


class Pace:
    """Hears how long steps took and says how to compute the next."""

    def __init__(self, most_threads: int) -> None:
        ways = (Way(1, most_threads), Way(most_threads, 1), Way(1, 1))
        self._others = list(dict.fromkeys(ways))
        """Ways not chosen, the one to be tried next first."""
        self._chosen = self._others.pop(0)
        self._every = self._left = _FIRST_STEPS
        """Steps between trials, more and more of them as long as these confirm the choice."""
        self._trial: list[tuple[float, int]] = []

    @property
    def way(self) -> Way:
        """For the next step."""
        trying = self._others and self._left <= 0 and len(self._trial) % 2 == 0
        return self._others[0] if trying else self._chosen

    def took(self, seconds: float, tokens: int) -> None:
        """Take note of a step that went the `way` and computed so many tokens."""
        self._left -= 1
        if not self._others or self._left >= 0:
            return
        self._trial.append((seconds, tokens))
        counts = [tokens for _, tokens in self._trial]
        if max(counts) > _ALIKE * min(counts):
            self._trial = []
        if len(self._trial) == _TRIAL_STEPS:
            times = [seconds for seconds, _ in self._trial]
            tried = self._others.pop(0)
            if min(times[::2]) < _CLEARLY * min(times[1::2]):
                tried, self._chosen, self._every = self._chosen, tried, _FIRST_STEPS
            else:
                self._every = min(_MOST_STEPS, 3 * self._every // 2)
            self._others.append(tried)
            self._left, self._trial = self._every, []
