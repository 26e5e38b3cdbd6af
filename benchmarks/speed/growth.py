"""Part f: what the next turn, the next rollout, the next prompt token and the next record cost.

Counts of computed tokens are the claim, they are the same on every machine; seconds illustrate it. Each
line ends with its growth: the cost of a unit at the largest size over that at the smallest.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from contender import Contender, Taken
from rounds import in_turn, ratios, spread
from setting import Setting

TURNS, OBSERVED, SAMPLED = 16, 64, 64
GROUP_SIZES, GROUP_PROMPT = (1, 2, 4, 8, 16, 32), 512
PROMPTS = (128, 256, 512, 1024, 2048)
RECORDS = (1_000, 10_000, 100_000)

Line = dict[str, Any]


def measure(setting: Setting) -> None:
    """Run the part and write `speed-growth.json`."""
    setting.write(
        "growth",
        {
            "turns": _turns(setting),
            "group_sizes": _groups(setting),
            "prompt_tokens": _prompts(setting),
            "stored_trajectories": _stored(setting),
        },
    )


def _engine(setting: Setting, sequences: int, context_tokens: int) -> Contender:
    told = {"most_sequences": sequences, "context_tokens": context_tokens}
    engine = setting.contender("AgentRFT growth", "ours_growth.py", told)
    assert engine is not None
    return engine


def _turns(setting: Setting) -> dict[str, Any]:
    """One conversation whose context grows: a turn computes what is new to it."""
    turns = 4 if setting.quick else TURNS
    context_tokens = turns * (OBSERVED + SAMPLED) + 1
    with _engine(setting, 1, context_tokens) as engine:
        taken = [
            engine.ask(
                "converse", turns=turns, observed=OBSERVED, sampled=SAMPLED, seed=number * 1000
            )
            for number in range(1 + setting.rounds)
        ][1:]
    rounds = [one.answer["turns"] for one in taken]
    # The last token of an answer is sampled, not computed; the next turn does it.
    new = [OBSERVED + (turn > 0) + SAMPLED for turn in range(turns)]
    seconds = [
        [did["busy_s"] / new[turn] for turn, did in enumerate(of_round)] for of_round in rounds
    ]
    lines = [
        {
            "turn": turn + 1,
            "prompt_tokens": rounds[0][turn]["prompt_tokens"],
            "computed_prompt_tokens": rounds[0][turn]["prefilled_tokens"],
            "seconds_per_new_token": spread([of_round[turn] for of_round in seconds]),
        }
        for turn in range(turns)
    ]
    return {
        "observed_tokens": OBSERVED,
        "sampled_tokens": SAMPLED,
        "results": lines,
        # From the second on: the first has no tokens before it and computes one less.
        "growth_computed": lines[-1]["computed_prompt_tokens"] / lines[1]["computed_prompt_tokens"],
        "growth_seconds": ratios([one[-1] for one in seconds], [one[1] for one in seconds]),
    }


def _groups(setting: Setting) -> dict[str, Any]:
    """Rollouts of one task: their prompt is computed once."""
    sizes = GROUP_SIZES[:4] if setting.quick else GROUP_SIZES
    sampled = 8 if setting.quick else SAMPLED
    with _engine(setting, max(sizes), GROUP_PROMPT + sampled + 1) as engine:
        of_size = _by_size(setting, engine, sizes, lambda size: (size, GROUP_PROMPT, sampled))
    computed = {size: of_size[size][0].answer["prefilled_tokens"] / size for size in sizes}
    seconds = {
        size: [one.answer["busy_s"] / size for one in taken] for size, taken in of_size.items()
    }
    return {
        "prompt_tokens": GROUP_PROMPT,
        "sampled_tokens": sampled,
        "results": [
            {
                "group_size": size,
                "computed_prompt_tokens_per_rollout": computed[size],
                "seconds_per_rollout": spread(seconds[size]),
            }
            for size in sizes
        ],
        "growth_computed": computed[sizes[-1]] / computed[sizes[0]],
        "growth_seconds": ratios(seconds[sizes[-1]], seconds[sizes[0]]),
    }


def _prompts(setting: Setting) -> dict[str, Any]:
    """One prompt nobody has seen, and one token after it."""
    sizes = PROMPTS[:3] if setting.quick else PROMPTS
    with _engine(setting, 1, max(sizes) + 2) as engine:
        of_size = _by_size(setting, engine, sizes, lambda size: (1, size, 1))
    seconds = {
        size: [one.answer["busy_s"] / size for one in taken] for size, taken in of_size.items()
    }
    return {
        "results": [
            {
                "prompt_tokens": size,
                "computed_prompt_tokens": of_size[size][0].answer["prefilled_tokens"],
                "tokens_per_s": spread([1 / one for one in seconds[size]]),
            }
            for size in sizes
        ],
        "growth_seconds": ratios(seconds[sizes[-1]], seconds[sizes[0]]),
    }


def _stored(setting: Setting) -> dict[str, Any]:
    """A step's records appended to, and the last page read from, stores of different sizes."""
    sizes = RECORDS[:2] if setting.quick else RECORDS
    names = {f"store of {size}": size for size in sizes}
    with ExitStack() as stores:
        contenders: list[Contender] = []
        for name, size in names.items():
            folder = str(setting.home / "bench" / name)
            store = setting.contender(name, "ours_store.py", {"folder": folder})
            assert store is not None
            contenders.append(stores.enter_context(store))
            store.ask("fill", records=size)
        taken = in_turn(
            contenders, lambda store, _number: store.ask("measure"), rounds=setting.rounds
        )
    units = ("append_s", "summary_s", "record_s")
    costs = {
        size: {unit: [one.answer[unit] for one in taken[name]] for unit in units}
        for name, size in names.items()
    }
    return {
        "results": [{"trajectories": size, **_spreads(of_size)} for size, of_size in costs.items()],
        **{
            f"growth_{unit}": ratios(costs[sizes[-1]][unit], costs[sizes[0]][unit])
            for unit in units
        },
    }


def _by_size(
    setting: Setting,
    engine: Contender,
    sizes: Sequence[int],
    group: Callable[[int], tuple[int, int, int]],
) -> dict[int, list[Taken]]:
    """Ask for a group of every size, round after round; the first round warms up.

    `group` says for a size how many rollouts, of how long a prompt, sample how many tokens.
    """
    taken: dict[int, list[Taken]] = {size: [] for size in sizes}
    for number in range(1 + setting.rounds):
        for size in sizes:
            rollouts, prompt_tokens, sampled = group(size)
            one = engine.ask(
                "group",
                size=rollouts,
                prompt_tokens=prompt_tokens,
                sampled=sampled,
                seed=number * 1000,
            )
            print(f"  round {number - 1}: {size}: {one.answer['busy_s']:.2f} s", flush=True)
            if number:
                taken[size].append(one)
    return taken


def _spreads(values: Mapping[str, Sequence[float]]) -> Line:
    return {name: spread(of_name) for name, of_name in values.items()}
