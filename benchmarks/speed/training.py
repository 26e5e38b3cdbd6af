"""Part c: training tokens per second and memory of one optimizer step on fixed token sequences.

Ours, TRL's GRPOTrainer (its own `train`, with what it would have generated put in its place) and a
plain loop of transformers and PEFT get the same ids, advantages, behaviour logprobs and low-rank
adapter. All sequences of a batch are equally long, so nobody pads. The learning rate is 0: the work
is the same, no round changes the weights, and losses and gradient norms must agree in every round.
Tokens are those of all samples, prompts included, for everybody; memory is what is resident.
"""

import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import Any

from contender import Contender, Taken
from rounds import in_turn, ratios, spread
from setting import Setting, present

from agentrft.core.training_config import Optimizer, TrainerConfig
from agentrft.training.credit import imitation
from agentrft.training.trainer import LocalTrainer

CONFIGURATIONS = ((4, 4), (8, 4), (16, 4), (8, 1), (8, 2), (8, 8))
"""Group size, and tokens of a prompt to those of a completion: each varies around (8, 4)."""
SEQUENCE_TOKENS = 512
SAMPLES = 16
"""Of a step whatever the groups, so that each asks for the same work of who shares nothing."""
MICRO_BATCH_TOKENS = 2048
"""At once through the model, of everybody."""
NOISE = 0.2
"""Nats by which behaviour logprobs differ from the policy's, so that the loss depends on both."""
LOSS_DIFFERENCE = 0.02
"""Largest difference from ours, where advantages are about 1; bfloat16 rounds otherwise in each."""
NORM_DIFFERENCE = 0.1
"""The same of gradient norms, as a share of ours."""
OURS = "AgentRFT training"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """One configuration."""

    group_size: int
    samples: int
    prompt_tokens: int
    completion_tokens: int

    @property
    def tokens(self) -> int:
        """What is trained on, shared prompts counted for each sample."""
        return self.samples * (self.prompt_tokens + self.completion_tokens)


def shapes(*, quick: bool) -> list[Shape]:
    """Return what is measured."""
    total, samples = (128, 16) if quick else (SEQUENCE_TOKENS, SAMPLES)
    configurations = ((8, 4),) if quick else CONFIGURATIONS
    return [
        Shape(
            group_size=size,
            samples=samples,
            prompt_tokens=total - total // (part + 1),
            completion_tokens=total // (part + 1),
        )
        for size, part in configurations
    ]


def measure(setting: Setting) -> None:
    """Run the part and write `speed-training.json`."""
    adapter = adapter_of(setting)
    results = [_measured(setting, shape, adapter) for shape in shapes(quick=setting.quick)]
    setting.write("training", {"micro_batch_tokens": MICRO_BATCH_TOKENS, "results": results})


def adapter_of(setting: Setting) -> Path:
    """Return an adapter, made once, whose both factors have gradients: a fresh one's B is zero."""
    folder = setting.home / "bench" / "adapter"
    if not folder.exists():
        config = TrainerConfig(
            optimizer=Optimizer(learning_rate=1e-3, warmup_steps=0),
            threads=setting.threads,
            device="cpu",
        )
        trainer = LocalTrainer(
            setting.model.folder, config, loss="cross_entropy", canaries=[], seed=0
        )
        ids = random.Random(0).choices(range(1000, 2000), k=64)
        trainer.step([imitation(ids, [place > 0 for place in range(64)], "one")])
        trainer.save(folder, {})
    return folder


def _measured(setting: Setting, shape: Shape, adapter: Path) -> dict[str, Any]:
    print(f" {shape}", flush=True)
    shared = {
        "adapter": str(adapter),
        "samples": shape.samples,
        "completion_tokens": shape.completion_tokens,
        "micro_batch_tokens": MICRO_BATCH_TOKENS,
        "micro_batch": max(1, MICRO_BATCH_TOKENS * shape.samples // shape.tokens),
        "scratch": str(setting.home / "bench" / "trl"),
    }
    contenders = present(
        [
            setting.contender(OURS, "ours_training.py", shared),
            setting.contender(
                "TRL", "trl_training.py", {**shared, "dtype": "float32"}, environment="trl"
            ),
            setting.contender(
                "TRL, weights in bfloat16",
                "trl_training.py",
                {**shared, "dtype": "bfloat16"},
                environment="trl",
            ),
            setting.contender(
                "transformers and PEFT", "peft_training.py", shared, environment="trl"
            ),
            setting.contender("machine", "floor.py", {}),
        ]
    )
    batch = batch_for(contenders[0], shape)

    def ask(contender: Contender, _number: int) -> Taken:
        return contender.ask("measure") if contender.name == "machine" else contender.ask(**batch)

    taken = in_turn(contenders, ask, rounds=setting.rounds, tell=_tell)
    for contender in contenders:
        contender.close()
    return _result(setting, shape, taken)


def batch_for(ours: Contender, shape: Shape) -> dict[str, Any]:
    """Return groups of random tokens with random advantages, scored once by our trainer."""
    draw = random.Random(0)
    sequences: list[list[int]] = []
    for _ in range(shape.samples // shape.group_size):
        prompt = draw.choices(range(1000, 40_000), k=shape.prompt_tokens)
        sequences += [
            [*prompt, *draw.choices(range(1000, 40_000), k=shape.completion_tokens)]
            for _ in range(shape.group_size)
        ]
    scored = ours.ask("score", sequences=sequences).answer["logprobs"]
    return {
        "do": "step",
        "sequences": sequences,
        "advantages": [draw.gauss(0.0, 1.0) for _ in sequences],
        "behavior_logprobs": [
            [logprob + draw.uniform(-NOISE, NOISE) for logprob in row] for row in scored
        ],
    }


def _result(setting: Setting, shape: Shape, taken: Mapping[str, Sequence[Taken]]) -> dict[str, Any]:
    measured = {name: of_name for name, of_name in taken.items() if name != "machine"}
    losses = {name: mean(one.answer["loss"] for one in many) for name, many in measured.items()}
    norms = {
        name: mean(one.answer["gradient_norm"] for one in many) for name, many in measured.items()
    }
    _agree("loss", losses, LOSS_DIFFERENCE)
    _agree("gradient norm", norms, NORM_DIFFERENCE * norms[OURS])
    rates = {name: [shape.tokens / one.seconds for one in many] for name, many in measured.items()}
    memory = {name: [one.peak_bytes for one in many] for name, many in measured.items()}
    flops = least_flops(setting, shape)
    floors = [flops / one.answer["flops_per_s"] for one in taken["machine"]]
    return {
        "group_size": shape.group_size,
        "samples": shape.samples,
        "prompt_tokens": shape.prompt_tokens,
        "completion_tokens": shape.completion_tokens,
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "ours_to_theirs": {
            name: ratios(rates[OURS], values) for name, values in rates.items() if name != OURS
        },
        "peak_bytes": {name: max(values) for name, values in memory.items()},
        "our_memory_to_theirs": {
            name: max(memory[OURS]) / max(values) for name, values in memory.items() if name != OURS
        },
        "loss": losses,
        "gradient_norm": norms,
        "floor_s": spread(floors),
        "seconds_to_floor": spread(
            [one.seconds / floor for one, floor in zip(taken[OURS], floors, strict=True)]
        ),
    }


def _agree(what: str, found: Mapping[str, float], bound: float) -> None:
    """Raise SystemExit if somebody did other work than ours."""
    if any(abs(value - found[OURS]) > bound for value in found.values()):
        sys.exit(f"the {what} differs by more than {bound:.3g}, nothing can be compared: {found}")


def least_flops(setting: Setting, shape: Shape) -> float:
    """Return what a step must multiply and add, times two.

    Forward and backward of each distinct token through the layers, without gradients of their
    weights (the adapter's factors are a few percent and left out), attention to what each token
    sees, and the vocabulary for tokens with loss.
    """
    config = json.loads((setting.model.folder / "config.json").read_text(encoding="utf-8"))
    vocabulary = config["vocab_size"] * config["hidden_size"]
    attended = config["num_hidden_layers"] * config["num_attention_heads"] * config["head_dim"]
    prompts, own = shape.samples // shape.group_size, shape.completion_tokens
    distinct = prompts * shape.prompt_tokens + shape.samples * own
    seen = prompts * _triangle(shape.prompt_tokens) + shape.samples * (
        own * shape.prompt_tokens + _triangle(own)
    )
    layers = 4 * (setting.model.parameters - vocabulary) * distinct
    return layers + 12 * attended * seen + 4 * vocabulary * shape.samples * own


def _triangle(tokens: int) -> int:
    return tokens * (tokens + 1) // 2


def _tell(name: str, number: int, one: Taken) -> None:
    if "loss" in one.answer:
        print(
            f"  round {number}: {name}: {one.seconds:.1f} s, {one.peak_bytes / 1e9:.2f} GB, "
            f"loss {one.answer['loss']:.5f}, gradient norm {one.answer['gradient_norm']:.5f}",
            flush=True,
        )
