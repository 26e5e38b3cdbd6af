import asyncio
import gc
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
from live import Live, assert_nothing_unknown, live_server
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessage

from agentrft.core.errors import SamplerError, UserError
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Message, ToolCall, ToolSpec
from agentrft.inference.chat import (
    ChatBusyError,
    ChatDelta,
    ChatEnd,
    ChatRequest,
    TokenLogprob,
    ToolName,
)
from agentrft.inference.scripted import Answer, ScriptedChat, scripted_answer
from agentrft.store.access import Role
from agentrft.store.catalogue import CallableModel

MODEL = "smollm2-135m"
TUNED = "ft:smollm2-135m:agentrft::a"
HELLO: list[Any] = [{"role": "user", "content": "Where is W1?"}]
GET_ORDER: Any = {
    "type": "function",
    "function": {
        "name": "get_order",
        "description": "Look an order up.",
        "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}},
        "strict": True,
    },
}
CALL = ToolCall(id="call_1", name="get_order", arguments='{"order_id": "W1"}')
OTHER_CALL = ToolCall(id="call_2", name="get_order", arguments='{"order_id": "W2"}')


def shipped(_request: ChatRequest) -> Answer:
    return scripted_answer("It ", "shipped.")


class Script:
    """Answers requests of one test after the other: `answer` says how."""

    def __init__(self) -> None:
        self.chat = ScriptedChat(self._answer)
        self.answer: Callable[[ChatRequest], Answer] = lambda _request: scripted_answer(
            "It ", "shipped."
        )

    def _answer(self, request: ChatRequest) -> Answer:
        return self.answer(request)

    @property
    def asked(self) -> ChatRequest:
        return self.chat.requests[-1]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Live, Script]]:
    script = Script()
    with live_server(tmp_path_factory.mktemp("home"), script.chat) as live:
        yield live, script


@pytest.fixture
def live(server: tuple[Live, Script]) -> Live:
    return server[0]


@pytest.fixture
def script(server: tuple[Live, Script]) -> Script:
    script = server[1]
    script.answer = shipped
    return script


def sent(live: Live, **body: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {live.token}"}
    body = {"model": MODEL, "messages": HELLO, **body}
    return httpx2.post(f"{live.url}/v1/chat/completions", json=body, headers=headers)


def calls_of(message: ChatCompletionMessage) -> list[tuple[str, str, str]]:
    calls = [call for call in message.tool_calls or () if call.type == "function"]
    return [(call.id, call.function.name, call.function.arguments) for call in calls]


def frames(reply: httpx2.Response) -> list[str]:
    assert reply.headers["content-type"].startswith("text/event-stream")
    return [part.removeprefix("data: ") for part in reply.text.split("\n\n") if part]


def test_a_reply_is_what_the_official_client_says_it_is(live: Live, script: Script) -> None:
    reply = sent(live, temperature=0, top_p=0.5, max_completion_tokens=9, stop="END")
    completion = ChatCompletion.model_validate_json(reply.content, strict=True)
    assert_nothing_unknown(completion)
    assert completion.object == "chat.completion"
    assert completion.model == MODEL
    assert completion.system_fingerprint
    choice = completion.choices[0]
    assert (choice.message.content, choice.finish_reason) == ("It shipped.", "stop")
    assert "tool_calls" not in reply.json()["choices"][0]["message"]
    assert completion.usage is not None
    assert completion.usage.total_tokens == 7 + 2
    assert completion.usage.prompt_tokens_details is not None
    assert completion.usage.prompt_tokens_details.cached_tokens == 0
    assert script.asked == ChatRequest(
        base=MODEL,
        messages=(Message(role="user", content="Where is W1?"),),
        max_tokens=9,
        temperature=0.0,
        top_p=0.5,
        stop=("END",),
    )


@pytest.mark.parametrize(
    "pieces",
    [
        ("It ", "shipped."),
        (CALL,),
        ("Let me see. ", CALL, OTHER_CALL),
        (),
    ],
)
def test_a_stream_adds_up_to_the_whole_reply(
    live: Live, script: Script, pieces: tuple[str | ToolCall, ...]
) -> None:
    script.answer = lambda _request: scripted_answer(*pieces)
    client = live.client()
    whole = client.chat.completions.create(model=MODEL, messages=HELLO, tools=[GET_ORDER])
    with client.chat.completions.stream(
        model=MODEL,
        messages=HELLO,
        tools=[GET_ORDER],
        stream_options={"include_usage": True},
    ) as stream:
        streamed = stream.get_final_completion()
    assert streamed.usage == whole.usage
    assert streamed.system_fingerprint == whole.system_fingerprint
    one, other = whole.choices[0], streamed.choices[0]
    assert other.finish_reason == one.finish_reason
    assert other.message.content == one.message.content
    assert other.message.role == "assistant"
    calls = [calls_of(one.message), calls_of(other.message)]
    assert calls[0] == calls[1]
    assert len(calls[0]) == sum(isinstance(piece, ToolCall) for piece in pieces)


def test_chunks_say_the_role_first_and_end_with_usage_and_done(live: Live, script: Script) -> None:
    reply = sent(live, stream=True, stream_options={"include_usage": True})
    *events, done = frames(reply)
    chunks = [ChatCompletionChunk.model_validate_json(event, strict=True) for event in events]
    for chunk in chunks:
        assert_nothing_unknown(chunk)
    assert done == "[DONE]"
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "It shipped."
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None, None, None, "stop"]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None
    assert all(json.loads(event)["usage"] is None for event in events[:-1])
    assert {(c.id, c.created, c.model) for c in chunks} == {
        (chunks[0].id, chunks[0].created, MODEL)
    }


def test_usage_is_not_sent_unasked(live: Live, script: Script) -> None:
    assert all('"usage"' not in frame for frame in frames(sent(live, stream=True)))


def test_an_agent_loop_calls_a_tool_and_answers(live: Live, script: Script) -> None:
    answers = iter([scripted_answer("Let me see.", CALL), scripted_answer("It shipped.")])
    script.answer = lambda _request: next(answers)
    client = live.client()
    messages = [*HELLO]
    first = client.chat.completions.create(
        model=MODEL, messages=messages, tools=[GET_ORDER], tool_choice="required"
    )
    assert first.choices[0].finish_reason == "tool_calls"
    assert script.asked.tool_choice == "required"
    message = first.choices[0].message
    assert message.tool_calls is not None
    # The reply's message goes back as it came, as the official examples do.
    messages += [message, {"role": "tool", "tool_call_id": "call_1", "content": "shipped"}]
    second = client.chat.completions.create(model=MODEL, messages=messages, tools=[GET_ORDER])
    assert second.choices[0].message.content == "It shipped."
    assert script.asked.messages == (
        Message(role="user", content="Where is W1?"),
        Message(role="assistant", content="Let me see.", tool_calls=(CALL,)),
        Message(role="tool", content="shipped", tool_call_id="call_1", name="get_order"),
    )
    assert script.asked.tools == (
        ToolSpec(
            name="get_order",
            description="Look an order up.",
            parameters=GET_ORDER["function"]["parameters"],
        ),
    )


def test_every_role_and_text_parts_arrive(live: Live, script: Script) -> None:
    messages = [
        {
            "role": "system",
            "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "kind"}],
        },
        {"role": "developer", "content": "Be brief"},
        {"role": "user", "content": "Hi", "name": "ada"},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]},
        {"role": "user", "content": "Please"},
    ]
    assert sent(live, messages=messages).status_code == 200
    assert [(m.role, m.content) for m in script.asked.messages] == [
        ("system", "Be kind"),
        ("developer", "Be brief"),
        ("user", "Hi"),
        ("assistant", "No."),
        ("user", "Please"),
    ]


def test_choices_have_seeds_of_their_own(live: Live, script: Script) -> None:
    script.answer = lambda request: scripted_answer(str(request.seed))
    before = len(script.chat.requests)
    reply = live.client().chat.completions.create(model=MODEL, messages=HELLO, n=3, seed=-5)
    seeds = [str(derive_seed(-5, "choice", index)) for index in range(3)]
    assert [choice.message.content for choice in reply.choices] == seeds
    assert [choice.index for choice in reply.choices] == [0, 1, 2]
    assert len(script.chat.requests) == before + 3
    assert reply.usage is not None
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 3)
    one = live.client().chat.completions.create(model=MODEL, messages=HELLO, seed=-5)
    assert one.choices[0].message.content == seeds[0]


def test_choices_stream_side_by_side(live: Live, script: Script) -> None:
    script.answer = lambda request: scripted_answer(str(request.seed), "!")
    with live.client().chat.completions.stream(model=MODEL, messages=HELLO, n=2, seed=1) as stream:
        choices = stream.get_final_completion().choices
    expected = [f"{derive_seed(1, 'choice', index)}!" for index in range(2)]
    assert [choice.message.content for choice in choices] == expected


def logprob_answer() -> Answer:
    token = TokenLogprob(token="It", bytes=b"It", logprob=-0.5, top=(("It", -0.5), ("Ça", -2.0)))
    *deltas, end = scripted_answer("It", " is")
    return [*(replace(d, logprobs=(token,)) for d in deltas if isinstance(d, ChatDelta)), end]


def test_logprobs_come_with_their_alternatives(live: Live, script: Script) -> None:
    script.answer = lambda _request: logprob_answer()
    reply = sent(live, logprobs=True, top_logprobs=2)
    logprobs = ChatCompletion.model_validate_json(reply.content, strict=True).choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert [token.logprob for token in logprobs.content] == [-0.5, -0.5]
    assert logprobs.content[0].top_logprobs[1].bytes == list("Ça".encode())
    assert script.asked.top_logprobs == 2
    with live.client().chat.completions.stream(
        model=MODEL, messages=HELLO, logprobs=True, top_logprobs=2
    ) as stream:
        streamed = stream.get_final_completion().choices[0].logprobs
    assert streamed is not None
    assert streamed.content == logprobs.content


def test_one_tool_can_be_forced(live: Live, script: Script) -> None:
    choice = {"type": "function", "function": {"name": "get_order"}}
    sent(live, tools=[GET_ORDER], tool_choice=choice, parallel_tool_calls=False)
    assert script.asked.tool_choice == ToolName(name="get_order")
    assert not script.asked.parallel_tool_calls


STATUS = {"type": "object", "properties": {"status": {"type": "string"}}}


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        (
            {
                "type": "json_schema",
                "json_schema": {"name": "status", "strict": True, "schema": STATUS},
            },
            STATUS,
        ),
        ({"type": "text"}, None),
    ],
)
def test_an_answer_is_forced_into_the_form_that_was_asked_for(
    live: Live, script: Script, form: dict[str, Any], schema: dict[str, Any] | None
) -> None:
    assert sent(live, response_format=form).status_code == 200
    assert script.asked.schema == schema
    tools = {"tools": [GET_ORDER], "tool_choice": "none"}
    assert sent(live, response_format=form, **tools).status_code == 200


@pytest.mark.parametrize(
    "body",
    [
        {"frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": {}},
        {"response_format": {"type": "text"}, "modalities": ["text"], "audio": None},
        {"store": False, "metadata": {"run": "7"}, "user": "u", "safety_identifier": "s"},
        {"service_tier": "auto", "verbosity": "medium", "reasoning_effort": "high"},
        {"functions": None, "function_call": None, "prediction": None, "stop": None},
        {"tools": [], "n": 1, "prompt_cache_key": "k", "stop": ["a", "b", "c", "d"]},
    ],
)
def test_parameters_that_ask_for_nothing_special_are_accepted(
    live: Live, script: Script, body: dict[str, Any]
) -> None:
    assert sent(live, **body).status_code == 200


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"frequency_penalty": 0.5}, "frequency_penalty"),
        ({"presence_penalty": -1}, "presence_penalty"),
        ({"logit_bias": {"50256": -100}}, "logit_bias"),
        ({"response_format": {"type": "yaml"}}, "response_format"),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
            "response_format.json_schema.schema",
        ),
        (
            {"response_format": {"type": "json_object"}, "tools": [GET_ORDER]},
            "response_format",
        ),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"audio": {"voice": "alloy", "format": "wav"}}, "audio"),
        ({"store": True}, "store"),
        ({"store": 0}, "store"),
        ({"frequency_penalty": False}, "frequency_penalty"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"service_tier": "flex"}, "service_tier"),
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"n": "2"}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tool_choice": {"type": "allowed_tools"}}, "tool_choice.type"),
        ({"tools": [GET_ORDER, GET_ORDER]}, "tools"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "function", "content": "x", "name": "f"}]}, "messages[0]"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages[0].content[0].type",
        ),
        ({"wise": True}, "wise"),
        ({"messages": [{"role": "user", "content": "x", "mood": "sad"}]}, "messages[0].mood"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "c"}]}, "messages[0]"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "c",
                                "type": "function",
                                "function": {"name": "f", "arguments": "{}"},
                            }
                        ],
                    },
                    {"role": "user", "content": "well?"},
                ]
            },
            "messages[1]",
        ),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    live: Live, script: Script, body: dict[str, Any], param: str
) -> None:
    reply = sent(live, **body)
    error = reply.json()["error"]
    assert (reply.status_code, error["param"], error["type"]) == (
        400,
        param,
        "invalid_request_error",
    )


def test_hosted_names_mean_the_default_model_and_unknown_ones_nothing(
    live: Live, script: Script
) -> None:
    live.client().chat.completions.create(model="gpt-5-2025-08-07", messages=HELLO)
    assert script.asked.base == MODEL
    with pytest.raises(openai.NotFoundError) as caught:
        live.client().chat.completions.create(model="ft:nobody::x", messages=HELLO)
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_models_answer_to_their_project_and_its_guests_only(live: Live, script: Script) -> None:
    home = live.home
    for number, name in enumerate((TUNED, f"{TUNED}:ckpt-step-1")):
        home.catalogue.add(
            CallableModel(
                id=name,
                project="default",
                job_id="ftjob-a",
                base=MODEL,
                path=f"/runs/a/step-{number}",
                step=number,
                final=number == 0,
                created_at=1.0,
            ),
            None,
        )
        reply = live.client().chat.completions.create(model=name, messages=HELLO)
        assert reply.model == name
        assert (script.asked.base, script.asked.adapter) == (MODEL, f"/runs/a/step-{number}")
    guest = home.access.create_project("guest")
    stranger = live.client(live.token_of(guest, Role.READ))
    with pytest.raises(openai.NotFoundError):
        stranger.chat.completions.create(model=TUNED, messages=HELLO)
    home.catalogue.grant("default", TUNED, [guest])
    assert stranger.chat.completions.create(model=TUNED, messages=HELLO)


def failing(error: Exception, *before: str) -> Any:
    class Pieces(list[ChatDelta | ChatEnd]):
        def __iter__(self) -> Iterator[ChatDelta | ChatEnd]:
            yield from (ChatDelta(text=text) for text in before)
            raise error

    return lambda _request: Pieces()


@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_before_the_first_piece_has_a_status(
    live: Live, script: Script, stream: bool
) -> None:
    script.answer = failing(UserError("the prompt has 9000 tokens; 8192 fit"))
    with pytest.raises(openai.BadRequestError, match="8192 fit"):
        live.client().chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
    script.answer = failing(SamplerError("the chat process is starting"))
    with pytest.raises(openai.InternalServerError, match="is starting") as caught:
        live.client().chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
    assert caught.value.status_code == 503
    script.answer = failing(ChatBusyError("64 requests are waiting"))
    with pytest.raises(openai.RateLimitError, match="64 requests"):
        live.client().chat.completions.create(model=MODEL, messages=HELLO, stream=stream)


def test_a_failure_in_the_middle_of_a_stream_is_an_error_event(live: Live, script: Script) -> None:
    script.answer = failing(SamplerError("the chat process ended"), "It ")
    texts: list[str | None] = []
    with (
        live.client().chat.completions.create(model=MODEL, messages=HELLO, stream=True) as stream,
        pytest.raises(openai.APIError, match="the chat process ended"),
    ):
        texts.extend(chunk.choices[0].delta.content for chunk in stream)
    assert texts == ["", "It "]


class Endless:
    """Never ends, and tells when it was cancelled."""

    def __init__(self) -> None:
        self.began, self.cancelled = threading.Event(), threading.Event()

    async def stream(self, request: ChatRequest) -> AsyncIterator[ChatDelta | ChatEnd]:
        try:
            if not request.max_tokens:
                yield ChatDelta(text="word ")
            self.began.set()
            await asyncio.Event().wait()
        finally:
            self.cancelled.set()

    async def ready(self) -> bool:
        return True


@pytest.mark.parametrize("silent", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_cancels_its_work(tmp_path: Path, stream: bool, silent: bool) -> None:
    chat = Endless()

    async def leave(live: Live) -> None:
        async with live.async_client() as client:
            create: Any = client.chat.completions.create
            most = 1 if silent else None
            asked: asyncio.Task[Any] = asyncio.create_task(
                create(model=MODEL, messages=HELLO, stream=stream, max_tokens=most)
            )
            await asyncio.to_thread(chat.began.wait, 10)
            if stream and not silent:
                await (await asked).close()
            asked.cancel()
            await asyncio.gather(asked, return_exceptions=True)

    with live_server(tmp_path, chat) as live:
        asyncio.run(leave(live))
        assert chat.cancelled.wait(10)
    gc.collect()  # a socket left open shows here and not in some later test


def test_the_asynchronous_client_is_served_too(live: Live, script: Script) -> None:
    async def ask() -> str:
        async with live.async_client() as client:
            stream = await client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
            return "".join([c.choices[0].delta.content or "" async for c in stream])

    assert asyncio.run(ask()) == "It shipped."
