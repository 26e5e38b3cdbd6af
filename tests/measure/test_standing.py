"""Numbers of a standing against hand-counted samples, and what its page makes of them."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console
from standings import HEALTHY, but

from agentrft.core.config import AdvisorConfig, Methods
from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.task import Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import Failure, FailureKind, StopReason, ToolResult, Trajectory, Turn
from agentrft.measure.advisor import Supply, advise
from agentrft.measure.next_steps import expected_costs
from agentrft.measure.power import WITHIN
from agentrft.measure.preflight_page import (
    as_json,
    page,
    terminal,
    variance_plot,
    write_preflight,
)
from agentrft.measure.preflight_result import PreflightResult
from agentrft.measure.standing import (
    Plan,
    Standing,
    informative,
    share_of,
    share_of_failures,
    standing,
)

PLAN = Plan(pass_threshold=1.0, group_size=4, train_tasks=90, holdout_tasks=50)
LOOK = ToolSpec(name="look", description="", parameters={})
Rollouts = list[tuple[Task, GradedTrajectory]]


def a_task(name: str) -> Task:
    return Task(id=name, messages=(Message(role="user", content="hello"),), family=name[0])


def a_rollout(
    name: str,
    score: float | None,
    number: int = 0,
    *,
    stop: StopReason = StopReason.FINISHED,
    failure: Failure | None = None,
    calls: Sequence[ToolResult] = (),
    gold: float | None = None,
    started_at: float = 0.0,
) -> tuple[Task, GradedTrajectory]:
    turn = Turn(
        observation_ids=(1, 2, 3),
        action_ids=(4,),
        behavior_logprobs=(0.0,),
        first_version=0,
        last_version=0,
        message=Message(
            role="assistant",
            content="done",
            tool_calls=tuple(ToolCall(id=r.call_id, name=r.name, arguments="{}") for r in calls),
        ),
        tool_results=tuple(calls),
    )
    trajectory = Trajectory(
        id=f"{name}-{number}",
        task_id=name,
        model="m",
        spec_hash="s",
        seed=number,
        prompt=a_task(name).messages,
        turns=(turn,),
        stop_reason=stop,
        failure=failure,
        started_at=started_at,
        duration_s=1.0,
    )
    grade = Grade(score=score, failure=failure if score is None else None)
    held_out = None if gold is None else Grade(score=gold)
    return a_task(name), GradedTrajectory(trajectory=trajectory, grade=grade, gold=held_out)


def sampled(scores: Mapping[str, Sequence[float]]) -> Rollouts:
    return [
        a_rollout(name, score, number)
        for name, of_task in scores.items()
        for number, score in enumerate(of_task)
    ]


MIXED = sampled({"a1": [1, 1, 1, 1], "a2": [1, 0, 0, 0], "b1": [0, 0, 0, 0], "b2": [1, 1, 0, 0.5]})


def measured(
    rollouts: Rollouts = MIXED, again: Mapping[str, Sequence[float | None]] | None = None
) -> Standing:
    return standing(rollouts, (LOOK,), PLAN, graded_again=again)


def test_rates_are_those_counted_by_hand() -> None:
    found = measured()
    assert (found.tasks, found.families, found.rollouts, found.samples) == (4, 2, 16, 4)
    assert found.pass_1.value == pytest.approx(7 / 16)
    assert found.pass_k.value == 0.75
    assert found.pass_hat_k.value == 0.25
    assert found.zero.value == found.full.value == 0.25
    assert found.informative.value == 0.5
    assert found.spread.value == 0.5
    assert found.failures == 9
    assert found.pass_1.low < found.pass_1.value < found.pass_1.high


def test_intervals_do_not_collapse_where_nothing_was_solved() -> None:
    found = measured(sampled({f"a{n}": [0, 0] for n in range(20)}))
    for share in (found.pass_1, found.pass_k, found.informative):
        assert share.value == 0
        assert 0.1 < share.high < 0.2
    assert found.within == WITHIN


def test_the_chance_of_an_informative_group_is_counted_over_all_groups() -> None:
    assert informative(4, 2, 2) == pytest.approx(1 - 2 / 6)
    assert informative(8, 1, 8) == 1
    assert informative(8, 0, 4) == informative(8, 8, 4) == 0
    assert informative(3, 1, 8) == 1, "with fewer rollouts than the group has, all of them"


def test_a_task_that_lost_rollouts_does_not_lower_k_for_all() -> None:
    found = measured([*MIXED, *sampled({"c1": [1, 0], "c2": [1, 1]})])
    assert found.samples == 4
    assert found.pass_k.value == pytest.approx(5 / 6)
    assert found.pass_hat_k.value == pytest.approx(2 / 6)


def test_the_share_of_variance_within_tasks_tells_luck_from_difficulty() -> None:
    luck = measured(sampled({f"a{n}": [0, 1, 0, 1] for n in range(10)}))
    difficulty = measured(sampled({f"a{n}": [n % 2] * 4 for n in range(10)}))
    assert luck.within == 1
    assert difficulty.within == 0
    assert difficulty.detectable < luck.detectable


def test_what_infrastructure_spoiled_is_counted_and_left_out() -> None:
    down = Failure(kind=FailureKind.INFRASTRUCTURE, where="tool 'look'", message="down")
    crash = Failure(kind=FailureKind.GRADER, where="grader", message="crash")
    lost = a_rollout("a1", None, 8, stop=StopReason.FAILED, failure=down)
    task, whole = a_rollout("a1", 0.0, 9)
    ungraded = (task, replace(whole, grade=Grade(score=None, failure=crash)))
    found = measured([*MIXED, lost, ungraded])
    assert found.pass_1.value == pytest.approx(7 / 16)
    assert found.infrastructure.value == found.grader_errors.value > 0
    assert found.tools[0].lost == 1
    with pytest.raises(ValueError, match="no rollout counts"):
        measured([lost, ungraded])


def test_flips_compare_with_the_first_grade_and_a_crash_is_one() -> None:
    assert measured().flips is None
    again = {"a1-0": [1.0], "a1-1": [0.5], "b1-0": [None], "b1-1": [0.0, 0.0], "b2-0": []}
    flips = measured(again=again).flips
    assert flips is not None
    assert flips.value == 0.5


def test_the_held_out_grader_is_compared_by_rank() -> None:
    agreeing = [a_rollout(f"a{n}", n / 10, gold=n) for n in range(10)]
    opposed = [a_rollout(f"a{n}", n / 10, gold=-n) for n in range(10)]
    assert measured().gold_agreement is None
    assert measured(agreeing).gold_agreement == pytest.approx(1)
    assert measured(opposed).gold_agreement == pytest.approx(-1)


def test_tools_tell_calls_complaints_and_latency_and_made_up_names_are_none() -> None:
    calls = [
        ToolResult(call_id=f"c{n}", name="look", content="", is_error=n == 0, duration_s=n)
        for n in range(20)
    ]
    made_up = ToolResult(call_id="d", name="conjure", content="no tool", is_error=True)
    (tool,) = measured([a_rollout("a1", 1.0, calls=[*calls, made_up])]).tools
    assert (tool.name, tool.calls, tool.complaints, tool.lost, tool.p95_s) == ("look", 20, 1, 0, 18)
    (unused,) = measured().tools
    assert (unused.calls, unused.p95_s) == (0, None)


def test_seconds_per_rollout_count_time_that_rollouts_share_once() -> None:
    together = [a_rollout("a1", 1.0, n, started_at=100.0) for n in range(4)]
    later = a_rollout("a1", 1.0, 5, started_at=1000.0)
    assert measured(together).seconds == pytest.approx(0.25)
    assert measured([*together, later]).seconds == pytest.approx(2 / 5)


def test_shares_of_classes_are_of_rollouts_and_of_failures() -> None:
    cut = Failure(kind=FailureKind.MODEL, where="limits", message="max_tokens")
    truncated = [a_rollout("c1", 0.0, n, stop=StopReason.MAX_TOKENS, failure=cut) for n in range(4)]
    found = measured([*MIXED, *truncated])
    assert found.truncated.value == pytest.approx(4 / 20)
    assert found.mix[0].rollouts + found.mix[1].rollouts == found.failures == 13
    assert share_of(found, {"truncated"}).value == pytest.approx(1 / 5)
    of_failures = share_of_failures(found, {"truncated"})
    assert of_failures.low < of_failures.value < of_failures.high
    assert share_of_failures(measured(sampled({"a1": [1]})), {"truncated"}).value == 0


def a_result(found: Standing, supply: Supply | None = None) -> PreflightResult:
    costs = expected_costs(found, Methods())
    return PreflightResult(
        project="<desk>",
        model="m",
        run_id="run-1",
        created_at=0.0,
        standing=found,
        advice=advise(found, supply or Supply(), AdvisorConfig(), costs=costs),
        costs=costs,
        audit={"headline": {"lazy_policy": 0.1}, "blocked": ["it pays <anything>"]},
        notes=("not all was measured",),
    )


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        (HEALTHY, "go"),
        (but(infrastructure=0.5), "fix"),
        (but(train_tasks=3), "fix"),
        (but(pass_1=0.0, pass_k=0.0, zero=1.0), "no-go"),
    ],
)
def test_the_verdict_follows_from_the_advice(found: Standing, verdict: str) -> None:
    assert a_result(found, Supply(plateaued=True)).verdict == verdict


def test_the_page_loads_nothing_and_escapes_what_models_wrote(tmp_path: Path) -> None:
    nasty = "</script><script>alert(1)</script>"
    task, graded = a_rollout(nasty, 0.0)
    turn = graded.trajectory.turns[0]
    said = replace(turn, message=replace(turn.message, content=nasty))
    trajectory = replace(graded.trajectory, turns=(said,))
    result = a_result(measured([*MIXED, (task, replace(graded, trajectory=trajectory))]))
    write_preflight(result, tmp_path)
    html = (tmp_path / "preflight.html").read_text()
    assert "<script>alert" not in html
    assert "&lt;desk&gt;" in html
    assert "default-src 'none'" in html
    assert "it pays &lt;anything&gt;" in html
    stored = json.loads((tmp_path / "preflight.json").read_text())
    assert stored == json.loads(json.dumps(as_json(result)))
    assert stored["verdict"] == result.verdict
    assert stored["standing"]["pass_1"]["value"] == result.standing.pass_1.value


def test_the_variance_plot_tells_three_kinds_of_tasks_apart() -> None:
    (figure,) = variance_plot(measured())
    names = [trace["name"] for trace in figure.traces]
    assert names == [
        "never solved, 1 tasks",
        "sometimes solved: informative, 2 tasks",
        "always solved, 1 tasks",
    ]
    assert figure.traces[0]["y"] == figure.traces[2]["y"] == [0.0]
    assert min(figure.traces[1]["y"]) > 0


def test_the_terminal_shows_verdict_rule_and_numbers() -> None:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(terminal(a_result(measured(), Supply(plateaued=True))))
    shown = console.export_text()
    for expected in ("pass@1", "43.8%", "Why rollouts fail", "fix: collect tasks", "rule R1"):
        assert expected in shown
    assert page(a_result(HEALTHY)).count("<figure>") == 1, "no failure mix, no chart of it"
