"""Failed rollouts made by hand, one for each rule, and what is made of them."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.task import Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import (
    Failure,
    FailureKind,
    ParseFailure,
    StopReason,
    ToolResult,
    Trajectory,
    Turn,
)
from agentrft.measure.diagnosis import FailureClass, Successes, diagnose, failure_mix, successes

NAMES = ("find_customer", "get_order", "cancel_order", "refund")
TOOLS = tuple(ToolSpec(name=name, description="", parameters={}) for name in NAMES)
ASKED = "Please cancel W1001, I am ann@mail.com."
ORDER = "status=pending total=21.75"
Step = tuple[str, Mapping[str, Any], str | ToolResult]


def a_task(family: str = "cancel", **row: Any) -> Task:
    return Task(
        id="t1",
        messages=(Message(role="user", content=ASKED),),
        family=family,
        row=row,
        tools=TOOLS,
    )


def a_turn(*steps: Step, text: str = "", unreadable: str = "") -> Turn:
    calls: list[ToolCall] = []
    results: list[ToolResult] = []
    for name, arguments, answer in steps:
        call = ToolCall(id=f"c{id(arguments)}", name=name, arguments=json.dumps(arguments))
        calls.append(call)
        plain = ToolResult(call_id="", name="", content=str(answer))
        given = answer if isinstance(answer, ToolResult) else plain
        results.append(replace(given, call_id=call.id, name=name))
    failures = (ParseFailure(raw=unreadable, reason="not JSON"),) if unreadable else ()
    return Turn(
        observation_ids=(),
        action_ids=(),
        behavior_logprobs=(),
        first_version=0,
        last_version=0,
        message=Message(role="assistant", content=text, tool_calls=tuple(calls)),
        tool_results=tuple(results),
        parse_failures=failures,
    )


def a_rollout(
    *turns: Turn,
    score: float | None = 0.0,
    stop: StopReason = StopReason.FINISHED,
    failure: Failure | None = None,
) -> GradedTrajectory:
    trajectory = Trajectory(
        id="trace_1",
        task_id="t1",
        model="m",
        spec_hash="s",
        seed=0,
        prompt=(Message(role="user", content=ASKED),),
        turns=turns,
        stop_reason=stop,
        failure=failure,
    )
    grade = Grade(score=score, failure=failure if score is None else None)
    return GradedTrajectory(trajectory=trajectory, grade=grade)


def look_up(answer: str | ToolResult = ORDER, order_id: str = "W1001") -> Step:
    return ("get_order", {"order_id": order_id}, answer)


def cancel(answer: str | ToolResult = "ok", order_id: str = "W1001") -> Step:
    return ("cancel_order", {"order_id": order_id}, answer)


def refusal(text: str, guard: str = "") -> ToolResult:
    return ToolResult(call_id="", name="", content=text, guard=guard, is_error=True)


DONE = a_turn(text="Done.")
SOLVED = a_rollout(a_turn(look_up()), a_turn(cancel()), DONE, score=1.0)
KNOWN = successes([(a_task(), SOLVED)])
NOTHING = successes([])


def judged(
    graded: GradedTrajectory,
    known: Successes = KNOWN,
    task: Task | None = None,
) -> tuple[str, int | None]:
    found = diagnose(task or a_task(), graded, known, TOOLS)
    assert found is not None
    assert len(found.evidence.splitlines()) == 1
    return found.failure_class, found.turn


def test_successes_say_what_a_family_needs_and_what_comes_before_a_write() -> None:
    other = a_rollout(a_turn(look_up()), DONE, score=1.0)
    known = successes([(a_task(), SOLVED), (a_task("status"), other)])
    assert known.tools["cancel"] == known.needed["cancel"] == {"get_order", "cancel_order"}
    assert known.needed["status"] == known.needed[""] == {"get_order"}
    assert known.tools[""] == {"get_order", "cancel_order"}
    assert known.calling == {"cancel", "status", ""}
    assert known.after["cancel_order"] == {"get_order"}
    assert known.after["get_order"] == frozenset()


@pytest.mark.parametrize(
    ("rollout", "expected"),
    [
        (a_rollout(a_turn(unreadable="{oops"), DONE), ("malformed call", 0)),
        (a_rollout(a_turn(text='get_order {"order_id": "W1001"}')), ("malformed call", 0)),
        (a_rollout(a_turn(("fetch", {}, refusal("Error: no tool"))), DONE), ("unknown tool", 0)),
        (a_rollout(DONE), ("no call", 0)),
        (
            a_rollout(a_turn(look_up()), a_turn(cancel(refusal("argument missing"))), DONE),
            ("wrong arguments", 1),
        ),
        (
            a_rollout(a_turn(look_up(refusal("no", guard="coerce"))), DONE),
            ("wrong arguments", 0),
        ),
        (a_rollout(a_turn(look_up("error: no such order")), DONE), ("wrong arguments", 0)),
        (a_rollout(a_turn(look_up(order_id="W9999")), DONE), ("wrong arguments", 0)),
        (
            a_rollout(a_turn(look_up()), a_turn(("refund", {"order_id": "W1001"}, "ok")), DONE),
            ("wrong tool", 1),
        ),
        (a_rollout(*[a_turn(look_up()) for _ in range(4)], DONE), ("too many calls", 2)),
        (
            a_rollout(a_turn(look_up()), a_turn(look_up()), stop=StopReason.MAX_TURNS),
            ("too many calls", 1),
        ),
        (a_rollout(a_turn(look_up()), DONE), ("early stop", 1)),
        (a_rollout(a_turn(look_up()), a_turn(cancel()), a_turn()), ("early stop", 2)),
        (a_rollout(a_turn(cancel()), a_turn(look_up()), DONE), ("unsafe write", 0)),
        (
            a_rollout(a_turn(look_up()), a_turn(cancel()), a_turn(text="You get 99.10 back.")),
            ("misread output", 2),
        ),
        (a_rollout(a_turn(look_up()), stop=StopReason.MAX_TOKENS), ("truncated", 0)),
        (a_rollout(a_turn(look_up()), a_turn(cancel()), DONE), ("wrong plan", 2)),
    ],
)
def test_each_rule_finds_its_class(rollout: GradedTrajectory, expected: tuple[str, int]) -> None:
    assert judged(rollout) == expected


def test_a_rollout_lost_to_infrastructure_is_nobodys_error() -> None:
    failure = Failure(kind=FailureKind.INFRASTRUCTURE, where="tool 'get_order'", message="down")
    lost = a_rollout(a_turn(look_up()), score=None, stop=StopReason.FAILED, failure=failure)
    found = diagnose(a_task(), lost, KNOWN, TOOLS)
    assert found is not None
    assert found.failure_class is FailureClass.INFRASTRUCTURE
    assert found.evidence == "tool 'get_order': down"


@pytest.mark.parametrize(
    "error",
    [
        a_turn(unreadable="{oops"),
        a_turn(("fetch", {}, refusal("Error: no tool"))),
        a_turn(look_up(refusal("argument 'order_id' is missing"))),
        a_turn(look_up("error: no such order", order_id="W9999")),
    ],
)
def test_an_error_that_was_made_good_decides_nothing(error: Turn) -> None:
    rollout = a_rollout(error, a_turn(look_up()), a_turn(cancel()), DONE)
    assert judged(rollout)[0] == "wrong plan"


def test_the_first_of_two_errors_decides() -> None:
    blind_then_loop = a_rollout(a_turn(cancel()), *[a_turn(look_up()) for _ in range(3)], DONE)
    assert judged(blind_then_loop) == ("unsafe write", 0)


def test_the_right_value_that_the_answer_leaves_out_was_misread() -> None:
    rollout = a_rollout(a_turn(look_up()), a_turn(cancel()), a_turn(text="It was cancelled."))
    assert judged(rollout, task=a_task(expect={"fact": "21.75"}))[0] == "misread output"
    told = a_rollout(a_turn(look_up()), a_turn(cancel()), a_turn(text="You get $21.75."))
    assert judged(told, task=a_task(expect={"fact": "21.75"}))[0] == "wrong plan"


def test_tools_that_are_not_read_only_are_writes() -> None:
    told = [replace(tool, read_only=tool.name in NAMES[:2]) for tool in TOOLS]
    blind = a_rollout(a_turn(("refund", {"order_id": "W1001"}, "ok")), DONE)
    found = diagnose(a_task(), blind, NOTHING, told)
    assert found is not None
    assert found.failure_class is FailureClass.UNSAFE_WRITE
    # Where some success wrote without reading, reading is not needed.
    known = successes([(a_task(), a_rollout(*blind.trajectory.turns, score=1.0))])
    again = diagnose(a_task(), blind, known, told)
    assert again is not None
    assert again.failure_class is FailureClass.WRONG_PLAN
    assert judged(blind, NOTHING)[0] == "wrong plan"


def test_where_every_tool_only_reads_nothing_is_a_write() -> None:
    reads = [replace(tool, read_only=True) for tool in TOOLS]
    blind = a_rollout(a_turn(cancel()), DONE)
    assert judged(blind)[0] == "unsafe write"
    found = diagnose(a_task(), blind, KNOWN, reads)
    assert found is not None
    assert found.failure_class is not FailureClass.UNSAFE_WRITE


def test_a_write_that_a_precondition_held_back_was_premature() -> None:
    held = a_turn(cancel(refusal("get_order first", guard="preconditions")))
    assert judged(a_rollout(held, DONE)) == ("unsafe write", 0)
    assert judged(a_rollout(held, a_turn(look_up()), a_turn(cancel()), DONE))[0] == "wrong plan"


def test_a_call_that_was_held_for_a_check_is_no_error() -> None:
    held = ToolResult(call_id="", name="", content="is this right?", guard="check_first")
    rollout = a_rollout(a_turn(look_up()), a_turn(cancel(held)), a_turn(cancel()), DONE)
    assert judged(rollout)[0] == "wrong plan"


def test_values_that_successes_make_up_are_free() -> None:
    def refund(cents: int) -> Turn:
        return a_turn(("refund", {"order_id": "W1001", "cents": cents}, "ok"))

    first = a_rollout(a_turn(look_up()), refund(512), DONE)
    assert judged(first, NOTHING)[0] == "wrong arguments"
    solved = a_rollout(a_turn(look_up()), refund(733), DONE, score=1.0)
    known = successes([(a_task(), solved)])
    assert known.free == {("refund", "cents")}
    assert judged(first, known)[0] == "wrong plan"


def test_a_figure_is_the_same_however_it_is_written() -> None:
    seen = look_up("total=$1,250.00")
    paid = ("refund", {"order_id": "W1001", "amount": 1250}, "ok")
    assert judged(a_rollout(a_turn(seen), a_turn(paid), DONE), NOTHING)[0] == "wrong plan"


def test_identifiers_that_were_shortened_count_as_shown() -> None:
    listed = ToolResult(call_id="", name="", content="orders=W2002", shown="orders=#1")
    steps = (a_turn(("find_customer", {"email": "ann@mail.com"}, listed)),)
    rollout = a_rollout(*steps, a_turn(look_up(order_id="W2002")), DONE)
    assert judged(rollout, NOTHING)[0] == "wrong plan"


def test_without_any_success_a_tool_that_is_there_should_have_been_called() -> None:
    assert judged(a_rollout(DONE), NOTHING)[0] == "no call"
    silent = successes([(a_task(), a_rollout(DONE, score=1.0))])
    assert judged(a_rollout(DONE), silent)[0] == "wrong plan"


def test_a_family_without_success_is_compared_with_all_others() -> None:
    assert judged(a_rollout(DONE), task=a_task("new"))[0] == "no call"
    stray = a_rollout(a_turn(look_up()), a_turn(("refund", {"order_id": "W1001"}, "ok")), DONE)
    assert judged(stray, task=a_task("new"))[0] == "early stop"


def test_the_mix_counts_classes_of_all_rollouts_with_the_largest_first() -> None:
    stopped = a_rollout(a_turn(look_up()), DONE)
    rollouts = [(a_task(), one) for one in (SOLVED, stopped, stopped, a_rollout(DONE))]
    first, second = failure_mix(rollouts, TOOLS, pass_threshold=1.0)
    assert (first.failure_class, first.rollouts, first.share.value) == ("early stop", 2, 0.5)
    assert (second.failure_class, second.rollouts, second.share.value) == ("no call", 1, 0.25)
    assert first.example == "trace_1"
    assert "cancel_order" in first.evidence
    assert first.share.low < 0.5 < first.share.high
