import asyncio
from collections.abc import Sequence

import numpy as np
import pytest
from byte_chat import a_policy

from agentrft.core.errors import IdentityError
from agentrft.core.policy import Canary, Weights
from agentrft.core.protocols import Completion, SampleRequest
from agentrft.jobs.publication import Publication, Publisher

TOKENS = 400
NOISE = np.random.default_rng(3).normal(0.0, 0.02, (4, TOKENS))
DRIFT = np.random.default_rng(4).normal(0.0, 0.05, (4, TOKENS)).cumsum(0)
SMALL = np.random.default_rng(6).normal(0.0, 0.05, TOKENS) * np.linspace(0.0, 1.2, 13)[:, None]
TRUTH = np.random.default_rng(5).uniform(-0.9, -0.1, TOKENS)


class RoundingSampler:
    """Serves given logprobs with rounding noise; `stuck_at` plants the bug of stale weights."""

    def __init__(self, *, stuck_at: int | None = None) -> None:
        self.version = 0
        self.stuck_at = stuck_at

    async def sample(self, request: SampleRequest) -> Completion:
        raise AssertionError(request)

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        version = self.version if self.stuck_at is None else min(self.version, self.stuck_at)
        return [list(TRUTH + DRIFT[version] + NOISE[version])]

    async def load(self, weights: Weights) -> None:
        self.version = weights.version


def weights(version: int, shift: float = 0.0) -> Weights:
    logprobs = tuple(TRUTH + DRIFT[version] + shift)
    canary = Canary(token_ids=tuple(range(TOKENS + 1)), logprobs=logprobs)
    return Weights(version=version, tensors={}, canaries=(canary,))


def publish(sampler: RoundingSampler, *published: Weights) -> list[Publication]:
    async def main() -> list[Publication]:
        publisher = Publisher(sampler, bound=0.05)
        return [(await publisher.publish(one, a_policy()))[1] for one in published]

    return asyncio.run(main())


def test_the_served_policy_carries_the_published_version() -> None:
    async def main() -> int:
        publisher = Publisher(RoundingSampler(), bound=0.05)
        policy, _ = await publisher.publish(weights(3), a_policy())
        return policy.version

    assert asyncio.run(main()) == 3


def test_rounding_noise_passes_and_the_move_is_measured() -> None:
    first, second, third = publish(RoundingSampler(), weights(0), weights(1), weights(2))
    assert first.move is None
    assert second.mean_difference < 0.05
    assert second.move == pytest.approx(1.0, abs=0.3)
    assert third.move == pytest.approx(1.0, abs=0.3)


def test_a_move_smaller_than_rounding_is_not_judged() -> None:
    _, second = publish(RoundingSampler(), weights(0), weights(0, shift=0.001))
    assert second.move is None


def test_other_weights_than_published_are_refused() -> None:
    with pytest.raises(IdentityError, match="does not serve policy version 0"):
        publish(RoundingSampler(), weights(0, shift=0.2))


def test_weights_one_step_old_are_refused_although_within_the_bound() -> None:
    one_step = np.abs(DRIFT[2] + NOISE[1] - DRIFT[1])
    assert one_step.mean() < 0.05
    with pytest.raises(IdentityError, match="move"):
        publish(RoundingSampler(stuck_at=1), weights(1), weights(2))


def test_stuck_weights_are_refused_once_small_steps_add_up() -> None:
    class Stuck(RoundingSampler):
        async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
            return [list(TRUTH + NOISE[0])]

    class Following(RoundingSampler):
        async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
            return [list(TRUTH + SMALL[self.version] + NOISE[self.version % 4])]

    def after(steps: int) -> Weights:
        canary = Canary(token_ids=tuple(range(TOKENS + 1)), logprobs=tuple(TRUTH + SMALL[steps]))
        return Weights(version=steps, tensors={}, canaries=(canary,))

    steps = [after(number) for number in range(len(SMALL))]
    publish(Stuck(), *steps[:2])
    assert np.abs(SMALL[-1] - NOISE[0]).mean() < 0.08
    with pytest.raises(IdentityError, match="move"):
        publish(Stuck(), *steps)
    moves = [publication.move for publication in publish(Following(), *steps)]
    assert moves[1] is None
    assert any(move is not None for move in moves)


def test_weights_without_canaries_prove_nothing_and_are_refused() -> None:
    bare = Weights(version=0, tensors={}, canaries=())
    with pytest.raises(IdentityError, match="canaries"):
        publish(RoundingSampler(), bare)
