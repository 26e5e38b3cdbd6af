"""What may come next, and what it would cost on this machine. Pure.

Rollouts are priced by the measured seconds and tokens per rollout. Training is a rule of thumb on
top of that, marked as such: nothing was trained when it is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

from agentrft.core.config import Methods
from agentrft.measure.standing import Standing

TRAINING_SHARE = 0.5
"""Optimizer steps and publications of reinforcement take so much of the rollouts' time again."""
DEMONSTRATION_ROLLOUTS = 1.5
"""Imitating a demonstration once takes as long as so many rollouts."""


class NextStep(StrEnum):
    """What an advice may be."""

    FIX = "fix environment or grader"
    COLLECT = "collect tasks"
    STOP = "stop"
    STRUCTURE = "structure"
    PROMPT = "prompt and structure search"
    DEMONSTRATIONS = "get demonstrations or change the model"
    SUPERVISED = "supervised fine-tuning"
    PREFERENCE = "preference training"
    REINFORCEMENT = "reinforcement"
    DISTILLATION = "prompt distillation"
    NOTHING = "nothing"
    """No rule has an advice."""


TRAINS_WEIGHTS = frozenset(
    {
        NextStep.SUPERVISED,
        NextStep.PREFERENCE,
        NextStep.REINFORCEMENT,
        NextStep.DISTILLATION,
    }
)
NOT_AVAILABLE = frozenset({NextStep.PREFERENCE, NextStep.DISTILLATION})
"""Methods that this version cannot carry out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What a step is expected to take; an estimate."""

    rollouts: int
    tokens: float
    """Read and sampled."""
    minutes: float
    """Wall clock on the machine that was measured."""
    money: float
    """In the currency of the endpoint's prices; 0 without prices."""
    rule: str
    """How it was reckoned."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prices:
    """Money per million tokens."""

    prompt: float = 0.0
    sampled: float = 0.0


def expected_costs(
    found: Standing, methods: Methods, prices: Prices | None = None
) -> Mapping[NextStep, Cost]:
    """Return the cost of each step that this machine can carry out, as the methods are set."""
    prices = prices or Prices()
    optimize, tuning, imitation = methods.optimize, methods.reinforcement, methods.supervised
    per_second = 1 / found.seconds if found.seconds else float("inf")

    def cost(rollouts: float, rule: str, *, share: float = 1.0) -> Cost:
        prompt, sampled = rollouts * found.observed_tokens, rollouts * found.sampled_tokens
        return Cost(
            rollouts=round(rollouts),
            tokens=prompt + sampled,
            minutes=share * rollouts * found.seconds / 60,
            money=(prompt * prices.prompt + sampled * prices.sampled) / 1e6,
            rule=rule,
        )

    search = cost(
        min(optimize.rollouts, 60 * optimize.minutes * per_second),
        f"{optimize.rollouts} rollouts or {optimize.minutes:g} minutes, whichever ends first",
    )
    imitated = imitation.steps * imitation.batch_size
    read = cost(
        imitated,
        f"rule of thumb: {imitated} demonstrations are read, each for as long as "
        f"{DEMONSTRATION_ROLLOUTS:g} rollouts",
        share=DEMONSTRATION_ROLLOUTS,
    )
    return {
        NextStep.STRUCTURE: search,
        NextStep.PROMPT: search,
        NextStep.SUPERVISED: replace(read, rollouts=0),
        NextStep.REINFORCEMENT: cost(
            tuning.steps * tuning.tasks_per_step * tuning.group_size,
            "rollouts as measured; rule of thumb: training takes "
            f"{TRAINING_SHARE:.0%} of their time again",
            share=1 + TRAINING_SHARE,
        ),
    }
