"""The truth table: each rule just below, at and just above each of its bounds."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from standings import HEALTHY, but, failing

from agentrft.core.config import AdvisorConfig, Methods
from agentrft.measure.advisor import RULES, Advice, Supply, advise
from agentrft.measure.diagnosis import MECHANICAL
from agentrft.measure.next_steps import NextStep, Prices, expected_costs
from agentrft.measure.power import rollouts_needed
from agentrft.measure.standing import Standing

CONFIG = AdvisorConfig()
SEARCHED = Supply(plateaued=True, parameters=7e9, self_checked=True)
"""The search is through and nothing is left to try before weights."""
NOTHING_TO_LEARN = but(pass_1=0.01, pass_k=0.05, pass_hat_k=0.0, informative=0.03, zero=0.95)


def advised(standing: Standing = HEALTHY, **supply: Any) -> Advice:
    return advise(standing, replace(SEARCHED, **supply), CONFIG)


def share(of: str, rollouts: int) -> Standing:
    """100 rollouts of which so many fail mechanically, or so many of 100 failures."""
    wrong = rollouts if of == "rollouts" else 1000 - rollouts
    classes = (
        {"malformed call": wrong, "wrong plan": 400}
        if of == "rollouts"
        else {"malformed call": rollouts, "wrong plan": wrong}
    )
    total = 1000 if of == "rollouts" else 10_000
    return replace(HEALTHY, by_task=failing(4, total, classes))


@pytest.mark.parametrize(
    ("standing", "supply", "rule"),
    [
        # what measures is out of order, R0
        (but(infrastructure=0.019), {}, "R9"),
        (but(infrastructure=0.02), {}, "R9"),
        (but(infrastructure=0.021), {}, "R0"),
        (but(grader_errors=0.02), {}, "R9"),
        (but(grader_errors=0.021), {}, "R0"),
        (but(flips=0.02), {}, "R9"),
        (but(flips=0.021), {}, "R0"),
        (but(flips=0.05), {"grader_asks_model": True}, "R9"),
        (but(flips=0.051), {"grader_asks_model": True}, "R0"),
        (replace(HEALTHY, flips=None), {}, "R9"),
        (but(gold_agreement=0.81), {}, "R9"),
        (but(gold_agreement=0.8), {}, "R9"),
        (but(gold_agreement=0.79), {}, "R0"),
        (but(gold_agreement=None), {}, "R9"),
        (HEALTHY, {"grader_trusted": False}, "R0"),
        (HEALTHY, {"grader_trusted": False, "pairs": 499}, "R0"),
        # too little to measure, R1
        (but(train_tasks=29), {}, "R1"),
        (but(train_tasks=30), {}, "-"),
        (but(detectable=0.149), {}, "R9"),
        (but(detectable=0.15), {}, "R9"),
        (but(detectable=0.151), {}, "R1"),
        # solved, R2
        (but(pass_1=0.94, pass_hat_k=0.7), {}, "-"),
        (but(pass_1=0.95, pass_hat_k=0.7), {}, "R2"),
        (but(pass_1=0.96, pass_hat_k=0.7), {}, "R2"),
        (but(pass_1=0.8, pass_hat_k=0.79), {}, "R9"),
        (but(pass_1=0.8, pass_hat_k=0.8), {}, "R2"),
        (but(pass_1=0.79, pass_hat_k=0.8), {}, "R9"),
        # solved, but under a dear prompt
        (but(pass_1=0.95, prompt_tokens=1499.0), {}, "R2"),
        (but(pass_1=0.95, prompt_tokens=1500.0), {"taken": {NextStep.DISTILLATION}}, "R2"),
        # mechanical failures, R3
        (share("rollouts", 199), {}, "R6"),
        (share("rollouts", 200), {}, "R3"),
        (share("rollouts", 201), {}, "R3"),
        (share("failures", 399), {}, "R9"),
        (share("failures", 400), {}, "R3"),
        (share("failures", 401), {}, "R3"),
        (share("rollouts", 300), {"treated": frozenset({"malformed call"})}, "R6"),
        # the search is not through, R4
        (HEALTHY, {"plateaued": False}, "R4"),
        (HEALTHY, {"plateaued": True}, "R9"),
        # nothing to learn from, R5
        (NOTHING_TO_LEARN, {}, "R5"),
        (but(pass_1=0.02, pass_k=0.05), {}, "-"),
        (but(pass_1=0.019, pass_k=0.099), {}, "R5"),
        (but(pass_1=0.019, pass_k=0.1), {}, "-"),
        (but(zero=0.85), {}, "R9"),
        (but(zero=0.851), {}, "R5"),
        # a warm start, R6
        (but(zero=0.84), {"demonstrations": 49, "parameters": 1e8}, "R9"),
        (but(zero=0.83), {"demonstrations": 49, "parameters": 1e8}, "R6"),
        (HEALTHY, {"demonstrations": 50, "parameters": 1e8}, "R6"),
        (HEALTHY, {"demonstrations": 51, "parameters": 9.99e8}, "R6"),
        (HEALTHY, {"demonstrations": 50, "parameters": 1e9}, "R9"),
        (HEALTHY, {"demonstrations": 50, "parameters": None}, "R9"),
        (HEALTHY, {"demonstrations": 50, "parameters": 1e8, "warm_started": True}, "R9"),
        # somebody has said what is better, R7
        (HEALTHY, {"pairs": 499}, "R9"),
        (HEALTHY, {"pairs": 500}, "R7"),
        (but(pass_1=0.2), {"pairs": 500, "grader_trusted": False}, "R7"),
        (but(pass_1=0.199), {"pairs": 500}, "R9"),
        (but(pass_1=0.199), {"pairs": 500, "grader_trusted": False}, "-"),
        # it can, but not each time, R8
        (but(pass_1=0.49, pass_hat_k=0.1), {"self_checked": False}, "R9"),
        (but(pass_1=0.5, pass_hat_k=0.26), {"self_checked": False}, "R9"),
        (but(pass_1=0.5, pass_hat_k=0.25), {"self_checked": False}, "R8"),
        (but(pass_1=0.5, pass_hat_k=0.24), {"self_checked": False}, "R8"),
        (but(pass_1=0.5, pass_hat_k=0.1), {"self_checked": True}, "R9"),
        # reinforcement, R9
        (but(train_tasks=99), {}, "-"),
        (but(train_tasks=100), {}, "R9"),
        (but(pass_1=0.049), {}, "-"),
        (but(pass_1=0.05), {}, "R9"),
        (but(pass_1=0.9, pass_hat_k=0.7), {}, "R9"),
        (but(pass_1=0.901, pass_hat_k=0.7), {}, "-"),
        (but(informative=0.09), {}, "-"),
        (but(informative=0.1), {}, "R9"),
        # a long prompt, R10
        (but(train_tasks=99, prompt_tokens=1500.0), {}, "R10"),
        (but(train_tasks=99, prompt_tokens=1499.0), {}, "-"),
    ],
)
def test_the_first_rule_that_holds_wins(
    standing: Standing, supply: dict[str, Any], rule: str
) -> None:
    assert advised(standing, **supply).rule == rule


def test_failures_of_format_call_for_a_warm_start_of_any_model() -> None:
    treated = frozenset(one.value for one in MECHANICAL)
    for malformed, rule in ((99, "R9"), (100, "R6"), (101, "R6")):
        classes = {"malformed call": malformed, "wrong plan": 300}
        standing = replace(HEALTHY, by_task=failing(4, 1000, classes))
        assert advised(standing, demonstrations=50, treated=treated).rule == rule


def test_what_there_is_to_imitate_decides_what_follows_from_nothing_to_learn() -> None:
    rare = replace(NOTHING_TO_LEARN, train_tasks=1000)  # 50 of them it may solve in 8 tries
    for standing, count, step in (
        (NOTHING_TO_LEARN, 49, NextStep.DEMONSTRATIONS),
        (NOTHING_TO_LEARN, 50, NextStep.SUPERVISED),
        (rare, 50, NextStep.SUPERVISED),
        (rare, 49, NextStep.REJECTION),
        (replace(rare, train_tasks=999), 49, NextStep.DEMONSTRATIONS),
    ):
        advice = advised(standing, demonstrations=count)
        assert (advice.rule, advice.method) == ("R5", step)


def test_a_warm_start_takes_demonstrations_before_own_successes() -> None:
    for count, step in ((49, NextStep.REJECTION), (50, NextStep.SUPERVISED)):
        advice = advised(HEALTHY, demonstrations=count, parameters=1e8)
        assert (advice.rule, advice.method) == ("R6", step)


def test_nobody_imitates_what_a_grader_praised_that_nobody_trusts() -> None:
    given = {"grader_trusted": False, "pairs": 500, "parameters": 1e8}
    assert advised(HEALTHY, **given).method is NextStep.PREFERENCE


def test_what_is_solved_under_a_long_prompt_is_distilled_once() -> None:
    solved = but(pass_1=0.95, prompt_tokens=1500.0)
    assert advised(solved).method is NextStep.DISTILLATION
    assert advised(solved, taken={NextStep.DISTILLATION}).method is NextStep.STOP
    assert advised(solved, plateaued=False).method is NextStep.STOP


def test_what_has_been_done_is_passed_over_and_named() -> None:
    done = advised(taken={NextStep.REINFORCEMENT})
    assert (done.rule, done.method) == ("-", NextStep.NOTHING)
    assert done.not_taken == ("R9 would say reinforcement, but it has been done",)
    long = replace(HEALTHY, prompt_tokens=1500.0)
    assert advised(long).method is NextStep.REINFORCEMENT
    assert advised(long, taken={NextStep.REINFORCEMENT}).method is NextStep.DISTILLATION


def test_few_informative_groups_still_reinforce_but_with_more_care() -> None:
    assert "many groups" in advised(but(informative=0.3)).reason
    assert "few groups" in advised(but(informative=0.299)).reason


def test_the_largest_untreated_class_is_named() -> None:
    classes = {"malformed call": 30, "unknown tool": 20, "wrong plan": 10}
    standing = replace(HEALTHY, by_task=failing(4, 100, classes))
    assert "unknown tool before" in advised(standing, treated=frozenset({"malformed call"})).reason
    assert "malformed call before" in advised(standing).reason


def test_weights_behind_an_endpoint_are_never_advised_to_change() -> None:
    advice = advised(endpoint=True)
    assert advice.method is NextStep.NOTHING
    assert "open-weights" in advice.not_taken[0]
    assert advised(NOTHING_TO_LEARN, endpoint=True, demonstrations=80).method is (
        NextStep.DEMONSTRATIONS
    )
    assert advised(but(pass_1=0.95, prompt_tokens=1500.0), endpoint=True).method is NextStep.STOP


def test_an_advice_says_its_numbers_the_runner_up_and_what_would_flip_it() -> None:
    advice = advised(but(pass_1=0.52, pass_hat_k=0.2), self_checked=False)
    assert (advice.rule, advice.runner_up) == ("R8", "R9: reinforcement")
    assert "pass@1 52.0% (47.0% to 57.0%), bound >= 50.0%" in advice.reason
    assert advice.would_flip == "pass@1 from 52.0% below 50.0% (its interval reaches there)"
    assert set(advice.numbers) == {"pass@1", "pass@1 minus pass^8"}


def test_moving_the_numbers_as_told_flips_the_advice() -> None:
    assert advised(but(detectable=0.2)).would_flip == (
        "smallest gain that the holdout shows from 20.0% to 15.0%"
    )
    assert advised(but(detectable=0.15)).rule != "R1"
    both = advised(but(detectable=0.2, train_tasks=20)).would_flip
    assert (
        both
        == "train tasks from 20 to 30 and smallest gain that the holdout shows from 20.0% to 15.0%"
    )


def test_too_few_tasks_say_how_many_would_do() -> None:
    needed = rollouts_needed(CONFIG.detectable, p=0.4, within=0.5)
    assert f"{needed} holdout rollouts" in advised(but(detectable=0.2)).reason


def test_costs_follow_from_measured_rollouts_and_say_what_is_a_guess() -> None:
    costs = expected_costs(HEALTHY, Methods(), Prices(prompt=1.0, sampled=10.0))
    tuning = costs[NextStep.REINFORCEMENT]
    assert tuning.rollouts == 40 * 8 * 8
    assert tuning.tokens == tuning.rollouts * 600
    assert tuning.minutes == pytest.approx(1.5 * tuning.rollouts * 0.3 / 60)
    assert tuning.money == pytest.approx(tuning.rollouts * (500 + 1000) / 1e6)
    assert "rule of thumb" in tuning.rule
    search = costs[NextStep.PROMPT]
    assert (search.rollouts, search.minutes) == (2400, pytest.approx(12.0))
    own, distilled, pairs = (
        costs[step] for step in (NextStep.REJECTION, NextStep.DISTILLATION, NextStep.PREFERENCE)
    )
    assert (own.rollouts, distilled.rollouts, pairs.rollouts) == (300 * 8, 300 * 4, 0)
    assert own.minutes == pytest.approx((300 * 8 + 1.5 * 240) * 0.3 / 60)
    assert pairs.tokens == pytest.approx(3 * 240 * 600)
    slow = expected_costs(replace(HEALTHY, seconds=3.0), Methods())[NextStep.PROMPT]
    assert (slow.rollouts, slow.minutes) == (300, pytest.approx(15.0))
    assert advise(HEALTHY, SEARCHED, CONFIG, costs=costs).cost == tuning


def test_the_table_is_in_order_and_its_page_names_every_threshold() -> None:
    numbers = [int(rule.number[1:]) for rule in RULES]
    assert numbers == sorted(numbers)
    assert set(numbers) == set(range(11))
    page = (Path(__file__).parents[2] / "docs" / "advisor.md").read_text()
    for name in AdvisorConfig.__dataclass_fields__:
        assert f"`{name}`" in page, f"docs/advisor.md does not say what {name} decides"
