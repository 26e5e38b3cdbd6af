"""Small models and samples for the tests of this room."""

import random
from pathlib import Path
from typing import Any

import torch

from agentrft.core.sample import Sample
from agentrft.core.training_config import Adapter, Optimizer, TrainerConfig
from agentrft.training.trainer import LocalTrainer

VOCABULARY = 97


def tiny_model(folder: Path, family: str = "llama", *, tied: bool = True, seed: int = 0) -> Path:
    """Save a random model of the family and return its folder."""
    from transformers import (
        AutoModelForCausalLM,
        LlamaConfig,
        MistralConfig,
        Qwen2Config,
        Qwen3Config,
    )

    shape: dict[str, Any] = dict(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    config = {
        "llama": lambda: LlamaConfig(**shape),
        "qwen2": lambda: Qwen2Config(**shape),
        "qwen3": lambda: Qwen3Config(**shape, head_dim=8),
        "mistral": lambda: MistralConfig(**shape, sliding_window=64),
    }[family]()
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    model.save_pretrained(folder)
    return folder


def samples(
    count: int, *, shared: int = 20, tasks: int = 3, seed: int = 0, temperature: float = 1.0
) -> list[Sample]:
    """Return random samples: a prefix of all, one per task, then two turns around a tool result."""
    draw = random.Random(seed)

    def ids(length: int) -> list[int]:
        return [draw.randrange(1, VOCABULARY) for _ in range(length)]

    system = ids(shared)
    prompts = [ids(17 + task) for task in range(tasks)]
    made: list[Sample] = []
    for index in range(count):
        pieces = [
            (system + prompts[index % tasks], False),
            (ids(draw.randrange(2, 9)), True),
            (ids(draw.randrange(1, 12)), False),
            (ids(draw.randrange(1, 7)), True),
        ]
        token_ids = [token for piece, _ in pieces for token in piece]
        mask = [action for piece, action in pieces for _ in piece]
        advantage = draw.uniform(-1, 1)
        made.append(
            Sample(
                token_ids=tuple(token_ids),
                action_mask=tuple(mask),
                behavior_logprobs=tuple(draw.uniform(-5.5, -3.5) if m else 0.0 for m in mask),
                advantages=tuple(advantage if m else 0.0 for m in mask),
                trajectory_id=f"trace_{index}",
                temperature=temperature,
            )
        )
    return made


def config(kind: str = "lora", **changes: Any) -> TrainerConfig:
    """Return a float32 single-threaded config with a small adapter."""
    values: dict[str, Any] = dict(
        adapter=Adapter(kind=kind, rank=4, alpha=8.0),  # pyright: ignore[reportArgumentType]
        optimizer=Optimizer(learning_rate=1e-2, warmup_steps=2),
        dtype="float32",
        device="cpu",
        threads=1,
    )
    return TrainerConfig(**(values | changes))


@torch.no_grad()
def perturbed(trainer: LocalTrainer) -> LocalTrainer:
    """Give the adapter's zero factor values, so that every gradient is something."""
    generator = torch.Generator().manual_seed(3)
    for name, master in trainer.trainable.masters.items():
        if "lora_B" in name:
            master.normal_(std=0.05, generator=generator)
    trainer.trainable.refresh()
    return trainer
