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
    ReinforcementConfig,
    RejectionConfig,
    SupervisedConfig,
    TaskChoice,
    TrainerConfig,
)

STEPS = 20
MOST_SAMPLES = STEPS * 32
"""Rollouts within which every method must have reached the optimum."""
TRAINER: TrainerConfig = config(optimizer=Optimizer(learning_rate=1e-2, warmup_steps=2))
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
    problems: tuple[Problem, ...] = (BANDIT, CHAIN, BUDGET)


def _rft(
    advantage: str, kind: str = "clip", *, kl: float = 0.0, turns: float = 0.0, **more: Any
) -> Recipe:
    only_chain = (CHAIN,) if turns else (BANDIT, CHAIN, BUDGET)
    settings = replace(
        REINFORCEMENT,
        credit=Credit(advantage=advantage, turn_weight=turns),  # pyright: ignore[reportArgumentType]
        trainer=replace(TRAINER, loss=Loss(kind=kind, kl_coefficient=kl)),  # pyright: ignore[reportArgumentType]
        **more,
    )
    methods = Methods(reinforcement=settings)
    return Recipe(method=Method.REINFORCEMENT, methods=methods, problems=only_chain)


CHOOSY = TaskChoice(curriculum=True, rounds=3, oversampling=1.25)
IMITATION = SupervisedConfig(steps=20, batch_size=4, trainer=TRAINER, checkpoint_interval=20)
RECIPES: Mapping[str, Recipe] = {
    "centred, clip": _rft("centred"),
    "rloo, clip": _rft("rloo"),
    "grpo, clip": _rft("grpo"),
    "centred, cispo": _rft("centred", "cispo"),
    "centred, gspo": _rft("centred", "gspo"),
    "rloo, cispo": _rft("rloo", "cispo"),
    "grpo, gspo": _rft("grpo", "gspo"),
    "centred, clip, turn credit": _rft("centred", turns=0.5),
    "centred, clip, KL 0.02": _rft("centred", kl=0.02),
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
        methods=Methods(
            reinforcement=REINFORCEMENT,
            preference=PreferenceConfig(
                steps=20,
                batch_size=8,
                samples=32,
                most_per_task=8,
                trainer=TRAINER,
                checkpoint_interval=20,
            ),
        ),
    ),
}
