"""Every method on one project, several seeds, in one table.

    python benchmarks/methods.py examples/support_desk
    python benchmarks/methods.py examples/support_desk --seeds 0 --preset quick
    python benchmarks/methods.py examples/support_desk --part single

Each seed runs the whole climb (`agentrft improve`), and under the project's own prompt a warm start,
then own successes, preferences and reinforcement from it. All are measured on the same holdout tasks
with `--preset`, and `agentrft compare` pools the seeds. What is done lies in `methods/` of the home
folder, a file per step: an interrupted benchmark goes on where it was, and the climb and the single
methods can run side by side, one process for each part.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

WARM = "imitation"
FROM_WARM = {
    "own successes": "rejection",
    "preferences": "preference",
    "reinforcement after imitation": "reinforcement",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bench:
    """One project's benchmark, as far as it has come."""

    project: Path
    preset: str
    kept: Path
    """A file per step: its run and its last weights; empty while it runs."""

    def step(self, name: str, command: Sequence[str], seed: int) -> dict[str, str]:
        """Run a command of ours once, or go on with it; return its run and its weights."""
        file = self.kept / f"{self.project.name}-{self.preset}-{seed}-{name.replace(' ', '-')}.json"
        begun = file.exists()
        if begun and (found := json.loads(file.read_text() or "{}")):
            return found
        found = self._run([*command, "--seed", str(seed)], resume=begun, started=file.touch)
        file.write_text(json.dumps(found))
        return found

    def _run(
        self, command: Sequence[str], *, resume: bool, started: Callable[[], None]
    ) -> dict[str, str]:
        print(f"--- {' '.join(command)}", flush=True)
        options = [*(["--preset", self.preset] if self.preset else []), *(["--resume"] * resume)]
        lines = subprocess.Popen(
            [sys.executable, "-m", "agentrft", *command, *options],
            stdout=subprocess.PIPE,
            text=True,
        )
        found: dict[str, str] = {}
        assert lines.stdout is not None
        for line in lines.stdout:
            print(line, end="", flush=True)
            word, _, rest = line.partition(" ")
            if word in ("run", "weights"):
                found[word] = rest.strip()
                started()
        if lines.wait() != 0:
            sys.exit(f"{' '.join(command)} ended with {lines.returncode}; run this again to go on")
        return found

    def measured(self, name: str, weights: str, seed: int) -> str:
        command = ["evaluate", str(self.project), *(["--checkpoint", weights] if weights else [])]
        return self.step(f"{name} measured", command, seed)["run"]

    def trained(self, name: str, method: str, start: str, seed: int) -> str:
        command = ["train", str(self.project), method, *(["--start", start] if start else [])]
        return self.step(name, command, seed)["weights"]

    def climb(self, seed: int) -> list[str]:
        """Run the whole climb; return what `agentrft compare` is to be given."""
        return [f"climb={self.step('climb', ['improve', str(self.project)], seed)['run']}"]

    def single(self, seed: int) -> list[str]:
        """Run each method by itself; return what `agentrft compare` is to be given."""
        warm = self.trained(WARM, "supervised", "", seed)
        named = [f"{WARM}={self.measured(WARM, warm, seed)}"]
        for name, method in FROM_WARM.items():
            weights = self.trained(name, method, warm, seed)
            named.append(f"{name}={self.measured(name, weights, seed)}")
        return named


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("project", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--preset", default="compare", help="settings in agent.toml")
    parser.add_argument("--part", choices=["climb", "single"], help="only this, without the table")
    given = parser.parse_args()
    home = Path(os.environ.get("AGENTRFT_HOME", Path.home() / ".agentrft"))
    bench = Bench(project=given.project, preset=given.preset, kept=home / "methods")
    bench.kept.mkdir(parents=True, exist_ok=True)
    parts = {"climb": bench.climb, "single": bench.single}
    run = [parts[given.part]] if given.part else [*parts.values()]
    named = [arm for seed in given.seeds for part in run for arm in part(seed)]
    if not given.part:
        subprocess.run([sys.executable, "-m", "agentrft", "compare", *named], check=True)


if __name__ == "__main__":
    main()
