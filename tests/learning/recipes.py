"""Every method and option that trains on the toys, and how many rollouts each may take."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from tiny_training import config
from toys import BANDIT, BUDGET, CHAIN, Problem

from agentrft.core.config import Methods
from agentrft.core.run import Method
from agentrft.core.training_config import (
    Credit,
    Loss,
    MonitorConfig,
    Optimizer,
    PreferenceConfig,
    PreferenceLoss,
    ReinforcementConfig,
    RejectionConfig,
    SupervisedConfig,
    TaskChoice,
    TrainerConfig,
)

TOYS = (BANDIT, CHAIN, BUDGET)
STEPS = 50
MOST_SAMPLES = STEPS * 32
"""Rollouts within which every method must have reached the optimum."""
TRAINER: TrainerConfig = config(optimizer=Optimizer(learning_rate=2e-3, warmup_steps=2))
REINFORCEMENT = ReinforcementConfig(
    steps=STEPS,
    tasks_per_step=4,
    group_size=8,
    trainer=TRAINER,
    checkpoint_interval=STEPS,
    # A policy that is to become all alike looks to monitors like one that games its grader.
    monitors=MonitorConfig(action="alert"),
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One line of the table."""

    method: Method
    methods: Methods
    problems: tuple[Problem, ...] = TOYS
    rounds: int = 1
    """Trainings at most, each of which begins where the last one ended and rolls out anew, until a
    measurement finds the optimum: DPO goes on pushing when nothing is left to win."""


def _rft(
    advantage: str,
    kind: str = "clip",
    *,
    kl: float = 0.0,
    turns: float = 0.0,
    problems: tuple[Problem, ...] = TOYS,
    **more: Any,
) -> Recipe:
    settings = replace(
        REINFORCEMENT,
        credit=Credit(advantage=advantage, turn_weight=turns),  # pyright: ignore[reportArgumentType]
        trainer=replace(TRAINER, loss=Loss(kind=kind, kl_coefficient=kl)),  # pyright: ignore[reportArgumentType]
        **more,
    )
    methods = Methods(reinforcement=settings)
    return Recipe(method=Method.REINFORCEMENT, methods=methods, problems=problems)


CHOOSY = TaskChoice(curriculum=True, rounds=3, oversampling=1.25)
IMITATION = SupervisedConfig(steps=40, batch_size=4, trainer=TRAINER, checkpoint_interval=40)
RECIPES: Mapping[str, Recipe] = {
    "centred, clip": _rft("centred"),
    "rloo, clip": _rft("rloo"),
    "grpo, clip": _rft("grpo"),
    "centred, cispo": _rft("centred", "cispo"),
    # Its tokens of short rollouts weigh more, and a rollout that gives up at once is the shortest: on
    # the budget that pushes away from answering, further than centred credit brings back in time.
    "centred, gspo": _rft("centred", "gspo", problems=(BANDIT, CHAIN)),
    "grpo, gspo": _rft("grpo", "gspo"),
    "centred, clip, turn credit": _rft("centred", turns=0.5, problems=(CHAIN,)),
    "centred, clip, staleness 1": _rft("centred", staleness=1),
    "centred, clip, KL 0.001": _rft("centred", kl=0.001),
    "centred, clip, curriculum, 3 rounds": _rft("centred", tasks=CHOOSY),
    "rejection-sampled SFT": Recipe(
        method=Method.REJECTION,
        methods=Methods(
            # Rollouts are made with the adapter's settings of reinforcement, whatever trained it.
            reinforcement=REINFORCEMENT,
            rejection=RejectionConfig(samples=32, supervised=IMITATION),
        ),
    ),
    "DPO, mined pairs": Recipe(
        method=Method.PREFERENCE,
        rounds=6,
        methods=Methods(
            reinforcement=REINFORCEMENT,
            preference=PreferenceConfig(
                steps=40,
                batch_size=16,
                samples=32,
                most_per_task=32,
                least_gap=0.05,
                trainer=replace(
                    TRAINER,
                    optimizer=Optimizer(learning_rate=5e-4, warmup_steps=2),
                    preference=PreferenceLoss(length_normalised=True),
                ),
                checkpoint_interval=40,
            ),
        ),
    ),
}
