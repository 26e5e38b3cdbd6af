import json

from fabricated import Situation, levels, rollout, task, tasks

from agentrft.core.spec import AgentSpec, Rendering, ToolView
from agentrft.optimize.evidence import evidence
from agentrft.optimize.output_selection import OutputSelection, used_fields


def looked_up(number: int, answer: str = "It is {total}.", **more: object):
    one = task(number)
    order = {"total": 20.5 + number, "paid": "card", "ref": f"R-{number}", "open": True, **more}
    output = json.dumps(order)
    return one, rollout(
        one,
        ("get_order", {"order_id": "W1"}, output),
        ("refund", {"order_id": f"R-{number}", "amount": 1}, "ok"),
        answer=answer.format(**order),
    )


SOLVED = [looked_up(number) for number in range(10)]


def test_fields_are_kept_whose_values_reappear_in_arguments_or_answers() -> None:
    assert used_fields(evidence(Situation(SOLVED).known).solutions) == {
        "get_order": ("total", "ref")
    }


def test_used_fields_are_shown_as_json_or_as_lines() -> None:
    knob = Situation(SOLVED).knobs(OutputSelection())["outputs"]
    assert list(levels(knob)) == ["used fields as lines", "used fields", "name: value lines"]
    lines = levels(knob)["used fields as lines"].change(AgentSpec())
    assert lines.tools["get_order"].rendering == Rendering(
        form="key_value", fields=("total", "ref")
    )
    assert levels(knob)["name: value lines"].change(AgentSpec()).rendering.form == "key_value"
    assert knob.levels[0].why == "get_order: total, ref"


def test_other_settings_of_a_rendering_survive() -> None:
    own = AgentSpec(tools={"get_order": ToolView(rendering=Rendering(error_hints=True))})
    knob = Situation(SOLVED).knobs(OutputSelection())["outputs"]
    changed = levels(knob)["used fields"].change(own).tools["get_order"].rendering
    assert changed == Rendering(form="fields", fields=("total", "ref"), error_hints=True)


def test_nine_outputs_choose_no_fields() -> None:
    assert used_fields(evidence(Situation(SOLVED[:9]).known).solutions) == {}


def test_lists_of_objects_are_offered_as_tables() -> None:
    one = task(1)
    rows = json.dumps([{"id": 1}, {"id": 2}])
    listed = rollout(one, ("get_order", {}, rows))
    knob = Situation([(one, listed)]).knobs(OutputSelection())["outputs"]
    assert levels(knob)["table"].change(AgentSpec()).rendering.form == "table"


def test_short_plain_text_is_left_alone() -> None:
    plain = [(one, rollout(one, ("get_order", {}, "status=pending total=3"))) for one in tasks(12)]
    assert Situation(plain).knobs(OutputSelection()) == {}


def test_long_outputs_are_offered_cut() -> None:
    long = [(one, rollout(one, ("get_order", {}, "word " * 400), score=0.0)) for one in tasks(3)]
    knob = Situation(long).knobs(OutputSelection())["output length"]
    cut = levels(knob)["both 1500"].change(AgentSpec()).rendering
    assert (cut.max_characters, cut.keep) == (1500, "both")
    assert "3 of 3 outputs" in knob.levels[0].why


def test_long_identifiers_are_offered_short() -> None:
    text = "id=5f2c9a70-11aa-4b7e-9c55-0a1b2c3d4e5f status=open"
    seen = [(one, rollout(one, ("get_order", {}, text), score=0.0)) for one in tasks(3)]
    knob = Situation(seen).knobs(OutputSelection())["long identifiers"]
    assert knob.levels[0].change(AgentSpec()).rendering.shorten_ids
