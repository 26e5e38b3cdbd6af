"""Checks between model and tools: what the tool got, what the model was told, what is recorded."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from byte_chat import a_policy, a_setup, calls, decode, play, requests, says

from agentrft.core.spec import AgentSpec, Guards, Precondition, Rendering, ToolView
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.template import sample_of
from agentrft.rollout.environment import Environment, python_environment
from agentrft.rollout.guards import coerced
from agentrft.rollout.tools import ToolRefusal, tool

GET = ("get_order", {"order_id": "W1"})
REFUND = ("refund", {"order_id": "W1", "cents": 5})


class Shop(Environment):
    """Counts what reaches it."""

    made: list[tuple[str, object]]

    def __init__(self, task: Task) -> None:
        type(self).made = self.made = []

    @tool(read_only=True)
    def get_order(self, order_id: str) -> str:
        """Look an order up."""
        self.made.append(("get_order", order_id))
        return f"{order_id} {'paid back' if len(self.made) > 2 else 'open'}"

    @tool
    def refund(self, order_id: str, cents: int) -> str:
        """Pay back."""
        self.made.append(("refund", cents))
        if cents > 100 and len(self.made) < 2:
            raise ToolRefusal("look the order up first")
        return "ok"

    def grade(self, trajectory: Trajectory) -> float:
        return 1.0


def rolled_out(
    guards: Guards,
    *turns: Sequence[tuple[str, Mapping[str, Any]]],
    views: Mapping[str, ToolView] | None = None,
) -> tuple[Trajectory, list[str]]:
    """Play the turns; return the record, and what the model saw before each next turn."""
    setup = a_setup(
        [*(calls(*turn) for turn in turns), says("done")],
        python_environment(Shop),
        policy=a_policy(AgentSpec(guards=guards, tools=views or {}, limits=a_policy().spec.limits)),
    )
    trajectory = play(setup).trajectory
    assert trajectory.failure is None
    assert len(requests(setup)) == len(turns) + 1
    return trajectory, [decode(turn.observation_ids) for turn in trajectory.turns[1:]]


def guards_of(trajectory: Trajectory) -> list[str]:
    return [result.guard for result in trajectory.tool_results]


def test_without_guards_everything_reaches_the_tool() -> None:
    trajectory, _ = rolled_out(Guards(), [GET, GET], [REFUND, REFUND])
    assert len(Shop.made) == 4
    assert guards_of(trajectory) == [""] * 4
    assert all(result.shown is None for result in trajectory.tool_results)


def test_the_same_call_is_answered_with_what_it_said() -> None:
    trajectory, saw = rolled_out(
        Guards(block_duplicates=True), [GET], [GET], [("get_order", {"order_id": "W2"})]
    )
    assert Shop.made == [("get_order", "W1"), ("get_order", "W2")]
    assert guards_of(trajectory) == ["", "block_duplicates", ""]
    assert "not run again. It said: W1 open" in saw[1]
    assert not trajectory.tool_results[1].content.startswith("W1")


def test_the_same_call_twice_in_one_turn_is_run_once_and_both_are_answered() -> None:
    trajectory, saw = rolled_out(Guards(block_duplicates=True), [REFUND, GET, REFUND])
    assert Shop.made == [("refund", 5), ("get_order", "W1")]
    assert guards_of(trajectory) == ["", "", "block_duplicates"]
    assert saw[0].endswith("It said: ok<|e|><|s|>assistant\n")


def test_what_was_read_may_be_read_again_after_a_change_but_no_change_is_made_twice() -> None:
    trajectory, saw = rolled_out(Guards(block_duplicates=True), [GET], [REFUND], [GET], [REFUND])
    assert [name for name, _ in Shop.made] == ["get_order", "refund", "get_order"]
    assert guards_of(trajectory) == ["", "", "", "block_duplicates"]
    assert "paid back" in saw[2]


def test_a_refused_call_may_be_made_again_when_another_one_succeeded() -> None:
    much = ("refund", {"order_id": "W1", "cents": 500})
    trajectory, _ = rolled_out(Guards(block_duplicates=True), [much], [much], [GET], [much])
    assert guards_of(trajectory) == ["", "block_duplicates", "", ""]
    assert [result.is_error for result in trajectory.tool_results] == [True, True, False, False]


BEFORE = Precondition(tool="refund", after=("get_order",), same_argument="order_id")


@pytest.mark.parametrize(
    ("turns", "refunds"),
    [
        ([[REFUND]], 0),
        ([[GET, REFUND]], 0),
        ([[GET], [REFUND]], 1),
        ([[("get_order", {"order_id": " w1 "})], [REFUND]], 1),
        ([[("get_order", {"order_id": "W2"})], [REFUND]], 0),
        ([[("get_order", {})], [REFUND]], 0),
        ([[REFUND, REFUND], [GET], [REFUND]], 1),
    ],
)
def test_a_precondition_needs_a_success_in_an_earlier_turn(
    turns: list[list[tuple[str, Mapping[str, Any]]]], refunds: int
) -> None:
    rolled_out(Guards(preconditions=(BEFORE,)), *turns)
    assert sum(name == "refund" for name, _ in Shop.made) == refunds


def test_a_precondition_is_told_in_the_models_names() -> None:
    views = {
        "refund": ToolView(name="pay", parameters={"order_id": "order"}),
        "get_order": ToolView(name="look"),
    }
    turn = [("pay", {"order": "W1", "cents": 5})]
    trajectory, saw = rolled_out(Guards(preconditions=(BEFORE,)), turn, views=views)
    assert "Error: pay can only run after look has succeeded with the same order<" in saw[0]
    (result,) = trajectory.tool_results
    assert (result.name, result.guard, result.is_error) == ("refund", "preconditions", True)
    assert result.content.startswith("Error: refund can only run after get_order")
    assert result.content.endswith("with the same order_id")


def test_what_guards_say_is_recorded_in_canonical_names() -> None:
    views = {"get_order": ToolView(name="look", rendering=Rendering(max_characters=2))}
    guards = Guards(block_duplicates=True, check_first=("refund",))
    look = [("look", {"order_id": "W1"})]
    trajectory, saw = rolled_out(guards, look, look, [REFUND], views=views)
    _, again, held = trajectory.tool_results
    assert again.content.endswith("It said: W1 open")
    assert saw[1].endswith("It said: W1\n[5 of 7 characters left out]<|e|><|s|>assistant\n")
    assert 'get_order {"order_id": "W1"}: W1 open' in held.content
    assert 'look {"order_id": "W1"}: W1\n[5 of 7' in saw[2]


def test_a_precondition_on_a_hidden_tool_does_not_bind() -> None:
    hidden = {"get_order": ToolView(exposed=False)}
    rolled_out(Guards(preconditions=(BEFORE,)), [REFUND], views=hidden)
    assert Shop.made == [("refund", 5)]


def test_a_change_is_held_with_what_was_read_and_runs_when_it_is_made_again() -> None:
    guards = Guards(check_first=("refund",))
    trajectory, saw = rolled_out(guards, [GET], [REFUND], [GET], [REFUND], [REFUND])
    assert guards_of(trajectory) == ["", "check_first", "", "", "check_first"]
    assert 'Not run yet: refund {"order_id": "W1", "cents": 5}' in saw[1]
    assert 'get_order {"order_id": "W1"}: W1 open' in saw[1]
    assert sum(name == "refund" for name, _ in Shop.made) == 1


def test_graders_go_by_the_calls_that_no_guard_answered() -> None:
    guards = Guards(check_first=("refund",), block_duplicates=True)
    made = [[GET], [GET], [REFUND], [("refnd", {})], [REFUND]]
    trajectory, _ = rolled_out(guards, *made)
    assert len(trajectory.tool_calls) == 5
    assert [call.name for call in trajectory.made_calls] == ["get_order", "refnd", "refund"]
    called = sample_of(trajectory)["output_tools"]
    assert [call["function"]["name"] for call in called] == ["get_order", "refnd", "refund"]


def test_two_equal_changes_in_one_turn_are_both_held() -> None:
    for guards in (Guards(check_first=("refund",)), Guards(confirm=("refund",))):
        trajectory, _ = rolled_out(guards, [REFUND, REFUND], [REFUND, REFUND])
        held = "check_first" if guards.check_first else "confirm"
        assert guards_of(trajectory) == [held, held, "", held]
        assert Shop.made == [("refund", 5)]


@pytest.mark.parametrize(
    ("turns", "refunds"),
    [
        ([[REFUND]], 0),
        ([[REFUND], [REFUND]], 1),
        ([[REFUND], [GET], [REFUND]], 0),
        ([[REFUND, GET], [REFUND]], 0),
        ([[REFUND], [GET, REFUND]], 0),
        ([[GET, REFUND], [REFUND]], 1),
        ([[REFUND], [("refund", {"order_id": "W1", "cents": 6})]], 0),
        ([[REFUND], [("refund", {"cents": 5, "order_id": "W1"})]], 1),
    ],
)
def test_what_cannot_be_undone_runs_only_when_written_twice_in_a_row(
    turns: list[list[tuple[str, Mapping[str, Any]]]], refunds: int
) -> None:
    rolled_out(Guards(confirm=("refund",)), *turns)
    assert sum(name == "refund" for name, _ in Shop.made) == refunds


def test_a_tool_under_both_is_written_twice_not_thrice() -> None:
    guards = Guards(check_first=("refund",), confirm=("refund",))
    rolled_out(guards, [REFUND], [REFUND])
    assert Shop.made == [("refund", 5)]


def test_nearly_right_names_are_mended_and_the_record_says_so() -> None:
    views = {"refund": ToolView(name="pay_back", parameters={"cents": "amount"})}
    turn = [("payBack", {"order_id": "W1", "amuont": 5})]
    trajectory, saw = rolled_out(Guards(nearest_names=True), turn, views=views)
    (result,), (call,) = trajectory.tool_results, trajectory.tool_calls
    assert Shop.made == [("refund", 5)]
    assert result.repairs == ("nearest_names",)
    assert (call.name, json.loads(call.arguments)) == ("refund", {"order_id": "W1", "cents": 5})
    assert saw == ["<|s|>tool\nok<|e|><|s|>assistant\n"]
    assert "payBack" in decode(trajectory.turns[0].action_ids)


def test_without_the_guard_a_nearly_right_name_is_an_error() -> None:
    trajectory, saw = rolled_out(Guards(), [("getorder", {"order_id": "W1"})])
    assert Shop.made == []
    assert trajectory.tool_calls[0].name == "getorder"
    assert "did you mean 'get_order'?" in saw[0]


def test_coerced_arguments_reach_the_tool_and_the_record() -> None:
    turn = [("refund", {"order_id": 17, "cents": "5"})]
    trajectory, _ = rolled_out(Guards(coerce=True), turn)
    assert Shop.made == [("refund", 5)]
    assert trajectory.tool_calls[0].arguments == '{"order_id": "17", "cents": 5}'
    assert trajectory.tool_results[0].repairs == ("coerce",)


SCHEMA = {
    "properties": {
        "whole": {"type": "integer"},
        "number": {"type": "number"},
        "text": {"type": "string"},
        "flag": {"type": "boolean"},
        "list": {"type": "array"},
        "kind": {"type": "string", "enum": ["gift card", "voucher"]},
        "inner": {"type": "object", "properties": {"n": {"type": "integer"}}},
        "maybe": {"type": ["integer", "null"]},
    }
}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ('{"whole": "12"}', '{"whole": 12}'),
        ('{"whole": 12.0}', '{"whole": 12}'),
        ('{"whole": "12.0"}', '{"whole": 12}'),
        ('{"whole": "12.5"}', None),
        ('{"whole": "twelve"}', None),
        ('{"whole": true}', None),
        ('{"whole": "0012"}', None),
        ('{"number": " 12.50 "}', '{"number": 12.50}'),
        ('{"number": "NaN"}', None),
        ('{"number": "1e400"}', None),
        ('{"text": 12.50}', '{"text": "12.50"}'),
        ('{"text": true}', None),
        ('{"text": "12"}', None),
        ('{"flag": "True"}', '{"flag": true}'),
        ('{"flag": "yes"}', None),
        ('{"list": "[1, 2]"}', '{"list": [1, 2]}'),
        ('{"kind": "Gift_Card"}', '{"kind": "gift card"}'),
        ('{"kind": "vouchr"}', '{"kind": "voucher"}'),
        ('{"kind": "cash"}', None),
        ('{"inner": {"n": "3"}}', '{"inner": {"n": 3}}'),
        ('{"inner": "{\\"n\\": \\"3\\"}"}', '{"inner": {"n": 3}}'),
        ('{"maybe": null}', None),
        ('{"maybe": "null"}', None),
        ('{"unknown": "12"}', None),
        ('{"whole": "12"', None),
    ],
)
def test_arguments_change_type_only_where_nothing_is_lost(given: str, expected: str | None) -> None:
    assert coerced(given, SCHEMA) == (given if expected is None else expected)
