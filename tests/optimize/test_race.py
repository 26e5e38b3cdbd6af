import asyncio
from dataclasses import replace

from planting import Planting, null_effects

from agentrft.optimize.planted import Planted, PlantedTrials, planted_knobs, planted_tasks
from agentrft.optimize.purse import Purse, schedule
from agentrft.optimize.race import Placed, race
from agentrft.optimize.variants import Variant, variant

EFFECTS = [Planted(knob="good", shift=2.0), Planted(knob="bad", shift=-2.0), *null_effects(4)]
DEV = planted_tasks("dev", 40, mean=0.4, seed=0)


def field() -> list[Variant]:
    baseline = Planting(effects=EFFECTS).problem.baseline
    knobs = planted_knobs(EFFECTS)
    return [
        variant(baseline, {}),
        *(variant(baseline, {knob: level}) for knob in knobs for level in knob.levels),
    ]


def raced(trials: PlantedTrials, *, rollouts: int = 10_000) -> list[Placed]:
    purse = Purse(trials, rollouts=rollouts, minutes=1e6, kept=0, holdout=[])
    return asyncio.run(
        race(
            field(),
            1,
            purse,
            lambda count: schedule(DEV, 5, count),
            tasks=10,
            finish=2,
            threshold=1.0,
            name="race",
        )
    )


def test_the_better_half_goes_on_and_the_baseline_always_does() -> None:
    trials = PlantedTrials(effects=EFFECTS)
    placed = raced(trials)
    assert len(placed) == len(field())
    assert placed[0].variant.settings == {"good": "on"}
    last = [one for one in placed if one.ended == placed[0].ended]
    assert [one.pairs for one in last] == [40] * 3
    assert sum(one.variant.is_baseline for one in last) == 1
    bad = next(one for one in placed if one.variant.settings == {"bad": "on"})
    assert bad.ended == "race round 1"


def test_arms_of_a_round_share_tasks_and_samples() -> None:
    trials = PlantedTrials(effects=EFFECTS)
    raced(trials)
    for purpose in {request.purpose for request in trials.requested}:
        of_arm: dict[int, list[tuple[str, int]]] = {}
        for request in trials.requested:
            if request.purpose == purpose:
                of_arm.setdefault(id(request.spec), []).append((request.task.id, request.sample))
        pairs = list(of_arm.values())
        assert all(one == pairs[0] for one in pairs)


def test_a_race_that_runs_out_of_budget_stands_as_it_is() -> None:
    for rollouts in (0, 40, 80, 120, 150):
        trials = PlantedTrials(effects=EFFECTS)
        placed = raced(trials, rollouts=rollouts)
        assert trials.executed <= rollouts
        assert len(placed) in (0, len(field()))
        # Less than half a first round would be a lottery: nobody is placed by it.
        assert all(one.pairs > 5 for one in placed if one.ended == placed[0].ended)
        ends = [one.pairs for one in placed]
        assert ends == sorted(ends, reverse=True)


def test_the_round_through_tasks_goes_on_with_the_next_sample() -> None:
    pairs = schedule(DEV[:3], 2, 5)
    assert [(task.id, sample) for task, sample in pairs] == [
        ("dev-2", 0), ("dev-0", 1), ("dev-1", 1), ("dev-2", 1), ("dev-0", 2)
    ]  # fmt: skip


def test_equal_pass_rates_are_decided_by_the_mean_score() -> None:
    trials = PlantedTrials(effects=EFFECTS, partial=0.3)
    hopeless = [replace(task, row={"chance": 0.0}) for task in DEV]
    purse = Purse(trials, rollouts=10_000, minutes=1e6, kept=0, holdout=[])
    placed = asyncio.run(
        race(
            field(),
            1,
            purse,
            lambda count: schedule(hopeless, 0, count),
            tasks=10,
            finish=2,
            threshold=1.0,
            name="race",
        )
    )
    assert placed[0].variant.settings == {"good": "on"}
    assert placed[-1].variant.settings == {"bad": "on"}
