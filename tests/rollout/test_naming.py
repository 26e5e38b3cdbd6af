"""Names of tools and parameters: one to one, there and back, and schemas under the model's names."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.errors import ConfigError
from agentrft.core.spec import ToolView
from agentrft.core.task import ToolCall, ToolSpec
from agentrft.rollout.naming import Names, joined, members, nearest_name, tool_form

ADDRESS = {
    "type": "object",
    "properties": {"street": {"type": "string"}, "city": {"type": "string"}},
    "required": ["street"],
}
MOVE = ToolSpec(
    name="move",
    description="Send an order elsewhere.",
    parameters={
        "type": "object",
        "properties": {
            "order_id": {"type": "string", "description": "As printed."},
            "address": ADDRESS,
            "count": {"type": "integer"},
        },
        "required": ["order_id", "address"],
    },
)
LOOK = ToolSpec(name="look", description="Look.", parameters={"type": "object", "properties": {}})


def a_call(name: str, arguments: dict[str, Any]) -> ToolCall:
    return ToolCall(id="call_0", name=name, arguments=json.dumps(arguments))


values = st.one_of(st.text(max_size=5), st.integers(), st.none(), st.booleans())
arguments = st.fixed_dictionaries(
    {},
    optional={
        "order_id": values,
        "count": st.one_of(st.integers(), st.text(max_size=3)),
        "address": st.one_of(
            values,
            st.fixed_dictionaries({}, optional={"street": values, "city": values, "zip": values}),
        ),
    },
)
names = st.sampled_from(["order_id", "address", "count", "id", "place", "n", "address_street"])
views = st.builds(
    ToolView,
    name=st.sampled_from(["", "look", "relocate"]),
    parameters=st.dictionaries(st.sampled_from(["order_id", "address", "count"]), names),
    schema=st.sampled_from(["as_is", "flat", "strict"]),
)


@given(views, arguments)
def test_every_map_is_one_to_one_or_refused(view: ToolView, given_: dict[str, Any]) -> None:
    other = ToolView(name="move" if view.name == "look" else "")
    try:
        both = Names([MOVE, LOOK], {"move": view, "look": other})
    except ConfigError:
        return  # what clashes is the business of another test
    call = a_call("move", given_)
    written = both.to_model(call)
    back = both.to_canonical(written)
    assert back.name == "move"
    assert json.loads(back.arguments) == given_
    assert both.to_model(back) == written
    assert both.to_canonical(both.to_model(a_call("look", {}))).name == "look"


def test_swapped_names_are_swapped_back() -> None:
    swapped = Names([MOVE, LOOK], {"move": ToolView(name="look"), "look": ToolView(name="move")})
    assert [form.shown.name for form in swapped.forms.values()] == ["look", "move"]
    assert swapped.to_canonical(a_call("look", {"order_id": "W1"})).name == "move"
    assert swapped.told("'move' needs 'look', look", "") == "'look' needs 'move', look"


def test_what_nothing_renames_is_the_same_text() -> None:
    plain = Names([MOVE, LOOK], {})
    odd = ToolCall(id="c", name="move", arguments='{ "count":1.50 ,\n"order_id" : "W1"}')
    assert plain.to_canonical(odd).arguments == plain.to_model(odd).arguments == odd.arguments
    assert plain.forms["move"].shown.parameters is MOVE.parameters


def test_values_keep_their_spelling_under_other_names() -> None:
    renamed = Names([MOVE], {"move": ToolView(parameters={"count": "n"})})
    call = ToolCall(id="c", name="move", arguments='{"n": 25.20, "order_id": "ü\\n"}')
    assert renamed.to_canonical(call).arguments == '{"count": 25.20, "order_id": "ü\\n"}'
    broken = ToolCall(id="c", name="move", arguments='{"n": 25.20')
    assert renamed.to_canonical(broken).arguments == '{"n": 25.20'


@pytest.mark.parametrize(
    ("view", "message"),
    [
        (ToolView(name="look"), "two tools 'look': 'move' and 'look'"),
        (ToolView(name="no blanks"), "'no blanks', which is not 1 to 64 letters"),
        (ToolView(parameters={"count": "order_id"}), "two parameters of tool 'move' 'order_id'"),
        (ToolView(parameters={"cuont": "n"}), "a parameter 'cuont' of tool 'move'.*count"),
        (ToolView(argument_notes={"address.street": "x"}), "a parameter 'address.street'"),
        (ToolView(parameters={"count": ""}), "parameter 'count' of tool 'move' no name"),
        (
            ToolView(schema="flat", parameters={"count": "address_city"}),
            "'address_city': 'address.city' and 'count'",
        ),
    ],
)
def test_a_clash_or_an_unknown_name_is_named(view: ToolView, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Names([MOVE, LOOK], {"move": view})


def test_a_flat_schema_inlines_objects_and_calls_put_them_together_again() -> None:
    view = ToolView(schema="flat", parameters={"address.city": "town"})
    form = tool_form(MOVE, ToolView(schema="flat", parameters={"address.city": "town"}))
    assert form.shown.parameters["required"] == ["order_id", "address_street"]
    assert list(form.shown.parameters["properties"]) == [
        "order_id",
        "address_street",
        "town",
        "count",
    ]
    flat = Names([MOVE], {"move": view})
    call = a_call("move", {"order_id": "W1", "address_street": "Elm 1", "town": "Ulm"})
    assert json.loads(flat.to_canonical(call).arguments) == {
        "order_id": "W1",
        "address": {"street": "Elm 1", "city": "Ulm"},
    }


def test_an_object_of_optional_keys_that_must_be_given_is_given() -> None:
    schema = {"type": "object", "properties": {"where": {**ADDRESS, "required": []}}}
    tool = ToolSpec(name="t", description="", parameters={**schema, "required": ["where"]})
    assert tool_form(tool, ToolView(schema="flat")).to_canonical("{}") == '{"where": {}}'


def test_a_strict_schema_requires_everything_and_null_leaves_out() -> None:
    form = tool_form(MOVE, ToolView(schema="strict"))
    assert form.shown.parameters["required"] == ["order_id", "address", "count"]
    assert form.shown.parameters["additionalProperties"] is False
    assert form.shown.parameters["properties"]["count"] == {"type": ["integer", "null"]}
    assert form.to_canonical('{"order_id": "W1", "count": null}') == '{"order_id": "W1"}'
    assert form.to_model('{"order_id": "W1"}') == '{"order_id": "W1", "count": null}'


def test_notes_become_descriptions() -> None:
    form = tool_form(
        MOVE,
        ToolView(schema="flat", argument_notes={"order_id": "NOTE", "address": "Where to."}),
    )
    shown = form.shown.parameters["properties"]
    assert shown["order_id"] == {"type": "string", "description": "NOTE"}
    assert shown["address_street"] == {"type": "string", "description": "Where to."}
    assert MOVE.parameters["properties"]["order_id"]["description"] == "As printed."


def test_an_error_is_told_in_the_models_names_but_values_stay() -> None:
    kind = {"type": "string", "enum": ["move", "stay"]}
    tool = ToolSpec(
        name="decide",
        description="",
        parameters={"type": "object", "properties": {"kind": kind, "order_id": {}}},
    )
    names = Names(
        [MOVE, tool],
        {
            "move": ToolView(name="send"),
            "decide": ToolView(name="choose", parameters={"order_id": "id"}),
        },
    )
    told = names.told('decide: order_id is missing; "move" or "stay", not_order_id', "decide")
    assert told == 'choose: id is missing; "move" or "stay", not_order_id'
    assert names.told("I decide: {decide: 1}", "decide") == "I choose: {choose: 1}"
    assert names.told("you decide whether", "decide") == "you decide whether"


@pytest.mark.parametrize(
    ("written", "near"),
    [
        ("getOrder", "get_order"),
        ("get_ordr", "get_order"),
        ("get-orders", "get_orders"),
        ("refund", ""),
        ("", ""),
    ],
)
def test_a_name_is_nearly_right_only_if_one_is_nearest(written: str, near: str) -> None:
    assert nearest_name(written, ["get_order", "get_orders", "cancel"]) == near


@given(st.dictionaries(st.text(max_size=4), st.recursive(values, st.lists, max_leaves=4)))
def test_members_are_the_object(value: dict[str, Any]) -> None:
    found = members(json.dumps(value, indent=1))
    assert found is not None
    assert json.loads(joined(found)) == value
    assert members("") == []
    assert members("[1]") is None
