import csv
import io
import json
from typing import Any

import pytest

from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.run import RolloutRecord, Split
from agentrft.core.task import Message
from agentrft.core.trajectory import (
    Failure,
    FailureKind,
    StopReason,
    ToolResult,
    Trajectory,
    Turn,
)
from agentrft.core.usage import TokenUsage
from agentrft.jobs.step_report import (
    StepReport,
    preference_report,
    reinforcement_report,
    result_file,
    supervised_report,
)

ENDPOINT = {"type": "endpoint", "name": "mine", "url": "http://127.0.0.1:1/grade"}
MULTI = {
    "type": "multi",
    "name": "both",
    "graders": {
        "tool": {"type": "string_check", "name": "right tool"},
        "said": {"type": "endpoint"},
    },
    "calculate_output": "min(tool, said)",
}
VALUES = {
    "reward": 0.5,
    "score/tool": 0.75,
    "score/said": 0.5,
    "sampled_tokens": 12.0,
    "loss": -0.25,
    "seconds/rollout": 2.0,
    "seconds/training": 3.0,
    "seconds/publication": 1.0,
}
DOWN = Failure(kind=FailureKind.INFRASTRUCTURE, where="tool 'shop'", message="HTTP 503")


def turn(observed: int, sampled: int, *results: ToolResult) -> Turn:
    return Turn(
        observation_ids=(1,) * observed,
        action_ids=(2,) * sampled,
        behavior_logprobs=(-0.5,) * sampled,
        first_version=0,
        last_version=0,
        message=Message(role="assistant", content="x"),
        tool_results=results,
    )


def result(name: str, *, error: bool = False, seconds: float = 0.0) -> ToolResult:
    return ToolResult(call_id="c", name=name, content="x", is_error=error, duration_s=seconds)


def a_rollout(
    grade: Grade, *turns: Turn, split: Split = "train", failure: Failure | None = None
) -> RolloutRecord:
    trajectory = Trajectory(
        id="trace_0",
        task_id="t",
        model="m",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=turns or (turn(5, 10),),
        stop_reason=StopReason.FAILED if failure else StopReason.FINISHED,
        failure=failure,
    )
    graded = GradedTrajectory(trajectory=trajectory, grade=grade)
    return RolloutRecord(stage="reinforcement", split=split, step=1, family="", graded=graded)


def scored(score: float, **grade: Any) -> Grade:
    return Grade(score=score, grader="mine", **grade)


def ungraded(code: str) -> Grade:
    failure = Failure(kind=FailureKind.GRADER, where="grader 'mine'", message="m", code=code)
    return Grade(score=None, failure=failure)


def report(
    train: list[RolloutRecord] | None = None,
    validation: list[RolloutRecord] | None = None,
    *,
    grader: dict[str, Any] = ENDPOINT,
    values: dict[str, float] = VALUES,
    step: int = 1,
) -> StepReport:
    return reinforcement_report(
        values,
        step=step,
        total_steps=20,
        grader=grader,
        tools=("shop", "search"),
        train=[a_rollout(scored(0.5))] if train is None else train,
        validation=validation or [],
    )


def test_rewards_stand_under_both_spellings() -> None:
    valid = [a_rollout(scored(s), split="validation") for s in (1.0, 0.5)]
    said = report(validation=valid)
    data = said.data
    for key in ("train_mean_reward", "train_reward_mean"):
        assert data[key] == data["scores"][key] == 0.5
    for key in ("valid_mean_reward", "valid_reward_mean"):
        assert data[key] == data["scores"][key] == 0.75
    assert data["full_valid_mean_reward"] == 0.75
    assert said.message == (
        "Step 1/20 , train mean reward=0.50, full validation mean reward=0.75, "
        "full validation mean parse error=0.00"
    )


def test_without_validation_its_twins_are_null_and_never_zero() -> None:
    said = report()
    assert said.message == "Step 1/20 , train mean reward=0.50"
    flat = json.dumps(said.data)
    numbers = [
        (key, value)
        for entry in (
            said.data,
            said.data["scores"],
            *said.data["scores"]["graders"],
            said.data["usage"]["samples"],
            *said.data["errors"]["graders"],
            *said.data["timing"]["graders"],
            *said.data["tools"]["tools"],
        )
        for key, value in entry.items()
        if key.startswith(("valid_", "full_valid_"))
    ]
    assert len(numbers) > 20
    assert [key for key, value in numbers if value is not None] == []
    assert "NaN" not in flat


def test_parts_of_a_multi_grader_are_listed_beside_it() -> None:
    valid = [a_rollout(scored(0.5, parts={"tool": 1.0, "said": 0.5}), split="validation")]
    graders = report(validation=valid, grader=MULTI).data["scores"]["graders"]
    assert [(g["name"], g["type"]) for g in graders] == [
        ("both", "multi"),
        ("right tool", "string_check"),
        ("said", "endpoint"),
    ]
    assert [g["train_reward_mean"] for g in graders] == [0.5, 0.75, 0.5]
    assert [g["valid_reward_mean"] for g in graders] == [0.5, 1.0, 0.5]


def test_grader_errors_are_counted_by_family_over_what_was_graded() -> None:
    parse = Failure(kind=FailureKind.GRADER, where="g", message="m", code="sample_parse_error")
    said = report(
        [
            a_rollout(scored(1.0)),
            a_rollout(scored(0.0, failure=parse)),
            a_rollout(ungraded("endpoint_grader_server_error")),
            a_rollout(ungraded("")),
            a_rollout(Grade(score=None, failure=DOWN), failure=DOWN),
        ]
    )
    (errors,) = said.data["errors"]["graders"]
    assert errors["train_sample_parse_error_mean"] == 0.25
    assert errors["train_endpoint_grader_server_error_count"] == 1.0
    assert errors["train_other_error_count"] == 1.0
    assert errors["train_invalid_variable_error_count"] == 0.0
    assert "train_python_grader_runtime_error_count" not in errors


def test_rollouts_lost_to_infrastructure_are_told_apart_and_not_called_unresponsive() -> None:
    lost = Grade(score=None, failure=DOWN)
    said = report([a_rollout(scored(1.0)), a_rollout(lost, failure=DOWN), a_rollout(ungraded(""))])
    assert said.data["mean_unresponsive_rewards"] == 0.0
    assert said.data["dropped"]["train_count"] == 2.0
    assert said.data["dropped"]["train_mean"] == pytest.approx(2 / 3)
    assert said.data["dropped"]["train_where"] == {"tool 'shop'": 1, "grader 'mine'": 1}


def test_timing_adds_up_and_graders_are_timed() -> None:
    valid = [a_rollout(scored(1.0, duration_s=0.5), split="validation")]
    train = [a_rollout(scored(1.0, duration_s=s)) for s in (1.0, 2.0)]
    values = {**VALUES, "seconds/validation": 4.0}
    timing = report(train, valid, values=values).data["timing"]
    assert timing["step"] == {
        "eval": 4.0,
        "sampling": 2.0,
        "training": 3.0,
        "full_iteration": 10.0,
    }
    assert timing["graders"][0]["train_execution_latency_mean"] == 1.5
    assert timing["graders"][0]["valid_execution_latency_mean"] == 0.5


def test_tools_report_calls_errors_and_latency_and_what_the_model_made_up() -> None:
    first = turn(5, 10, result("shop", seconds=1.0), result("shop", error=True, seconds=3.0))
    second = turn(8, 4, result("invented", error=True), result("", error=True))
    tools = report([a_rollout(scored(1.0), first, second, turn(6, 2))]).data["tools"]
    shop, search = tools["tools"]
    assert (shop["train_calls_count"], shop["train_error_count"]) == (2.0, 1.0)
    assert (shop["train_error_mean"], shop["train_latency_mean"]) == (0.5, 2.0)
    assert (search["train_calls_count"], search["train_latency_mean"]) == (0.0, None)
    assert tools["train_tool_calls_mean"] == 2.0
    assert tools["train_unknown_tool_calls_mean"] == 1.0
    assert tools["train_unreadable_calls_mean"] == 1.0
    assert tools["train_tokens_per_tool_call_mean"] == 14 / 4


def test_a_step_that_trained_on_nothing_has_no_loss() -> None:
    said = report([], values={"rollouts": 0.0})
    assert said.message == "Step 1/20 , train mean reward=n/a"
    assert said.data["pg_loss_sum"] is None
    assert said.data["entropy_loss_sum"] is None


def test_supervised_steps_report_only_what_was_measured() -> None:
    said = supervised_report({"loss": 1.5, "train_s": 2.0}, step=2, total_steps=3)
    assert said.message == "Step 2/3: training loss=1.50"
    assert said.data["train_loss"] == 1.5
    assert said.data["train_mean_token_accuracy"] is None
    assert said.data["full_valid_loss"] is None
    validated = supervised_report({"loss": 1.5}, step=3, total_steps=3, full_valid_loss=2.0)
    assert validated.message == "Step 3/3: training loss=1.50, full validation loss=2.00"
    assert validated.data["valid_loss"] == validated.data["full_valid_loss"] == 2.0


def test_preference_steps_report_margins_and_accuracies_of_both_files() -> None:
    said = preference_report({"loss": 0.5, "margin": 0.25, "accuracy": 0.75}, step=1, total_steps=2)
    assert said.message == "Step 1/2: training loss=0.50, accuracy=0.75, margin=0.25"
    assert said.data["train_margin"] == 0.25
    assert said.data["train_kl"] is None
    assert said.data["valid_loss"] is None
    values = {"loss": 0.5, "validation_loss": 0.6, "validation_accuracy": 1.0, "kl_to_reference": 2}
    seen = preference_report(values, step=2, total_steps=2)
    assert seen.message.endswith("full validation loss=0.60, accuracy=1.00")
    assert seen.data["valid_loss"] == seen.data["full_valid_loss"] == 0.6
    assert seen.data["train_kl"] == 2
    table = result_file("dpo", [said.data, seen.data]).decode().splitlines()
    assert table[0] == (
        "step,train_loss,train_accuracy,train_margin,train_preferred_reward,train_rejected_reward,"
        "train_kl,train_mean_token_accuracy,valid_loss,valid_accuracy,valid_margin,"
        "valid_preferred_reward,valid_rejected_reward,valid_kl,valid_mean_token_accuracy"
    )
    assert table[1:] == ["1,0.5,0.75,0.25,,,,,,,,,,,", "2,0.5,,,,,2,,0.6,1.0,,,,,"]


def read(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(content.decode())))


def test_the_result_file_has_one_line_per_step_whatever_was_done_twice() -> None:
    rare = [a_rollout(ungraded("truncated_observation_error"))]
    again = {**VALUES, "reward": 0.75}
    steps = [report(step=2), report(step=1), report(step=2, values=again), report(rare, step=3)]
    lines = read(result_file("reinforcement", [step.data for step in steps]))
    assert [line["step"] for line in lines] == ["1", "2", "3"]
    assert lines[1]["train_mean_reward"] == "0.75"
    assert lines[0]["full_valid_mean_reward"] == ""
    assert list(lines[0])[:9] == [
        "step",
        "train_mean_reward",
        "full_valid_mean_reward",
        "completion_tokens_mean",
        "reasoning_tokens_mean",
        "mean_unresponsive_rewards",
        "pg_loss_sum",
        "total_loss_sum",
        "entropy_loss_sum",
    ]
    assert lines[2]["errors/graders/mine/train_sample_parse_error_count"] == "0.0"
    assert lines[2]["errors/graders/mine/train_truncated_observation_error_count"] == "1.0"
    assert lines[0]["errors/graders/mine/train_truncated_observation_error_count"] == ""
    assert lines[0]["train_error_count_shop"] == "0.0"


def test_the_supervised_result_file_has_the_contracts_columns() -> None:
    steps = [supervised_report({"loss": float(s)}, step=s, total_steps=2).data for s in (1, 2)]
    content = result_file("supervised", steps).decode()
    header = (
        "step,train_loss,train_mean_token_accuracy,valid_loss,valid_mean_token_accuracy,"
        "full_valid_loss,full_valid_mean_token_accuracy"
    )
    assert content.splitlines() == [
        header,
        "1,1.0,,,,,",
        "2,2.0,,,,,",
    ]
    assert result_file("supervised", []).decode().count("\n") == 1


def test_what_grader_models_took_is_told_by_grader_and_by_model() -> None:
    judged = {
        "type": "multi",
        "name": "both",
        "graders": {
            "kind": {"type": "score_model", "name": "kindness", "model": "m"},
            "exact": {"type": "string_check", "name": "exact"},
        },
        "calculate_output": "min(kind, exact)",
    }
    took = TokenUsage(prompt_tokens=200, completion_tokens=40, cached_tokens=50)
    grade = Grade(score=0.5, grader="both", usage={"m": took})
    data = report(grader=judged, train=[a_rollout(grade), a_rollout(grade)]).data
    assert data["usage"]["graders"] == [
        {
            "name": "kindness",
            "type": "score_model",
            "model": "m",
            "train_prompt_tokens_mean": 200.0,
            "train_prompt_tokens_count": 400.0,
            "train_completion_tokens_mean": 40.0,
            "train_completion_tokens_count": 80.0,
            "valid_prompt_tokens_mean": None,
            "valid_prompt_tokens_count": None,
            "valid_completion_tokens_mean": None,
            "valid_completion_tokens_count": None,
        }
    ]
    assert data["model_graders_token_usage"] == {
        "m": {
            "train_prompt_tokens": 400,
            "train_cached_tokens": 100,
            "train_completion_tokens": 80,
            "eval_prompt_tokens": 0,
            "eval_cached_tokens": 0,
            "eval_completion_tokens": 0,
        }
    }


def test_graders_without_a_model_take_no_tokens() -> None:
    data = report(grader=ENDPOINT).data
    assert data["usage"]["graders"] == []
    assert data["model_graders_token_usage"] == {}
