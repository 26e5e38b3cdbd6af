from dataclasses import replace

import pytest
from fabricated import Situation, cancelled, rollout, task

from agentrft.core.spec import AgentSpec, ToolView, system_sections
from agentrft.core.task import Message
from agentrft.measure.diagnosis import Diagnosis, FailureClass
from agentrft.optimize.problem import TaskSplits
from agentrft.optimize.reflection import (
    RECORD,
    RECORDS,
    Seen,
    applied,
    censor,
    components,
    concerned,
    limit,
    prompt,
    records,
    written,
)

NAMES = ("section system", "tool get_order", "tool cancel_order")
FIRST = {"section system": "Be {tone} to {{name}}.", "tool get_order": "Look up an order."}
SPLITS = TaskSplits(
    feedback=(task(1, "Hello, could you please do this for me: cancel W00001."),),
    dev=(
        task(
            2, "Hello, could you please do this for me: it broke in half on the way.", split="dev"
        ),
    ),
    holdout=(
        replace(
            task(3, "Write to jo@mail.com about it.", split="holdout"), row={"answer": [4711.5]}
        ),
    ),
)
CENSOR = censor(FIRST, SPLITS)


def failed(failure_class: FailureClass, turn: int | None = 1, **parts: object) -> Seen:
    one = task(1)
    diagnosis = Diagnosis(failure_class=failure_class, turn=turn, evidence="seen")
    graded = cancelled(one, score=0.0, explanation="wrong order")
    return replace(Seen(task=one, graded=graded, diagnosis=diagnosis), **parts)


def test_sections_and_shown_tools_are_components() -> None:
    spec = AgentSpec(
        sections=system_sections("Be kind."),
        tools={"refund": ToolView(exposed=False), "hand_over": ToolView(description="Give up.")},
    )
    found = components(Situation(baseline=spec).known.problem)
    assert found["section system"] == "Be kind."
    assert found["tool hand_over"] == "Give up."
    assert "tool refund" not in found
    assert applied(found)(spec).system == spec.system


def test_wrong_arguments_concern_the_tool_and_wrong_plans_the_system_text() -> None:
    assert concerned(failed(FailureClass.WRONG_ARGUMENTS), NAMES) == ("tool cancel_order",)
    assert concerned(failed(FailureClass.WRONG_PLAN), NAMES) == ("section system",)
    assert concerned(failed(FailureClass.WRONG_TOOL, turn=None), NAMES) == ("section system",)


def test_records_show_failures_of_the_component_first_and_stay_short() -> None:
    plan, tool = failed(FailureClass.WRONG_PLAN), failed(FailureClass.WRONG_TOOL)
    long = task(9, "word " * 2000)
    many = [plan, replace(plan, task=long, contrast=cancelled(long)), *[plan] * 9, tool]
    found = records("tool cancel_order", many, NAMES)
    assert len(found) == RECORDS
    assert found[0]["What was wrong"] == "wrong tool: seen\nwrong order"
    assert all(sum(len(text) for text in record.values()) <= RECORD for record in found)


def test_a_record_holds_a_success_of_the_same_task_beside_the_failure() -> None:
    other = rollout(task(1), ("refund", {}, "ok"))
    (record,) = records("section system", [failed(FailureClass.WRONG_PLAN, contrast=other)], NAMES)
    assert record["Solved another time"].startswith("call refund")
    assert "call cancel_order" in record["What the agent did"]


def test_the_question_holds_the_text_the_failures_and_the_limit() -> None:
    (record,) = records("section system", [failed(FailureClass.WRONG_PLAN)], NAMES)
    asked = prompt("section system", "Be kind.", [record], Situation().tools)
    assert "Be kind." in asked
    assert "wrong plan: seen" in asked
    assert "At most 1200 characters" in asked


@pytest.mark.parametrize(
    ("reply", "text"),
    [
        ("```\nNew.\n```", "New."),
        ("```text\nOld.\n```\nBetter:\n```\nNew.\n```", "New."),
        ("New.", ""),
        ("```New.```", ""),
        ("```\nNever closed", ""),
    ],
)
def test_only_the_last_fenced_block_is_taken(reply: str, text: str) -> None:
    assert written(reply) == text


@pytest.mark.parametrize(
    ("text", "refusal"),
    [
        ("Be very {tone} to {{name}}.", ""),
        ("", "no text"),
        ("Be kind.", "placeholders"),
        ("Be {tone} to {{name}} and {other}.", "placeholders"),
        ("Be {tone} to {{name}}. <side_info>", "placeholders"),
        ("Be {tone} to {{name}}, e.g. with W00001.", "'w00001' of a task"),
        ("Be {tone} to {{name}} and jo@mail.com.", "'jo@mail.com' of a task"),
        ("Be {tone} to {{name}}: the total is 4711.5.", "'4711.5' of a task"),
        ("Be {tone} to {{name}}: it broke in half on the way", "quotes a dev or holdout task"),
        ("Be {tone} to {{name}}. Hello, could you please do this.", ""),
        ("Be {tone} to {{name}}. " + "a" * 1200, "1200 are allowed"),
    ],
)
def test_a_text_is_refused_for_length_placeholders_and_data_of_tasks(
    text: str, refusal: str
) -> None:
    found = CENSOR.refusal("section system", text)
    assert refusal in found
    assert bool(refusal) == bool(found)


def test_long_texts_may_grow_by_half() -> None:
    assert limit("tool get_order", "Look up.") == 500
    assert limit("section system", "a" * 2000) == 3000


def test_system_messages_of_tasks_may_be_repeated() -> None:
    told = "Always look the order up before you change it."
    one = replace(task(5, split="dev"), messages=(Message(role="system", content=told),))
    assert not censor(FIRST, replace(SPLITS, dev=(one,))).refusal("tool get_order", told)
