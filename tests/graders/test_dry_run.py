import asyncio
from typing import Any

import pytest
from raw_server import reply, serving

from agentrft.core.errors import ConfigError
from agentrft.core.protocols import FunctionFault, FunctionResult
from agentrft.core.usage import TokenUsage
from agentrft.graders.backends import Backends
from agentrft.graders.dry_run import ERROR_FAMILIES, GraderRun, run_grader
from agentrft.inference.grader_model import GradingReply, ScriptedGraderModel
from agentrft.sandbox.scripted import ScriptedSandbox

CHECK = {
    "type": "string_check",
    "name": "city",
    "input": "{{sample.output_text}}",
    "reference": "{{item.reference}}",
    "operation": "eq",
}
FLAGS = """formula_parse_error sample_parse_error sample_parse_error_details
truncated_observation_error unresponsive_reward_error invalid_variable_error
invalid_variable_error_details other_error python_grader_server_error
python_grader_server_error_type python_grader_runtime_error python_grader_runtime_error_details
model_grader_server_error model_grader_server_error_details model_grader_refusal_error
model_grader_refusal_error_details model_grader_parse_error model_grader_parse_error_details
model_grader_exceeded_max_tokens_error endpoint_grader_internal_error
endpoint_grader_internal_error_details endpoint_grader_server_error
endpoint_grader_server_error_details endpoint_grader_safety_check_error""".split()


def run(config: dict[str, Any], item: dict[str, Any], sample: str) -> GraderRun:
    return asyncio.run(run_grader(config, item, sample, "trace_ab", Backends()))


def errors(given: GraderRun) -> dict[str, Any]:
    """What the reply says went wrong, flags that are off left out."""
    shown: dict[str, Any] = given.reply()["metadata"]["errors"]
    assert set(shown) == set(FLAGS)
    return {name: value for name, value in shown.items() if value}


def test_a_run_answers_with_every_field_of_the_contract() -> None:
    given = run(CHECK, {"reference": "Paris"}, "Paris")
    answer = given.reply()
    assert set(answer) == {
        "reward",
        "sub_rewards",
        "model_grader_token_usage_per_model",
        "metadata",
    }
    assert answer["reward"] == 1.0
    metadata = answer["metadata"]
    assert (metadata["name"], metadata["type"], metadata["token_usage"]) == (
        "city",
        "string_check",
        None,
    )
    assert metadata["execution_time"] >= 0
    assert metadata["sampled_model_name"] is None
    assert errors(given) == {}


def test_the_parts_of_a_formula_are_shown() -> None:
    config = {"type": "multi", "graders": {"a": CHECK}, "calculate_output": "0.5 * a"}
    answer = run(config, {"reference": "Paris"}, "Paris").reply()
    assert (answer["reward"], answer["sub_rewards"]) == (0.5, {"a": 1.0})
    assert answer["metadata"]["scores"] == {"a": 1.0}


@pytest.mark.parametrize(
    ("config", "reward", "family", "details"),
    [
        (
            {**CHECK, "reference": "{{item.capital}}"},
            None,
            "invalid_variable_error",
            "no 'capital'",
        ),
        (
            {**CHECK, "input": "{{sample.output_tools[0].id}}"},
            0.0,
            "invalid_variable_error",
            "output has no",
        ),
        ({**CHECK, "input": "{{sample.output_json.x}}"}, 0.0, "sample_parse_error", "not JSON"),
        (
            {"type": "multi", "graders": {"a": CHECK}, "calculate_output": "1 / a"},
            None,
            "formula_parse_error",
            "",
        ),
    ],
)
def test_an_error_raises_the_flag_of_its_family(
    config: dict[str, Any], reward: float | None, family: str, details: str
) -> None:
    given = run(config, {"reference": "Paris"}, "Rome")
    shown = errors(given)
    assert given.reply()["reward"] == reward
    assert shown.pop(family) is True
    assert details in shown.pop(f"{family}_details", "")
    assert shown == {}


def test_an_endpoint_is_asked_with_the_trace_id_and_its_failure_is_no_zero() -> None:
    async def scenario() -> None:
        async with serving(reply('{"score": 0.5}'), reply("x" * 2_000_000)) as server:
            config = {"type": "endpoint", "name": "g", "url": server.url}
            good = await run_grader(config, {"a": 1}, '{"b": 2}', "trace_ab", Backends())
            assert good.reply()["reward"] == 0.5
            body = server.requests[0].body
            assert (body["trace_id"], body["item"]) == ("trace_ab", {"a": 1})
            assert body["sample"]["output_json"] == {"b": 2}
            assert body["sample"]["output_tools"] == []
            huge = {"a": "x" * 2_000_000}
            bad = await run_grader(config, huge, "text", "trace_ab", Backends())
            assert bad.reply()["reward"] is None
            assert errors(bad)["endpoint_grader_internal_error"] is True

    asyncio.run(scenario())


def part(name: str, **more: Any) -> dict[str, Any]:
    return {**CHECK, "name": name, **more}


def test_every_fault_of_every_part_raises_its_flag() -> None:
    code = {"type": "python", "source": "def grade(sample, item): return 1"}
    fault = FunctionResult(fault=FunctionFault.SANDBOX, detail="no workers")
    config = {
        "type": "multi",
        "name": "all",
        "graders": {
            "fine": CHECK,
            "row": part("row", reference="{{item.capital}}"),
            "other_row": part("other_row", reference="{{item.country}}"),
            "output": part("output", input="{{sample.output_json.city}}"),
            "code": code,
        },
        "calculate_output": "fine + row + other_row + output + code",
    }
    backends = Backends(sandbox=ScriptedSandbox(values=(fault,)))
    given = asyncio.run(run_grader(config, {"reference": "Rome"}, "Rome", "t", backends))
    shown = errors(given)
    assert {name for name, value in shown.items() if value is True} == {
        "invalid_variable_error",
        "sample_parse_error",
        "python_grader_server_error",
    }
    assert "'capital'" in shown["invalid_variable_error_details"]
    assert "'country'" in shown["invalid_variable_error_details"]
    assert "no workers" in shown["python_grader_server_error_type"]
    assert given.reply()["reward"] is None
    assert given.reply()["sub_rewards"] == {"fine": 1.0, "output": 0.0}


def test_a_formula_without_a_value_is_told_beside_the_faults_of_its_parts() -> None:
    unread = part("a", input="{{sample.output_json.city}}")
    config = {"type": "multi", "graders": {"a": unread}, "calculate_output": "1 / a"}
    shown = errors(run(config, {"reference": "Rome"}, "Rome"))
    assert (shown["formula_parse_error"], shown["sample_parse_error"]) == (True, True)


def test_tokens_of_grader_models_are_added_up_by_model() -> None:
    def judge(model: str) -> dict[str, Any]:
        return {
            "type": "score_model",
            "model": model,
            "input": [{"role": "user", "content": "Rate {{sample.output_text}}"}],
        }

    used = TokenUsage(prompt_tokens=190, completion_tokens=134, cached_tokens=10)
    text = '{"steps": [], "result": 0.5}'
    reply = GradingReply(text=text, finish_reason="stop", usage=used)
    models = {name: ScriptedGraderModel([reply]) for name in ("small", "large")}
    config = {
        "type": "multi",
        "graders": {"a": judge("small"), "b": judge("small"), "c": judge("large")},
        "calculate_output": "(a + b + c) / 3",
    }
    backends = Backends(models=models)
    answer = asyncio.run(run_grader(config, {}, "x", "t", backends)).reply()
    assert answer["reward"] == 0.5
    assert answer["model_grader_token_usage_per_model"] == {
        "small": {
            "prompt_tokens": 380,
            "completion_tokens": 268,
            "total_tokens": 648,
            "cached_tokens": 20,
        },
        "large": {
            "prompt_tokens": 190,
            "completion_tokens": 134,
            "total_tokens": 324,
            "cached_tokens": 10,
        },
    }
    assert answer["metadata"]["token_usage"] == 972
    assert answer["metadata"]["sampled_model_name"] is None
    alone = asyncio.run(run_grader(judge("large"), {}, "x", "t", backends)).reply()["metadata"]
    assert (alone["token_usage"], alone["sampled_model_name"]) == (324, "large")


def test_a_wrong_object_is_refused_by_its_path() -> None:
    with pytest.raises(ConfigError, match="grader.type is missing"):
        run({"name": "x"}, {}, "")
    with pytest.raises(ConfigError, match="grader is empty"):
        run({}, {}, "")
    with pytest.raises(ConfigError, match="grader.url leads to 169.254.169.254"):
        run({"type": "endpoint", "url": "http://169.254.169.254/"}, {}, "")


def test_every_flag_has_a_family() -> None:
    assert set(ERROR_FAMILIES) <= set(FLAGS)
