"""Ours against what else a user could run, side by side in one run; a file of results per part.

    make bench                                  # every part; hours
    python benchmarks/speed generation          # one of them
    python benchmarks/speed --quick             # sizes that end in minutes, not to be quoted

Systems take turns, round after round, and ratios are taken within a round.
"""

import argparse
from pathlib import Path

import desk_rollouts
import generation
import gpu
import growth
import learning
import orchestration
import training
from setting import ROOT, Setting, home

PARTS = {
    "generation": generation.measure,
    "rollouts": desk_rollouts.measure,
    "training": training.measure,
    "learning": learning.measure,
    "orchestration": orchestration.measure,
    "growth": growth.measure,
    "gpu": gpu.measure,
}


def main() -> None:
    """Run the parts that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, []], help="all of them if none is named"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seeds", type=int, default=2, help="trainings per system (learning)")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument(
        "--device", choices=["cuda", "cpu"], default="cuda", help="of the part gpu alone"
    )
    parser.add_argument("--environments", type=Path, default=ROOT / ".bench")
    given = parser.parse_args()
    setting = Setting(
        home=home(),
        environments=given.environments,
        threads=given.threads,
        rounds=2 if given.quick else given.rounds,
        seeds=given.seeds,
        gpu=given.device,
        quick=given.quick,
    )
    for part in given.parts or PARTS:
        print(f"--- {part}", flush=True)
        PARTS[part](setting)


main()
