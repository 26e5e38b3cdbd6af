"""Guesses at the next tokens, from what followed the same three tokens before.

Rollouts of one environment repeat each other and copy from their prompts, so guesses are often
right. A guess costs a token of compute and never changes a result: the engine keeps it only where
the token it draws anyway is the same (speculative decoding with exact sampling by reused uniforms).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

_CONTEXT = 3
_MOST_TOKENS = 3
"""Guessed per sequence and step."""
_STEP_TOKENS = 64
"""Tokens of a step, guesses included; beyond, compute and no longer memory sets its time."""
_LEAST_ACCEPTED = 0.3
"""Share of guesses below which they cost more than they save."""
_PAUSE_STEPS = 32
_MOST_ENTRIES = 200_000

Seen = dict[tuple[int, ...], int]


@dataclass(slots=True)
class Drafts:
    """What followed what, over all sequences since the weights last changed."""

    drafted: int = 0
    accepted: int = 0
    _seen: Seen = field(default_factory=Seen)
    _rate: float = 1.0
    """Moving share of accepted guesses."""
    _pause: int = 0

    def forget(self) -> None:
        """Start over, so that what is drawn depends on nothing before."""
        self._seen.clear()
        self._rate, self._pause = 1.0, 0

    def learn(self, ids: Sequence[int]) -> None:
        """Remember what the last token followed."""
        if len(self._seen) >= _MOST_ENTRIES:
            self._seen.clear()
        if len(ids) > _CONTEXT:
            self._seen[tuple(ids[-_CONTEXT - 1 : -1])] = ids[-1]

    def propose(self, sequences: Sequence[tuple[Sequence[int], Seen]]) -> list[list[int]]:
        """Guess the same number of tokens for every sequence; none while guesses go wrong.

        Each sequence comes with what it has `seen` itself, which counts first.
        """
        most = min(_MOST_TOKENS, _STEP_TOKENS // max(1, len(sequences)) - 1)
        if self._pause:
            self._pause -= 1
            most = 0
        if most <= 0 or not sequences:
            return [[] for _ in sequences]
        guesses = [self._guess(ids, seen, most) for ids, seen in sequences]
        # Rows computed together have one width; sequences without a guess get a wrong one.
        width = round(sum(map(len, guesses)) / len(guesses))
        return [(guess + [0] * width)[:width] for guess in guesses]

    def _guess(self, ids: Sequence[int], seen: Seen, most: int) -> list[int]:
        context = list(ids[-_CONTEXT:])
        for _ in range(most):
            key = tuple(context[-_CONTEXT:])
            following = seen.get(key)
            if following is None:
                following = self._seen.get(key)
            if following is None:
                break
            context.append(following)
        return context[_CONTEXT:]

    def count(self, drafted: int, accepted: int) -> None:
        """Take the outcome of a step into account."""
        self.drafted += drafted
        self.accepted += accepted
        if drafted:
            self._rate += 0.1 * (accepted / drafted - self._rate)
            if self._rate < _LEAST_ACCEPTED:
                self._rate, self._pause = 2 * _LEAST_ACCEPTED, _PAUSE_STEPS


def contexts(ids: Sequence[int]) -> Seen:
    """Return what followed each three tokens of a prompt, the last time they occurred."""
    return {tuple(ids[i - _CONTEXT : i]): ids[i] for i in range(_CONTEXT, len(ids))}
