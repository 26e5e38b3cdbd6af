import json

import pytest
from fabricated import CANCEL, GET, REFUND, Situation, cancelled, levels, rollout, task, tasks

from agentrft.core.config import Decoding, Limits
from agentrft.core.spec import AgentSpec, Rendering, ToolView
from agentrft.core.trajectory import FinishReason, StopReason
from agentrft.measure.diagnosis import FailureClass
from agentrft.optimize.evidence import OWN_FAILURES
from agentrft.optimize.treatments import TREATMENTS, Treatments

SOLVED = [(one, cancelled(one)) for one in tasks(12)]
MALFORMED = [(one, rollout(one, "<call>{", answer="", score=0.0)) for one in tasks(4, start=50)]


def looped(number: int, stop: StopReason = StopReason.MAX_TURNS):
    one = task(number)
    call = ("get_order", {"order_id": "W1"}, "status=pending")
    return one, rollout(one, call, call, call, score=0.0, stop=stop)


def test_unreadable_calls_are_met_with_a_grammar_first() -> None:
    knobs = Situation([*SOLVED, *MALFORMED]).knobs(Treatments())
    grammar = knobs["call grammar"]
    assert next(iter(knobs)) == "call grammar"
    assert FailureClass.MALFORMED_CALL in grammar.treats
    first, second = grammar.levels
    assert first.change(AgentSpec()).decoding.grammar == "call_first"
    assert second.change(AgentSpec()).decoding.grammar == "calls"
    assert "12 of 12 solutions" in first.why


def test_an_endpoint_is_offered_no_grammar() -> None:
    assert "call grammar" not in Situation(MALFORMED, endpoint=True).knobs(Treatments())


def test_the_first_turn_is_not_forced_where_solutions_often_call_nothing() -> None:
    quiet = [(one, rollout(one)) for one in tasks(5, start=90)]
    knobs = Situation([*SOLVED, *quiet, *MALFORMED]).knobs(Treatments())
    assert set(levels(knobs["call grammar"])) == {"well-formed calls"}


def test_nothing_is_offered_where_nothing_failed() -> None:
    assert Situation(SOLVED).knobs(Treatments()) == {}


def test_what_the_baseline_already_does_is_not_offered() -> None:
    greedy = AgentSpec(decoding=Decoding(temperature=0.0))
    assert "temperature" in Situation(MALFORMED).knobs(Treatments())
    assert "temperature" not in Situation(MALFORMED, baseline=greedy).knobs(Treatments())


def test_a_loop_is_met_with_blocked_repeats_and_not_with_more_turns() -> None:
    knobs = Situation([looped(n) for n in range(3)]).knobs(Treatments())
    assert knobs["repeated calls"].levels[0].change(AgentSpec()).guards.block_duplicates
    assert "more turns" not in knobs


def test_turns_are_added_where_stopped_rollouts_were_getting_somewhere() -> None:
    def going(number: int):
        one = task(number)
        calls = [("get_order", {"order_id": f"W{n}"}, "status=pending") for n in range(8)]
        return one, rollout(one, *calls, score=0.0, stop=StopReason.MAX_TURNS)

    knob = Situation([going(n) for n in range(3)]).knobs(Treatments())["more turns"]
    limits = levels(knob)["twice as many"].change(AgentSpec()).limits
    assert (limits.max_turns, limits.max_tool_calls) == (16, 32)
    assert (limits.max_tokens, limits.max_context_tokens) == (2048, 8192)
    assert knob.costs


def test_turns_are_taken_where_no_success_needed_them() -> None:
    knob = Situation([*SOLVED, looped(77)]).knobs(Treatments())["turns"]
    limits = knob.levels[0].change(AgentSpec()).limits
    assert limits.max_turns == 4
    assert limits.final_answer


def test_cut_rollouts_get_longer_turns_whatever_room_others_gave() -> None:
    one = task(1)
    cut = rollout(one, ("get_order", {}, "x"), score=0.0, stop=StopReason.MAX_TOKENS)
    knob = Situation([(one, cut)]).knobs(Treatments())["length"]
    roomy = AgentSpec(limits=Limits(max_context_tokens=10_000))
    limits = knob.levels[0].change(roomy).limits
    assert (limits.max_turn_tokens, limits.max_context_tokens) == (512, 15_000)


def test_rambling_is_met_with_a_grammar_and_not_with_more_tokens() -> None:
    one = task(1)
    rambled = rollout(one, score=0.0, answer="Oh no " * 40, finish=FinishReason.LENGTH)
    spent = rollout(one, score=0.0, stop=StopReason.MAX_TOKENS)
    knobs = Situation([*SOLVED, (one, rambled), (one, spent)]).knobs(Treatments())
    assert "length" not in knobs
    assert levels(knobs["call grammar"]).keys() == {"call first", "well-formed calls"}


def test_error_hints_reach_tools_with_a_rendering_of_their_own() -> None:
    own = AgentSpec(tools={"refund": ToolView(rendering=Rendering(form="table"))})
    knobs = Situation(MALFORMED).knobs(Treatments())
    changed = knobs["error hints"].levels[0].change(own)
    assert changed.rendering.error_hints
    assert changed.tools["refund"].rendering == Rendering(form="table", error_hints=True)


def test_nested_arguments_are_offered_flat() -> None:
    one = task(1)
    wrong = rollout(one, ("refund", {}, "!order_id is required"), score=0.0)
    address = {"type": "object", "properties": {"street": {"type": "string"}}}
    nested = type(REFUND)(
        name="refund",
        description="",
        parameters={"type": "object", "properties": {"address": address}},
    )
    plain = Situation([(one, wrong)]).knobs(Treatments())["schemas"]
    knob = Situation([(one, wrong)], tools=(GET, nested)).knobs(Treatments())["schemas"]
    assert set(levels(plain)) == {"strict"}
    assert levels(knob)["flat"].change(AgentSpec()).tools == {"refund": ToolView(schema="flat")}


@pytest.mark.parametrize("failure_class", OWN_FAILURES)
def test_every_failure_class_has_a_treatment(failure_class: FailureClass) -> None:
    # Outputs and plans are for other proposers: output selection, demonstrations, templates.
    assert any(failure_class in one.treats for one in TREATMENTS)


def test_changes_are_pure_and_give_the_same_twice() -> None:
    spec = AgentSpec(tools={"cancel_order": ToolView(description="Cancel.")})
    before = json.dumps(spec.hash)
    for knob in (
        Situation([*SOLVED, *MALFORMED, looped(78)], tools=(GET, CANCEL))
        .knobs(Treatments())
        .values()
    ):
        for level in knob.levels:
            assert level.change(spec) == level.change(spec)
    assert json.dumps(spec.hash) == before
