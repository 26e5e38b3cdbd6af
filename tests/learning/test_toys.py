"""Each method finds the best policy of each toy, and a reward that is luck moves nothing."""

import statistics
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from lab import Outcome, begun, learned, warmed
from recipes import MOST_SAMPLES, RECIPES
from toys import BANDIT, BUDGET, CHAIN, COLOURS, LUCK, Problem

from agentrft.core.run import RolloutRecord

SEEDS = range(5)
SHARE = 0.8
"""Least share of rollouts after training that do the best there is, of 64."""
MOVED, MOVED_ONCE = 0.15, 0.4
"""Most that luck may add to the share of any tool: over the seeds on average, and with one seed."""

Warm = Callable[[Problem, int], Path]


@pytest.fixture(scope="session")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Warm:
    """Warm models, each made once."""
    made: dict[tuple[str, int], Path] = {}

    def model(problem: Problem, seed: int) -> Path:
        name = "bandit" if problem is LUCK else problem.name
        if (name, seed) not in made:
            made[name, seed] = warmed(problem, tmp_path_factory.mktemp(name), seed)
        return made[name, seed]

    return model


def run(warm: Warm, recipe: str, problem: Problem, folder: Path, seed: int) -> Outcome:
    return learned(RECIPES[recipe], problem, folder, seed, warm(problem, seed))


@pytest.mark.parametrize(
    "recipe", ["centred, clip, turn credit", "rejection-sampled SFT", "DPO, mined pairs"]
)
def test_a_method_finds_the_best_policy_of_the_chain(
    warm: Warm, tmp_path: Path, recipe: str
) -> None:
    found = run(warm, recipe, CHAIN, tmp_path, 0)
    assert found.share >= SHARE
    assert found.samples is not None
    assert found.samples <= MOST_SAMPLES


@pytest.mark.slow
@pytest.mark.parametrize("problem", [BANDIT, CHAIN, BUDGET], ids=lambda problem: problem.name)
def test_the_warm_model_knows_the_format_and_not_the_best_policy(
    warm: Warm, tmp_path: Path, problem: Problem
) -> None:
    found = [
        begun(problem, tmp_path / str(seed), seed, warm(problem, seed)).share for seed in SEEDS
    ]
    sys.stdout.write(
        f"\n| {problem.name} | warm model | {[round(share, 2) for share in found]} |\n"
    )
    assert all(0.05 < share < 0.5 for share in found)


@pytest.mark.slow
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_method_finds_the_best_policy_on_five_seeds(
    warm: Warm, tmp_path: Path, recipe: str
) -> None:
    for problem in RECIPES[recipe].problems:
        found = [
            run(warm, recipe, problem, tmp_path / f"{problem.name}-{seed}", seed) for seed in SEEDS
        ]
        sys.stdout.write(f"\n| {problem.name} | {recipe} | {line(found)} |\n")
        assert min(one.share for one in found) >= SHARE, (problem.name, recipe)
        samples = [one.samples for one in found if one.samples is not None]
        assert len(samples) == len(found), (problem.name, recipe)
        assert max(samples) <= MOST_SAMPLES, (problem.name, recipe)


def line(found: Sequence[Outcome]) -> str:
    """Return the cells of the table: median and worst samples, reached, mean and worst share."""
    samples = sorted(one.samples or MOST_SAMPLES for one in found)
    reached = sum(one.samples is not None for one in found)
    shares = [one.share for one in found]
    return (
        f"{statistics.median(samples):.0f} | {samples[-1]} | {reached}/{len(found)} | "
        f"{statistics.fmean(shares):.3f} | {min(shares):.3f}"
    )


@pytest.mark.slow
def test_luck_moves_the_policy_toward_no_tool(warm: Warm, tmp_path: Path) -> None:
    moves: dict[str, list[float]] = {colour: [] for colour in COLOURS}
    for seed in SEEDS:
        before = begun(LUCK, tmp_path / f"before-{seed}", seed, warm(LUCK, seed)).records
        after = run(warm, "centred, clip", LUCK, tmp_path / f"after-{seed}", seed).records
        for colour in COLOURS:
            moves[colour].append(tool_share(after, colour) - tool_share(before, colour))
    sys.stdout.write(f"\n{ {c: [round(m, 2) for m in found] for c, found in moves.items()} }\n")
    assert max(statistics.fmean(found) for found in moves.values()) <= MOVED
    assert max(max(found) for found in moves.values()) <= MOVED_ONCE


def tool_share(records: Sequence[RolloutRecord], tool: str) -> float:
    """Return the share of rollouts whose first call is of this tool."""
    first = Counter(
        record.graded.trajectory.tool_calls[0].name
        for record in records
        if record.graded.trajectory.tool_calls
    )
    return first[tool] / len(records)
