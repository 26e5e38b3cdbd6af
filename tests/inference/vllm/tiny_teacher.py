"""A trainer of tiny weights in float32, and what it teaches."""

import random
from pathlib import Path
from typing import Literal

from agentrft.core.sample import Sample
from agentrft.core.training_config import Adapter, Optimizer, TrainerConfig
from agentrft.training.trainer import LocalTrainer

VOCABULARY = 300


def tokens(count: int, seed: int) -> tuple[int, ...]:
    draw = random.Random(seed)
    return tuple(draw.randrange(VOCABULARY) for _ in range(count))


def teacher_of(folder: Path, kind: Literal["lora", "full"] = "lora") -> LocalTrainer:
    config = TrainerConfig(
        adapter=Adapter(kind=kind, rank=4, alpha=8.0),
        optimizer=Optimizer(learning_rate=1e-2, warmup_steps=0),
        dtype="float32",
        device="cpu",
        threads=1,
    )
    canaries = [tokens(40 + n, n) for n in range(3)]
    return LocalTrainer(folder, config, loss="cross_entropy", canaries=canaries, seed=1)


def lesson() -> Sample:
    ids = tokens(40, 0)
    return Sample(
        token_ids=ids,
        action_mask=(False, *[True] * 39),
        behavior_logprobs=(0.0,) * 40,
        advantages=(0.0, *[1.0] * 39),
        trajectory_id="lesson",
        temperature=1.0,
    )
