"""Contenders in turn, round after round, so that a slow minute of the machine meets all of them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from contender import Contender, Taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """Middle, lowest and highest of what the rounds gave."""

    middle: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.middle:.2f} ({self.low:.2f} to {self.high:.2f})"


def spread(values: Sequence[float]) -> Spread:
    return Spread(middle=median(values), low=min(values), high=max(values))


def in_turn(
    contenders: Sequence[Contender],
    ask: Callable[[Contender, int], Taken],
    *,
    rounds: int,
    warm_up: int = 1,
    tell: Callable[[str, int, Taken], None] = lambda *_: None,
) -> Mapping[str, list[Taken]]:
    """Ask each contender once a round, every other round in reverse order; drop the warm-up."""
    taken: dict[str, list[Taken]] = {contender.name: [] for contender in contenders}
    for number in range(warm_up + rounds):
        for contender in contenders if number % 2 == 0 else reversed(contenders):
            one = ask(contender, number)
            tell(contender.name, number - warm_up, one)
            if number >= warm_up:
                taken[contender.name].append(one)
    return taken


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> Spread:
    """Return how many times theirs ours is, round by round."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])
