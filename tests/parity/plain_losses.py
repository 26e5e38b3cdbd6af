"""Every loss and advantage as the papers write them, one sequence at a time, without the package."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class PlainRollout:
    """What one rollout of a group came to."""

    ids: list[int]
    action: list[bool]
    turn_of: list[int]
    """Which turn each token belongs to."""
    behavior: list[float]
    score: float
    turn_scores: list[float]


def token_logprobs(model: Any, ids: Sequence[int], temperature: float) -> Tensor:
    """Return log-probabilities of all tokens but the first."""
    ids_1T = torch.tensor([list(ids)])
    logits_TV = model(ids_1T).logits[0, :-1] / temperature
    return torch.log(torch.softmax(logits_TV, dim=-1)).gather(1, ids_1T[0, 1:, None])[:, 0]


def plain_advantages(group: Sequence[PlainRollout], advantage: str) -> list[float]:
    """Return one advantage per rollout."""
    scores = [rollout.score for rollout in group]
    size = len(scores)
    mean = sum(scores) / size
    if advantage == "centred":
        return [score - mean for score in scores]
    if advantage == "rloo":
        return [score - (sum(scores) - score) / (size - 1) for score in scores]
    deviation = math.sqrt(sum((score - mean) ** 2 for score in scores) / size)
    return [(score - mean) / deviation for score in scores]


def plain_turn_credit(
    group: Sequence[PlainRollout], advantage: str, discount: float
) -> list[list[float]]:
    """Return one advantage per rollout and turn."""
    to_go = [
        [
            sum(discount ** (later - turn) * scores[later] for later in range(turn, len(scores)))
            for turn in range(len(scores))
        ]
        for scores in (rollout.turn_scores for rollout in group)
    ]
    credit: list[list[float]] = []
    for place, own in enumerate(to_go):
        credit.append([])
        for turn, value in enumerate(own):
            others = [o[turn] for p, o in enumerate(to_go) if p != place and turn < len(o)]
            if advantage == "rloo":
                baseline = sum(others) / len(others) if others else value
            else:
                baseline = (sum(others) + value) / (len(others) + 1)
            credit[place].append(value - baseline)
    return credit


@dataclass
class PlainSettings:
    """What the papers leave to choose."""

    kind: str
    low: float
    high: float
    kl: float
    bound: float = 2.0
    tokens_per_sequence: float = 64.0
    temperature: float = 0.8


def rollout_loss(
    model: Any,
    rollout: PlainRollout,
    turn_advantages: Sequence[float],
    settings: PlainSettings,
    reference: Tensor | None,
) -> Tensor:
    """Return one rollout's share of the loss, yet to be divided by the number of rollouts."""
    places = [place for place, action in enumerate(rollout.action) if action]
    logprobs = token_logprobs(model, rollout.ids, settings.temperature)
    policy = torch.stack([logprobs[place - 1] for place in places])
    behavior = torch.tensor([rollout.behavior[place] for place in places])
    advantages = torch.tensor([turn_advantages[rollout.turn_of[place]] for place in places])
    if float((policy - behavior).detach().abs().mean()) > settings.bound:
        return policy.sum() * 0.0
    low, high = 1 - settings.low, 1 + settings.high
    ratio = torch.exp(policy - behavior)
    divergence = torch.zeros(len(places))
    if reference is not None:
        at = torch.stack([reference[place - 1] for place in places])
        divergence = torch.exp(at) / torch.exp(policy) - (at - policy) - 1
    if settings.kind == "clip":
        objective = torch.min(ratio * advantages, ratio.clamp(low, high) * advantages)
        return -(objective - settings.kl * divergence).sum() / settings.tokens_per_sequence
    if settings.kind == "cispo":
        objective = ratio.clamp(low, high).detach() * advantages * policy
        return -(objective - settings.kl * divergence).sum() / settings.tokens_per_sequence
    sequence = (policy.sum() - behavior.sum()).div(len(places)).exp()
    credit = advantages[0]
    objective = torch.min(sequence * credit, sequence.clamp(low, high) * credit)
    return -(objective - settings.kl * divergence.mean())


def pair_loss(
    model: Any,
    sides: Sequence[tuple[Sequence[int], Sequence[bool]]],
    references: Sequence[Tensor],
    *,
    beta: float,
    length_normalised: bool,
    imitation: float = 0.0,
) -> Tensor:
    """Return the loss of one pair, the preferred side first."""
    rewards: list[Tensor] = []
    likely: list[Tensor] = []
    for (ids, action), reference in zip(sides, references, strict=True):
        places = [place - 1 for place, counted in enumerate(action) if counted]
        logprobs = token_logprobs(model, ids, 1.0)[places]
        likely.append(logprobs.mean())
        ratio = (logprobs - reference[places]).sum()
        rewards.append(beta * ratio / (len(places) if length_normalised else 1))
    return -torch.log(torch.sigmoid(rewards[0] - rewards[1])) - imitation * likely[0]
