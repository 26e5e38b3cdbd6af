"""What may come next, and what it would cost on this machine. Pure.

Rollouts are priced by the measured seconds and tokens per rollout. Training is a rule of thumb on
top of that, marked as such: nothing was trained when it is asked for.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from agentrft.core.config import Methods
from agentrft.core.training_config import SupervisedConfig
from agentrft.measure.standing import Standing

TRAINING_SHARE = 0.5
"""Optimizer steps and publications of reinforcement take so much of the rollouts' time again."""
DEMONSTRATION_ROLLOUTS = 1.5
"""Imitating a conversation once takes as long as so many rollouts."""
PAIR_CONVERSATIONS = 3
"""A pair is two conversations, and the reference reads both of them without learning."""


class NextStep(StrEnum):
    """What an advice may be."""

    FIX = "fix environment or grader"
    COLLECT = "collect tasks"
    STOP = "stop"
    STRUCTURE = "structure"
    PROMPT = "prompt and structure search"
    DEMONSTRATIONS = "get demonstrations or change the model"
    SUPERVISED = "supervised fine-tuning"
    REJECTION = "imitation of own successes"
    PREFERENCE = "preference training"
    REINFORCEMENT = "reinforcement"
    DISTILLATION = "prompt distillation"
    NOTHING = "nothing"
    """No rule has an advice."""


TRAINS_WEIGHTS = frozenset(
    {
        NextStep.SUPERVISED,
        NextStep.REJECTION,
        NextStep.PREFERENCE,
        NextStep.REINFORCEMENT,
        NextStep.DISTILLATION,
    }
)


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
    optimize, tuning, pairs = methods.optimize, methods.reinforcement, methods.preference
    per_second = 1 / found.seconds if found.seconds else float("inf")

    def cost(rollouts: float, rule: str, *, share: float = 1.0, read: float = 0.0) -> Cost:
        prompt, sampled = (
            (rollouts + read) * found.observed_tokens,
            (rollouts + read) * found.sampled_tokens,
        )
        return Cost(
            rollouts=round(rollouts),
            tokens=prompt + sampled,
            minutes=(share * rollouts + DEMONSTRATION_ROLLOUTS * read) * found.seconds / 60,
            money=(prompt * prices.prompt + sampled * prices.sampled) / 1e6,
            rule=rule,
        )

    def imitation(config: SupervisedConfig, samples: int = 0, tasks: int = 0) -> Cost:
        rollouts = samples * min(tasks or found.train_tasks, found.train_tasks)
        read = config.steps * config.batch_size
        first = f"{rollouts} rollouts as measured; " if rollouts else ""
        rule = f"{first}rule of thumb: {read} conversations are read, each for as long as "
        return cost(rollouts, f"{rule}{DEMONSTRATION_ROLLOUTS:g} rollouts", read=read)

    search = cost(
        min(optimize.rollouts, 60 * optimize.minutes * per_second),
        f"{optimize.rollouts} rollouts or {optimize.minutes:g} minutes, whichever ends first",
    )
    own, distilled = methods.rejection, methods.distillation
    compared = pairs.steps * pairs.batch_size
    return {
        NextStep.STRUCTURE: search,
        NextStep.PROMPT: search,
        NextStep.SUPERVISED: imitation(methods.supervised),
        NextStep.REJECTION: imitation(own.supervised, own.samples, own.tasks),
        NextStep.PREFERENCE: cost(
            0,
            f"rule of thumb: {compared} pairs are read, each for as long as "
            f"{PAIR_CONVERSATIONS * DEMONSTRATION_ROLLOUTS:g} rollouts",
            read=PAIR_CONVERSATIONS * compared,
        ),
        NextStep.REINFORCEMENT: cost(
            tuning.steps * tuning.tasks_per_step * tuning.group_size,
            "rollouts as measured; rule of thumb: training takes "
            f"{TRAINING_SHARE:.0%} of their time again",
            share=1 + TRAINING_SHARE,
        ),
        NextStep.DISTILLATION: imitation(distilled.supervised, distilled.samples, distilled.tasks),
    }
