from collections import Counter
from dataclasses import replace

from fabricated import (
    FakeTrials,
    Situation,
    cancelled,
    levels,
    nothing,
    rollout,
    shown,
    task,
    tasks,
)

from agentrft.core.config import Decoding, Limits
from agentrft.core.grade import GradedTrajectory
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Message, Task
from agentrft.optimize.bootstrapping import ENOUGH, ROUND, Bootstrapping, characters, demonstration
from agentrft.optimize.trials import TrialRequest

ORDER = {"order_id": "W1"}


def test_a_solved_rollout_is_cut_to_its_decisive_steps() -> None:
    one = replace(task(1), messages=(Message(role="system", content="Be kind."), *task(1).messages))
    made = demonstration(
        one,
        rollout(
            one,
            "<call>{",
            ("get_order", {"id": "W1"}, "!order_id is required"),
            ("get_order", ORDER, "status=pending"),
            ("get_order", ORDER, "status=pending"),
            ("cancel_order", ORDER, "ok"),
            answer="It is cancelled.",
        ),
    )
    assert [message.role for message in made.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    calls = [call.name for message in made.messages for call in message.tool_calls]
    assert calls == ["get_order", "cancel_order"]
    assert made.messages[-1].content == "It is cancelled."
    assert (made.id, made.family) == (one.id, "cancel")


def test_the_shortest_success_of_each_task_is_shown() -> None:
    one = task(1)
    wordy = cancelled(one, answer="Done. " * 30)
    situation = Situation([(one, wordy), (one, cancelled(one))])
    (level,) = situation.knobs(Bootstrapping())["demonstrations"].levels
    (made,) = level.change(AgentSpec()).shown.pool
    assert made.messages[-1].content == "Done."
    assert level.name == "first 1"


def test_many_demonstrations_offer_the_nearest_and_one_per_family() -> None:
    given = tuple(shown(n, family=f"family {n % 5}") for n in range(20))
    knob = Situation(demonstrations=given).knobs(Bootstrapping())["demonstrations"]
    offered = levels(knob)
    assert list(offered) == ["3 nearest of 20", "6 nearest of 20", "5 families of 20", "first 3"]
    nearest = offered["6 nearest of 20"].change(AgentSpec()).shown
    assert (nearest.count, nearest.selection, len(nearest.pool)) == (6, "nearest", 20)
    static = offered["first 3"].change(AgentSpec()).shown
    assert len({one.family for one in static.pool}) == 3
    assert knob.costs


def test_families_that_fail_most_are_shown_first() -> None:
    failed = [(one, nothing_for(one)) for one in (task(n, family="refund") for n in range(3))]
    given = (shown(1, "cancel"), shown(2, "cancel"), shown(3, "refund", request="Pay it all back."))
    situation = Situation(failed, demonstrations=given)
    offered = levels(situation.knobs(Bootstrapping())["demonstrations"])
    assert offered["first 1"].change(AgentSpec()).shown.pool[0].id == "shown-3"


def nothing_for(one: Task) -> GradedTrajectory:
    return rollout(one, answer="No.", score=0.0)


def test_the_context_gets_room_for_what_is_shown() -> None:
    given = tuple(shown(n, request="Cancel it. " * n) for n in range(1, 5))
    knob = Situation(demonstrations=given).knobs(Bootstrapping())["demonstrations"]
    spec = AgentSpec(limits=Limits(max_context_tokens=700))
    longest = sorted((characters(one) for one in given), reverse=True)
    room = levels(knob)["first 2"].change(spec).limits.max_context_tokens - 700
    assert room >= sum(longest[:2]) / 3


def test_a_later_change_of_what_is_shown_makes_room_for_the_difference_only() -> None:
    given = tuple(shown(n) for n in range(20))
    knob = Situation(demonstrations=given).knobs(Bootstrapping())["demonstrations"]
    three = levels(knob)["3 nearest of 20"].change(AgentSpec())
    six = levels(knob)["6 nearest of 20"].change
    assert six(three) == six(AgentSpec())
    assert levels(knob)["first 3"].change(three).limits == three.limits


def test_no_task_of_dev_or_holdout_is_ever_shown() -> None:
    dev = task(3, "Please cancel W00003 now.", split="dev")
    given = (
        replace(shown(1), id=dev.id),
        shown(2, request="Please cancel W00003 now."),
        shown(3, request="Another one."),
    )
    situation = Situation(demonstrations=given, dev=(dev,))
    for level in situation.knobs(Bootstrapping())["demonstrations"].levels:
        assert [one.id for one in level.change(AgentSpec()).shown.pool] == ["shown-3"]


def test_without_successes_failed_feedback_tasks_are_tried_again_at_temperature_one() -> None:
    failed = [(one, nothing_for(one)) for one in tasks(8)]

    def now_and_then(request: TrialRequest):
        return cancelled(request.task) if request.sample % 2 else nothing(request)

    trials = FakeTrials(rule=now_and_then)
    cold = AgentSpec(decoding=Decoding(temperature=0.0))
    situation = Situation(failed, baseline=cold, trials=trials)
    knob = situation.knobs(Bootstrapping())["demonstrations"]
    assert len(trials.requests) == ROUND
    assert {request.spec.decoding.temperature for request in trials.requests} == {1.0}
    assert {request.split for request in trials.requests} == {"feedback"}
    assert {request.sample for request in trials.requests} == {1, 2, 3, 4}
    assert len(levels(knob)["3 nearest of 8"].change(cold).shown.pool) == 8
    assert knob.levels[0].change(cold).decoding.temperature == 0.0


def test_trying_again_ends_with_the_first_round_that_solves_nothing() -> None:
    trials = FakeTrials()
    situation = Situation([(one, nothing_for(one)) for one in tasks(50)], trials=trials)
    assert situation.knobs(Bootstrapping()) == {}
    assert len(trials.requests) == ROUND
    assert max(Counter(request.task.id for request in trials.requests).values()) == 1


def test_enough_demonstrations_cost_no_rollout() -> None:
    trials = FakeTrials()
    given = tuple(shown(n) for n in range(ENOUGH))
    failed = [(one, nothing_for(one)) for one in tasks(5)]
    Situation(failed, demonstrations=given, trials=trials).knobs(Bootstrapping())
    assert trials.requests == []


def test_a_spent_budget_leaves_what_there_is() -> None:
    trials = FakeTrials(budget=0)
    failed = [(one, nothing_for(one)) for one in tasks(5)]
    situation = Situation(failed, demonstrations=(shown(1),), trials=trials)
    assert "demonstrations" in situation.knobs(Bootstrapping())
    assert "the budget is spent" in situation.lines[0]
