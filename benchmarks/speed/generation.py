"""Part a: tokens per second and per second of processor time, by number of sequences.

Every system continues the same first prompts of the support desk (one system prompt and its tools,
then one customer each) by the same number of tokens at temperature 1; no token ends an answer.
"""

import sys
from collections.abc import Sequence
from typing import Any

from contender import Contender, Taken
from rounds import in_turn, ratios, spread
from setting import DESK, Setting, present

from agentrft.inference.renderer import load_renderer
from agentrft.jobs.project import open_project
from agentrft.rollout.harness import Harness

SEQUENCES = (1, 8, 32, 64)
TOKENS = 128
CONTEXT_TOKENS = 1024
OURS = "AgentRFT"


def prompts(setting: Setting, count: int) -> list[list[int]]:
    """Return what the model reads first, for the first training tasks of the desk."""
    sys.path.insert(0, str(DESK))
    project = open_project(DESK)
    renderer = load_renderer(setting.model.folder)
    harness = Harness(project.spec)
    found: list[list[int]] = []
    for task in project.tasks("train")[:count]:
        begun = harness.conversation(task, project.offered(task), task.messages)
        found.append(list(renderer.start(begun.messages, begun.tools)))
    return found


def measure(setting: Setting) -> None:
    """Run the part and write `speed-generation.json`."""
    tokens = 32 if setting.quick else TOKENS
    asked = prompts(setting, max(SEQUENCES))
    shared = {"most_sequences": max(SEQUENCES), "context_tokens": CONTEXT_TOKENS}
    blocks = max(SEQUENCES) * 4
    contenders = present(
        [
            setting.contender(OURS, "ours_generation.py", shared),
            setting.contender(
                "transformers generate", "transformers_generation.py", {"continuous": False}
            ),
            setting.contender(
                "transformers continuous batching",
                "transformers_generation.py",
                {"continuous": True, "blocks": blocks, "batch_tokens": 512},
            ),
            setting.contender(
                "vLLM CPU",
                "vllm_generation.py",
                shared,
                environment="vllm",
                variables={
                    "VLLM_CPU_KVCACHE_SPACE": "2",
                    "VLLM_CPU_OMP_THREADS_BIND": f"0-{setting.threads - 1}",
                },
            ),
        ]
    )
    floor = setting.contender("machine", "floor.py", {})
    assert floor is not None
    results = [
        _measured(setting, [*contenders, floor], asked[:count], tokens) for count in SEQUENCES
    ]
    for contender in (*contenders, floor):
        contender.close()
    prompt_tokens = sum(map(len, asked)) / len(asked)
    setting.write(
        "generation", {"tokens": tokens, "prompt_tokens": prompt_tokens, "results": results}
    )


def _measured(
    setting: Setting, contenders: Sequence[Contender], asked: list[list[int]], tokens: int
) -> dict[str, Any]:
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
    by_cpu = {
        name: [one.answer["tokens"] / one.cpu_s for one in of_name]
        for name, of_name in taken.items()
    }
    floor_s = _floor_s(setting, machine, asked, tokens)
    return {
        "sequences": len(asked),
        "tokens_per_s": {name: spread(values) for name, values in rates.items()},
        "tokens_per_cpu_s": {name: spread(values) for name, values in by_cpu.items()},
        "ours_to_theirs": {
            name: ratios(rates[OURS], values) for name, values in rates.items() if name != OURS
        },
        "ours_to_theirs_by_cpu": {
            name: ratios(by_cpu[OURS], values) for name, values in by_cpu.items() if name != OURS
        },
        "machine_flops_per_s": spread([one.answer["flops_per_s"] for one in machine]),
        "machine_bytes_per_s": spread([one.answer["bytes_per_s"] for one in machine]),
        "seconds_to_floor": spread(
            [one.seconds / floor for one, floor in zip(taken[OURS], floor_s, strict=True)]
        ),
    }


def _floor_s(
    setting: Setting, machine: Sequence[Taken], asked: list[list[int]], tokens: int
) -> list[float]:
    """Return the least seconds per round: each step reads the weights once or multiplies by them.

    The prompts' common beginning is multiplied once. Attention is left out: at these lengths it
    reads less than a tenth of what the weights are.
    """
    weights = setting.model.parameters
    common = min(common_tokens(asked[0], other) for other in asked)
    computed = common + sum(len(prompt) - common for prompt in asked)
    floors: list[float] = []
    for one in machine:
        step_s = max(
            2 * weights / one.answer["bytes_per_s"],
            2 * weights * len(asked) / one.answer["flops_per_s"],
        )
        floors.append(tokens * step_s + 2 * weights * computed / one.answer["flops_per_s"])
    return floors


def common_tokens(a: Sequence[int], b: Sequence[int]) -> int:
    """Return how many tokens two prompts begin with alike."""
    same = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
    return min(len(a), len(b)) if same is None else same


def _tell(name: str, number: int, one: Taken) -> None:
    if "tokens" in one.answer:
        rate = one.answer["tokens"] / one.seconds
        print(f"  round {number}: {name}: {rate:.0f} tok/s, {one.cpu_s:.1f} s of CPU", flush=True)
