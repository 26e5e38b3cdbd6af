import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
from planting import CONFIG, QUICK, Planting, null_effects
from scipy.stats import binom

from agentrft.core.task import Demonstration, Message
from agentrft.measure.diagnosis import FailureClass
from agentrft.optimize.planted import (
    Planted,
    PlantedDeathError,
    fabricated,
    planted_knobs,
    planted_tasks,
)
from agentrft.optimize.problem import Found, Known
from agentrft.optimize.search import search
from agentrft.optimize.trials import BudgetSpentError, TrialRequest
from agentrft.optimize.variants import Knob, Level

MALFORMED = FailureClass.MALFORMED_CALL
GOOD = Planted(knob="good", shift=1.2)
"""About 15 points where tasks are as different as here."""


def as_decided(found: Found) -> Found:
    """What was found, without the ledger's totals, which say what was answered from memory."""
    return replace(found, summary=replace(found.summary, spent={}))


def test_idle_changes_are_promoted_no_more_often_than_alpha_allows() -> None:
    seeds = 16
    promoted = sum(
        planting.found(planting.trials()).summary.promoted
        for seed in range(seeds)
        for planting in [Planting(effects=null_effects(6), seed=seed)]
    )
    assert promoted <= binom.ppf(0.999, seeds, CONFIG.alpha)


def test_a_treatment_worth_fifteen_points_is_found_and_promoted() -> None:
    seeds, found = 15, 0
    for seed in range(seeds):
        planting = Planting(effects=[GOOD, *null_effects(6)], seed=seed)
        result = planting.found(planting.trials())
        found += result.summary.promoted and "good" in result.summary.chosen
    assert found >= 0.8 * seeds


def test_a_guard_that_does_harm_is_rejected() -> None:
    for seed in range(6):
        harm = Planted(knob="guard", shift=-1.2)
        planting = Planting(effects=[harm, *null_effects(3)], seed=seed)
        summary = planting.found(planting.trials()).summary
        assert "guard" not in summary.chosen
        [effect] = [effect for effect in summary.effects if effect.knob == "guard"]
        assert effect.effect.value < 0


def test_the_ledger_equals_what_was_executed() -> None:
    planting = Planting(effects=[GOOD], config=QUICK)
    trials = planting.trials()
    spent = planting.found(trials).summary.spent
    assert spent["rollouts"] == trials.executed
    assert sum(spent["by_purpose"].values()) == trials.executed
    asked = {(id(r.spec), r.split, r.task.id, r.sample) for r in trials.requested}
    assert len(asked) >= trials.executed


def test_a_killed_search_goes_on_and_finds_the_same() -> None:
    planting = Planting(effects=[GOOD, *null_effects(3)], config=QUICK, seed=3)
    whole = planting.trials()
    straight = planting.found(whole)
    for dies_after in (
        1,
        *(whole.executed * part // 5 for part in (1, 2, 3, 4)),
        whole.executed - 1,
    ):
        first = planting.trials(dies_after=dies_after)
        with pytest.raises(PlantedDeathError):
            planting.found(first)
        second = planting.trials(after=first)
        again = planting.found(second)
        assert as_decided(again) == as_decided(straight)
        assert first.executed + second.executed == whole.executed
        assert again.summary.spent["rollouts"] == whole.executed
        assert again.summary.spent["by_purpose"] == straight.summary.spent["by_purpose"]
    finished = planting.trials(after=whole)
    assert as_decided(planting.found(finished)) == as_decided(straight)
    assert finished.executed == 0


def test_a_search_that_ran_out_of_time_finds_the_same_when_it_is_run_again() -> None:
    config = replace(QUICK, minutes=10.0)
    planting = Planting(effects=[GOOD, *null_effects(3)], config=config)
    first = planting.trials(seconds=1.0)
    found = planting.found(first)
    assert any("budget" in note for note in found.summary.notes)
    again = planting.trials(seconds=1.0, after=first)
    assert as_decided(planting.found(again)) == as_decided(found)
    assert again.executed == 0


def test_a_search_that_ran_out_of_time_and_was_killed_decides_as_it_did() -> None:
    config = replace(QUICK, minutes=8.0)
    planting = Planting(effects=[GOOD, *null_effects(3)], config=config)
    whole = planting.trials(seconds=1.0)
    straight = planting.found(whole)
    confirming = sum(straight.summary.spent["by_purpose"].get(p, 0) for p in ("confirm", "after"))
    first = planting.trials(seconds=1.0, dies_after=whole.executed - confirming)
    with pytest.raises(PlantedDeathError):
        planting.found(first)
    # Faster now: what had been refused for want of time would fit.
    again = planting.trials(seconds=0.1, after=first)
    found = planting.found(again)
    assert found.summary.effects == straight.summary.effects
    assert found.summary.confirmations == straight.summary.confirmations
    purposes = found.summary.spent["by_purpose"]
    assert purposes["baseline"] == straight.summary.spent["by_purpose"]["baseline"]


def test_on_a_slow_machine_the_baseline_leaves_time_for_the_search() -> None:
    config = replace(QUICK, minutes=10.0, baseline_samples=4)
    planting = Planting(effects=[GOOD], config=config)
    trials = planting.trials(seconds=1.2)
    summary = planting.found(trials).summary
    purposes = summary.spent["by_purpose"]
    assert purposes["baseline"] < 0.4 * 500
    assert purposes["screen 1"] > 0
    assert summary.confirmations
    assert any("rollouts of the baseline" in note for note in summary.notes)


def test_every_promoted_change_has_an_effect_of_its_own_where_the_budget_is_short() -> None:
    # The search takes what it can get; what each change is worth is paid for all the same.
    config = replace(CONFIG, rollouts=1000, confirm_tasks=100, finalists=1, knobs=4)
    effects = [GOOD, Planted(knob="better", shift=1.2), *null_effects(2)]
    planting = Planting(effects=effects, config=config)
    summary = planting.found(planting.trials()).summary
    assert summary.promoted
    assert {(one.knob, one.level) for one in summary.drop_one} == set(summary.chosen.items())
    assert all(one.difference.low <= one.difference.high for one in summary.drop_one)
    assert summary.mix_after


def test_a_later_level_of_a_knob_takes_the_place_of_the_earlier_one() -> None:
    effects = [Planted(knob=f"dial {level}", shift=2.5) for level in ("a", "b")]
    knobs = [
        replace(knob, name="dial", levels=(replace(knob.levels[0], name=knob.name),))
        for knob in planted_knobs(effects)
    ]
    asked: list[str] = []

    @dataclass
    class Twice:
        async def knobs(self, known: Known) -> Sequence[Knob]:
            asked.append(known.problem.baseline.hash)
            return [knobs[len(asked) - 1]]

    planting = Planting(effects=effects, config=replace(QUICK, rounds=2, rollouts=4000))
    trials = planting.trials()
    asyncio.run(
        search(planting.problem, trials, [Twice()], planting.config, seed=0, told=lambda line: None)
    )
    assert len(asked) == 2
    dials = {tuple(section.name for section in r.spec.sections) for r in trials.requested}
    assert dials == {(), ("planted dial a",), ("planted dial b",)}


def test_holdout_tasks_are_asked_for_by_the_confirmation_alone() -> None:
    planting = Planting(effects=[GOOD, *null_effects(3)], config=QUICK)
    trials = planting.trials()
    planting.found(trials)
    held = {task.id for task in planting.problem.splits.holdout}
    asking = [r.purpose for r in trials.requested if r.split == "holdout" or r.task.id in held]
    assert set(asking) == {"confirm"}
    purposes = [request.purpose for request in trials.requested]
    last = max(n for n, purpose in enumerate(purposes) if purpose.startswith(("screen", "race")))
    assert purposes.index("confirm") > last


def test_arms_of_a_comparison_meet_the_same_tasks_and_samples_in_turn() -> None:
    planting = Planting(effects=[GOOD, *null_effects(3)], config=QUICK)
    trials = planting.trials()
    planting.found(trials)
    confirm = [r for r in trials.requested if r.purpose == "confirm"]
    pairs = Counter((r.task.id, r.sample) for r in confirm)
    assert len(set(pairs.values())) == 1
    arms = next(iter(pairs.values()))
    for start in range(0, len(confirm), arms):
        assert len({(r.task.id, r.sample) for r in confirm[start : start + arms]}) == 1


def test_few_tasks_are_not_searched_but_frequent_failures_are_treated() -> None:
    good = Planted(knob="format", removes=(MALFORMED,))
    rare = Planted(knob="wording", removes=(FailureClass.NO_CALL,))
    planting = Planting(
        effects=[good, rare],
        failures={MALFORMED: 0.7, FailureClass.NO_CALL: 0.02},
        sizes=(12, 12, 30),
        mean=0.9,
    )
    trials = planting.trials()
    found = planting.found(trials)
    assert found.summary.chosen == {"format": "on"}
    assert {r.purpose for r in trials.requested} <= {"baseline", "confirm", "after", "drop one"}
    assert any("under 20 points cannot be shown" in note for note in found.summary.notes)


def test_a_baseline_that_solves_nothing_is_screened_by_score_and_its_winner_waits() -> None:
    planting = Planting(
        effects=[Planted(knob="good", shift=3.0), *null_effects(3)],
        mean=0.0,
        partial=0.1,
        config=QUICK,
    )
    found = planting.found(planting.trials())
    assert not found.summary.promoted
    assert not found.summary.confirmations
    assert any("mean score" in note for note in found.summary.notes)
    waiting = [one for one in found.summary.tried if one.verdict.startswith("promising")]
    assert any(one.settings.get("good") == "on" for one in waiting)
    assert found.summary.effects[0].effect.method.startswith("mean score")


def test_a_baseline_that_solves_nothing_is_lifted_where_a_treatment_lets_it_pass() -> None:
    planting = Planting(
        effects=[Planted(knob="format", removes=(MALFORMED,)), *null_effects(3)],
        failures={MALFORMED: 1.0},
    )
    found = planting.found(planting.trials())
    assert found.summary.chosen["format"] == "on"
    assert found.summary.baseline_holdout is not None
    assert found.summary.baseline_holdout.value == 0


def test_a_baseline_that_solves_everything_is_left_alone() -> None:
    planting = Planting(effects=[GOOD], mean=1.0, config=QUICK)
    trials = planting.trials()
    found = planting.found(trials)
    assert found.chosen == planting.problem.baseline
    assert {request.purpose for request in trials.requested} == {"baseline"}


def test_the_change_that_helps_has_the_largest_effect_of_its_own() -> None:
    planting = Planting(effects=[Planted(knob="good", shift=2.0), *null_effects(4)], seed=2)
    summary = planting.found(planting.trials()).summary
    drops = {drop.knob: drop.difference.value for drop in summary.drop_one}
    assert drops.keys() == summary.chosen.keys()
    assert max(drops, key=lambda knob: drops[knob]) == "good"


def test_dear_changes_that_do_no_good_are_taken_out_before_the_confirmation() -> None:
    idle = Planted(knob="second look", tokens=3.0, costs=True)
    taken_out = 0
    for seed in range(8):
        planting = Planting(
            effects=[Planted(knob="good", shift=2.5), idle], config=QUICK, seed=seed
        )
        summary = planting.found(planting.trials()).summary
        assert "good" in summary.chosen
        noted = any("second look: on was taken out" in note for note in summary.notes)
        taken_out += noted
        assert not noted or all("second look" not in c.settings for c in summary.confirmations)
        for drop in summary.drop_one:
            assert drop.knob != "second look" or drop.difference.value > 0
    assert taken_out


def test_mix_and_examples_say_what_changed() -> None:
    planting = Planting(
        effects=[Planted(knob="format", removes=(MALFORMED,)), *null_effects(2)],
        failures={MALFORMED: 0.5},
    )
    summary = planting.found(planting.trials()).summary
    before = {entry.failure_class: entry for entry in summary.mix_before}
    after = {entry.failure_class: entry for entry in summary.mix_after}
    assert before["malformed call"].share.value == pytest.approx(0.5, abs=0.1)
    assert before["malformed call"].example.startswith("trace_")
    assert "malformed call" not in after


def test_solved_feedback_rollouts_are_left_for_training_without_the_specs_own_text() -> None:
    planting = Planting(effects=[Planted(knob="good", shift=2.5)], config=QUICK)
    found = planting.found(planting.trials())
    tasks = {task.id: task for task in planting.problem.splits.feedback}
    shown = found.demonstrations
    assert len({one.id for one in shown}) == len(shown) > 30
    for one in shown:
        assert one.messages[0] == tasks[one.id].messages[0]
        assert one.messages[-1].role == "assistant"


@pytest.mark.parametrize("rollouts", [100, 250, 700, 850, 1100])
def test_the_budget_is_kept_and_the_confirmation_has_its_share(rollouts: int) -> None:
    good = Planted(knob="good", shift=2.5)
    planting = Planting(
        effects=[good, *null_effects(5)], config=replace(QUICK, rollouts=rollouts), seed=1
    )
    trials = planting.trials()
    summary = planting.found(trials).summary
    assert trials.executed <= rollouts
    confirming = sum(request.purpose == "confirm" for request in trials.requested)
    assert confirming == summary.spent["by_purpose"].get("confirm", 0)
    assert bool(confirming) == bool(summary.confirmations)
    assert summary.confirmations or any("budget" in note for note in summary.notes)


def test_trials_that_hold_less_than_the_search_believes_end_it_in_order() -> None:
    planting = Planting(effects=[GOOD, *null_effects(3)], config=QUICK)
    trials = planting.trials()
    trials.rollouts = 600
    found = planting.found(trials)
    assert trials.executed <= 600
    assert found.chosen == planting.problem.baseline
    assert any("budget" in note or "nothing was confirmed" in note for note in found.summary.notes)


def test_a_level_that_shows_a_holdout_task_is_left_out_and_said() -> None:
    planting = Planting(effects=[GOOD], config=QUICK)
    held = planting.problem.splits.holdout[0]
    leak = Demonstration(id="other", messages=(*held.messages, Message(role="assistant")))
    knob = Knob(
        name="demonstrations",
        levels=(
            Level(
                name="leaking",
                change=lambda spec: replace(spec, shown=replace(spec.shown, count=1, pool=(leak,))),
            ),
        ),
    )
    trials = planting.trials()
    found = planting.found(trials, [knob, *planted_knobs(planting.effects)])
    assert any("demonstrations: leaking shows a dev or holdout" in n for n in found.summary.notes)
    assert all(leak not in request.spec.shown.pool for request in trials.requested)


def test_proposers_get_feedback_rollouts_only_and_may_not_ask_for_the_holdout() -> None:
    planting = Planting(effects=[GOOD], config=QUICK)
    problem = planting.problem

    class Curious:
        async def knobs(self, known: Known) -> Sequence[Knob]:
            assert {task.id for task, _ in known.rollouts} <= {
                task.id for task in problem.splits.feedback
            }
            with pytest.raises(ValueError, match="only the confirmation may read it"):
                await known.trials.roll_out(
                    [
                        TrialRequest(
                            spec=problem.baseline,
                            split="feedback",
                            task=problem.splits.holdout[0],
                            sample=0,
                            purpose="curious",
                        )
                    ]
                )
            raise BudgetSpentError("asked too much")

    found = asyncio.run(
        search(problem, planting.trials(), [Curious()], QUICK, seed=0, told=lambda line: None)
    )
    assert any("Curious had no budget left" in note for note in found.summary.notes)


def test_infrastructure_faults_are_no_failures_of_a_spec() -> None:
    down = {FailureClass.INFRASTRUCTURE: 0.1}
    planting = Planting(effects=[Planted(knob="good", shift=2.5)], failures=down, config=QUICK)
    found = planting.found(planting.trials())
    assert found.summary.chosen == {"good": "on"}
    [confirmation] = found.summary.confirmations
    assert confirmation.difference.tasks < 150


def test_fabricated_rollouts_of_unrelated_seeds_differ_in_their_ids() -> None:
    [task] = planted_tasks("one", 1, mean=0.5, seed=0)
    ids = {fabricated(task, None, seed=seed).trajectory.id for seed in range(50)}
    assert len(ids) == 50


def test_where_no_race_fits_the_best_prediction_meets_the_holdout() -> None:
    hurried = replace(QUICK, minutes=1.5, race_tasks=40, screen_rollouts=20, finalists=1)
    planting = Planting(effects=[Planted(knob="good", shift=2.5), *null_effects(2)], config=hurried)
    trials = planting.trials(seconds=0.55)
    found = planting.found(trials)
    purposes = {request.purpose for request in trials.requested}
    assert not any(purpose.startswith("race") for purpose in purposes)
    assert "confirm" in purposes
    assert found.summary.chosen["good"] == "on"
