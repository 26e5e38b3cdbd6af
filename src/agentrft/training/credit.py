"""Credit from grades. Pure: no tensors, no I/O, no knowledge of how a grade came about."""

from collections.abc import Sequence
from typing import Literal

from agentrft.core.grade import Group
from agentrft.core.sample import Sample
from agentrft.core.trajectory import Trajectory, Turn

LossName = Literal["policy_gradient", "cross_entropy", "preference"]
"""What a trainer computes on samples of groups, of demonstrations, and of pairs."""


def centred(group: Group, *, temperature: float = 1.0) -> list[Sample]:
    """Return samples whose advantage is the score minus the mean score of the survivors.

    No division by the standard deviation: it would weigh near-solved and near-hopeless tasks up
    (Dr. GRPO, arXiv 2503.20783). Groups without spread give nothing; infrastructure faults take no
    part in the mean. `temperature` is the one the rollouts were sampled at.
    """
    if not group.has_spread:
        return []
    scores = group.scores
    baseline = sum(scores) / len(scores)
    return [
        sample
        for graded, score in zip(group.survivors, scores, strict=True)
        for sample in credited(graded.trajectory, score - baseline, temperature=temperature)
    ]


def credited(trajectory: Trajectory, advantage: float, *, temperature: float) -> list[Sample]:
    """Return one sample per append-only context, the same credit on every action token."""
    return [
        _join(trajectory, turns, advantage, temperature)
        for turns in trajectory.contexts().values()
        if any(turn.action_ids for turn in turns)
    ]


def imitation(token_ids: Sequence[int], action_mask: Sequence[bool], id: str) -> Sample:
    """Return a sample that imitates the masked tokens, each with weight one."""
    return Sample(
        token_ids=tuple(token_ids),
        action_mask=tuple(action_mask),
        behavior_logprobs=(0.0,) * len(token_ids),
        advantages=tuple(1.0 if action else 0.0 for action in action_mask),
        trajectory_id=id,
    )


def _join(
    trajectory: Trajectory, turns: Sequence[Turn], advantage: float, temperature: float
) -> Sample:
    token_ids: list[int] = []
    action_mask: list[bool] = []
    behavior_logprobs: list[float] = []
    for turn in turns:
        token_ids += (*turn.observation_ids, *turn.action_ids)
        action_mask += [False] * len(turn.observation_ids) + [True] * len(turn.action_ids)
        behavior_logprobs += [0.0] * len(turn.observation_ids)
        behavior_logprobs += turn.behavior_logprobs
    return Sample(
        token_ids=tuple(token_ids),
        action_mask=tuple(action_mask),
        behavior_logprobs=tuple(behavior_logprobs),
        advantages=tuple(advantage if action else 0.0 for action in action_mask),
        trajectory_id=trajectory.id,
        policy_version=trajectory.versions[0],
        temperature=temperature,
    )
