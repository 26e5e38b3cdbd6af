"""Part d: wall time to a stated holdout reward, ours against TRL's GRPOTrainer.

Same warm-started weights, tasks, tools, grader, groups, bounds on sampling, learning rate and shape
of the adapter; what else TRL decides is left as it ships. A clock runs from the first step on, and
every few steps the adapter is kept. Afterwards one evaluator, our engine and the desk's grader, plays
all of them on the same held-out tasks. The target is set before: the warm start's own score there
plus `MARGIN`. We go first, and TRL may take `PATIENCE` times what took us there. What is done lies in
`bench/` of the home folder, a folder per system and seed, and is not done again: remove what other
code made.
"""

import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from contender import Contender
from setting import Setting
from warm_start import SPEED_DESK, desk_path, desk_settings, warm_start

from agentrft.jobs.project import open_project

MARGIN = 0.15
PATIENCE = 6.0
"""More would not change whether it took five times as long."""
OURS, TRL = "AgentRFT", "TRL"
NOT_REACHED = "not reached"
WORKERS = {OURS: ("ours_learning.py", ""), TRL: ("trl_learning.py", "trl")}


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What a training and an evaluation come to."""

    steps: int = 26
    every: int = 2
    """Steps between adapters that are kept."""
    tasks_per_step: int = 8
    group_size: int = 8
    holdout_tasks: int = 100
    holdout_samples: int = 2


QUICK = Sizes(steps=2, every=1, tasks_per_step=2, group_size=4, holdout_tasks=8, holdout_samples=1)


def measure(setting: Setting) -> None:
    """Run what is missing and write `speed-learning.json`."""
    sizes = QUICK if setting.quick else Sizes()
    model = warm_start(setting)
    bench = Bench(
        setting=setting,
        sizes=sizes,
        told=_told(setting, model, sizes),
        kept=setting.home / "bench" / f"learning-{model.name}{'-quick' if setting.quick else ''}",
    )
    evaluator = setting.contender(
        "AgentRFT evaluation", "ours_evaluation.py", bench.told, variables=desk_path()
    )
    assert evaluator is not None
    begin = bench.score(evaluator, "")
    target = begin + MARGIN
    runs: list[dict[str, Any]] = []
    seeds = range(1 if setting.quick else setting.seeds)
    for seed in seeds:
        most_seconds = math.inf
        for name in WORKERS:
            run = bench.run(evaluator, name, seed, target, most_seconds)
            if run is None:
                continue
            runs.append(run)
            if run["seconds_to_target"] != NOT_REACHED:
                most_seconds = PATIENCE * run["seconds_to_target"]
    evaluator.close()
    setting.write(
        "learning",
        {
            "sizes": asdict(sizes),
            "learning_rate": bench.told["learning_rate"],
            "warm_start_score": begin,
            "target": target,
            "theirs_to_ours": [_ratio(runs, seed) for seed in seeds],
            "runs": runs,
        },
    )


def _ratio(runs: Sequence[Mapping[str, Any]], seed: int) -> str:
    """Return how many times our seconds to the target theirs are, in words if one is missing."""
    found = {run["system"]: run for run in runs if run["seed"] == seed}
    if len(found) < len(WORKERS) or found[OURS]["seconds_to_target"] == NOT_REACHED:
        return "unknown"
    ours, theirs = found[OURS]["seconds_to_target"], found[TRL]["seconds_to_target"]
    if theirs == NOT_REACHED:
        return f"more than {found[TRL]['seconds'] / ours:.2f}"
    return f"{theirs / ours:.2f}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """The comparison as far as it has come."""

    setting: Setting
    sizes: Sizes
    told: Mapping[str, Any]
    """What every worker is told."""
    kept: Path

    def run(
        self, evaluator: Contender, name: str, seed: int, target: float, most_seconds: float
    ) -> dict[str, Any] | None:
        """Return what a system has come to, its adapters scored; None if it is not at hand."""
        steps = self.trained(name, seed, most_seconds)
        if not steps:
            return None
        scored = [
            {
                "step": step["step"],
                "seconds": step["seconds"],
                "reward": step["reward"],
                "score": self.score(evaluator, step["adapter"]) if step["adapter"] else None,
            }
            for step in steps
        ]
        reached = [step["seconds"] for step in scored if (step["score"] or 0.0) >= target]
        return {
            "system": name,
            "seed": seed,
            "seconds_to_target": reached[0] if reached else NOT_REACHED,
            "seconds": steps[-1]["seconds"],
            "steps": scored,
        }

    def trained(self, name: str, seed: int, most_seconds: float) -> list[dict[str, Any]]:
        """Train once and return the steps: seconds since the first began, reward, adapter or ""."""
        folder = self.kept / f"{name}-{seed}"
        done = folder / "steps.json"
        if done.exists():
            print(f"{name}, seed {seed}: kept in {folder}", flush=True)
            return json.loads(done.read_text(encoding="utf-8"))
        if folder.exists():
            shutil.rmtree(folder)  # it was interrupted, and its clock cannot go on
        script, environment = WORKERS[name]
        worker = self.setting.contender(
            f"{name} learning", script, self.told, environment=environment, variables=desk_path()
        )
        if worker is None:
            return []
        with worker:
            taken = worker.ask("learn", folder=str(folder), seed=seed, most_seconds=most_seconds)
        steps = taken.answer["steps"]
        print(f"  {name}, seed {seed}: {len(steps)} steps in {taken.seconds:.0f} s", flush=True)
        done.write_text(json.dumps(steps, indent=1), encoding="utf-8")
        return steps

    def score(self, evaluator: Contender, adapter: str) -> float:
        """Return the mean score on the held-out tasks; "" are the weights all began from."""
        file = (Path(adapter) if adapter else self.kept) / "holdout.json"
        if file.exists():
            return json.loads(file.read_text(encoding="utf-8"))
        found = evaluator.ask("evaluate", adapter=adapter).answer["score"]
        print(f"  {adapter or 'warm start'}: {found:.3f} on the holdout", flush=True)
        file.write_text(json.dumps(found), encoding="utf-8")
        return found


def _told(setting: Setting, model: Path, sizes: Sizes) -> dict[str, Any]:
    config = open_project(SPEED_DESK).config.methods.reinforcement
    adapter = config.trainer.adapter
    return {
        **desk_settings(
            setting, model, tasks_per_step=sizes.tasks_per_step, group_size=sizes.group_size
        ),
        **asdict(sizes),
        "adapter": {
            "rank": adapter.rank,
            "alpha": adapter.alpha,
            "targets": sorted(adapter.targets),
        },
        "learning_rate": config.trainer.optimizer.learning_rate,
    }
