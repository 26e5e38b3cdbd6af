"""Every method on one project, several seeds, in one table.

    python benchmarks/methods.py examples/support_desk
    python benchmarks/methods.py examples/support_desk --seeds 0 --preset quick

Each seed runs the whole climb (`agentrft improve`), and under the project's own prompt a warm start,
then own successes, preferences and reinforcement from it. All are measured on the whole holdout
with `--preset`, and `agentrft compare` pools the seeds. What is done stands in `methods.json` of the
home folder, so that an interrupted benchmark goes on where it was.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
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
    """`methods.json`: run id and last weights by step."""

    def done(self) -> dict[str, dict[str, str]]:
        return json.loads(self.kept.read_text()) if self.kept.exists() else {}

    def step(self, name: str, command: Sequence[str], seed: int) -> dict[str, str]:
        """Run a command of ours once, or go on with it; return its run and its weights."""
        key = f"{self.project.name} {self.preset} {seed} {name}"
        if key in self.done():
            return self.done()[key]
        found = self._run(
            [*command, "--seed", str(seed)], resume=f"{key} begun" in self.done(), key=key
        )
        self.kept.write_text(json.dumps({**self.done(), key: found}, indent=1))
        return found

    def _run(self, command: Sequence[str], *, resume: bool, key: str) -> dict[str, str]:
        print(f"--- {' '.join(command)}", flush=True)
        self.kept.write_text(json.dumps({**self.done(), f"{key} begun": {}}, indent=1))
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
        if lines.wait() != 0:
            sys.exit(f"{' '.join(command)} ended with {lines.returncode}; run this again to go on")
        return found

    def measured(self, name: str, weights: str, seed: int) -> str:
        command = ["evaluate", str(self.project), *(["--checkpoint", weights] if weights else [])]
        return self.step(f"{name} measured", command, seed)["run"]

    def trained(self, name: str, method: str, start: str, seed: int) -> str:
        command = ["train", str(self.project), method, *(["--start", start] if start else [])]
        return self.step(name, command, seed)["weights"]

    def seed(self, seed: int) -> list[str]:
        """Run one seed; return what `agentrft compare` is to be given."""
        project = str(self.project)
        named = [f"climb={self.step('climb', ['improve', project], seed)['run']}"]
        warm = self.trained(WARM, "supervised", "", seed)
        named.append(f"{WARM}={self.measured(WARM, warm, seed)}")
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
    given = parser.parse_args()
    home = Path(os.environ.get("AGENTRFT_HOME", Path.home() / ".agentrft"))
    home.mkdir(parents=True, exist_ok=True)
    bench = Bench(project=given.project, preset=given.preset, kept=home / "methods.json")
    named = [run for seed in given.seeds for run in bench.seed(seed)]
    subprocess.run([sys.executable, "-m", "agentrft", "compare", *named], check=True)


if __name__ == "__main__":
    main()
