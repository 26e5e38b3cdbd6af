"""Publishing weights, with proof that the sampler serves them (policy identity check).

Two tests on canary sequences: the sampler's logprobs lie within a bound of the trainer's, and
they moved the way the trainer's moved since the last proof. The second one sees weights that are
stuck although they still lie within the bound, as soon as the steps add up to more than rounding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agentrft.core.errors import IdentityError
from agentrft.core.grade import Group
from agentrft.core.policy import Policy, Weights
from agentrft.core.protocols import Sampler

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

LIKELY = -1.0
"""Canary tokens above this log-probability are compared, in nats. Rounding to bfloat16 moves the
others far more, and a policy rarely samples them."""
CLEAR_MOVE = 4.0
"""A move is judged if its energy is at least this many times that of the rounding noise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Publication:
    """What the check measured."""

    version: int
    mean_difference: float
    """Mean absolute difference of likely canary tokens, sampler against trainer, in nats."""
    move: float | None
    """Share of the trainer's own move that the sampler followed; about 1. None if too small to tell."""


class Publisher:
    """Hands weights to a sampler and refuses to go on until they are proven to be served."""

    def __init__(self, sampler: Sampler, *, bound: float) -> None:
        self._sampler = sampler
        self._bound = bound
        self._anchor: tuple[Floats, Floats] | None = None

    async def publish(self, weights: Weights, policy: Policy) -> tuple[Policy, Publication]:
        """Load the weights, prove them, and return the policy that is now served.

        Raises IdentityError if the sampler's canary logprobs do not match the trainer's.
        """
        await self._sampler.load(weights)
        if not weights.canaries:
            raise IdentityError(
                f"weights version {weights.version} carry no canaries; none, no proof"
            )
        scored = await self._sampler.score([canary.token_ids for canary in weights.canaries])
        served = np.concatenate([np.asarray(row) for row in scored])
        trained = np.concatenate([np.asarray(canary.logprobs) for canary in weights.canaries])
        difference = float(np.abs(served - trained)[_likely(trained)].mean())
        if not difference <= self._bound:
            raise IdentityError(
                f"the sampler does not serve policy version {weights.version}: canary logprobs differ "
                f"by {difference:.4f} nats on average, at most {self._bound} is allowed"
            )
        move = self._move(served, trained)
        if move is not None and not 0.5 <= move <= 1.5:
            raise IdentityError(
                f"the sampler does not serve policy version {weights.version}: since the last "
                f"proof it followed {move:.0%} of the trainer's move on the canaries"
            )
        if move is not None or self._anchor is None:
            self._anchor = (served, trained)
        publication = Publication(version=weights.version, mean_difference=difference, move=move)
        return replace(policy, version=weights.version), publication

    async def load(self, weights: Weights, policy: Policy) -> tuple[Policy, float | None]:
        """Load weights of a checkpoint folder; return the policy with its canaries' difference.

        None for folders written before there were any. Raises IdentityError as `publish` does.
        """
        if not weights.canaries:
            await self._sampler.load(weights)
            return replace(policy, version=weights.version), None
        policy, publication = await self.publish(weights, policy)
        return policy, publication.mean_difference

    def _move(self, served: Floats, trained: Floats) -> float | None:
        """Regress the sampler's move since the last proof on the trainer's.

        None while rounding hides it; small steps add up until they can be told from noise.
        """
        if self._anchor is None or self._anchor[0].shape != served.shape:
            return None
        likely = _likely(self._anchor[1])
        served_move = (served - self._anchor[0])[likely]
        trained_move = (trained - self._anchor[1])[likely]
        # Both sides round, and the trainer's own noise would make every sampler look lazy. It is
        # taken from the last proof, since a stale sampler would pass its lag off as noise.
        noise = float(((self._anchor[0] - self._anchor[1])[likely] ** 2).sum())
        energy = float(trained_move @ trained_move) - noise
        if energy <= CLEAR_MOVE * noise or energy <= 0.0:
            return None
        return float(served_move @ trained_move) / energy


def _likely(logprobs: Floats) -> Flags:
    """Tokens worth comparing; all, if none is likely."""
    likely = logprobs > LIKELY
    return likely if likely.any() else np.ones_like(likely)


def refuse_other_versions(groups: Sequence[Group], version: int) -> None:
    """Raise IdentityError if any rollout was sampled by another policy version than this one."""
    for group in groups:
        for graded in group.survivors:
            if graded.trajectory.versions != (version, version) and graded.trajectory.turns:
                raise IdentityError(
                    f"rollout {graded.trajectory.id} of task {group.task.id!r} was sampled by policy "
                    f"versions {graded.trajectory.versions}, the trainer is at {version}; batch refused"
                )
