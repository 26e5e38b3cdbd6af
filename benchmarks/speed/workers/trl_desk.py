"""The slow desk as TRL's GRPOTrainer takes it: environment, rows, reward and tokenizer.

The grader is the support desk's own; for it the conversation is put into our record of a rollout,
whose module imports nothing beyond the standard library.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import torch
from datasets import Dataset
from grading import grade
from peft import LoraConfig
from slow_tools import SlowTools
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer
from trl.chat_template_utils import qwen3_template

from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import StopReason, ToolResult, Trajectory, Turn


class TrlDesk(SlowTools):
    """One instance per rollout at a time; every public method but `reset` is a tool."""

    def reset(self, row: str, **_: object) -> None:
        self._open(json.loads(row))


def _score(desk: TrlDesk, messages: Sequence[Mapping[str, Any]], *, ended: bool) -> float:
    found = grade(desk.row, desk.shop.changes(), _trajectory(messages, ended=ended))["score"]
    desk.shop.close()
    return found


def _trajectory(messages: Sequence[Mapping[str, Any]], *, ended: bool) -> Trajectory:
    """Turn what TRL knows of a rollout into our record; only what graders read is filled in."""
    turns: list[Turn] = []
    place = 0
    while place < len(messages):
        message = messages[place]
        calls = [
            ToolCall(
                id=f"call_{place}_{number}",
                name=call["function"]["name"],
                arguments=json.dumps(call["function"]["arguments"]),
            )
            for number, call in enumerate(message.get("tool_calls") or ())
        ]
        place += 1
        results: list[ToolResult] = []
        while place < len(messages) and messages[place]["role"] == "tool":
            call = calls[len(results)]
            content = messages[place]["content"]
            results.append(ToolResult(call_id=call.id, name=call.name, content=content))
            place += 1
        turns.append(
            Turn(
                observation_ids=(),
                action_ids=(),
                behavior_logprobs=(),
                first_version=0,
                last_version=0,
                message=Message(
                    role="assistant",
                    content=(message.get("content") or "").strip(),
                    tool_calls=tuple(calls),
                ),
                tool_results=tuple(results),
            )
        )
    answered = ended and bool(turns) and not turns[-1].message.tool_calls
    return Trajectory(
        id="",
        task_id="",
        model="",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=tuple(turns),
        stop_reason=StopReason.FINISHED if answered else StopReason.MAX_TURNS,
    )


class Reward:
    """TRL's reward function; it also counts what the rollouts were."""

    __name__ = "desk"

    def __init__(self, end_id: int) -> None:
        self._end_id = end_id
        self.clear()

    def clear(self) -> None:
        self.scores: list[float] = []
        self.turns = 0
        self.tool_calls = 0

    def __call__(
        self,
        completions: Sequence[Sequence[Mapping[str, Any]]],
        completion_ids: Sequence[Sequence[int]],
        environments: Sequence[TrlDesk],
        **_: object,
    ) -> list[float]:
        found = [
            _score(desk, messages, ended=bool(ids) and ids[-1] == self._end_id)
            for messages, ids, desk in zip(completions, completion_ids, environments, strict=True)
        ]
        self.scores += found
        for messages in completions:
            self.turns += sum(message["role"] == "assistant" for message in messages)
            self.tool_calls += sum(message["role"] == "tool" for message in messages)
        return found


def read_rows(settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the training tasks; what is nested travels as text, since tables would fill it up."""
    lines = Path(settings["rows"]).read_text(encoding="utf-8").splitlines()
    system = {"role": "system", "content": settings["system"]}
    return [{"prompt": [system, *json.loads(line)["messages"]], "row": line} for line in lines]


def read_tokenizer(folder: str) -> PreTrainedTokenizerBase:
    """Return the tokenizer with the template that lies in the folder, and how calls are read."""
    tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")
    tokenizer.response_template = qwen3_template  # the same marks and the same JSON between them
    return tokenizer


def desk_trainer(
    settings: Mapping[str, Any], *, lora: bool, bf16: bool, **config: Any
) -> tuple[GRPOTrainer, Reward]:
    """Return TRL's trainer on the desk, its weights in bfloat16; `bf16` adds its autocast."""
    torch.set_num_threads(settings["threads"])
    tokenizer = read_tokenizer(settings["model"])
    reward = Reward(tokenizer.eos_token_id)
    trainer = GRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(settings["model"], dtype=torch.bfloat16),
        processing_class=tokenizer,
        reward_funcs=reward,
        environment_factory=TrlDesk,
        train_dataset=Dataset.from_list(read_rows(settings)),
        peft_config=lora_config(settings["adapter"]) if lora else None,
        args=GRPOConfig(
            num_generations=settings["group_size"],
            per_device_train_batch_size=settings["group_size"],
            gradient_accumulation_steps=settings["tasks_per_step"],
            # This counts what tools say too, so it is set where it does not bind; a turn's own
            # bound keeps one that runs away from holding up the batch.
            max_completion_length=settings["completion_tokens"],
            generation_kwargs={"max_new_tokens": settings["turn_tokens"]},
            max_tool_calling_iterations=settings["turns"] - 1,
            temperature=1.0,
            beta=0.0,
            bf16=bf16,
            use_cpu=not torch.cuda.is_available(),
            gradient_checkpointing=False,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **config,
        ),
    )
    return trainer, reward


def lora_config(adapter: Mapping[str, Any]) -> LoraConfig:
    return LoraConfig(
        r=adapter["rank"],
        lora_alpha=adapter["alpha"],
        target_modules=adapter["targets"],
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
