"""TRL's rollouts alone: the method by which GRPOTrainer generates, calls tools and scores.

It is private, but `train` does nothing else before a step of the optimizer.
"""

import os
from collections.abc import Mapping
from typing import Any

from slow_tools import DELAY_S
from transformers import set_seed
from trl_desk import desk_trainer, read_rows
from worker import Handler, serve


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    trainer, reward = desk_trainer(settings, lora=False, bf16=False, output_dir=settings["scratch"])
    rows = read_rows(settings)
    group_size = settings["group_size"]
    trainer.model.train()  # by which it knows that this is no evaluation

    def first_prompt() -> Mapping[str, Any]:
        trainer._batch_environments = [None]  # noqa: SLF001
        (ids,), *_ = trainer._tokenize_prompts([rows[0]["prompt"]])  # noqa: SLF001
        return {"ids": list(ids)}

    def collect(first: int, tasks: int, delay_s: float, seed: int) -> Mapping[str, Any]:
        os.environ[DELAY_S] = str(delay_s)
        set_seed(seed)
        reward.clear()
        chosen = [rows[(first + place) % len(rows)] for place in range(tasks)]
        made = trainer._generate_and_score_completions(  # noqa: SLF001
            [dict(row) for row in chosen for _ in range(group_size)]
        )
        sampled = made["completion_mask"] * made["tool_mask"]
        return {
            "rollouts": len(reward.scores),
            "turns": reward.turns,
            "tool_calls": reward.tool_calls,
            "tokens": int(sampled.sum()),
            "score": sum(reward.scores) / len(reward.scores),
        }

    return {"collect": collect, "first_prompt": first_prompt}


serve(prepare)
