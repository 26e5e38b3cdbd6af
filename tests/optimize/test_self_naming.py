import asyncio

import pytest
from fabricated import FakeTrials, Situation, levels, tool

from agentrft.core.spec import AgentSpec, ToolView
from agentrft.optimize.self_naming import (
    FIRST,
    SAMPLES,
    SelfNaming,
    awkward,
    clean_name,
    favourite,
    unique,
)
from agentrft.optimize.trials import BudgetSpentError, Question

ODD = (
    tool("svc_q1", "Look up an order.", ordNo={"type": "string", "description": "Its number."}),
    tool("svc_q2", "Cancel an order.", order_id="string"),
)


def says(answers: dict[str, str]):
    def answer(question: Question) -> list[str]:
        told = question.messages[0].content
        of = next(
            name for told_of, name in answers.items() if told_of in told.split("forecast")[-1]
        )
        return [of] * question.samples

    return FakeTrials(says=answer)


def test_tools_take_the_names_that_the_model_gives_them() -> None:
    trials = says(
        {"Its number": "order_number", "Look up": "get_order\n", "Cancel": "`cancel_order()`"}
    )
    knob = Situation(tools=ODD, trials=trials).knobs(SelfNaming())["own names"]
    views = levels(knob)["tools"].change(AgentSpec()).tools
    assert {name: view.name for name, view in views.items()} == {
        "svc_q1": "get_order",
        "svc_q2": "cancel_order",
    }
    renamed = levels(knob)["tools and parameters"].change(AgentSpec()).tools
    assert renamed["svc_q1"].parameters == {"ordNo": "order_number"}
    assert knob.levels[0].why == "svc_q1 -> get_order, svc_q2 -> cancel_order"


def test_two_tools_never_share_a_name() -> None:
    trials = says({"Its number": "", "Look up": "handle_order", "Cancel": "handle_order"})
    assert Situation(tools=ODD, trials=trials).knobs(SelfNaming()) == {}


def test_the_name_of_another_tool_is_not_taken() -> None:
    assert unique({"a": "b", "b": "c"}, {"a", "b"}) == {"b": "c"}
    assert unique({"a": "a", "b": ""}, {"a", "b"}) == {}


def test_a_model_without_an_opinion_renames_nothing() -> None:
    split = ["get_order", "find_order"] * (SAMPLES // 2)
    assert favourite(split) == ""
    assert favourite(["get_order"] * 5 + ["blah blah"] * 19) == ""
    assert favourite(["get_order"] * 6 + ["blah blah"] * 18) == "get_order"
    assert favourite([]) == ""


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (" get_order\nDescription: more", "get_order"),
        ("getOrder()", "get_order"),
        ("Get-Order", "get_order"),
        ("the function is called x", ""),
        ("", ""),
        ("name", ""),
        ("class", ""),
        ("multiply_matrices", ""),
        ("9lives", ""),
        ("a" * 50, ""),
    ],
)
def test_only_clean_identifiers_count(answer: str, name: str) -> None:
    assert clean_name(answer) == name


def test_a_model_that_answers_noise_is_asked_about_the_first_tools_only() -> None:
    asked: list[Question] = []

    def noise(question: Question) -> list[str]:
        asked.append(question)
        return [f"name_{chr(97 + n)}" for n in range(question.samples)]

    many = tuple(tool(f"svc_{n}", f"Does thing {n}.") for n in range(7))
    told = Situation(tools=(*ODD, *many), trials=FakeTrials(says=noise))
    assert told.knobs(SelfNaming()) == {}
    assert len(asked) == FIRST
    assert "agree on none" in told.lines[0]


def test_a_name_that_another_tool_is_shown_under_already_is_not_taken() -> None:
    trials = says({"Its number": "", "Look up": "get_order", "Cancel": "cancel_order"})
    shown = AgentSpec(tools={"svc_q2": ToolView(name="get_order")})
    knob = Situation(tools=ODD, trials=trials, baseline=shown).knobs(SelfNaming())["own names"]
    assert knob.levels[0].why == "svc_q2 -> cancel_order"


def test_parameters_with_plain_names_are_left_alone() -> None:
    assert not any(awkward(name) for name in ("order_id", "amount", "city", "id"))
    assert all(awkward(name) for name in ("ordNo", "qty", "x", "p1_x", "tmpl_nr"))


def test_the_question_does_not_give_the_name_away() -> None:
    asked: list[str] = []

    def listen(question: Question) -> list[str]:
        asked.append(question.messages[0].content)
        return [""] * question.samples

    secret = (tool("svc_q1", "svc_q1 looks up an order."),)
    Situation(tools=secret, trials=FakeTrials(says=listen)).knobs(SelfNaming())
    assert len(asked) == 1
    assert "svc_q1" not in asked[0]


def test_a_spent_budget_renames_nothing() -> None:
    def refuse(question: Question) -> list[str]:
        raise BudgetSpentError("no questions left")

    situation = Situation(tools=ODD, trials=FakeTrials(says=refuse))
    assert asyncio.run(SelfNaming().knobs(situation.known)) == ()
    assert "no questions left" in situation.lines[0]
