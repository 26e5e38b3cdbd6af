"""Publishing weights, with proof that the sampler serves them (policy identity check).

Two tests on canary sequences: the sampler's logprobs lie within a bound of the trainer's, and
they moved the way the trainer's moved since the last publication. The second one sees stale
weights even when a single step changes less than the rounding of the compute type.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agentrft.core.errors import IdentityError
from agentrft.core.grade import Group
from agentrft.core.policy import Policy, Weights
from agentrft.core.protocols import Sampler

MOVE_RESOLUTION = 0.25
"""Standard error of the measured move, as a share of the full move, under which it is judged."""

UNLIKELY = -3.0
"""Canary tokens below this log-probability are left out of the bound: rounding is larger there, and
a policy samples them rarely."""
SMALLEST_MOVE = 1e-4
"""Root mean square move of the trainer's canary logprobs that is worth comparing, in nats."""


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
        self._previous: tuple[np.ndarray, np.ndarray] | None = None

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
        likely = trained > UNLIKELY if (trained > UNLIKELY).any() else np.ones_like(trained, bool)
        difference = float(np.abs(served - trained)[likely].mean())
        if not difference <= self._bound:
            raise IdentityError(
                f"the sampler does not serve policy version {weights.version}: canary logprobs differ "
                f"by {difference:.4f} nats on average, at most {self._bound} is allowed"
            )
        move = self._move(served, trained)
        if move is not None and not 0.5 <= move <= 1.5:
            raise IdentityError(
                f"the sampler does not serve policy version {weights.version}: since the last "
                f"publication it followed {move:.0%} of the trainer's move on the canaries"
            )
        self._previous = (served, trained)
        publication = Publication(version=weights.version, mean_difference=difference, move=move)
        return replace(policy, version=weights.version), publication

    def _move(self, served: np.ndarray, trained: np.ndarray) -> float | None:
        """Regress the sampler's move on the trainer's; None where noise hides it."""
        if self._previous is None or self._previous[0].shape != served.shape:
            return None
        served_move, trained_move = served - self._previous[0], trained - self._previous[1]
        energy = float(trained_move @ trained_move)
        if energy <= trained_move.size * SMALLEST_MOVE**2:
            return None
        share = float(served_move @ trained_move) / energy
        residual = served_move - trained_move
        # Noise of the comparison itself; a stale sampler has residual = -move, so take the smaller
        # of both explanations or staleness would count as noise.
        noise = min(float(residual.std()), float(served_move.std()))
        error = noise / energy**0.5
        return share if error < MOVE_RESOLUTION else None


def refuse_other_versions(groups: Sequence[Group], version: int) -> None:
    """Raise IdentityError if any rollout was sampled by another policy version than this one."""
    for group in groups:
        for graded in group.survivors:
            if graded.trajectory.versions != (version, version) and graded.trajectory.turns:
                raise IdentityError(
                    f"rollout {graded.trajectory.id} of task {group.task.id!r} was sampled by policy "
                    f"versions {graded.trajectory.versions}, the trainer is at {version}; batch refused"
                )
