from fabricated import TOOLS, Situation, cancelled, levels, rollout, task, tasks, tool

from agentrft.core.spec import AgentSpec, Guards, Precondition
from agentrft.optimize.evidence import evidence
from agentrft.optimize.guard_mining import GuardMining, preconditions

SOLVED = [(one, cancelled(one)) for one in tasks(20)]
RASH = (task(70), rollout(task(70), ("cancel_order", {"order_id": "W1"}, "ok"), score=0.0))
OTHER = (
    task(71),
    rollout(
        task(71),
        ("get_order", {"order_id": "W1"}, "status=pending"),
        ("cancel_order", {"order_id": "W2"}, "ok"),
        score=0.0,
    ),
)
RULE = Precondition(tool="cancel_order", after=("get_order",), same_argument="order_id")


def test_an_order_that_solutions_keep_and_failures_break_becomes_a_precondition() -> None:
    knob = Situation([*SOLVED, RASH, OTHER]).knobs(GuardMining())["order of calls"]
    (level,) = knob.levels
    assert level.change(AgentSpec()).guards.preconditions == (RULE,)
    assert "in 20 of 20 uses in solutions, broken in 2 failures" in level.why


def test_preconditions_that_are_there_stay_and_are_not_doubled() -> None:
    other = Precondition(tool="refund", after=("get_order",))
    spec = AgentSpec(guards=Guards(preconditions=(other, RULE)))
    (level,) = Situation([*SOLVED, RASH]).knobs(GuardMining())["order of calls"].levels
    assert level.change(spec).guards.preconditions == (other, RULE)


def test_an_order_that_no_failure_breaks_is_not_offered() -> None:
    failed = (task(72), rollout(task(72), answer="No.", score=0.0))
    assert Situation([*SOLVED, failed]).knobs(GuardMining()) == {}


def test_an_order_kept_too_seldom_or_too_little_seen_is_none() -> None:
    rash = [
        (one, rollout(one, ("cancel_order", {"order_id": "W1"}, "ok")))
        for one in tasks(2, start=40)
    ]
    often = evidence(Situation([*SOLVED, *rash]).known).solutions
    seldom = evidence(Situation(SOLVED[:9]).known).solutions
    assert preconditions(often) == []
    assert preconditions(seldom) == []


def test_a_different_value_keeps_the_order_without_the_argument() -> None:
    loose = [
        (
            one,
            rollout(
                one,
                ("get_order", {"order_id": "W1"}, "ok"),
                ("refund", {"order_id": "W2", "amount": 3}, "ok"),
            ),
        )
        for one in tasks(10)
    ]
    found = preconditions(evidence(Situation(loose).known).solutions)
    assert found == [(Precondition(tool="refund", after=("get_order",)), 10, 10)]


def test_reading_tools_are_never_held_back() -> None:
    read = [
        (
            one,
            rollout(
                one,
                ("cancel_order", {"order_id": "W1"}, "ok"),
                ("get_order", {"order_id": "W1"}, "x"),
            ),
        )
        for one in tasks(12)
    ]
    broken = (task(80), rollout(task(80), ("get_order", {"order_id": "W1"}, "x"), score=0.0))
    declared = (tool("get_order", read_only=True), tool("cancel_order"))
    assert "order of calls" in Situation([*read, broken]).knobs(GuardMining())
    knobs = Situation([*read, broken], tools=declared).knobs(GuardMining())
    assert set(knobs) == {"check before writing"}


def test_tools_that_change_something_are_checked_and_get_the_turn_it_takes() -> None:
    declared = (tool("get_order", read_only=True), tool("cancel_order"))
    knob = Situation(SOLVED, tools=declared).knobs(GuardMining())["check before writing"]
    checked = levels(knob)["asked once"].change(AgentSpec())
    assert checked.guards.check_first == ("cancel_order",)
    assert (checked.limits.max_turns, checked.limits.max_tool_calls) == (9, 17)
    assert levels(knob)["written twice"].change(AgentSpec()).guards.confirm == ("cancel_order",)
    assert knob.costs


def test_undeclared_tools_are_checked_where_only_failures_of_a_family_call_them() -> None:
    wrong = [
        (one, rollout(one, ("refund", {"amount": 1}, "ok"), score=0.0))
        for one in tasks(2, start=60)
    ]
    knob = Situation([*SOLVED, *wrong], tools=TOOLS).knobs(GuardMining())["check before writing"]
    assert levels(knob)["asked once"].change(AgentSpec()).guards.check_first == ("refund",)
