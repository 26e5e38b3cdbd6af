"""Our trainer, one step at a time on given tokens."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from worker import Handler, serve

from agentrft.core.sample import Sample
from agentrft.core.training_config import Loss, Optimizer, TrainerConfig
from agentrft.training.trainer import LocalTrainer


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    own = settings["completion_tokens"]
    trainer = LocalTrainer(
        Path(settings["model"]),
        TrainerConfig(
            optimizer=Optimizer(learning_rate=0.0),
            loss=Loss(tokens_per_sequence=own),
            micro_batch_tokens=settings["micro_batch_tokens"],
            threads=settings["threads"],
            device=settings["device"],
        ),
        loss="policy_gradient",
        canaries=[],
        seed=0,
        start=Path(settings["adapter"]),
    )

    def score(sequences: Sequence[Sequence[int]]) -> Mapping[str, Any]:
        return {"logprobs": [row[-own:] for row in trainer.score(sequences)]}

    def step(
        sequences: Sequence[Sequence[int]],
        advantages: Sequence[float],
        behavior_logprobs: Sequence[Sequence[float]],
    ) -> Mapping[str, Any]:
        samples: list[Sample] = []
        for ids, advantage, logprobs in zip(sequences, advantages, behavior_logprobs, strict=True):
            before = len(ids) - own
            samples.append(
                Sample(
                    token_ids=tuple(ids),
                    action_mask=(False,) * before + (True,) * own,
                    behavior_logprobs=(0.0,) * before + tuple(logprobs),
                    advantages=(0.0,) * before + (advantage,) * own,
                    trajectory_id=f"sample {len(samples)}",
                )
            )
        metrics = trainer.step(samples)
        names = ("loss", "gradient_norm", "computed_tokens", "micro_batches")
        peak = torch.cuda.max_memory_allocated() if settings["device"] == "cuda" else 0
        return {name: metrics[name] for name in names} | {"device_peak_bytes": peak}

    return {"score": score, "step": step}


serve(prepare)
