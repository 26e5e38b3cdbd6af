"""TRL's own `train`, with given tokens where it would have generated.

`train` runs on the main thread and takes a step whenever the driver asks for one. Where there is no
Triton, TRL 1.16 sends prompts through the vocabulary too (`add_fused_lm_head`); it is left to do so.
"""

import os
from collections.abc import Mapping, Sequence
from queue import Queue
from threading import Thread
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import GRPOConfig, GRPOTrainer
from worker import Handler, serve

_asked: "Queue[Mapping[str, Any]]" = Queue()
_answered: "Queue[Mapping[str, Any]]" = Queue()


class _Given(GRPOTrainer):
    """Trains on what it is given."""

    loss = 0.0

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        del inputs  # prompts of a dataset that only keeps `train` going
        given = _asked.get()
        own = self.max_completion_length
        ids_NT = torch.tensor(given["sequences"], device=self.accelerator.device)
        ones_NT = torch.ones_like(ids_NT)
        self.loss = 0.0
        return {
            "prompt_ids": ids_NT[:, :-own],
            "prompt_mask": ones_NT[:, :-own],
            "completion_ids": ids_NT[:, -own:],
            "completion_mask": ones_NT[:, -own:],
            "advantages": torch.tensor(given["advantages"], device=ids_NT.device),
            "old_per_token_logps": torch.tensor(given["behavior_logprobs"], device=ids_NT.device),
            "num_items_in_batch": ones_NT[:, -own:].sum(),
        }

    def compute_loss(self, *arguments: Any, **named: Any) -> torch.Tensor:
        loss = super().compute_loss(*arguments, **named)
        self.loss += loss.item()
        return loss


class _Answer(TrainerCallback):
    trainer: _Given

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if "grad_norm" in logs:
            _answered.put({"loss": self.trainer.loss, "gradient_norm": float(logs["grad_norm"])})


def _prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    _asked.put(settings)
    _answered.get()

    def step(
        sequences: Sequence[Sequence[int]],
        advantages: Sequence[float],
        behavior_logprobs: Sequence[Sequence[float]],
    ) -> Mapping[str, Any]:
        _asked.put(
            {
                "sequences": sequences,
                "advantages": advantages,
                "behavior_logprobs": behavior_logprobs,
            }
        )
        return _answered.get()

    return {"step": step}


def _trainer(settings: Mapping[str, Any]) -> _Given:
    torch.set_num_threads(settings["threads"])
    base = AutoModelForCausalLM.from_pretrained(
        settings["model"], dtype=getattr(torch, settings["dtype"])
    )
    answer = _Answer()
    trainer = _Given(
        model=PeftModel.from_pretrained(base, settings["adapter"], is_trainable=True),
        processing_class=AutoTokenizer.from_pretrained(settings["model"], padding_side="left"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        train_dataset=Dataset.from_list([{"prompt": "unused"}] * settings["samples"]),
        callbacks=[answer],
        args=GRPOConfig(
            output_dir=settings["scratch"],
            max_steps=1_000_000,
            num_generations=2,
            per_device_train_batch_size=settings["micro_batch"],
            gradient_accumulation_steps=settings["samples"] // settings["micro_batch"],
            max_completion_length=settings["completion_tokens"],
            learning_rate=0.0,
            lr_scheduler_type="constant",
            epsilon=0.2,
            epsilon_high=0.28,
            beta=0.0,
            bf16=True,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
    )
    answer.trainer = trainer
    return trainer


def _serve() -> None:
    serve(_prepare)
    os._exit(0)  # the driver is gone, and `train` would wait for it


if __name__ == "__main__":
    Thread(target=_serve, daemon=True).start()
    trainer = _trainer(_asked.get())
    _answered.put({})
    trainer.train()
