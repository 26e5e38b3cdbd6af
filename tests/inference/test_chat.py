"""What crosses the socket comes out as it went in, and the fake answers like the real client."""

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.errors import SamplerError, UserError
from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.inference.chat import (
    CallDelta,
    ChatDelta,
    ChatEnd,
    ChatRequest,
    TokenLogprob,
    ToolName,
    dump_error,
    dump_piece,
    dump_request,
    load_piece,
    load_request,
)
from agentrft.inference.scripted import ScriptedChat, scripted_answer

texts = st.text(max_size=12)
calls = st.builds(ToolCall, id=texts, name=texts, arguments=texts)
messages = st.builds(
    Message,
    role=st.sampled_from(["system", "user", "assistant", "tool"]),
    content=texts,
    tool_calls=st.lists(calls, max_size=2).map(tuple),
    tool_call_id=st.none() | texts,
    name=st.none() | texts,
)
tokens = st.builds(
    TokenLogprob,
    token=texts,
    bytes=st.binary(max_size=4),
    logprob=st.floats(max_value=0, allow_nan=False, allow_infinity=False),
    top=st.lists(st.tuples(texts, st.floats(-99, 0)), max_size=2).map(tuple),
)
requests = st.builds(
    ChatRequest,
    base=texts,
    adapter=st.none() | texts,
    messages=st.lists(messages, max_size=2).map(tuple),
    tools=st.lists(
        st.builds(
            ToolSpec,
            name=texts,
            description=texts,
            parameters=st.dictionaries(texts, texts | st.none() | st.lists(texts, max_size=2)),
        ),
        max_size=2,
    ).map(tuple),
    tool_choice=st.sampled_from(["auto", "none", "required"]) | st.builds(ToolName, name=texts),
    stop=st.lists(texts, max_size=2).map(tuple),
    seed=st.none() | st.integers(),
    top_logprobs=st.none() | st.integers(0, 20),
)
pieces = st.one_of(
    st.builds(
        ChatDelta,
        text=texts,
        call=st.none()
        | st.builds(CallDelta, index=st.integers(0, 9), id=texts, name=texts, arguments=texts),
        logprobs=st.lists(tokens, max_size=2).map(tuple),
    ),
    st.builds(
        ChatEnd,
        message=messages,
        finish_reason=st.sampled_from(["stop", "length", "tool_calls"]),
        prompt_tokens=st.integers(0),
        completion_tokens=st.integers(0),
        cached_tokens=st.integers(0),
    ),
)


@given(request=requests)
def test_a_request_reads_back(request: ChatRequest) -> None:
    assert load_request(dump_request(request)) == request


@given(piece=pieces)
def test_a_piece_is_one_line_that_reads_back(piece: ChatDelta | ChatEnd) -> None:
    (line,) = dump_piece(piece).decode().splitlines()
    assert load_piece(line) == piece


def test_separators_of_lines_in_an_answer_do_not_break_it() -> None:
    piece = ChatDelta(text="a\u2028b\x85c\x0bd\n")
    (line,) = dump_piece(piece).decode().splitlines()
    assert load_piece(line) == piece


def test_what_cannot_be_read_says_so() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_request(b"{}")
    for line in ("{", "[]", '{"end": {}}', '{"delta": {"text": ""}}'):
        with pytest.raises(SamplerError, match="cannot be read"):
            load_piece(line)
    with pytest.raises(SamplerError, match="out of memory"):
        load_piece(dump_error(SamplerError("out of memory")).decode())


def test_the_fake_replays_its_script_and_keeps_the_requests() -> None:
    call = ToolCall(id="call_1", name="get_order", arguments="{}")
    chat = ScriptedChat([scripted_answer("Let me ", "look.", call)])
    request = ChatRequest(base="m", messages=(Message(role="user", content="hi"),))

    async def run() -> list[ChatDelta | ChatEnd]:
        return [piece async for piece in chat.stream(request)]

    *deltas, end = asyncio.run(run())
    assert [delta.text for delta in deltas if isinstance(delta, ChatDelta)] == [
        "Let me ",
        "look.",
        "",
    ]
    assert isinstance(end, ChatEnd)
    assert end.message == Message(role="assistant", content="Let me look.", tool_calls=(call,))
    assert (end.finish_reason, end.completion_tokens) == ("tool_calls", 3)
    assert chat.requests == [request]
    assert asyncio.run(chat.ready())
    with pytest.raises(SamplerError, match="one more was asked"):
        asyncio.run(run())
