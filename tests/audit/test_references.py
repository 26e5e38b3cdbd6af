from typing import Any

import pytest
from subjects import asked, check

from agentrft.audit.references import Answer, content_seen, find_answers
from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import StopReason, Trajectory, Turn
from agentrft.graders.reading import keys_read

ROW: dict[str, Any] = {
    "answer": "42",
    "wanted": {"kind": "refund", "amount": 5},
    "code": "W1",
    "messages": "not an answer",
}


def python(source: str) -> dict[str, Any]:
    return {"type": "python", "source": source}


def multi(**graders: dict[str, Any]) -> dict[str, Any]:
    return {"type": "multi", "graders": graders, "calculate_output": "0"}


def found(config: dict[str, Any], path: str = "") -> Answer | None:
    return find_answers(config, [asked("t", "?", **ROW)], path=path).get("t")


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (check("eq"), "42"),
        (check("like", reference="It is {{item.code}}."), "It is W1."),
        (check("eq", "<a>{{sample.output_text}}</a>", "<a>{{item.code}}</a>"), "W1"),
        (check("eq", "{{sample.output_json.kind}}", "{{item.wanted.kind}}"), '{"kind": "refund"}'),
        (
            multi(
                a=check("eq", "{{sample.output_json.out.amount}}", "{{item.wanted.amount}}"),
                b=check("eq", "{{sample.output_json.out.kind}}", "{{item.wanted.kind}}"),
            ),
            '{"out": {"amount": 5, "kind": "refund"}}',
        ),
        (
            python('def grade(sample, item):\n    return item["code"] in sample["output_text"]'),
            "W1",
        ),
        (python("def grade(sample, item): return 1.0"), "42"),
        ({}, "42"),
    ],
)
def test_the_answer_is_what_the_grader_asks_for_or_what_the_row_calls_so(
    config: dict[str, Any], text: str
):
    answer = found(config)
    assert answer is not None
    assert answer.text == text


def test_a_named_key_wins():
    assert found(check("eq"), path="wanted.kind") == Answer(text="refund")


def test_calls_that_are_asked_for_are_made():
    answer = found(
        multi(
            name=check("eq", "{{sample.output_tools[0].function.name}}", "refund"),
            arguments=check(
                "eq", "{{sample.output_tools[0].function.arguments}}", "{{item.wanted}}"
            ),
        )
    )
    assert answer is not None
    assert [(call.name, call.arguments) for call in answer.calls] == [
        ("refund", '{"kind": "refund", "amount": 5}')
    ]


def test_a_check_for_difference_or_of_a_missing_key_tells_no_answer():
    rows = [asked("t", "?", subject="?")]
    assert find_answers(check("ne"), rows) == {}
    assert find_answers(check("eq", reference="{{item.nothing}}"), rows) == {}


def test_a_rollout_known_to_be_right_is_the_answer_with_calls_if_the_grader_sees_them():
    call = ToolCall(id="call_1", name="look", arguments="{}")
    messages = [
        Message(role="assistant", tool_calls=(call,)),
        Message(role="assistant", content="7"),
    ]
    gold = Trajectory(
        id="",
        task_id="t",
        model="",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=tuple(
            Turn(
                observation_ids=(),
                action_ids=(),
                behavior_logprobs=(),
                first_version=0,
                last_version=0,
                message=message,
            )
            for message in messages
        ),
        stop_reason=StopReason.FINISHED,
    )
    rows = [asked("t", "?", **ROW)]
    assert find_answers({}, rows, gold={"t": gold}) == {"t": Answer(text="7", calls=(call,))}
    assert find_answers(check("eq"), rows, gold={"t": gold}) == {"t": Answer(text="7")}


@pytest.mark.parametrize(
    ("config", "seen"),
    [
        (check("eq"), {"text"}),
        (check("eq", "{{sample.output_tools}}"), {"calls"}),
        (check("eq", "{{sample.messages}}"), {"text", "calls"}),
        (multi(a=check("eq"), b=python("")), {"text", "calls"}),
        ({}, {"text", "calls"}),
    ],
)
def test_what_a_grader_can_see_follows_from_its_templates(config: dict[str, Any], seen: set[str]):
    assert content_seen(config) == seen


def test_keys_that_are_read_are_found_in_templates_and_in_code():
    assert keys_read(check("eq", reference="{{item.a.b}} {{item.c}}")) == ("a", "c")
    assert keys_read(python("def grade(sample, item): return item['x'] == item.get('y')")) == (
        "x",
        "y",
    )
