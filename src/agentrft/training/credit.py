"""Credit from grades. Pure: no tensors, no I/O, no knowledge of how a grade came about."""

import statistics
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal

from agentrft.core.errors import UserError
from agentrft.core.grade import GradedTrajectory, Group
from agentrft.core.sample import Sample
from agentrft.core.training_config import Credit
from agentrft.core.trajectory import Trajectory, Turn

LossName = Literal["policy_gradient", "cross_entropy", "preference"]
"""What a trainer computes on samples of groups, of demonstrations, and of pairs."""

LEAST_SPREAD = 1e-9


class NothingToCompareError(UserError):
    """A side of a pair has no token of its own that the policy writes."""


def credited_group(group: Group, credit: Credit, *, temperature: float) -> list[Sample]:
    """Return the samples of a group's survivors, with credit on each of their action tokens.

    Infrastructure faults take no part in a baseline. A group without spread, neither of scores nor,
    where they count, of turn scores, gives nothing. `temperature` is the one the rollouts were
    sampled at. Raises UserError if turn scores count and a survivor has none.
    """
    survivors = group.survivors
    outcomes = advantages(group.scores, credit) if group.has_spread else [0.0] * len(survivors)
    of_turns = [
        [outcome] * len(graded.trajectory.turns)
        for outcome, graded in zip(outcomes, survivors, strict=True)
    ]
    if credit.turn_weight:
        for whole, single in zip(of_turns, turn_advantages(survivors, credit), strict=True):
            whole[:] = [a + credit.turn_weight * b for a, b in zip(whole, single, strict=True)]
    if all(abs(value) <= LEAST_SPREAD for values in of_turns for value in values):
        return []
    return [
        sample
        for graded, values in zip(survivors, of_turns, strict=True)
        for sample in credited(graded.trajectory, values, temperature=temperature)
    ]


def advantages(scores: Sequence[float], credit: Credit) -> list[float]:
    """Return the advantage of each of several scores that are not all equal.

    `centred` divides by nothing: the standard deviation would weigh near-solved and near-hopeless
    tasks up (Dr. GRPO, arXiv 2503.20783). `rloo` is the distance to the mean of the others (arXiv
    2402.14740), `grpo` divides by the population standard deviation (arXiv 2402.03300).
    """
    mean = statistics.fmean(scores)
    match credit.advantage:
        case "centred":
            scale = 1.0
        case "rloo":
            scale = len(scores) / (len(scores) - 1)
        case "grpo":
            scale = 1.0 / statistics.pstdev(scores)
    return [(score - mean) * scale for score in scores]


def turn_advantages(survivors: Sequence[GradedTrajectory], credit: Credit) -> list[list[float]]:
    """Return per turn the advantage of the discounted sum of turn scores from it on.

    As `advantages` among the survivors that reached that turn; who reached it alone has nobody to be
    compared with and gets 0. Raises UserError for a survivor without a score for each turn.
    """
    to_go: list[list[float]] = []
    for graded in survivors:
        turns, scores = graded.trajectory.turns, graded.grade.turn_scores
        if len(scores) != len(turns):
            raise UserError(
                f"rollout {graded.trajectory.id!r}: credit.turn_weight is {credit.turn_weight} but "
                f"its grade has {len(scores)} turn scores for {len(turns)} turns; let the grader "
                "score every turn, or set turn_weight to 0"
            )
        sums = accumulate(reversed(scores), lambda rest, own: own + credit.turn_discount * rest)
        to_go.append([*sums][::-1])
    for turn in range(max(map(len, to_go), default=0)):
        reached = [values for values in to_go if turn < len(values)]
        sums = [values[turn] for values in reached]
        alike = max(sums) - min(sums) <= LEAST_SPREAD
        compared = [0.0] * len(sums) if alike else advantages(sums, credit)
        for values, advantage in zip(reached, compared, strict=True):
            values[turn] = advantage
    return to_go


def credited(
    trajectory: Trajectory, advantages: Sequence[float], *, temperature: float
) -> list[Sample]:
    """Return one sample per append-only context; each turn's action tokens get its advantage."""
    contexts: dict[int, list[tuple[Turn, float]]] = {}
    for turn, advantage in zip(trajectory.turns, advantages, strict=True):
        contexts.setdefault(turn.context, []).append((turn, advantage))
    return [
        _join(trajectory, turns, temperature)
        for turns in contexts.values()
        if any(turn.action_ids for turn, _ in turns)
    ]


def imitation(token_ids: Sequence[int], action_mask: Sequence[bool], id: str) -> Sample:
    """Return a sample that imitates the masked tokens, each with weight one."""
    return _uniform(token_ids, action_mask, 1.0, id)


def preference_pair(
    preferred: tuple[Sequence[int], Sequence[bool]],
    rejected: tuple[Sequence[int], Sequence[bool]],
    id: str,
) -> tuple[Sample, Sample]:
    """Return the two samples of a pair, each given as token ids and action mask.

    Only action tokens from the first difference on carry loss: what both begin with says nothing
    about which one is better. Raises NothingToCompareError if either has none of those.
    """
    same = zip(preferred[0], rejected[0], strict=False)
    divergence = next(
        (place for place, (one, other) in enumerate(same) if one != other),
        min(len(preferred[0]), len(rejected[0])),
    )
    pair: list[Sample] = []
    for (token_ids, mask), advantage, name in (
        (preferred, 1.0, "preferred"),
        (rejected, -1.0, "rejected"),
    ):
        counted = [action and place >= divergence for place, action in enumerate(mask)]
        if not any(counted):
            raise NothingToCompareError(
                f"pair {id!r}: the {name} side has no token of its own that the policy writes; "
                "the two sides must differ in what the assistant says"
            )
        pair.append(_uniform(token_ids, counted, advantage, id, pair=id))
    return pair[0], pair[1]


def _uniform(
    token_ids: Sequence[int], action_mask: Sequence[bool], advantage: float, id: str, pair: str = ""
) -> Sample:
    return Sample(
        token_ids=tuple(token_ids),
        action_mask=tuple(action_mask),
        behavior_logprobs=(0.0,) * len(token_ids),
        advantages=tuple(advantage if action else 0.0 for action in action_mask),
        trajectory_id=id,
        pair=pair,
    )


def _join(
    trajectory: Trajectory, turns: Sequence[tuple[Turn, float]], temperature: float
) -> Sample:
    token_ids: list[int] = []
    action_mask: list[bool] = []
    behavior_logprobs: list[float] = []
    credit: list[float] = []
    for turn, advantage in turns:
        token_ids += (*turn.observation_ids, *turn.action_ids)
        action_mask += [False] * len(turn.observation_ids) + [True] * len(turn.action_ids)
        behavior_logprobs += [0.0] * len(turn.observation_ids)
        behavior_logprobs += turn.behavior_logprobs
        credit += [0.0] * len(turn.observation_ids) + [advantage] * len(turn.action_ids)
    return Sample(
        token_ids=tuple(token_ids),
        action_mask=tuple(action_mask),
        behavior_logprobs=tuple(behavior_logprobs),
        advantages=tuple(credit),
        trajectory_id=trajectory.id,
        policy_version=trajectory.versions[0],
        temperature=temperature,
    )
