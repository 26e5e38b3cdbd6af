"""Writes what the parts measured into docs/speed.md, between its markers, and draws the charts.

python benchmarks/speed/page.py             # from benchmarks/results/speed-*.json
python benchmarks/speed/page.py --quick --docs /tmp/page    # a copy, from what --quick measured
"""

import argparse
import json
import re
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from chart import bars, lines
from setting import RESULTS, ROOT

PAGE, IMAGES = "speed.md", "images"

Result = Mapping[str, Any]
Charts = dict[str, str]
"""File names with their drawings."""


def generation(found: Result) -> tuple[str, Charts]:
    results = found["results"]
    names = list(results[0]["tokens_per_s"])
    counts = [str(one["sequences"]) for one in results]
    rows = [
        [count, *(_spread(one["tokens_per_s"].get(name)) for name in names), *_against(one, names)]
        for count, one in zip(counts, results, strict=True)
    ]
    others = [f"ours / {name}" for name in names[1:]]
    table = _table(["sequences", *(f"{name}, tok/s" for name in names), *others], rows)
    per_cpu = _table(
        ["sequences", *(f"{name}, tok/CPU-s" for name in names), *others, "seconds / floor"],
        [
            [
                count,
                *(_spread(one["tokens_per_cpu_s"].get(name)) for name in names),
                *_against(one, names, "ours_to_theirs_by_cpu"),
                _spread(one["seconds_to_floor"], 2),
            ]
            for count, one in zip(counts, results, strict=True)
        ],
    )
    drawn = bars(
        "Tokens per second",
        counts,
        {name: [one["tokens_per_s"].get(name) for one in results] for name in names},
        "sequences at once",
    )
    about = f"{found['prompt_tokens']:.0f} prompt tokens, {found['tokens']} sampled per sequence."
    return f"{about}\n\n{table}\n\nBy processor time:\n\n{per_cpu}", {"speed-generation.svg": drawn}


def rollouts(found: Result) -> tuple[str, Charts]:
    results = found["results"]
    names = list(results[0]["rollouts_per_s"])
    delays = [f"{1e3 * one['tool_delay_s']:.0f} ms" for one in results]
    rows = [
        [
            delay,
            *(_spread(one["rollouts_per_s"][name], 2) for name in names),
            *_against(one, names, "ours_to_theirs_rollouts"),
            *_against(one, names, "ours_to_theirs_tokens"),
            *(_rollout(one["per_rollout"][name]) for name in names),
        ]
        for delay, one in zip(delays, results, strict=True)
    ]
    head = [
        "tools take",
        *(f"{name}/s" for name in names),
        *(f"ours / {name}" for name in names[1:]),
        *(f"the same in tokens/s, {name}" for name in names[1:]),
        *(f"{name}: turns, tokens, score" for name in names),
    ]
    drawn = bars(
        "Rollouts per second",
        delays,
        {name: [one["rollouts_per_s"][name] for one in results] for name in names},
        "what a tool takes",
    )
    about = (
        f"{found['tasks']} tasks in groups of {found['group_size']}, at most {found['turns']} turns "
        f"of {found['turn_tokens']} tokens."
    )
    return f"{about}\n\n{_table(head, rows)}", {"speed-rollouts.svg": drawn}


def training(found: Result) -> tuple[str, Charts]:
    results = found["results"]
    names = list(results[0]["tokens_per_s"])
    rows = [
        [
            str(one["group_size"]),
            _shape(one),
            *(_spread(one["tokens_per_s"].get(name)) for name in names),
            *_against(one, names),
            *(_gigabytes(one["peak_bytes"].get(name)) for name in names),
            _spread(one["seconds_to_floor"], 2),
        ]
        for one in results
    ]
    head = [
        "group",
        "prompt:completion",
        *(f"{name}, tok/s" for name in names),
        *(f"ours / {name}" for name in names[1:]),
        *(f"{name}, GB" for name in names),
        "seconds / floor",
    ]
    size = 8 if any(one["group_size"] == 8 for one in results) else results[0]["group_size"]
    of_size = [one for one in results if one["group_size"] == size]
    drawn = bars(
        f"Training tokens per second, groups of {size}",
        [_shape(one) for one in of_size],
        {name: [one["tokens_per_s"].get(name) for one in of_size] for name in names},
        "prompt : completion tokens",
    )
    return _table(head, rows), {"speed-training.svg": drawn}


def learning(found: Result) -> tuple[str, Charts]:
    runs, begin = found["runs"], found["warm_start_score"]
    rows = [
        [run["system"], str(run["seed"]), _minutes(run["seconds_to_target"]), *_end(run)]
        for run in runs
    ]
    table = _table(["system", "seed", "minutes to the target", "steps", "last score"], rows)
    scored = {
        (run["system"], run["seed"]): [one for one in run["steps"] if one["score"] is not None]
        for run in runs
    }
    curves = [
        (name, [(0.0, begin), *((one["seconds"] / 60, one["score"]) for one in steps)])
        for (name, _), steps in scored.items()
    ]
    about = (
        f"Warm start {begin:.3f} on the holdout, target {found['target']:.3f}. Their time to it over "
        f"ours, by seed: **{', '.join(found['theirs_to_ours'])}**."
    )
    drawn = lines("Score on the holdout", curves, "minutes of training")
    return f"{about}\n\n{table}", {"speed-learning.svg": drawn}


def orchestration(found: Result) -> tuple[str, Charts]:
    results = found["results"]
    rows = [
        [
            _variant(one),
            "at once" if not one["answer_s"] else f"after {one['answer_s']:g} s",
            _spread(one["cpu_ms_per_turn"], 2),
            _gigabytes(one["peak_bytes"]),
            *(_spread(one[f"lag_{place}_ms"], 1) for place in ("p50", "p99", "max")),
            f"{one['tokens'] / one['turns']:.0f}",
        ]
        for one in results
    ]
    head = ["tokens are", "answers", "CPU ms / turn", "GB", *_LAGS, "tokens / turn"]
    paces = list(dict.fromkeys(one["answer_s"] for one in results))
    variants = list(dict.fromkeys(_variant(one) for one in results))
    drawn = bars(
        f"Processor time per turn in ms, {found['rollouts']:,} rollouts at once",
        variants,
        {
            f"answers after {pace:g} s" if pace else "answers at once": [
                one["cpu_ms_per_turn"] for one in results if one["answer_s"] == pace
            ]
            for pace in paces
        },
        "what takes part",
    )
    aim = found["aim"]
    about = (
        f"Aimed at: {aim['cpu_ms_per_turn']:g} ms of processor time a turn, "
        f"{_gigabytes(aim['peak_bytes'])} GB."
    )
    return f"{about}\n\n{_table(head, rows)}", {"speed-orchestration.svg": drawn}


_LAGS = ["lag p50, ms", "p99", "max"]


_STORED = {"append_s": "appended, ms", "summary_s": "listed, ms", "record_s": "read whole, ms"}


def growth(found: Result) -> tuple[str, Charts]:
    turns, groups = found["turns"], found["group_sizes"]
    prompts, stored = found["prompt_tokens"], found["stored_trajectories"]
    per_turn = f"{turns['observed_tokens']} observed and {turns['sampled_tokens']} sampled tokens"
    prompt = f"a prompt of {groups['prompt_tokens']} tokens, {groups['sampled_tokens']} sampled"
    last, largest = "Last over second turn", "Largest over smallest"
    per_token = _spread(turns["growth_seconds"], 2)
    seconds = _spread(groups["growth_seconds"], 2)
    appended, listed, read = (_spread(stored[f"growth_{name}"], 2) for name in _STORED)
    parts = [
        f"One conversation, {per_turn} a turn:",
        _growth_table(turns["results"], {"seconds_per_new_token": ("ms / new token", 1e3)}),
        f"{last}: {turns['growth_computed']:.2f} in computed tokens, {per_token} in seconds.",
        f"One group on {prompt} by each:",
        _growth_table(groups["results"], {"seconds_per_rollout": ("ms / rollout", 1e3)}),
        f"{largest}: {groups['growth_computed']:.3f} in computed tokens, {seconds} in seconds.",
        "One prompt that nobody has seen:",
        _growth_table(prompts["results"], {"tokens_per_s": ("tok/s", 1.0)}),
        f"{largest}: {_spread(prompts['growth_seconds'], 2)} in seconds per token.",
        "Trajectories of 360 tokens and four turns in an SQLite store, per record:",
        _growth_table(stored["results"], {name: (unit, 1e3) for name, unit in _STORED.items()}),
        f"{largest}: {appended} for a record appended, {listed} listed, {read} read.",
    ]
    results = turns["results"]
    drawn = lines(
        "Prompt tokens of a turn",
        [
            ("in the prompt", [(one["turn"], one["prompt_tokens"]) for one in results]),
            ("computed", [(one["turn"], one["computed_prompt_tokens"]) for one in results]),
        ],
        "turn of one conversation",
    )
    return "\n\n".join(parts), {"speed-growth.svg": drawn}


def gpu(found: Result) -> tuple[str, Charts]:
    results, step = found["results"], found["training"]
    names = list(results[0]["tokens_per_s"])
    counts = [str(one["sequences"]) for one in results]
    head = [
        "sequences",
        *(f"{name}, tok/s" for name in names),
        *(f"ours / {name}" for name in names[1:]),
        *_CEILINGS,
    ]
    rows = [
        [
            count,
            *(_spread(one["tokens_per_s"].get(name)) for name in names),
            *_against(one, names),
            *_ceilings(one),
        ]
        for count, one in zip(counts, results, strict=True)
    ]
    trained = _table(
        ["group", "prompt:completion", "tok/s", "GB on the device", *_CEILINGS],
        [
            [
                str(step["group_size"]),
                _shape(step),
                _spread(step["tokens_per_s"]),
                _gigabytes(step["device_peak_bytes"]),
                *_ceilings(step),
            ]
        ],
    )
    drawn = bars(
        "Tokens per second on the GPU",
        counts,
        {name: [one["tokens_per_s"].get(name) for one in results] for name in names},
        "sequences at once",
    )
    about = f"{found['tokens']} tokens sampled per sequence:"
    return (
        f"{about}\n\n{_table(head, rows)}\n\nOne optimizer step:\n\n{trained}",
        {"speed-gpu.svg": drawn},
    )


_CEILINGS = ["TFLOP/s of products", "GB/s copied", "seconds / floor"]


def _ceilings(one: Result) -> Iterator[str]:
    yield _spread(one["machine_flops_per_s"], 0, 1e-12)
    yield _spread(one["machine_bytes_per_s"], 0, 1e-9)
    yield _spread(one["seconds_to_floor"], 2)


PARTS: Mapping[str, Callable[[Result], tuple[str, Charts]]] = {
    "generation": generation,
    "rollouts": rollouts,
    "training": training,
    "learning": learning,
    "orchestration": orchestration,
    "growth": growth,
    "gpu": gpu,
}
_NOT_MEASURED = {"gpu": "Not measured yet: no GPU was at hand."}


def main() -> None:
    """Write page and charts."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--docs", type=Path, default=ROOT / "docs")
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    page, images = given.docs / PAGE, given.docs / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    if given.docs != ROOT / "docs":
        shutil.copyfile(ROOT / "docs" / PAGE, page)
    elif given.quick:
        parser.error("--quick is not to be quoted: give another folder with --docs")
    text = page.read_text(encoding="utf-8")
    for part, written in PARTS.items():
        file = RESULTS / f"speed-{part}{'-quick' if given.quick else ''}.json"
        body = _NOT_MEASURED.get(part, "Not measured yet.")
        if file.exists():
            found = json.loads(file.read_text(encoding="utf-8"))
            told, charts = written(found)
            for name, drawn in charts.items():
                (images / name).write_text(drawn, encoding="utf-8")
            pictures = "\n".join(f"![{part}]({IMAGES}/{name})" for name in charts)
            body = f"{_machine(found)}\n\n{told}\n\n{pictures}"
        text = _placed(text, part, body)
    page.write_text(text, encoding="utf-8")


def _placed(text: str, part: str, body: str) -> str:
    """Put a part's text between its markers. Raises ValueError if the page has none."""
    begin, end = f"<!-- {part} -->", f"<!-- end of {part} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    placed, count = pattern.subn(lambda _: f"{begin}\n\n{body}\n\n{end}", text)
    if count != 1:
        raise ValueError(f"{PAGE} has {count} places for {part!r}; it needs one, {begin} to {end}")
    return placed


def _machine(found: Result) -> str:
    return (
        f"{found['when']}, {found['machine']}, {found['threads']} threads, torch {found['torch']}."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines_of = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines_of)


def _growth_table(results: Sequence[Result], measured: Mapping[str, tuple[str, float]]) -> str:
    """Return counts as they are and what `measured` names in its unit."""
    head = [measured[name][0] if name in measured else _words(name) for name in results[0]]
    return _table(
        head,
        [
            [
                _spread(value, 0 if name == "tokens_per_s" else 2, measured[name][1])
                if name in measured
                else f"{value:,.4g}"
                for name, value in one.items()
            ]
            for one in results
        ],
    )


def _words(name: str) -> str:
    return name.replace("_", " ")


def _spread(value: Mapping[str, float] | None, digits: int = 0, scale: float = 1.0) -> str:
    """Return a middle with its lowest and highest; nothing for a system that was not there."""
    if value is None:
        return ""
    middle, low, high = (value[name] * scale for name in ("middle", "low", "high"))
    return f"{middle:,.{digits}f} ({low:,.{digits}f} to {high:,.{digits}f})"


def _against(one: Result, names: Sequence[str], kind: str = "ours_to_theirs") -> Iterator[str]:
    """Return the ratios to every system but the first, which is ours."""
    for name in names[1:]:
        yield f"**{_spread(one[kind][name], 2)}**"


def _rollout(of_name: Mapping[str, float]) -> str:
    return f"{of_name['turns']:.1f}, {of_name['tokens']:.0f}, {of_name['score']:.2f}"


def _shape(one: Result) -> str:
    return f"{one['prompt_tokens']}:{one['completion_tokens']}"


def _gigabytes(count: float | None) -> str:
    return "" if count is None else f"{count / 1e9:.2f}"


def _variant(one: Result) -> str:
    return f"{one['renderer']}{', stored' if one['stored'] else ''}"


def _minutes(seconds: float | str) -> str:
    return seconds if isinstance(seconds, str) else f"{seconds / 60:.1f}"


def _end(run: Result) -> list[str]:
    scores = [step["score"] for step in run["steps"] if step["score"] is not None]
    return [str(len(run["steps"])), f"{scores[-1]:.3f}" if scores else ""]


main()
