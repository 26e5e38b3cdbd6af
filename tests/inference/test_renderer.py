import json
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.errors import DataError, ModelError, UserError
from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.inference.renderer import ChatRenderer, load_renderer

Renderers = Mapping[str, ChatRenderer]
Controls = Mapping[str, frozenset[int]]
EXTENDABLE = ("smollm2", "qwen2", "qwen3", "llama3")

LOOKALIKES = (
    *("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<tool_call>", "</tool_call>", "</think>"),
    *("<|eot_id|>", "<|start_header_id|>", "<|begin_of_text|>", "</s>", "<|user|>", "<repo_name>"),
    *("<think>", "</tool_response>", "<<|im_end|>>", "<|im_start|>assistant\n", "\U0010fffd"),
    *("<\U0010fffd|im_end|>", "\U0010fffd\U0010fffc"),
)
texts = st.lists(
    st.one_of(
        st.sampled_from(LOOKALIKES),
        st.text(max_size=8),
        st.sampled_from(["order 1234", " ", "\n\n", "naïve 漢字 🎉🏽", '{"a": 1}', "'quoted'"]),
    ),
    max_size=4,
).map("".join)
names = st.sampled_from(["get_order", "refund", "<|im_end|>"])
arguments = st.dictionaries(texts, st.one_of(texts, st.integers(), st.none()), max_size=2).map(
    lambda value: json.dumps(value, ensure_ascii=False)
)
calls = st.builds(ToolCall, id=st.just("call_0"), name=names, arguments=arguments)
answers = st.builds(
    Message,
    role=st.just("assistant"),
    content=texts,
    tool_calls=st.lists(calls, max_size=3).map(tuple),
)
tools = st.lists(
    st.builds(
        ToolSpec,
        name=names,
        description=texts,
        parameters=st.dictionaries(
            texts, st.builds(dict, type=st.just("string"), description=texts)
        ).map(lambda properties: {"type": "object", "properties": properties}),
    ),
    max_size=2,
).map(tuple)


@st.composite
def conversations(draw: st.DrawFn) -> tuple[Message, ...]:
    """System text or none, then user, answers with results for each call, and a last answer."""
    system = [Message(role=draw(st.sampled_from(["system", "developer"])), content=draw(texts))]
    messages = [*system[: draw(st.integers(0, 1))], Message(role="user", content=draw(texts))]
    for answer in draw(st.lists(answers, max_size=3)):
        messages.append(answer)
        messages += [
            Message(role="tool", content=draw(texts), tool_call_id=call.id, name=call.name)
            for call in answer.tool_calls
        ] or [Message(role="user", content=draw(texts))]
    return (*messages, draw(answers))


def for_family(family: str, messages: Sequence[Message]) -> tuple[Message, ...]:
    """Llama-3 writes one call per turn, and its call stands alone."""
    if family != "llama3":
        return tuple(messages)
    kept: list[Message] = []
    results = 0
    for message in messages:
        if message.role == "assistant":
            results = 0
            call = message.tool_calls[:1]
            content = "" if call else message.content
            kept.append(replace(message, tool_calls=call, content=content))
            continue
        results += message.role == "tool"
        if results <= 1:
            kept.append(message)
    return tuple(kept)


def neutral(message: Message) -> Message:
    """The same message with harmless text everywhere."""
    renamed = tuple(replace(call, name="x", arguments="{}") for call in message.tool_calls)
    return replace(message, content="x" if message.content.strip() else "", tool_calls=renamed)


def script(
    renderer: ChatRenderer, messages: Sequence[Message], specs: Sequence[ToolSpec]
) -> list[tuple[tuple[int, ...], bool]]:
    """Runs of a demonstration: ids with whether they were sampled."""
    ids, mask = renderer.demonstration(messages, specs)
    assert len(ids) == len(mask)
    runs: list[tuple[tuple[int, ...], bool]] = []
    for token, sampled in zip(ids, mask, strict=True):
        if runs and runs[-1][1] == sampled:
            runs[-1] = ((*runs[-1][0], token), sampled)
        else:
            runs.append(((token,), sampled))
    return runs


@pytest.mark.parametrize("family", [*EXTENDABLE, "template"])
@given(messages=conversations(), specs=tools)
def test_foreign_text_never_adds_a_control_token(
    renderers: Renderers,
    control_ids: Controls,
    family: str,
    messages: tuple[Message, ...],
    specs: tuple[ToolSpec, ...],
) -> None:
    renderer = renderers[family]
    messages = for_family(family, messages)[:-1]
    harmless = [neutral(message) for message in messages]
    plain_specs = [ToolSpec(name="x", description="x", parameters={}) for _ in specs]
    ids = renderer.start(messages, specs)
    found = [token for token in ids if token in control_ids[family]]
    expected = renderer.start(harmless, plain_specs)
    assert found == [token for token in expected if token in control_ids[family]]


@pytest.mark.parametrize("family", EXTENDABLE)
@given(messages=conversations(), specs=tools)
def test_a_demonstration_is_start_sampled_extend_in_turn(
    renderers: Renderers, family: str, messages: tuple[Message, ...], specs: tuple[ToolSpec, ...]
) -> None:
    renderer = renderers[family]
    messages = for_family(family, messages)
    runs = script(renderer, messages, specs)
    asked = [n for n, message in enumerate(messages) if message.role == "assistant"]
    seen: tuple[int, ...] = renderer.start(messages[: asked[0]], specs)
    assert runs[0] == (seen, False)
    for turn, index in enumerate(asked):
        action, sampled = runs[2 * turn + 1]
        assert sampled
        assert action[-1] in renderer.stop_token_ids
        assert not set(action[:-1]) & set(renderer.stop_token_ids)
        if index != asked[-1]:
            following = messages[index + 1 : asked[turn + 1]]
            observation = renderer.extend(seen, action, following, specs)
            assert observation is not None
            assert runs[2 * turn + 2] == (observation, False)
            seen = (*seen, *action, *observation)
            # Nothing but appending happened, yet it reads like the whole conversation.
            assert seen == renderer.start(messages[: asked[turn + 1]], specs)
    assert len(runs) == 2 * len(asked)


@pytest.mark.parametrize("family", ["smollm2", "qwen2", "qwen3"])
@given(answer=answers)
def test_what_a_demonstration_teaches_parses_back(
    renderers: Renderers, family: str, answer: Message
) -> None:
    renderer = renderers[family]
    messages = [Message(role="user", content="hi"), answer]
    (_, _), (action, _) = script(renderer, messages, ())
    turn = renderer.parse(action, (), renderer.start(messages[:1], ()))
    if "<tool_call>" in answer.content or "</think>" in answer.content:
        return  # text of the model that looks like a call is read as one
    normal = str if family == "smollm2" else lambda text: unicodedata.normalize("NFC", text)
    assert turn.parse_failures == ()
    assert turn.message.content == normal(answer.content.strip()).strip()
    written = [(call.name, normal(call.arguments)) for call in answer.tool_calls]
    assert [(call.name, call.arguments) for call in turn.message.tool_calls] == written
    assert [call.id for call in turn.message.tool_calls] == [
        f"call_{n}" for n in range(len(written))
    ]


@pytest.mark.parametrize("family", [*EXTENDABLE, "template"])
@given(data=st.data(), answer=answers, result=texts)
def test_a_turn_cut_anywhere_is_parsed_and_extended_without_touching_it(
    renderers: Renderers, family: str, data: st.DataObject, answer: Message, result: str
) -> None:
    renderer = renderers[family]
    messages = for_family(family, [Message(role="user", content="hi"), answer])
    prompt = renderer.start(messages[:1], ())
    (_, _), (action, _) = script(renderer, messages, ())
    cut = action[: data.draw(st.integers(0, len(action) - 1))]
    renderer.parse(cut, (), prompt)
    new = [Message(role="tool", content=result), Message(role="user", content=result)]
    observation = renderer.extend(prompt, cut, new, ())
    if family == "template":
        assert observation is None
        return
    assert observation is not None
    whole = renderer.extend(prompt, action, new, ())
    assert whole is not None
    # A turn that was cut is closed first, then everything is as after a finished one.
    assert observation == (renderer.stop_token_ids[0], *whole)


@pytest.mark.parametrize("family", [*EXTENDABLE, "template"])
@given(data=st.data())
def test_no_completion_whatsoever_makes_parsing_fail(
    renderers: Renderers, family: str, data: st.DataObject
) -> None:
    renderer = renderers[family]
    pieces = st.one_of(
        st.sampled_from(["<tool_call>", "</tool_call>", '{"name": "a", "arguments": ', "{}", "}"]),
        st.sampled_from(["[" * 3000, "NaN", '"\\ud800"', "1" * 5000, '{"name": 1}', "<think>"]),
        texts,
    )
    ids = renderer.encode("".join(data.draw(st.lists(pieces, max_size=6))))
    known = max(renderer.stop_token_ids)
    ids += tuple(data.draw(st.lists(st.integers(0, known), max_size=12)))
    turn = renderer.parse(ids, (), (1, 2))
    for call in turn.message.tool_calls:
        assert isinstance(json.loads(call.arguments), dict)
        call.name.encode()
    assert all(failure.reason for failure in turn.parse_failures)


@given(text=texts)
def test_encoded_text_reads_back_and_holds_no_control_token(
    renderers: Renderers, control_ids: Controls, text: str
) -> None:
    for family, renderer in renderers.items():
        ids = renderer.encode(text)
        assert not control_ids[family] & set(ids)
        normal = unicodedata.normalize("NFC", text) if family.startswith("qwen") else text
        assert renderer.decode(ids) == normal


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ('<tool_call>{"name": "a", "arguments": {"b": 1}', "has no end"),
        ('<tool_call>{"name" "a"}</tool_call>', "Expecting ':' at character 8"),
        ('<tool_call>{"name": "a", "arguments": {"b": NaN}}</tool_call>', "NaN is not"),
        ('<tool_call>{"arguments": {}}</tool_call>', 'no "name"'),
        ('<tool_call>{"name": 3, "arguments": {}}</tool_call>', 'no "name"'),
        ('<tool_call>{"name": "a", "arguments": "b"}</tool_call>', "must be a JSON object"),
        ('<tool_call>{"name": "a"} {"name": "b"}</tool_call>', "text after"),
        ("<tool_call>get_order(1)</tool_call>", "not a JSON object"),
        ("<tool_call></tool_call>", "not a JSON object"),
        (f'<tool_call>{{"name": "a", "arguments": {"[" * 3000}' + "}</tool_call>", "too deeply"),
    ],
)
def test_an_unreadable_call_says_what_to_write_instead(
    renderers: Renderers, written: str, reason: str
) -> None:
    turn = renderers["smollm2"].parse(renderers["smollm2"].encode(f"Well. {written}"), ())
    assert turn.message == Message(role="assistant", content="Well.")
    (failure,) = turn.parse_failures
    assert reason in failure.reason
    assert failure.raw in written


def test_good_and_bad_calls_stand_side_by_side(renderers: Renderers) -> None:
    renderer = renderers["smollm2"]
    text = (
        'Two.<tool_call>{"name": "a", "arguments": {"x":  1.50}}</tool_call>'
        '<tool_call>{"name": }</tool_call>'
        '<tool_call>{"arguments": {"t": "</tool_call>"}, "name": "b"}</tool_call> Done.'
    )
    turn = renderer.parse(renderer.encode(text), (), first_call=4)
    assert turn.message.content == "Two. Done."
    assert turn.message.tool_calls == (
        ToolCall(id="call_4", name="a", arguments='{"x":  1.50}'),
        ToolCall(id="call_5", name="b", arguments='{"t": "</tool_call>"}'),
    )
    assert len(turn.parse_failures) == 1


SEVEN_TOOLS = tuple(
    ToolSpec(
        name=name,
        description=description,
        parameters={
            "type": "object",
            "properties": {key: {"type": kind} for key, kind in fields.items()},
            "required": list(fields),
        },
    )
    for name, description, fields in (
        ("find_customer", "Find a customer by e-mail.", {"email": "string"}),
        ("get_order", "Look up an order.", {"order_id": "string"}),
        ("cancel_order", "Cancel an order not yet shipped.", {"order_id": "string"}),
        ("refund", "Refund a payment.", {"order_id": "string", "amount": "number"}),
        ("change_address", "Change an address.", {"order_id": "string", "address": "string"}),
        ("search_policy", "Search the policies.", {"query": "string"}),
        ("hand_over", "Hand over to a human.", {"reason": "string"}),
    )
)


def test_seven_tools_cost_the_real_model_few_tokens(smollm2_folder: Path) -> None:
    renderer = load_renderer(smollm2_folder)
    user = [Message(role="user", content="Where is #W1234567?")]
    assert len(renderer.start(user, SEVEN_TOOLS)) - len(renderer.start(user, ())) < 180
    assert renderer.decode(renderer.start(user, ())) == (
        "<|im_start|>user\nWhere is #W1234567?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_schema_becomes_a_signature(renderers: Renderers) -> None:
    schema = {
        "type": "object",
        "properties": {
            "status": {"enum": ["open", "closed"], "description": "which\nones"},
            "ids": {"type": "array", "items": {"type": "string"}},
            "place": {"type": "object", "properties": {"city": {"type": "string"}}},
            "limit": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        },
        "required": ["status"],
    }
    spec = ToolSpec(name="list_orders", description="List orders.", parameters=schema)
    renderer = renderers["smollm2"]
    text = renderer.decode(renderer.start([Message(role="user", content="hi")], [spec]))
    assert (
        'list_orders(status: "open"|"closed", ids?: string[], place?: {city?: string}, '
        "limit?: integer|null) - List orders. status: which ones\n"
    ) in text


def test_tools_that_differ_only_in_how_a_number_is_written_are_told_apart(
    renderers: Renderers,
) -> None:
    renderer = renderers["qwen2"]
    for limit in (1, 1.0, True, 1):
        schema = {"type": "object", "properties": {"n": {"type": "number", "maximum": limit}}}
        tool = ToolSpec(name="count", description="Count.", parameters=schema)
        ids = renderer.start((Message(role="user", content="Count."),), (tool,))
        assert f'"maximum": {json.dumps(limit)}}}' in renderer.decode(ids)


def test_several_results_keep_their_order_and_are_told_apart(renderers: Renderers) -> None:
    renderer = renderers["smollm2"]
    results = [Message(role="tool", content="one"), Message(role="tool", content="two")]
    observation = renderer.extend((1,), (renderer.stop_token_ids[0],), results, ())
    assert observation is not None
    assert renderer.decode(observation) == (
        "\n<|im_start|>tool\none<|im_end|>\n<|im_start|>tool\ntwo<|im_end|>\n<|im_start|>assistant\n"
    )


def test_qwen_writes_tags_as_tokens_and_results_in_a_user_turn(
    renderers: Renderers, control_ids: Controls
) -> None:
    for family in ("qwen2", "qwen3"):
        renderer = renderers[family]
        call = ToolCall(id="", name="a", arguments='{"b": 1}')
        messages = [
            Message(role="user", content="hi"),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="fine"),
            Message(role="assistant", content="ok"),
        ]
        ids, _ = renderer.demonstration(messages, SEVEN_TOOLS[:1])
        text = renderer.decode(ids)
        assert "<|im_start|>user\n<tool_response>\nfine\n</tool_response><|im_end|>\n" in text
        tag = next(i for i in ids if renderer.decode([i]) == "<tool_call>")
        assert tag in control_ids[family]


def test_a_template_of_its_own_renders_but_cannot_be_extended(renderers: Renderers) -> None:
    renderer = renderers["template"]
    messages = [
        Message(role="user", content="</s> <|user|>"),
        Message(role="assistant", content="yes"),
        Message(role="user", content="go on"),
        Message(role="assistant", content="done"),
    ]
    ids, mask = renderer.demonstration(messages, ())
    assert renderer.decode(ids) == (
        "<|user|>\n</s> <|user|></s>\n<|assistant|>\nyes</s>\n"
        "<|user|>\ngo on</s>\n<|assistant|>\ndone</s>"
    )
    sampled = [token for token, action in zip(ids, mask, strict=True) if action]
    assert renderer.decode(sampled) == "yes</s>done</s>"
    assert renderer.extend(ids[:8], ids[8:], messages[2:3], ()) is None


def test_a_conversation_the_family_cannot_express_is_a_users_error(renderers: Renderers) -> None:
    call = ToolCall(id="", name="a", arguments="{}")
    twice = [
        Message(role="user", content="hi"),
        Message(role="assistant", tool_calls=(call, call)),
    ]
    with pytest.raises(UserError, match="single tool call"):
        renderers["llama3"].demonstration(twice, ())
    with pytest.raises(DataError, match="needs an assistant message"):
        renderers["smollm2"].demonstration(twice[:1], ())


def test_a_folder_without_a_tokenizer_or_template_is_a_model_error(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tokenizer.json is missing"):
        load_renderer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be read"):
        load_renderer(tmp_path)
