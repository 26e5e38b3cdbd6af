"""Pieces of an answer add up to what the renderer reads in the whole, however it is cut."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.errors import UserError
from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.core.trajectory import FinishReason
from agentrft.inference.assembly import TurnAssembler
from agentrft.inference.chat import ChatDelta, ChatFinish, TokenLogprob
from agentrft.inference.renderer import ChatRenderer, load_renderer

Renderers = Mapping[str, ChatRenderer]
FAMILIES = ("smollm2", "qwen2", "qwen3", "llama3", "template")
USER = (Message(role="user", content="hi"),)
GET_ORDER = ToolSpec(
    name="get_order",
    description="Look up.",
    parameters={"properties": {"order_id": {"type": "string"}}, "required": ["order_id"]},
)
CALL = '<tool_call>{"name": "get_order", "arguments": {"order_id": "W1"}}</tool_call>'

pieces = st.one_of(
    st.sampled_from(
        [
            *(
                "<tool_call>",
                "</tool_call>",
                "<think>",
                "</think>",
                "<",
                "</",
                "<tool_",
                "|im_end|>",
            ),
            *('{"name": "get_order", "arguments": {"order_id": "W1"}}', "{", "}", '{"name": "a"}'),
            *('{"name": "a", "arguments": {"t": "</tool_call>"}}', CALL, "</s>", "<|eot_id|>"),
            *(" ", "\n\n", "naïve 漢字 🎉🏽", "\ufffd", "Let me look. ", "order 1234"),
        ]
    ),
    st.text(max_size=8),
)
texts = st.lists(pieces, max_size=6).map("".join)


def answer(
    renderer: ChatRenderer, ids: Sequence[int], reason: FinishReason, **options: object
) -> tuple[list[ChatDelta], Message, ChatFinish, TurnAssembler]:
    prompt = renderer.start(USER, ())
    assembler = TurnAssembler(renderer, prompt, (), **options)  # pyright: ignore[reportArgumentType]
    deltas: list[ChatDelta] = []
    for token_id in ids:
        text = renderer.decode([token_id])
        logprob = TokenLogprob(token=text, bytes=renderer.token_bytes(token_id), logprob=-1.0)
        deltas += assembler.push(token_id, logprob)
        if assembler.done:
            break
    last, message, finish = assembler.finish(reason)
    return [*deltas, *last], message, finish, assembler


def put_together(deltas: Sequence[ChatDelta]) -> Message:
    """What a client makes of the pieces."""
    calls: dict[int, ToolCall] = {}
    for delta in deltas:
        if delta.call is not None:
            assert delta.call.index == len(calls)
            calls[delta.call.index] = ToolCall(
                id=delta.call.id, name=delta.call.name, arguments=delta.call.arguments
            )
    content = "".join(delta.text for delta in deltas)
    return Message(role="assistant", content=content, tool_calls=tuple(calls.values()))


@st.composite
def completions(draw: st.DrawFn, renderer: ChatRenderer) -> tuple[int, ...]:
    """What a model might sample: text, calls, halves of them, control tokens anywhere."""
    ids: list[int] = []
    for _ in range(draw(st.integers(0, 3))):
        ids += renderer.encode(draw(texts))
        stops = renderer.stop_token_ids
        ids += draw(st.lists(st.integers(0, max(stops)), max_size=3))
        if draw(st.booleans()):
            # Marks as control tokens, where the family has them.
            ids += renderer.call_opening(GET_ORDER) if renderer.marks[0] != "</s>" else ()
            ids += renderer.encode(draw(st.sampled_from([' "W1"}}', " 1}", " {}}}\n"])))
    end = next((n for n, token in enumerate(ids, 1) if token in renderer.stop_token_ids), None)
    return tuple(ids[:end])


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_the_pieces_say_what_the_renderer_reads_in_the_whole(
    renderers: Renderers, family: str, data: st.DataObject
) -> None:
    renderer = renderers[family]
    ids = data.draw(completions(renderer))
    deltas, message, _, _ = answer(renderer, ids, FinishReason.STOP)
    assert put_together(deltas) == message
    turn = renderer.parse(ids, (), renderer.start(USER, ()))
    header = "<|end_header_id|>"
    if header in renderer.decode(ids):
        return  # Llama-3 forgets what stood before a second header, and that is out already
    assert message.tool_calls == turn.message.tool_calls
    if not turn.parse_failures:
        assert message == turn.message
    else:
        unread = [failure.raw for failure in turn.parse_failures if failure.raw]
        parts = [turn.message.content, *unread] if turn.message.content else unread
        assert message.content == "\n".join(parts)


@pytest.mark.parametrize("family", FAMILIES)
@given(data=st.data())
def test_a_stop_string_ends_the_text_before_it(
    renderers: Renderers, family: str, data: st.DataObject
) -> None:
    renderer = renderers[family]
    plain = st.lists(
        st.sampled_from(["a", "b", " ", "\n", "END", "EN", "E", "漢字", "🎉", "ab"]), max_size=12
    ).map("".join)
    text = data.draw(plain)
    stops = data.draw(st.lists(st.sampled_from(["END", "b a", "字", "🎉a", "\n"]), max_size=2))
    deltas, message, finish, assembler = answer(
        renderer, renderer.encode(text), FinishReason.LENGTH, stop=tuple(stops)
    )
    text = renderer.decode(renderer.encode(text))
    cut = min((text.find(stop) for stop in stops if stop in text), default=len(text))
    assert message.content == text[:cut].strip()
    assert put_together(deltas) == message
    stopped = any(stop in text for stop in stops)
    assert (finish, assembler.done) == (("stop", True) if stopped else ("length", False))
    # Bytes of the reported tokens cover the text; the last may reach into the stop string.
    told = b"".join(one.bytes for delta in deltas for one in delta.logprobs)
    assert told.decode(errors="ignore").startswith(text[:cut])


@pytest.mark.parametrize("family", FAMILIES)
@given(text=st.text(max_size=30))
def test_no_piece_holds_half_a_character(renderers: Renderers, family: str, text: str) -> None:
    renderer = renderers[family]
    text = f"漢{text.replace(chr(0xFFFD), '')}🎉🏽".replace("{", "").replace("<", "")
    ids = renderer.encode(text)
    assembler = TurnAssembler(renderer, renderer.start(USER, ()))
    seen = "".join(delta.text for token in ids for delta in assembler.push(token))
    assert "\ufffd" not in seen
    assert renderer.decode(ids).strip() == seen


def streamed(renderer: ChatRenderer, text: str) -> list[str]:
    """After each token, what is out."""
    assembler = TurnAssembler(renderer, renderer.start(USER, ()))
    out = ""
    states: list[str] = []
    for token in renderer.encode(text):
        for delta in assembler.push(token):
            out += delta.text
            out += f"[{delta.call.name}]" if delta.call else ""
        states.append(out)
    return states


def test_text_comes_at_once_and_a_call_when_it_is_whole(renderers: Renderers) -> None:
    states = streamed(renderers["smollm2"], f"Let me look.{CALL}{CALL}")
    assert "Let me" in states
    assert states.count("Let me look.") > 10
    assert "Let me look.[get_order]" in states
    assert states[-1] == "Let me look.[get_order][get_order]"


def test_text_after_a_call_comes_before_the_end(renderers: Renderers) -> None:
    states = streamed(renderers["smollm2"], f"{CALL}" + "That is all there is. " * 8)
    assert states[-1].startswith("[get_order]That is all there is.")


def test_an_unreadable_call_comes_back_as_text_at_the_end(renderers: Renderers) -> None:
    renderer = renderers["smollm2"]
    text = 'Well.<tool_call>{"name" "get_order"}</tool_call> Done.'
    assert streamed(renderer, text)[-1] == "Well."
    deltas, message, finish, _ = answer(renderer, renderer.encode(text), FinishReason.STOP)
    assert message == put_together(deltas)
    assert (message.content, message.tool_calls, finish) == (
        'Well. Done.\n{"name" "get_order"}',
        (),
        "stop",
    )


def test_a_call_that_was_cut_is_text_and_the_reason_is_length(renderers: Renderers) -> None:
    renderer = renderers["smollm2"]
    _, message, finish, _ = answer(renderer, renderer.encode(CALL[:40]), FinishReason.LENGTH)
    assert message.content == CALL[11:40].strip()
    assert (message.tool_calls, finish) == ((), "length")


def test_one_call_at_a_time_is_done_after_the_first(renderers: Renderers) -> None:
    for family in ("smollm2", "qwen2", "qwen3"):
        renderer = renderers[family]
        opening = renderer.call_opening(GET_ORDER)
        rest = renderer.encode(' "W1"}}')
        close = tuple(i for i in opening_close(renderer) if i not in renderer.stop_token_ids)
        ids = (*opening, *rest, *close, *opening, *rest, *close)
        _, message, finish, assembler = answer(
            renderer, ids, FinishReason.LENGTH, most_calls=1, call_id="call_x"
        )
        assert assembler.done
        assert finish == "tool_calls"
        assert message.tool_calls == (
            ToolCall(id="call_x0", name="get_order", arguments='{"order_id": "W1"}'),
        )


def opening_close(renderer: ChatRenderer) -> tuple[int, ...]:
    """The ids that close a call, as the family writes them."""
    call = ToolCall(id="", name="get_order", arguments="{}")
    ids, _ = renderer.demonstration([*USER, Message(role="assistant", tool_calls=(call,))], ())
    text = renderer.decode(ids)
    assert text.count("</tool_call>") == 1
    tag = next((i for i in ids if renderer.decode([i]) == "</tool_call>"), None)
    return (tag,) if tag is not None else renderer.encode("</tool_call>")


def test_where_no_tool_may_be_called_a_call_is_text(renderers: Renderers) -> None:
    renderer = renderers["smollm2"]
    deltas, message, finish, _ = answer(
        renderer, renderer.encode(f"Well.{CALL}"), FinishReason.STOP, most_calls=0
    )
    assert message == put_together(deltas)
    assert message.content == 'Well.\n{"name": "get_order", "arguments": {"order_id": "W1"}}'
    assert (message.tool_calls, finish) == ((), "stop")


@pytest.mark.parametrize("family", ["smollm2", "qwen2", "qwen3", "llama3"])
@pytest.mark.parametrize("tool", [GET_ORDER, None])
def test_a_forced_opening_is_part_of_the_call(
    renderers: Renderers, family: str, tool: ToolSpec | None
) -> None:
    renderer = renderers[family]
    call = ToolCall(id="", name="get_order", arguments='{"order_id": "W1"}')
    ids, mask = renderer.demonstration([*USER, Message(role="assistant", tool_calls=(call,))], ())
    whole = renderer.decode([token for token, sampled in zip(ids, mask, strict=True) if sampled])
    opening = renderer.call_opening(tool)
    begun = renderer.decode(opening)
    assert whole.startswith(begun)
    assert begun.endswith('{"order_id":' if tool else ":")
    prompt = renderer.start(USER, (GET_ORDER,))
    assembler = TurnAssembler(renderer, prompt, (GET_ORDER,), forced_ids=opening)
    action = [token for token, sampled in zip(ids, mask, strict=True) if sampled]
    # The action goes on where the opening ends, if need be in the middle of a token.
    reached = next(n for n in range(99) if renderer.decode(action[:n]).startswith(begun))
    split = renderer.decode(action[:reached])[len(begun) :]
    rest = [*renderer.encode(split), *action[reached:]]
    deltas = [delta for token in rest for delta in assembler.push(token)]
    last, message, finish = assembler.finish(FinishReason.STOP)
    assert put_together([*deltas, *last]) == message
    assert [(c.name, c.arguments) for c in message.tool_calls] == [("get_order", call.arguments)]
    assert finish == "tool_calls"


def test_a_call_begins_as_far_as_the_schema_says(renderers: Renderers) -> None:
    renderer = renderers["smollm2"]
    for schema, begun in (
        ({}, "{}"),
        ({"properties": {"a": {}}}, "{"),
        ({"properties": {"a": {}, "b": {}}, "required": ["b"]}, '{"b":'),
    ):
        tool = ToolSpec(name="x", description="", parameters=schema)
        text = renderer.decode(renderer.call_opening(tool))
        assert text == f'<tool_call>{{"name": "x", "arguments": {begun}'


def test_a_family_without_calls_cannot_be_forced(renderers: Renderers) -> None:
    with pytest.raises(UserError, match="cannot force a tool call"):
        renderers["template"].call_opening(GET_ORDER)


def test_the_real_tokenizer_streams_every_script(smollm2_folder: Path) -> None:
    renderer = load_renderer(smollm2_folder)
    text = f"Grüße 漢字 🎉🏽 — naïve. \n{CALL}\n"
    ids = renderer.encode(text)
    deltas, message, finish, _ = answer(renderer, ids, FinishReason.STOP)
    assert put_together(deltas) == message == renderer.parse(ids, ()).message
    assert finish == "tool_calls"
    assert b"".join(renderer.token_bytes(token) for token in ids) == text.encode()
