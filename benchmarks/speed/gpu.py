"""Part g: the same work on a GPU, against its bandwidth and its matrix products.

Decoding by number of sequences as in part a, beside `generate` of transformers, and one optimizer step
as in part c. The floor is what the device must at least read (weights once a step, each distinct key
and value once) or multiply, at the rates that its own events measured in the same round. Without a GPU
nothing is measured and nothing is written; `--device cpu --quick` shows that the part runs.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from contender import Contender, Taken
from generation import CONTEXT_TOKENS, OURS, TOKENS, common_tokens, prompts
from rounds import in_turn, ratios, spread
from setting import Setting, present
from training import Shape, adapter_of, batch_for, least_flops

SEQUENCES = (1, 8, 32, 64, 128, 256)
TRAINING = Shape(group_size=8, samples=32, prompt_tokens=410, completion_tokens=102)
MICRO_BATCH_TOKENS = 16_384
"""The whole step at once: a GPU has the memory, and small batches leave it idle."""
QUICK_SEQUENCES = (1, 4)
QUICK_TRAINING = Shape(group_size=8, samples=8, prompt_tokens=52, completion_tokens=12)
NUMBER_BYTES = 2
"""Of a bfloat16."""


def measure(setting: Setting) -> None:
    """Run the part and write `speed-gpu.json`; say why not where there is no GPU."""
    if setting.gpu == "cuda" and not torch.cuda.is_available():
        built = torch.version.cuda
        reason = (
            f"torch {torch.__version__} is built for CUDA {built} and sees no device"
            if built
            else f"torch {torch.__version__} is built without CUDA"
        )
        print(f"gpu: not run, there is no GPU at hand: {reason}")
        return
    if setting.gpu == "cpu" and not setting.quick:
        raise SystemExit("gpu: on 'cpu' this part only shows that it runs; add --quick")
    floor = setting.contender("machine", "floor.py", {"device": setting.gpu})
    assert floor is not None
    with floor:
        found = {
            "tokens": _tokens(setting),
            "results": _decoding(setting, floor),
            "training": _training(setting, floor),
        }
    setting.write("gpu", found)


def _tokens(setting: Setting) -> int:
    return 8 if setting.quick else TOKENS


def _decoding(setting: Setting, floor: Contender) -> list[dict[str, Any]]:
    counts = QUICK_SEQUENCES if setting.quick else SEQUENCES
    some = prompts(setting, max(counts))
    asked = list(itertools.islice(itertools.cycle(some), max(counts)))
    shared = {
        "device": setting.gpu,
        "most_sequences": max(counts),
        "context_tokens": CONTEXT_TOKENS,
    }
    contenders = present(
        [
            setting.contender(OURS, "ours_generation.py", shared),
            setting.contender(
                "transformers generate",
                "transformers_generation.py",
                {"device": setting.gpu, "continuous": False},
            ),
        ]
    )
    results = [_decoded(setting, [*contenders, floor], asked[:count]) for count in counts]
    for contender in contenders:
        contender.close()
    return results


def _decoded(
    setting: Setting, contenders: Sequence[Contender], asked: list[list[int]]
) -> dict[str, Any]:
    tokens = _tokens(setting)

    def ask(contender: Contender, number: int) -> Taken:
        if contender.name == "machine":
            return contender.ask("measure")
        return contender.ask("generate", prompts=asked, tokens=tokens, seed=number)

    taken = in_turn(contenders, ask, rounds=setting.rounds, tell=_tell)
    machine = taken.pop("machine")
    rates = {
        name: [one.answer["tokens"] / one.seconds for one in of_name]
        for name, of_name in taken.items()
    }
    floors = [_decoding_floor_s(setting, one.answer, asked, tokens) for one in machine]
    return {
        "sequences": len(asked),
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "ours_to_theirs": {
            name: ratios(rates[OURS], values) for name, values in rates.items() if name != OURS
        },
        **_rates(machine),
        "seconds_to_floor": spread(
            [one.seconds / least for one, least in zip(taken[OURS], floors, strict=True)]
        ),
    }


def _decoding_floor_s(
    setting: Setting, machine: Mapping[str, float], asked: list[list[int]], tokens: int
) -> float:
    """Return the least seconds for these prompts: each pass is bound by what it reads or multiplies."""
    config = json.loads((setting.model.folder / "config.json").read_text(encoding="utf-8"))
    weights = setting.model.parameters
    # A key and a value of every layer.
    per_token = 2 * config["num_hidden_layers"] * config["num_key_value_heads"]
    per_token *= config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"]
    # The common beginning is computed once, and read once for all sequences.
    common = min(common_tokens(asked[0], other) for other in asked)
    own = sum(len(prompt) - common for prompt in asked)
    multiplied_s = 2 * weights * len(asked) / machine["flops_per_s"]
    seconds = 2 * weights * (common + own) / machine["flops_per_s"]
    for sampled in range(tokens):
        held = common + own + sampled * len(asked)
        read = NUMBER_BYTES * (weights + per_token * held)
        seconds += max(read / machine["bytes_per_s"], multiplied_s)
    return seconds


def _training(setting: Setting, floor: Contender) -> dict[str, Any]:
    shape = QUICK_TRAINING if setting.quick else TRAINING
    ours = setting.contender(
        "AgentRFT training",
        "ours_training.py",
        {
            "device": setting.gpu,
            "adapter": str(adapter_of(setting)),
            "completion_tokens": shape.completion_tokens,
            "micro_batch_tokens": MICRO_BATCH_TOKENS,
        },
    )
    assert ours is not None
    with ours:
        batch = batch_for(ours, shape)

        def ask(contender: Contender, _number: int) -> Taken:
            return contender.ask("measure") if contender is floor else contender.ask(**batch)

        taken = in_turn([ours, floor], ask, rounds=setting.rounds, tell=_tell)
    steps, machine = taken[ours.name], taken[floor.name]
    flops = least_flops(setting, shape)
    return {
        "group_size": shape.group_size,
        "samples": shape.samples,
        "prompt_tokens": shape.prompt_tokens,
        "completion_tokens": shape.completion_tokens,
        "tokens_per_s": spread([shape.tokens / one.seconds for one in steps]),
        "device_peak_bytes": max(one.answer["device_peak_bytes"] for one in steps),
        **_rates(machine),
        "seconds_to_floor": spread(
            [
                one.seconds * rates.answer["flops_per_s"] / flops
                for one, rates in zip(steps, machine, strict=True)
            ]
        ),
    }


def _rates(machine: Sequence[Taken]) -> dict[str, Any]:
    return {
        f"machine_{name}": spread([one.answer[name] for one in machine])
        for name in ("flops_per_s", "bytes_per_s")
    }


def _tell(name: str, number: int, one: Taken) -> None:
    if name == "machine":
        return
    done = f", {one.answer['tokens'] / one.seconds:.0f} tok/s" if "tokens" in one.answer else ""
    print(f"  round {number}: {name}: {one.seconds:.2f} s{done}", flush=True)
