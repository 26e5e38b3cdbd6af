import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
from live import Live, assert_nothing_unknown, live_server
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from agentrft.core.errors import SamplerError
from agentrft.core.task import Message, ToolCall
from agentrft.inference.chat import ChatDelta, ChatEnd, ChatRequest, TokenLogprob, ToolName
from agentrft.inference.scripted import Answer, ScriptedChat, scripted_answer

MODEL = "smollm2-135m"
GET_ORDER: Any = {
    "type": "function",
    "name": "get_order",
    "description": "Look an order up.",
    "parameters": {"type": "object", "properties": {"order_id": {"type": "string"}}},
    "strict": True,
}
CALL = ToolCall(id="call_1", name="get_order", arguments='{"order_id": "W1"}')
OTHER_CALL = ToolCall(id="call_2", name="get_order", arguments='{"order_id": "W2"}')
# What the real service sends and the client's types of today do not list.
EXTENSIONS = ("store", "name", "bytes")
EVENTS: TypeAdapter[Any] = TypeAdapter(ResponseStreamEvent)


class Script:
    """Answers every request of a test by its `answer`."""

    def __init__(self) -> None:
        self.chat = ScriptedChat(self._answer)
        self.answer: Callable[[ChatRequest], Answer] = shipped

    def _answer(self, request: ChatRequest) -> Answer:
        return self.answer(request)

    @property
    def asked(self) -> ChatRequest:
        return self.chat.requests[-1]


def shipped(_request: ChatRequest) -> Answer:
    return scripted_answer("It ", "shipped.")


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
    server[1].answer = shipped
    return server[1]


def sent(live: Live, **body: Any) -> httpx2.Response:
    headers = {"authorization": f"Bearer {live.token}"}
    body = {"model": MODEL, "input": "Where is W1?", **body}
    return httpx2.post(f"{live.url}/v1/responses", json=body, headers=headers)


def calls_of(response: Response) -> list[tuple[str, str, str]]:
    calls = [item for item in response.output if item.type == "function_call"]
    return [(call.call_id, call.name, call.arguments) for call in calls]


def events_of(reply: httpx2.Response) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = []
    for frame in reply.text.split("\n\n"):
        if frame:
            name, data = frame.split("\n")
            events.append(json.loads(data.removeprefix("data: ")))
            assert events[-1]["type"] == name.removeprefix("event: ")
    return events


def test_a_reply_is_what_the_official_client_says_it_is(live: Live, script: Script) -> None:
    reply = sent(
        live,
        instructions="Be kind.",
        max_output_tokens=9,
        temperature=0,
        top_p=0.5,
        metadata={"run": "7"},
        include=["reasoning.encrypted_content"],
        store=False,
        tools=[GET_ORDER],
        reasoning={"effort": "medium", "summary": "auto"},
    )
    response = Response.model_validate_json(reply.content, strict=True)
    assert_nothing_unknown(response, *EXTENSIONS)
    assert response.status == "completed"
    assert response.output_text == "It shipped."
    assert response.model == MODEL
    assert response.metadata == {"run": "7"}
    assert response.usage is not None
    assert (response.usage.input_tokens, response.usage.output_tokens) == (7, 2)
    # It tells what was done: nothing was constrained, nothing was thought.
    assert reply.json()["tools"][0]["strict"] is False
    assert reply.json()["reasoning"] == {"effort": None, "summary": None}
    assert script.asked == ChatRequest(
        base=MODEL,
        messages=(
            Message(role="system", content="Be kind."),
            Message(role="user", content="Where is W1?"),
        ),
        tools=script.asked.tools,
        max_tokens=9,
        temperature=0.0,
        top_p=0.5,
    )


@pytest.mark.parametrize(
    "pieces",
    [("It ", "shipped."), (CALL,), ("Let me see. ", CALL, OTHER_CALL), ()],
)
def test_a_stream_ends_with_the_whole_reply(
    live: Live, script: Script, pieces: tuple[str | ToolCall, ...]
) -> None:
    script.answer = lambda _request: scripted_answer(*pieces)
    client = live.client()
    whole = client.responses.create(model=MODEL, input="Hi", tools=[GET_ORDER])
    with client.responses.stream(model=MODEL, input="Hi", tools=[GET_ORDER]) as stream:
        seen = list(stream)
        streamed = stream.get_final_response()
    assert streamed.output_text == whole.output_text
    assert [item.type for item in streamed.output] == [item.type for item in whole.output]
    calls = [calls_of(whole), calls_of(streamed)]
    assert calls[0] == calls[1]
    assert len(calls[0]) == sum(isinstance(piece, ToolCall) for piece in pieces)
    assert streamed.usage == whole.usage
    assert seen[0].type == "response.created"
    assert seen[-1].type == "response.completed"


def test_events_come_in_the_order_of_the_contract(live: Live, script: Script) -> None:
    script.answer = lambda _request: scripted_answer("Let me ", "see.", CALL)
    events = events_of(sent(live, stream=True, tools=[GET_ORDER]))
    for event in events:
        assert_nothing_unknown(EVENTS.validate_json(json.dumps(event), strict=True), *EXTENSIONS)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"].removeprefix("response.") for event in events] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
        "completed",
    ]
    assert events[2]["item"]["content"] == []
    assert events[9]["item"]["arguments"] == ""
    done = [event["item"] for event in events if event["type"] == "response.output_item.done"]
    assert events[-1]["response"]["output"] == done


def test_an_agent_loop_sends_its_whole_conversation(live: Live, script: Script) -> None:
    answers = iter([scripted_answer("Let me see.", CALL, OTHER_CALL), scripted_answer("Shipped.")])
    script.answer = lambda _request: next(answers)
    client = live.client()
    conversation: list[Any] = [{"role": "user", "content": "Where are W1 and W2?"}]
    first = client.responses.create(
        model=MODEL, input=conversation, tools=[GET_ORDER], parallel_tool_calls=True
    )
    # Items of the reply go back as they came, as the official examples do.
    conversation += first.output
    for item in first.output:
        if item.type == "function_call":
            conversation.append(
                {"type": "function_call_output", "call_id": item.call_id, "output": "shipped"}
            )
    conversation.insert(1, {"type": "reasoning", "id": "rs_1", "summary": [], "content": None})
    second = client.responses.create(model=MODEL, input=conversation, tools=[GET_ORDER])
    assert second.output_text == "Shipped."
    assert script.asked.messages == (
        Message(role="user", content="Where are W1 and W2?"),
        Message(role="assistant", content="Let me see.", tool_calls=(CALL, OTHER_CALL)),
        Message(role="tool", content="shipped", tool_call_id="call_1", name="get_order"),
        Message(role="tool", content="shipped", tool_call_id="call_2", name="get_order"),
    )


def test_calls_made_one_after_the_other_stay_two_turns(live: Live, script: Script) -> None:
    def call(number: int) -> list[dict[str, Any]]:
        ids = {"call_id": f"call_{number}"}
        return [
            {"type": "function_call", "name": "f", "arguments": "{}", **ids},
            {
                "type": "function_call_output",
                "output": [{"type": "input_text", "text": "1"}],
                **ids,
            },
        ]

    sent(live, input=[{"role": "user", "content": "Go"}, *call(1), *call(2)])
    assert [message.role for message in script.asked.messages] == [
        "user",
        "assistant",
        "tool",
        "assistant",
        "tool",
    ]


def test_a_cut_answer_says_why(live: Live, script: Script) -> None:
    script.answer = lambda _request: scripted_answer("It ", finish_reason="length")
    reply = sent(live, max_output_tokens=1).json()
    assert reply["status"] == "incomplete"
    assert reply["incomplete_details"] == {"reason": "max_output_tokens"}
    assert reply["output"][0]["status"] == "incomplete"
    assert events_of(sent(live, stream=True))[-1]["type"] == "response.incomplete"


def test_logprobs_come_on_demand(live: Live, script: Script) -> None:
    token = TokenLogprob(token="It", bytes=b"It", logprob=-0.5, top=(("It", -0.5),))
    end = scripted_answer("It")[-1]
    script.answer = lambda _request: (ChatDelta(text="It", logprobs=(token,)), end)
    reply = sent(live, include=["message.output_text.logprobs"], top_logprobs=1)
    response = Response.model_validate_json(reply.content, strict=True)
    item = response.output[0]
    assert item.type == "message"
    part = item.content[0]
    assert part.type == "output_text"
    assert part.logprobs is not None
    assert part.logprobs[0].top_logprobs[0].logprob == -0.5
    assert script.asked.top_logprobs == 1


def test_one_tool_can_be_forced(live: Live, script: Script) -> None:
    choice = {"type": "function", "name": "get_order"}
    reply = sent(live, tools=[GET_ORDER], tool_choice=choice, parallel_tool_calls=False).json()
    assert script.asked.tool_choice == ToolName(name="get_order")
    assert (reply["tool_choice"], reply["parallel_tool_calls"]) == (choice, False)


STATUS = {"type": "object", "properties": {"status": {"type": "string"}}}


@pytest.mark.parametrize(
    ("form", "schema"),
    [
        ({"type": "json_object"}, {"type": "object"}),
        (
            {"type": "json_schema", "name": "status", "schema": STATUS, "strict": True},
            STATUS,
        ),
        ({"type": "text"}, None),
    ],
)
def test_an_answer_is_forced_into_the_form_that_was_asked_for(
    live: Live, script: Script, form: dict[str, Any], schema: dict[str, Any] | None
) -> None:
    reply = sent(live, text={"format": form})
    assert script.asked.schema == schema
    shown = Response.model_validate_json(reply.content, strict=True).text
    assert shown is not None
    assert shown.format is not None
    assert form.items() <= shown.format.model_dump(by_alias=True).items()


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"truncation": "auto"}, "truncation"),
        ({"text": {"format": {"type": "json_object"}}, "tools": [GET_ORDER]}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema"),
        ({"include": ["web_search_call.results"]}, "include[0]"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"input": []}, "input"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input[0]"),
        ({"input": [{"role": "user"}]}, "input[0].content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"type": "function_call_output", "call_id": "c", "output": "x"}]}, "input[0]"),
        ({"wise": True}, "wise"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    live: Live, script: Script, body: dict[str, Any], param: str
) -> None:
    reply = sent(live, **body)
    assert (reply.status_code, reply.json()["error"]["param"]) == (400, param)


def test_a_failure_in_the_middle_of_a_stream_is_told(live: Live, script: Script) -> None:
    class Pieces(list[ChatDelta | ChatEnd]):
        def __iter__(self) -> Iterator[ChatDelta | ChatEnd]:
            yield ChatDelta(text="It ")
            raise SamplerError("the chat process ended")

    script.answer = lambda _request: Pieces()
    events = events_of(sent(live, stream=True))
    assert [event["type"] for event in events[-2:]] == ["error", "response.failed"]
    assert events[-2]["message"] == "the chat process ended"
    assert events[-1]["response"]["status"] == "failed"
    for event in events:
        EVENTS.validate_json(json.dumps(event), strict=True)


def test_an_unknown_model_is_not_found(live: Live, script: Script) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        live.client().responses.create(model="ft:nobody::x", input="Hi")
    assert caught.value.code == "model_not_found"


def test_the_asynchronous_client_is_served_too(live: Live, script: Script) -> None:
    async def ask() -> str:
        async with (
            live.async_client() as client,
            client.responses.stream(model=MODEL, input="Hi") as stream,
        ):
            return (await stream.get_final_response()).output_text

    assert asyncio.run(ask()) == "It shipped."
