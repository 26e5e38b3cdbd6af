"""What a loss needs of a step, so that the trainer need not know which one it computes."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor

from agentrft.core.sample import Sample
from agentrft.core.training_config import Loss, PreferenceLoss, TrainerConfig
from agentrft.training import loss as losses
from agentrft.training.credit import LossName
from agentrft.training.loss import LossTerms
from agentrft.training.pack import MicroBatch

ReadsReference = Literal["never", "every step", "once"]
"""`once` where samples come again in later epochs."""


class Objective(Protocol):
    """A loss with its settings."""

    @property
    def reads_reference(self) -> ReadsReference:
        """Whether micro-batches must bring the reference's logprobs."""
        ...

    def normaliser(self, samples: Sequence[Sample]) -> float:
        """Return what the sums over a whole step are divided by."""
        ...

    def terms(self, logprobs_A: Tensor, batch: MicroBatch, normaliser: float) -> LossTerms:
        """Return a micro-batch's share."""
        ...

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return what the sums over a whole step say, beside the loss itself."""
        ...


def objective(name: LossName, config: TrainerConfig) -> Objective:
    """Return the objective of that name."""
    match name:
        case "policy_gradient":
            return PolicyGradient(config.loss)
        case "cross_entropy":
            return CrossEntropy()
        case "preference":
            return Preference(config.preference)


@dataclass(frozen=True, slots=True)
class PolicyGradient:
    """Samples of groups."""

    settings: Loss

    @property
    def reads_reference(self) -> ReadsReference:
        """Only if leaving it has a price."""
        return "every step" if self.settings.kl_coefficient else "never"

    def normaliser(self, samples: Sequence[Sample]) -> float:
        """Return the number of samples."""
        return float(len(samples))

    def terms(self, logprobs_A: Tensor, batch: MicroBatch, normaliser: float) -> LossTerms:
        """Return a micro-batch's share."""
        return losses.policy_gradient(
            logprobs_A,
            batch.behavior_logprobs_A,
            batch.reference_logprobs_A,
            batch.advantages_A,
            batch.sample_A,
            samples=len(batch.order),
            settings=self.settings,
            normaliser=normaliser,
        )

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return distances per action token, and what was clipped or masked."""
        actions = max(1.0, totals["action_tokens"])
        clipped = totals["clipped_low"] + totals["clipped_high"]
        metrics = {
            "kl_to_sampler": totals["kl_to_sampler"] / actions,
            "logprob_difference": totals["logprob_difference"] / actions,
            "clip_share_low": totals["clipped_low"] / actions,
            "clip_share_high": totals["clipped_high"] / actions,
            "clip_share": clipped / actions,
            "masked_sequences": totals["masked_sequences"],
        }
        if self.reads_reference != "never":
            metrics["kl_to_reference"] = totals["kl_to_reference"] / actions
        return metrics


@dataclass(frozen=True, slots=True)
class CrossEntropy:
    """Demonstrations; the advantage is a token's weight."""

    reads_reference: ReadsReference = "never"

    def normaliser(self, samples: Sequence[Sample]) -> float:
        """Return the total weight."""
        return max(1e-9, sum(sum(sample.advantages) for sample in samples))

    def terms(self, logprobs_A: Tensor, batch: MicroBatch, normaliser: float) -> LossTerms:
        """Return a micro-batch's share."""
        return losses.cross_entropy(logprobs_A, batch.advantages_A, normaliser=normaliser)

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return nothing."""
        return {}


@dataclass(frozen=True, slots=True)
class Preference:
    """Pairs; they come again in every epoch, the reference's logprobs stay."""

    settings: PreferenceLoss
    reads_reference: ReadsReference = "once"

    def normaliser(self, samples: Sequence[Sample]) -> float:
        """Return the number of pairs. Raises ValueError unless each has one sample of either side."""
        sides = Counter((sample.pair, max(sample.advantages) > 0) for sample in samples)
        pairs = {pair for pair, _ in sides}
        if "" in pairs or len(sides) != 2 * len(pairs) or len(samples) != len(sides):
            raise ValueError("a pair needs exactly one preferred and one rejected sample")
        return float(len(pairs))

    def terms(self, logprobs_A: Tensor, batch: MicroBatch, normaliser: float) -> LossTerms:
        """Return a micro-batch's share."""
        assert batch.reference_logprobs_A is not None
        return losses.preference(
            logprobs_A,
            batch.reference_logprobs_A,
            batch.advantages_A,
            batch.sample_A,
            batch.pair_N,
            beta=self.settings.price,
            length_normalised=self.settings.length_normalised,
            imitation=self.settings.imitation,
            normaliser=normaliser,
        )

    def metrics(self, totals: Mapping[str, float]) -> dict[str, float]:
        """Return means over pairs, and the distance per action token."""
        pairs = totals["samples"] / 2
        means = ("accuracy", "margin", "preferred_reward", "rejected_reward")
        return {
            **{name: totals[name] / pairs for name in means},
            "kl_to_reference": totals["kl_to_reference"] / max(1.0, totals["action_tokens"]),
        }
