"""What the trainer reads: token sequences with credit. It knows no algorithm beyond this."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One append-only token sequence; four equal lengths, advantage 0 outside the mask."""

    token_ids: tuple[int, ...]
    action_mask: tuple[bool, ...]
    """True on tokens the policy sampled (or should imitate); only these carry loss."""
    behavior_logprobs: tuple[float, ...]
    """Sampler log-probability of each action token, 0.0 elsewhere, in nats."""
    advantages: tuple[float, ...]
    """Credit per token; for imitation the token's weight."""
    trajectory_id: str
    policy_version: int = 0
    temperature: float = 1.0
    """Sampling temperature; the trainer divides logits by it so that ratios compare like with like."""
    pair: str = ""
    """Preference training: the two samples of a pair share it. Advantages above 0 mark the preferred
    one, below 0 the other."""

    def __post_init__(self) -> None:
        lengths = {
            "token_ids": len(self.token_ids),
            "action_mask": len(self.action_mask),
            "behavior_logprobs": len(self.behavior_logprobs),
            "advantages": len(self.advantages),
        }
        if len(set(lengths.values())) != 1:
            raise ValueError(f"sample {self.trajectory_id!r} has unequal lengths: {lengths}")
        if self.action_mask and self.action_mask[0]:
            raise ValueError(f"sample {self.trajectory_id!r}: the first token has no context")
        credited = zip(self.advantages, self.action_mask, strict=True)
        if any(advantage and not mask for advantage, mask in credited):
            raise ValueError(f"sample {self.trajectory_id!r} gives credit outside its action mask")

    @property
    def action_tokens(self) -> int:
        """How many tokens carry loss."""
        return sum(self.action_mask)
