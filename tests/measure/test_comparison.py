"""The table of policies on planted rollouts, whose rates, costs and answers are known."""

import math
from dataclasses import replace
from typing import Any

import pytest
from policies import READ, WRITTEN, policy, sampled, solving, verdicts

from agentrft.core.config import PriceList
from agentrft.core.errors import UserError
from agentrft.core.usage import TokenUsage
from agentrft.measure.comparison import Arm, Comparison, Row, Spending, best_of, compare
from agentrft.measure.statistics import pass_at_k

THRESHOLD = 0.999
ONE = READ + WRITTEN
"""What a planted rollout costs without prices."""


def compared(*arms: Arm, prices: PriceList | None = None, reference: str = "") -> Comparison:
    return compare(arms, pass_threshold=THRESHOLD, prices=prices, reference=reference)


def row(comparison: Comparison, name: str) -> Row:
    return next(row for row in comparison.rows if row.name == name)


MIXED = {"a": [1.0, 0.0, 0.0, 0.0], "b": [0.0, 0.0, 1.0, 1.0], "c": [0.0] * 4, "d": [1.0] * 4}


def test_the_best_of_k_by_the_grader_solves_what_pass_at_k_says() -> None:
    spec = policy("spec", MIXED)
    solved = {task: [score > 0.5 for score in scores] for task, scores in MIXED.items()}
    for k in (2, 3, 4):
        found = row(compared(spec, best_of(spec, k)), f"spec, best of {k} by grader")
        assert found.pass_at_1.value == pytest.approx(pass_at_k(solved, k))


def test_a_verifier_that_is_always_wrong_finds_the_worst() -> None:
    spec = policy("spec", MIXED)
    said = {r.graded.trajectory.id: -(r.graded.grade.score or 0.0) for r in spec.records}
    chosen = best_of(spec, 4, "v", verdicts=verdicts(spec, said))
    assert row(compared(spec, chosen), chosen.name).pass_at_1.value == 0.25


def test_a_choice_that_ties_takes_the_first_rollout() -> None:
    spec = policy("spec", MIXED)
    chosen = best_of(spec, 4, "v", verdicts=verdicts(spec, {}))
    first = sum(scores[0] for scores in MIXED.values()) / 4
    assert row(compared(spec, chosen), chosen.name).pass_at_1.value == first


def test_a_choice_costs_k_rollouts_and_what_its_verifier_reads() -> None:
    spec = policy("spec", MIXED)
    usage = {"judge": TokenUsage(prompt_tokens=7, completion_tokens=3)}
    chosen = best_of(spec, 3, "v", verdicts=verdicts(spec, {}, usage=usage))
    table = compared(spec, chosen)
    assert row(table, "spec").cost_per_task == ONE
    assert row(table, chosen.name).cost_per_task == 3 * (ONE + 10)
    assert row(table, chosen.name).per_task.tool_calls == 3
    assert row(table, chosen.name).per_task.sampled_tokens == 3 * (WRITTEN + 3)


def test_pass_hat_4_is_unbiased_and_blank_with_fewer_rollouts() -> None:
    five = policy("five", {"a": [1.0] * 4 + [0.0], "b": [1.0] * 5})
    three = policy("three", {"a": [1.0] * 3, "b": [1.0] * 3})
    table = compared(five, three)
    assert row(table, "five").pass_hat_4 == pytest.approx((1 / 5 + 1) / 2)
    assert row(table, "three").pass_hat_4 is None


def test_repeats_are_averaged_within_their_task() -> None:
    found = row(compared(policy("spec", {"a": [1.0, 0.0], "b": [1.0]})), "spec")
    assert found.pass_at_1.value == 0.75


def test_handling_time_of_a_choice_is_that_of_its_slowest_rollout() -> None:
    records = [
        sampled("a", 1.0, number, start=10 * number, duration=seconds)
        for number, seconds in enumerate((1.0, 2.0, 9.0))
    ]
    spec = Arm(name="spec", records=records)
    table = compared(spec, best_of(spec, 3))
    assert row(table, "spec").seconds_p50 == 2.0
    assert row(table, "spec, best of 3 by grader").seconds_p50 == 9.0


def test_the_machine_is_shared_by_rollouts_that_run_side_by_side() -> None:
    beside = [sampled("a", 1.0, n, start=0.0, duration=8.0) for n in range(4)]
    alone = [sampled("b", 1.0, n, start=100.0 + 10 * n, duration=8.0) for n in range(4)]
    hourly = PriceList(machine_hour=3600.0)
    table = compared(Arm(name="x", records=[*beside, *alone]), prices=hourly)
    assert row(table, "x").money_per_task == pytest.approx((8 / 4 + 8) / 2)


def test_money_counts_every_unit_at_its_price() -> None:
    prices = PriceList(prompt_tokens=2e6, sampled_tokens=3e6, tool_call=5.0, machine_hour=7200.0)
    training = Spending(prompt_tokens=1, sampled_tokens=2, tool_calls=3, seconds=4)
    table = compared(policy("x", {"a": [1.0]}, training=training, trained=True), prices=prices)
    found = row(table, "x")
    assert found.money_per_task == pytest.approx(2 * READ + 3 * WRITTEN + 5 + 2 * 2.0)
    assert found.money_training == pytest.approx(2 * 1 + 3 * 2 + 5 * 3 + 2 * 4)
    assert table.unit == "money"
    assert found.cost_per_task == found.money_per_task


def test_break_even_is_where_a_solved_task_costs_the_same() -> None:
    spec = policy("spec", solving(0.5, samples=4))
    tuned = policy(
        "tuned", solving(0.8), trained=True, training=Spending(trained_tokens=40_000, rollouts=1)
    )
    choice = best_of(spec, 4)
    table = compared(spec, choice, tuned)
    solved = row(table, choice.name).pass_at_1.value
    saved = 4 * ONE / solved - ONE / 0.8
    found = row(table, "tuned").break_even
    assert found == math.ceil((3 * 40_000 / 0.8) / saved)
    assert row(table, "spec").break_even is None


def test_weights_that_cost_more_per_solved_task_never_break_even() -> None:
    spec = policy("spec", solving(0.5, samples=4))
    tuned = policy("tuned", solving(0.6), trained=True, tokens=8.0)
    assert row(compared(spec, best_of(spec, 4), tuned), "tuned").break_even is None


def test_weights_that_are_better_are_said_to_beat_prompt_and_choice() -> None:
    spec = policy("spec", solving(0.2, samples=4))
    tuned = policy("tuned", solving(0.95), trained=True, tokens=2.5)
    table = compared(spec, best_of(spec, 4), tuned)
    assert [(one.k, one.verdict) for one in table.versus] == [
        (1, "better"),
        (2, "better"),
        (4, "better"),
    ]
    assert table.answer.startswith("Weights beat the best prompt: tuned solves 95.0% of 40 holdout")
    assert "at equal cost they beat spec, best of 2 by grader" in table.answer
    assert "at 1.6 times the cost they beat spec, best of 4 by grader" in table.answer
    low, high = 100 * table.versus[0].difference.low, 100 * table.versus[0].difference.high
    assert f"(95% interval {low:+.1f} to {high:+.1f}, p" in table.answer


def test_best_of_k_at_equal_cost_is_as_worked_out_by_hand() -> None:
    spec = policy("spec", MIXED)
    tuned = policy("tuned", {task: [1.0] for task in MIXED}, trained=True, tokens=2.5)
    table = compared(spec, best_of(spec, 4), tuned)
    (equal,) = (one for one in table.versus if one.equal_cost)
    # 250 tokens buy two rollouts of 100. Of the six pairs of four rollouts one success is in three,
    # two are in five, none in none, four in all: (3/6 + 5/6 + 0 + 1) / 4.
    assert (equal.k, equal.times_the_cost) == (2, 200 / 250)
    assert equal.pass_at_1 == pytest.approx(7 / 12)
    assert equal.difference.value == pytest.approx(5 / 12)
    (four,) = (one for one in table.versus if one.k == 4)
    assert (four.pass_at_1, four.times_the_cost) == (3 / 4, 400 / 250)


def test_at_equal_cost_a_cheap_policy_may_be_drawn_where_a_dear_one_may_not() -> None:
    base = policy("base", {f"t{n}": [float(n < 16), 0.0, 0.0, 0.0] for n in range(40)}, tokens=0.25)
    spec = policy("spec", {f"t{n}": [float(n < 24)] * 4 for n in range(40)}, spec="longer")
    tuned = policy("tuned", solving(0.7), trained=True)
    table = compared(base, spec, best_of(base, 4), best_of(spec, 4), tuned)
    assert table.rival == "spec, best of 4 by grader"
    (equal,) = (one for one in table.versus if one.equal_cost)
    assert (equal.control, equal.times_the_cost) == ("base, best of 4 by grader", 1.0)
    assert "buys no second rollout" not in table.answer
    assert "at equal cost" in table.answer
    assert "at 4.0 times the cost" in table.answer
    assert any("base, best of 4 by grader or more" in note for note in table.notes)


def test_training_that_costs_nothing_by_these_prices_is_told() -> None:
    spec = policy("spec", solving(0.5, samples=4))
    training = Spending(trained_tokens=1e6, seconds=60.0)
    tuned = policy("tuned", solving(0.9), trained=True, training=training)
    arms = (spec, best_of(spec, 4), tuned)
    tokens = PriceList(sampled_tokens=1.0)
    told = "what training computes costs nothing"
    assert any(told in note for note in compared(*arms, prices=tokens).notes)
    assert not any(told in note for note in compared(*arms).notes)
    hourly = replace(tokens, machine_hour=1.0)
    assert not any(told in note for note in compared(*arms, prices=hourly).notes)


def test_weights_that_are_worse_are_said_to_have_lost() -> None:
    spec = policy("spec", solving(0.9, samples=4))
    tuned = policy("tuned", solving(0.2), trained=True)
    table = compared(spec, best_of(spec, 4), tuned)
    assert table.answer.startswith("Weights lost to the best prompt")
    assert "at equal cost best-of-k buys no second rollout" in table.answer
    assert "at 4.0 times the cost they lost to spec, best of 4" in table.answer


def test_what_the_interval_does_not_tell_is_not_told() -> None:
    spec = policy("spec", solving(0.5, samples=4))
    tuned = policy("tuned", solving(0.55, shift=7), trained=True)
    table = compared(spec, best_of(spec, 4), tuned)
    assert table.versus[0].verdict == "cannot tell"
    assert table.versus[0].difference.low < 0 < table.versus[0].difference.high
    assert table.answer.startswith("Cannot tell whether weights beat the best prompt")


def test_many_trained_arms_must_pass_a_harder_test() -> None:
    spec = policy("spec", solving(0.5))
    tuned = policy("tuned", solving(0.7), trained=True)
    alone = compared(spec, tuned)
    others = [policy(f"other {n}", solving(0.6 + 0.01 * n), trained=True) for n in range(4)]
    among = compared(spec, tuned, *others)
    assert alone.versus[0].trained == among.versus[0].trained == "tuned"
    assert among.versus[0].adjusted_p > alone.versus[0].adjusted_p


def test_without_several_rollouts_the_answer_says_what_was_not_measured() -> None:
    table = compared(policy("spec", solving(0.2)), policy("tuned", solving(0.9), trained=True))
    assert table.answer.endswith("best-of-k was not measured.")
    assert "methods.evaluation.best_of" in table.notes[0]


def test_without_changed_weights_the_answer_says_so() -> None:
    spec = policy("spec", solving(0.5, samples=4))
    assert compared(spec, best_of(spec, 4)).answer.startswith("No weights were changed: spec solve")


def test_a_choice_that_can_be_served_is_the_rival_before_the_graders() -> None:
    spec = policy("spec", solving(0.5, samples=4))
    judged = best_of(spec, 4, "judge:j", verdicts=verdicts(spec, {}))
    table = compared(spec, best_of(spec, 4), judged, policy("t", solving(0.9), trained=True))
    assert table.rival == "spec, best of 4 by judge:j"
    assert not any("upper bound" in note for note in table.notes)


def test_the_reference_is_the_best_prompt_unless_another_is_named() -> None:
    arms = (
        policy("base", solving(0.1)),
        policy("spec", solving(0.4)),
        policy("tuned", solving(0.9), trained=True),
    )
    assert compared(*arms).reference == "spec"
    assert compared(*arms, reference="base").reference == "base"
    with pytest.raises(UserError, match="no arm 'nobody'"):
        compared(*arms, reference="nobody")


def test_the_order_of_the_arms_changes_nothing() -> None:
    spec = policy("spec", solving(0.4, samples=4))
    arms = [
        policy("base", solving(0.4)),
        spec,
        best_of(spec, 4),
        policy("one", solving(0.7), trained=True),
        policy("two", solving(0.7), trained=True),
    ]
    there = compared(*arms)
    assert compared(*reversed(arms)) == there
    assert compared(*arms[2:], *arms[:2]) == there


def test_other_tasks_other_texts_and_other_graders_are_refused() -> None:
    spec = policy("spec", solving(0.5))
    with pytest.raises(UserError, match=r"other holdout tasks \(40 and 41"):
        compared(spec, policy("x", solving(0.5, tasks=41)))
    with pytest.raises(UserError, match="says something else"):
        compared(spec, policy("x", solving(0.5), asked="do it"))
    with pytest.raises(UserError, match="other graders"):
        compared(spec, policy("x", solving(0.5), graded_by="h"))
    with pytest.raises(UserError, match="other graders"):
        compared(
            policy("a", solving(0.5), grader="pass at 1"),
            policy("x", solving(0.5), grader="pass at 0.5"),
        )
    with pytest.raises(UserError, match="names the same rollouts twice"):
        compared(spec, spec)
    with pytest.raises(UserError, match="no graded rollout"):
        compared(spec, policy("x", {"t0": [None]}))


def test_another_prompt_of_the_system_is_no_other_task() -> None:
    table = compared(
        policy("base", solving(0.5), spec="s"), policy("spec", solving(0.9), spec="longer")
    )
    assert row(table, "base").difference is not None


def test_more_rollouts_than_there_are_cannot_be_chosen_from() -> None:
    with pytest.raises(UserError, match="best of 4 needs 4 rollouts per task, and 'spec' has 2"):
        best_of(policy("spec", solving(0.5, samples=2)), 4)


def test_rollouts_lost_to_infrastructure_are_left_out_and_told() -> None:
    spec = policy("spec", {"a": [1.0, None, 0.0], "b": [1.0, 1.0, 1.0]})
    table = compared(spec, best_of(spec, 3))
    assert row(table, "spec").dropped == 1
    assert any("1 rollouts were dropped" in note for note in table.notes)
    assert any("1 tasks have fewer rollouts" in note for note in table.notes)


def seeds(name: str, *rates: float, **kwargs: Any) -> list[Arm]:
    """Return one policy made with several seeds, whose rollouts have the same ids."""
    return [
        policy(name, solving(rate, shift=7 * n), start=1000.0 * n, **kwargs)
        for n, rate in enumerate(rates)
    ]


def test_runs_of_one_name_are_seeds_of_one_policy() -> None:
    spec = policy("spec", solving(0.2))
    sft = [
        replace(arm, training=Spending(rollouts=3.0 * n))
        for n, arm in enumerate(seeds("sft", 0.7, 0.5, 0.6, trained=True))
    ]
    table = compared(*sft, spec)
    found = row(table, "sft")
    assert (found.seeds, found.lowest, found.highest) == (3, 0.5, 0.7)
    assert found.pass_at_1.value == pytest.approx(0.6)
    assert found.difference is not None
    assert found.difference.value == pytest.approx(0.4)
    assert (found.rollouts, found.tasks) == (120, 40)
    assert found.training.rollouts == 3
    assert found.cost_per_task == ONE
    assert "(mean of 3 seeds, 50.0% to 70.0%)" in table.answer
    assert compared(spec, *reversed(sft)) == table


def test_rollouts_of_one_seed_are_never_chosen_for_another() -> None:
    good, bad = (
        policy("spec", {"a": [score] * 4, "b": [score] * 4}, start=score) for score in (1.0, 0.0)
    )
    table = compared(good, bad, best_of(good, 2), best_of(bad, 2))
    assert row(table, "spec, best of 2 by grader").pass_at_1.value == pytest.approx(0.5)
    assert row(table, "spec").pass_hat_4 == 0.5


def test_seeds_that_differ_widen_the_interval() -> None:
    spec = policy("spec", solving(0.2))
    alike = compared(spec, *seeds("sft", 0.5, 0.5, 0.5, trained=True))
    apart = compared(spec, *seeds("sft", 1.0, 0.5, 0.0, trained=True))
    rates = [row(table, "sft").pass_at_1 for table in (alike, apart)]
    assert rates[0].value == rates[1].value == 0.5
    assert rates[0].high - rates[0].low < rates[1].high - rates[1].low
    assert [table.versus[0].verdict for table in (alike, apart)] == ["better", "cannot tell"]


def test_trained_and_untrained_weights_are_no_seeds_of_one_policy() -> None:
    with pytest.raises(UserError, match="give these two names"):
        compared(policy("a", solving(0.5), trained=True), policy("a", solving(0.5), start=5.0))


def test_two_models_are_no_seeds_of_one_policy() -> None:
    first, other = seeds("a", 0.5, 0.5)
    moved = [
        replace(
            record,
            graded=replace(
                record.graded, trajectory=replace(record.graded.trajectory, model="another")
            ),
        )
        for record in other.records
    ]
    with pytest.raises(UserError, match="rollouts of another and .*give each model a name"):
        compared(first, replace(other, records=moved))
