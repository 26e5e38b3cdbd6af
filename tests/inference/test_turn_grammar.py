"""Turns forced into text or calls: whatever is drawn, the family's own parser reads it."""

import json
import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import validator_for

from agentrft.core.errors import UserError
from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.inference.embedded.grammar import Grammar, Grammars
from agentrft.inference.renderer import ChatRenderer
from agentrft.inference.tokenizer import ChatTokenizer
from agentrft.inference.turn_grammar import CALLS, ITEMS, TEXT_CHARACTERS, call_schema

CALLING = ("smollm2", "qwen2", "qwen3", "llama3")
VOCABULARY = 512


def a_tool(parameters: Mapping[str, Any] | None = None, name: str = "refund") -> ToolSpec:
    return ToolSpec(name=name, description="Pay back.", parameters=parameters or {})


def an_object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


ORDER = {"type": "string", "pattern": "^W[0-9]{7}$"}
TREE = {
    "type": "object",
    "properties": {"tree": {"$ref": "#/$defs/node"}},
    "required": ["tree"],
    "$defs": {
        "node": {
            "type": "object",
            "properties": {
                "label": {"type": "string", "maxLength": 2},
                "left": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]},
            },
            "required": ["label", "left"],
        }
    },
}
ODD: Mapping[str, Sequence[ToolSpec]] = {
    "one of two names that begin alike": [
        a_tool(an_object(order_id=ORDER), "get"),
        a_tool(an_object(order_id=ORDER), "get_order"),
    ],
    "names of other scripts and of marks": [
        a_tool(an_object(n={"type": "integer"}), name)
        for name in ("prüfe_漢字", 'a"b', "a\\b", "<|im_end|>", "</tool_call>", "%json {}", "🎉")
    ],
    "choices in other scripts": [
        a_tool(an_object(état={"enum": ['né "ici"', "<tool_call>", 7, None, {"type": "string"}]}))
    ],
    "no parameters said": [a_tool()],
    "no parameters": [a_tool({"type": "object", "properties": {}})],
    "some of them optional": [
        a_tool(an_object(a=ORDER) | {"properties": {"a": ORDER, "b": {"type": "boolean"}}})
    ],
    "lists, maps and whatever": [
        a_tool(
            an_object(
                names={"type": "array", "items": ORDER, "uniqueItems": True, "maxItems": 1},
                prices={"type": "object", "additionalProperties": {"type": "number"}},
                note={"description": "anything"},
                more=True,
            )
        )
    ],
    "one form of several": [
        a_tool(an_object(to={"oneOf": [ORDER, {"type": "null"}]}, at={"format": "binary"}))
    ],
    "bounds of its own": [
        a_tool(an_object(n={"type": "integer", "minimum": 3}, x={"type": "number", "maximum": -2}))
    ],
    "parts put together": [
        a_tool({"allOf": [an_object(a=ORDER), an_object(b={"type": "boolean"})], "required": ["a"]})
    ],
    "a form within itself": [a_tool(TREE)],
}


@pytest.fixture(scope="module")
def begin(family_folders: Mapping[str, Path]) -> Callable[..., Grammar]:
    def spelt(folder: Path) -> str:
        return ChatTokenizer(folder).as_json()

    grammars = {
        family: Grammars(partial(spelt, folder), VOCABULARY)
        for family, folder in family_folders.items()
    }

    def begun(family: str, renderer: ChatRenderer, grammar: str) -> Grammar:
        return grammars[family].begin(grammar, renderer.stop_token_ids)

    return begun


def wandered(grammar: Grammar, stops: Sequence[int], seed: int) -> tuple[list[int], list[bool]]:
    """Draw any allowed token, again and again; return them, and where the turn could have ended."""
    choose = random.Random(seed)
    ids: list[int] = []
    could_end: list[bool] = []
    while not ids or ids[-1] not in stops:
        (allowed_V,) = grammar.allowed(())
        assert allowed_V is not None
        assert not grammar.failed
        allowed = allowed_V.nonzero()[:, 0].tolist()
        could_end.append(allowed_V[stops[0]].item() is True)
        end_now = could_end[-1] and (len(ids) > 40 or len(allowed) == len(stops))
        ids.append(stops[0] if end_now else choose.choice(allowed))
        grammar.take(ids[-1])
    return ids, could_end


def admits(grammar: Grammar, ids: Sequence[int]) -> bool:
    """Whether all of these may be drawn, one after the other."""
    allowed = zip(grammar.allowed(ids), ids, strict=False)
    return all(mask is not None and bool(mask[token]) for mask, token in allowed)


@pytest.mark.parametrize("family", CALLING)
@pytest.mark.parametrize("case", ODD)
def test_whatever_is_drawn_is_a_call_of_a_tool_with_arguments_of_its_schema(
    renderers: Mapping[str, ChatRenderer], begin: Callable[..., Grammar], family: str, case: str
) -> None:
    renderer, tools = renderers[family], ODD[case]
    grammar = renderer.call_grammar(tools, first_turn_must_call=True)
    fits = {tool.name: validator_for({"type": "object", **tool.parameters}) for tool in tools}
    called: set[str] = set()
    for seed in range(6):
        ids, _ = wandered(begin(family, renderer, grammar), renderer.stop_token_ids, seed)
        turn = renderer.parse(ids, tools)
        assert turn.parse_failures == ()
        assert turn.message.content == ""
        assert 0 < len(turn.message.tool_calls) <= (1 if renderer.bare_calls else CALLS)
        for call in turn.message.tool_calls:
            assert fits[call.name].is_valid(json.loads(call.arguments)), call
            called.add(call.name)
    assert len(called) > 1 or len(tools) == 1


@pytest.mark.parametrize("family", CALLING)
def test_a_turn_may_end_exactly_where_it_is_a_text_or_whole_calls(
    renderers: Mapping[str, ChatRenderer], begin: Callable[..., Grammar], family: str
) -> None:
    renderer, tools = renderers[family], ODD["one of two names that begin alike"]
    kinds: set[bool] = set()
    for must_call in (False, True):
        grammar = renderer.call_grammar(tools, first_turn_must_call=must_call)
        for seed in range(4):
            begun = begin(family, renderer, grammar)
            ids, could_end = wandered(begun, renderer.stop_token_ids, seed)
            kinds.add(bool(renderer.parse(ids, tools).message.tool_calls))
            for length, could in enumerate(could_end):
                turn = renderer.parse([*ids[:length], renderer.stop_token_ids[0]], tools)
                calls, content = turn.message.tool_calls, turn.message.content
                text = renderer.decode(ids[:length])
                called = bool(calls) and not content and text == text.rstrip()
                assert turn.parse_failures == () or not could
                if must_call:
                    assert could == (called and not turn.parse_failures)
                elif could:
                    assert called or content
    assert kinds == {False, True}


@pytest.mark.parametrize("family", CALLING)
def test_what_demonstrations_write_is_allowed(
    renderers: Mapping[str, ChatRenderer], begin: Callable[..., Grammar], family: str
) -> None:
    renderer = renderers[family]
    note = {"type": "string"}
    tools = [a_tool(an_object(order_id=ORDER, note=note, lines={"type": "array", "items": note}))]
    written = {"order_id": "W1234567", "note": '"né"\n</tool_call> 漢🎉 {', "lines": ["a", "b"]}
    text = json.dumps(written, ensure_ascii=False)
    call = ToolCall(id="call_0", name="refund", arguments=text)
    turns = [
        Message(role="assistant", tool_calls=(call,)),
        Message(role="assistant", content="It is <b>paid</b> back, {naïve} as it is."),
    ]
    if not renderer.bare_calls:
        turns.append(Message(role="assistant", tool_calls=(call, call)))
    for turn in turns:
        ids, mask = renderer.demonstration([Message(role="user", content="hi"), turn], tools)
        action = [i for i, sampled in zip(ids, mask, strict=True) if sampled]
        free = begin(family, renderer, renderer.call_grammar(tools, first_turn_must_call=False))
        assert admits(free, action)
        bound = begin(family, renderer, renderer.call_grammar(tools, first_turn_must_call=True))
        assert admits(bound, action) == bool(turn.tool_calls)


@pytest.mark.parametrize(
    ("family", "text"),
    [
        ("smollm2", "<tool_call>refund</tool_call>"),
        ("smollm2", "I will do it. <tool_call>{"),
        ("smollm2", '<tool_call>{"name": "repay", "arguments": {}}</tool_call>'),
        ("smollm2", '<tool_call>{"name":"refund", "arguments": {}}</tool_call>'),
        ("smollm2", '<tool_call>{"name": "refund", "arguments": {"x": 1}}</tool_call>'),
        ("smollm2", ' <tool_call>{"name": "refund", "arguments": {}}</tool_call>'),
        ("smollm2", " \n"),
        ("qwen2", "spelt <tool_call>"),
        ("llama3", '\n{"name": 1}'),
        ("llama3", '{"name": "refund", "parameters": {}} and'),
    ],
)
def test_what_cannot_be_read_or_run_is_not_allowed(
    renderers: Mapping[str, ChatRenderer], begin: Callable[..., Grammar], family: str, text: str
) -> None:
    renderer = renderers[family]
    grammar = renderer.call_grammar([a_tool()], first_turn_must_call=False)
    ids = [*renderer.encode(text), renderer.stop_token_ids[0]]
    assert not admits(begin(family, renderer, grammar), ids)


def test_without_tools_a_turn_is_text_and_cannot_be_made_a_call(
    renderers: Mapping[str, ChatRenderer], begin: Callable[..., Grammar]
) -> None:
    renderer = renderers["smollm2"]
    grammar = begin("smollm2", renderer, renderer.call_grammar((), first_turn_must_call=False))
    assert admits(grammar, [*renderer.encode("hello"), renderer.stop_token_ids[0]])
    with pytest.raises(UserError, match="there are no tools"):
        renderer.call_grammar((), first_turn_must_call=True)


def test_a_family_without_calls_refuses(renderers: Mapping[str, ChatRenderer]) -> None:
    with pytest.raises(UserError, match=r"no calls that can be forced.*decoding\.grammar"):
        renderers["template"].call_grammar([a_tool()], first_turn_must_call=False)


@pytest.mark.parametrize(
    ("tool", "message"),
    [
        (a_tool(an_object(x={"not": {}})), "'refund' cannot be forced.*not.*decoding.grammar"),
        (a_tool(an_object(x={"type": "frob"})), "'refund' cannot be forced.*frob"),
        (a_tool(an_object(x={"type": "string", "pattern": "(?=a)"})), "look-around|regex"),
        (a_tool(an_object(x={"type": "object", "required": True})), "of tool 'refund' cannot be"),
        (a_tool(name="re\nfund"), "could not be read"),
        (a_tool(name=""), "could not be read"),
    ],
)
def test_a_tool_that_cannot_be_forced_is_refused_by_name(
    renderers: Mapping[str, ChatRenderer], tool: ToolSpec, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        renderers["smollm2"].call_grammar([tool], first_turn_must_call=False)


def test_texts_lists_and_maps_get_a_bound_where_the_schema_sets_none() -> None:
    given = an_object(
        free={"type": "string"},
        own={"type": ["string", "null"], "maxLength": 9000},
        long={"type": "string", "minLength": 600},
        list={"type": "array", "items": {"type": "string"}},
        map={"type": "object", "additionalProperties": {"type": "string"}},
        enum={"enum": [{"type": "string"}]},
    )
    bounded = call_schema(given)["properties"]
    assert bounded["free"]["maxLength"] == bounded["list"]["items"]["maxLength"] == TEXT_CHARACTERS
    assert (bounded["own"]["maxLength"], bounded["long"]["maxLength"]) == (9000, 600)
    assert bounded["list"]["maxItems"] == bounded["map"]["maxProperties"] == ITEMS
    assert bounded["enum"] == {"enum": [{"type": "string"}]}


def test_objects_that_name_their_properties_hold_no_others_unless_the_schema_says_so() -> None:
    inner = an_object(a=True)
    closed = call_schema(an_object(inner=inner))
    assert closed["additionalProperties"] is False
    assert closed["properties"]["inner"]["additionalProperties"] is False
    opened = call_schema({**inner, "additionalProperties": {"type": "null"}})
    assert opened["additionalProperties"] == {"type": "null"}
    assert "additionalProperties" not in call_schema({"allOf": [inner, an_object(b=True)]})
    assert "additionalProperties" not in call_schema({**inner, "required": ["elsewhere"]})
