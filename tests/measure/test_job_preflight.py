import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrft.core.errors import ConfigError
from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.task import Demonstration, Message, Task, ToolSpec
from agentrft.core.trajectory import Failure, FailureKind, StopReason, Trajectory, Turn
from agentrft.measure.job_preflight import RULES, Verdict, judge, numbers, only_warns
from agentrft.measure.job_preflight_facts import (
    Facts,
    GraderFacts,
    ProbeCall,
    RolloutFacts,
    RowFacts,
    grader_facts,
    length_facts,
    rollout_facts,
    row_facts,
    tool_facts,
)

ROWS = RowFacts(rows=50, validation_rows=10, with_tools=50, duplicates=0, shared=0)
ROLLOUTS = RolloutFacts(
    rollouts=64,
    per_task=4,
    dropped=0,
    dropped_where={},
    truncated=0,
    mean=0.5,
    lowest=0.0,
    highest=1.0,
    pass_rate=0.5,
    best_of_k=0.9,
    tasks=16,
    tasks_with_spread=12,
    seconds_mean=1.0,
    sampled_tokens_mean=40.0,
)
GRADER = GraderFacts(tried=64, crashed=0, regraded=8)
ANSWERED = ProbeCall(seconds=0.1)


def facts(**changed: Any) -> Facts:
    whole = Facts(method="reinforcement", rows=ROWS, rollouts=ROLLOUTS, grader=GRADER)
    return replace(whole, **changed)


def found(verdict: Verdict) -> list[str]:
    return [warning.code for warning in verdict.warnings]


def rollout(
    task: str, score: float | None, *, stop: StopReason = StopReason.FINISHED, name: str = "r"
) -> GradedTrajectory:
    down = Failure(kind=FailureKind.INFRASTRUCTURE, where="tool 'shop'", message="HTTP 503")
    turn = Turn(
        observation_ids=(1,),
        action_ids=(1, 2),
        behavior_logprobs=(-0.5, -0.5),
        first_version=0,
        last_version=0,
        message=Message(role="assistant", content="x"),
    )
    trajectory = Trajectory(
        id=name,
        task_id=task,
        model="m",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=(turn, turn),
        stop_reason=stop,
        failure=down if score is None else None,
        duration_s=2.0,
    )
    grade = Grade(score=score, failure=down if score is None else None)
    return GradedTrajectory(trajectory=trajectory, grade=grade)


def crashed(task: str, message: str) -> GradedTrajectory:
    failure = Failure(kind=FailureKind.GRADER, where="grader 'g'", message=message)
    ungraded = rollout(task, 0.0)
    return replace(ungraded, grade=Grade(score=None, failure=failure))


def test_a_healthy_job_goes_without_a_word() -> None:
    assert judge(facts()) == Verdict(go=True)


def test_each_failure_stops_the_job_and_names_its_part() -> None:
    dead = tool_facts("shop", ProbeCall(seconds=1.0, problem="connection refused"), ())
    for changed, code, word in (
        ({"tools": (dead,)}, "tool_unreachable", "connection refused"),
        ({"grader": replace(GRADER, crashed=4, first_crash="boom")}, "grader_failing", "boom"),
        (
            {"rollouts": replace(ROLLOUTS, dropped=40, dropped_where={"limits: too long": 40})},
            "rollouts_failing",
            "too long",
        ),
        (
            {"rollouts": replace(ROLLOUTS, mean=None, lowest=None, highest=None)},
            "rollouts_failing",
            "none of 64",
        ),
        (
            {"rollouts": replace(ROLLOUTS, lowest=0.0, highest=0.0, tasks_with_spread=0)},
            "grader_constant",
            "scored 0",
        ),
        ({"rollouts": replace(ROLLOUTS, tasks_with_spread=0)}, "no_learning_signal", "each of 16"),
    ):
        verdict = judge(facts(**changed))
        assert (verdict.go, verdict.code) == (False, code)
        assert word in verdict.reason


def test_warn_only_lets_every_failure_pass_as_a_warning() -> None:
    verdict = judge(facts(rollouts=replace(ROLLOUTS, tasks_with_spread=0)), warn_only=True)
    assert verdict.go
    assert found(verdict) == ["no_learning_signal"]


def test_a_verdict_tells_all_failures_and_takes_the_code_of_the_first() -> None:
    dead = tool_facts("shop", ProbeCall(seconds=1.0, problem="refused"), ())
    verdict = judge(facts(tools=(dead,), grader=replace(GRADER, crashed=64, first_crash="boom")))
    assert verdict.code == "tool_unreachable"
    assert verdict.param == "method.reinforcement.tools"
    assert "refused" in verdict.reason
    assert "; also: the grader failed on 64 of 64" in verdict.reason


@pytest.mark.parametrize(
    ("changed", "code"),
    [
        ({"rows": replace(ROWS, rows=5, with_tools=5)}, "few_rows"),
        ({"rows": replace(ROWS, duplicates=2)}, "duplicate_rows"),
        ({"rows": replace(ROWS, shared=1)}, "shared_rows"),
        ({"rows": replace(ROWS, with_tools=10)}, "uneven_tools"),
        ({"rows": replace(ROWS, uneven_keys=("answer",))}, "uneven_keys"),
        ({"rows": replace(ROWS, missing={"answer": 2})}, "missing_key"),
        ({"rows": replace(ROWS, constant=("answer",))}, "constant_key"),
        ({"rows": replace(ROWS, long=("answer",))}, "long_key"),
        ({"grader": replace(GRADER, crashed=1, first_crash="x")}, "grader_failing"),
        ({"grader": replace(GRADER, changed=1, largest_change=0.5)}, "grader_unsteady"),
        ({"rollouts": replace(ROLLOUTS, tasks_with_spread=1)}, "little_spread"),
        ({"rollouts": replace(ROLLOUTS, truncated=20)}, "truncated"),
        (
            {"rollouts": replace(ROLLOUTS, dropped=10, dropped_where={"tool": 10})},
            "rollouts_failing",
        ),
        (
            {"tools": (tool_facts("t", ANSWERED, [ProbeCall(seconds=0.1, problem="503")] * 2),)},
            "tool_errors",
        ),
        (
            {"tools": (tool_facts("t", ANSWERED, [ProbeCall(seconds=0.1, refusal=422)] * 2),)},
            "tool_refusals",
        ),
        ({"tools": (tool_facts("t", ANSWERED, [ProbeCall(seconds=9.0)] * 3),)}, "slow_tool"),
    ],
)
def test_what_is_merely_odd_is_a_warning(changed: dict[str, Any], code: str) -> None:
    verdict = judge(facts(**changed))
    assert verdict.go
    assert found(verdict) == [code]


def test_supervised_jobs_need_ten_rows_with_something_to_learn_in_the_context() -> None:
    learnable = (False, True)
    beyond = (False, False, False, True)
    lengths = length_facts([learnable] * 9 + [beyond], limit_tokens=3)
    assert (lengths.cut, lengths.unlearnable, lengths.longest_tokens) == (1, 1, 4)
    whole = Facts(method="supervised", rows=replace(ROWS, rows=10), lengths=lengths)
    assert found(judge(whole)) == ["long_rows", "uneven_tools"]
    few = judge(replace(whole, rows=replace(ROWS, rows=9)))
    assert (few.go, few.code, few.param) == (False, "invalid_training_file", "training_file")
    nothing = judge(replace(whole, lengths=length_facts([beyond] * 10, limit_tokens=3)))
    assert (nothing.go, nothing.code) == (False, "invalid_training_file")
    assert judge(replace(whole, lengths=length_facts([], limit_tokens=3))) == replace(
        nothing, warnings=nothing.warnings[1:]
    )


def test_a_tool_is_dead_if_it_answers_nothing_or_only_that_nobody_lives_there() -> None:
    def alive(alone: ProbeCall, *burst: ProbeCall) -> bool:
        return tool_facts("t", alone, burst).alive

    wrong_url, bad_arguments = (ProbeCall(seconds=0.1, refusal=s) for s in (404, 400))
    assert not alive(ProbeCall(seconds=0.1, problem="503"))
    assert not alive(wrong_url, wrong_url)
    assert alive(wrong_url, wrong_url, ANSWERED)
    assert alive(bad_arguments, bad_arguments)


def test_latency_is_that_of_the_burst() -> None:
    burst = [ProbeCall(seconds=float(s)) for s in range(20, 0, -1)]
    measured = tool_facts("t", ANSWERED, burst)
    assert (measured.alone_s, measured.p50_s, measured.p95_s) == (0.1, 10.0, 19.0)
    assert tool_facts("t", ANSWERED, ()).p95_s is None


def test_rollouts_lost_to_infrastructure_move_no_mean() -> None:
    measured = rollout_facts(
        [
            rollout("a", 1.0),
            rollout("a", 0.0, stop=StopReason.MAX_TOKENS),
            rollout("a", None),
            rollout("b", 0.5),
            rollout("b", 0.5),
        ],
        per_task=4,
        pass_threshold=0.5,
    )
    assert (measured.rollouts, measured.dropped, measured.truncated) == (5, 1, 1)
    assert (measured.mean, measured.lowest, measured.highest) == (0.5, 0.0, 1.0)
    assert (measured.pass_rate, measured.best_of_k) == (0.75, 0.75)
    assert (measured.tasks, measured.tasks_with_spread) == (2, 1)
    assert measured.dropped_where == {"tool 'shop': HTTP 503": 1}


def test_no_rollouts_have_no_means() -> None:
    measured = rollout_facts([], per_task=4, pass_threshold=1.0)
    assert (measured.mean, measured.pass_rate, measured.best_of_k) == (None, None, None)


def test_a_grader_is_held_to_its_first_word() -> None:
    rollouts = [rollout("a", 1.0, name="a"), rollout("b", 0.0, name="b"), crashed("c", "boom")]
    again = {"a": [1.0, 0.25], "b": [0.0, None]}
    measured = grader_facts(rollouts, again)
    assert (measured.tried, measured.crashed, measured.first_crash) == (3, 1, "boom")
    assert (measured.regraded, measured.changed, measured.largest_change) == (2, 2, 0.75)
    assert grader_facts(rollouts, {"a": [1.0, 1.0]}).changed == 0


def a_row(text: str, *tools: str, **row: Any) -> Task:
    return Task(
        id=text + str(row),
        messages=(Message(role="user", content=text),),
        tools=tuple(ToolSpec(name=name, description="", parameters={}) for name in tools),
        row={"messages": [], "tools": [], **row},
    )


def test_rows_are_compared_by_what_the_model_sees() -> None:
    measured = row_facts(
        [a_row("a", answer="1"), a_row("a", answer="2"), a_row("a", "shop"), a_row("b")],
        [a_row("b"), a_row("c")],
    )
    assert (measured.rows, measured.validation_rows, measured.with_tools) == (4, 2, 1)
    assert (measured.duplicates, measured.shared) == (1, 1)
    assert measured.uneven_keys == ("answer",)


def test_keys_that_the_grader_reads_are_looked_at() -> None:
    rows = [a_row(str(n), answer="x" * 600, kind="same") for n in range(3)]
    measured = row_facts([*rows, a_row("4", kind="same")], [], grader_keys=("answer", "kind"))
    assert measured.missing == {"answer": 1}
    assert measured.constant == ("answer", "kind")
    assert measured.long == ("answer",)


def test_conversations_are_rows_too() -> None:
    message = Message(role="assistant", content="hello")
    rows = [Demonstration(id=str(n), messages=(message,)) for n in range(2)]
    assert row_facts(rows, []).duplicates == 1


def test_metadata_can_only_ask_for_warnings() -> None:
    assert only_warns({"preflight": "warn"})
    assert not only_warns({"team": "x"})
    assert not only_warns(None)
    with pytest.raises(ConfigError, match="metadata.preflight is 'off'"):
        only_warns({"preflight": "off"})


def test_numbers_are_json() -> None:
    measured = rollout_facts([rollout("a", None)] * 2, per_task=4, pass_threshold=1.0)
    whole = facts(rollouts=measured, tools=(tool_facts("t", ANSWERED, ()),))
    shown = json.loads(json.dumps(numbers(whole, judge(whole)), allow_nan=False))
    assert shown["rollouts"]["dropped_where"] == {"tool 'shop': HTTP 503": 2}
    assert shown["verdict"]["code"] == "rollouts_failing"
    assert shown["tools"][0]["name"] == "t"


def test_no_two_rules_of_a_level_look_at_the_same() -> None:
    checks = [(rule.level, rule.check) for rule in RULES]
    assert len(set(checks)) == len(checks)


def test_the_docs_list_exactly_these_rules() -> None:
    text = (Path(__file__).parents[2] / "docs" / "fine_tuning_api.md").read_text()
    listed = re.findall(r"^\| `(\w+)` \| (fail|warn) \|", text, re.MULTILINE)
    assert len(set(listed)) == len(listed)
    assert set(listed) == {(rule.code, rule.level) for rule in RULES}
