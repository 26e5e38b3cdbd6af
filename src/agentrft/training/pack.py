"""Samples to micro-batches. Token sequences become a tree: what several samples begin with is kept
once, so it is computed once, and no linear layer sees padding. Knows tokens, not models.

Shapes: T tokens of the tree, A action tokens, M distinct predictions among them, N samples.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from itertools import groupby, pairwise
from typing import Any

import torch
from torch import Tensor

from agentrft.core.sample import Sample

SMALLEST_SHARED_TOKENS = 16
"""Shorter common beginnings are repeated: a branch of their own would cost more than it saves."""


@dataclass(frozen=True, slots=True)
class Branch:
    """Tokens that the same samples share: places `first` to `last`. Up to `end` lies what is below."""

    first: int
    last: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class MicroBatch:
    """Samples that pass through the model together.

    Tokens lie branch by branch, each before those below it.
    """

    token_ids_T: Tensor
    position_ids_T: Tensor
    branches: tuple[Branch, ...]
    """Each after those below it."""
    predictor_M: Tensor
    """Place of the token whose hidden state predicts; may lie in a shared branch."""
    target_M: Tensor
    temperatures_M: Tensor
    prediction_A: Tensor
    """Which prediction an action token is; samples that share it share its cost."""
    behavior_logprobs_A: Tensor
    advantages_A: Tensor
    sample_A: Tensor
    """Which sample the action token belongs to, an index into `order`."""
    pair_N: Tensor
    """Which pair a sample belongs to; without one it is a pair of its own."""
    order: tuple[int, ...]
    """Places of these samples in the sequence that was packed."""
    sample_tokens: int
    """Tokens of the samples before sharing."""
    reference_logprobs_A: Tensor | None = None
    """What the reference gives each action token, if the loss reads it."""

    @property
    def computed_tokens(self) -> int:
        """Tokens that pass through the model."""
        return self.token_ids_T.numel()

    def to(self, device: torch.device) -> "MicroBatch":
        """Return a copy with every tensor on the device."""
        moved: dict[str, Any] = {
            part.name: value.to(device)
            for part in fields(self)
            if isinstance(value := getattr(self, part.name), Tensor)
        }
        return replace(self, **moved)


def pack(
    samples: Sequence[Sample], *, budget_tokens: int, share: bool = True, parts: int = 1
) -> Iterator[MicroBatch]:
    """Yield micro-batches of at most `budget_tokens` computed tokens, neighbours sharing prefixes.

    The samples of a pair stay together. What is longer than the budget travels alone. Without
    `share` every sample is a branch of its own, and the budget counts the padding to the longest.
    With it, what would fit into fewer micro-batches is split into about `parts` of equal size.
    """
    order = sorted(range(len(samples)), key=lambda place: samples[place].token_ids)
    if share and parts > 1:
        budget_tokens = min(budget_tokens, _even_share(samples, order, parts))
    chosen: list[int] = []
    last: tuple[int, ...] = ()
    used = longest = 0
    for together in _pairs(samples, order):
        sequences = [samples[place].token_ids for place in together]
        longest = max(longest, *map(len, sequences))
        if share:
            used += _new_tokens(last, sequences)
        else:
            used = longest * (len(chosen) + len(together))
        if chosen and used > budget_tokens:
            yield _micro_batch(samples, chosen, share=share)
            chosen = []
            longest = max(map(len, sequences))
            used = _new_tokens((), sequences)
        last = sequences[-1]
        chosen += together
    if chosen:
        yield _micro_batch(samples, chosen, share=share)


def _pairs(samples: Sequence[Sample], order: Sequence[int]) -> list[list[int]]:
    together: dict[str | int, list[int]] = {}
    for place in order:
        together.setdefault(samples[place].pair or place, []).append(place)
    return [*together.values()]


def _even_share(samples: Sequence[Sample], order: Sequence[int], parts: int) -> int:
    """Return tokens of a micro-batch when all samples together make about `parts` equal ones."""
    sequences = [samples[place].token_ids for place in order]
    added = [_new_tokens(before, [ids]) for before, ids in pairwise(sequences)]
    shared = _common(sequences[0], sequences[-1])
    own = len(sequences[0]) - shared + sum(added)
    # Half a sample of slack, so that rounding does not leave a small part over.
    return shared + math.ceil(own / parts) + max(added, default=0) // 2


def _new_tokens(before: Sequence[int], sequences: Sequence[Sequence[int]]) -> int:
    """Return how many tokens sequences add to a tree that holds their neighbour."""
    added = 0
    for one, other in pairwise([before, *sequences]):
        repeated = _common(one, other)
        added += len(other) - (repeated if repeated >= SMALLEST_SHARED_TOKENS else 0)
    return added


class _Tree:
    """Flat tokens under construction, grown depth first."""

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.position_ids: list[int] = []
        self.branches: list[Branch] = []
        self.paths: list[list[int]] = []
        """Places of each sequence's tokens."""

    def add(self, ids: Sequence[int], start: int, path: list[int]) -> list[int]:
        """Add tokens that continue `path` at position `start`; return the longer path."""
        first = len(self.token_ids)
        self.token_ids += ids
        self.position_ids += range(start, start + len(ids))
        return [*path, *range(first, first + len(ids))]

    def grow(self, sequences: Sequence[tuple[int, ...]], start: int, path: list[int]) -> None:
        """Add sorted sequences, of which `path` holds everything before position `start`."""
        first, last = sequences[0], sequences[-1]
        end = _common(first, last)
        branch = len(self.token_ids)
        if first == last or end - start >= SMALLEST_SHARED_TOKENS:
            path = self.add(first[start:end], start, path)
            start = end
        own = len(self.token_ids)
        if first == last:
            self.paths += [path] * len(sequences)
        else:
            for _, same in groupby(sequences, key=lambda ids: ids[end : end + 1]):
                self.grow(list(same), start, path)
        if own > branch:
            self.branches.append(Branch(branch, own, len(self.token_ids)))


def _micro_batch(samples: Sequence[Sample], order: Sequence[int], *, share: bool) -> MicroBatch:
    order = sorted(order, key=lambda place: samples[place].token_ids)
    sequences = [samples[place].token_ids for place in order]
    tree = _Tree()
    if share:
        tree.grow(sequences, 0, [])
    else:
        for ids in sequences:
            tree.grow([ids], 0, [])
    actions = [
        (index, samples[place], position, path[position - 1])
        for index, (place, path) in enumerate(zip(order, tree.paths, strict=True))
        for position, action in enumerate(samples[place].action_mask)
        if action
    ]
    keys = [
        (predictor, sample.token_ids[position], sample.temperature)
        for _, sample, position, predictor in actions
    ]
    predictions = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    pairs = [samples[place].pair or place for place in order]
    pair_numbers = {pair: number for number, pair in enumerate(dict.fromkeys(pairs))}
    return MicroBatch(
        token_ids_T=torch.tensor(tree.token_ids),
        position_ids_T=torch.tensor(tree.position_ids),
        branches=tuple(tree.branches),
        predictor_M=_long(predictor for predictor, _, _ in predictions),
        target_M=_long(target for _, target, _ in predictions),
        temperatures_M=_float(temperature for _, _, temperature in predictions),
        prediction_A=_long(predictions[key] for key in keys),
        behavior_logprobs_A=_float(
            sample.behavior_logprobs[position] for _, sample, position, _ in actions
        ),
        advantages_A=_float(sample.advantages[position] for _, sample, position, _ in actions),
        sample_A=_long(index for index, _, _, _ in actions),
        pair_N=_long(pair_numbers[pair] for pair in pairs),
        order=tuple(order),
        sample_tokens=sum(map(len, sequences)),
    )


def _common(left: Sequence[int], right: Sequence[int]) -> int:
    """Return how many leading tokens two sequences share."""
    for place, (one, other) in enumerate(zip(left, right, strict=False)):
        if one != other:
            return place
    return min(len(left), len(right))


def _long(values: Iterable[int]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.long)


def _float(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float32)
