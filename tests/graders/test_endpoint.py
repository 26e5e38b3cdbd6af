import asyncio
from base64 import b64encode
from typing import Any

import pytest
from raw_server import HANGS, Raw, RawServer, Waited, reply, serving
from standardwebhooks import Webhook, WebhookVerificationError

from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.grade import Grade
from agentrft.core.task import Message, Task, ToolCall
from agentrft.core.trajectory import StopReason, ToolResult, Trajectory, Turn
from agentrft.egress.client import MAX_BODY_BYTES, MAX_CONCURRENT, Endpoint
from agentrft.egress.policy import EgressPolicy
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.endpoint import EndpointGrader

SECRET = "Bearer abcdef-secret"
SIGNING_KEY = f"whsec_{b64encode(b'k' * 24).decode()}"
ANOTHER_KEY = f"whsec_{b64encode(b'j' * 24).decode()}"
CALL = ToolCall(id="call_1", name="get_order", arguments='{"id": "W1"}')
SHOWN_CALL = {
    "id": "call_1",
    "type": "function",
    "function": {"name": "get_order", "arguments": '{"id": "W1"}'},
}


def a_turn(message: Message, *results: ToolResult) -> Turn:
    return Turn(
        observation_ids=(1,),
        action_ids=(2,),
        behavior_logprobs=(-0.1,),
        first_version=0,
        last_version=0,
        message=message,
        tool_results=results,
        sampling_s=0.5,
    )


TRAJECTORY = Trajectory(
    id="trace_ab",
    task_id="task-1",
    model="m",
    spec_hash="",
    seed=0,
    prompt=(Message(role="user", content="Where is W1?"),),
    turns=(
        a_turn(
            Message(role="assistant", content="", tool_calls=(CALL,)),
            ToolResult(
                call_id="call_1",
                name="get_order",
                content="Error: 404: gone",
                is_error=True,
                duration_s=0.25,
            ),
        ),
        a_turn(Message(role="assistant", content='{"status": "lost"}')),
    ),
    stop_reason=StopReason.FINISHED,
)
TASK = Task(id="task-1", messages=(), row={"reference": "lost"})


def grade(*replies: Raw, task: Task = TASK, **fields: Any) -> tuple[Grade | GraderError, RawServer]:
    async def scenario() -> tuple[Grade | GraderError, RawServer]:
        async with serving(*replies) as server:
            given: dict[str, Any] = {"headers": {"Authorization": SECRET}, "wait": Waited()}
            given |= {"policy": EgressPolicy(), **fields}
            endpoint = Endpoint("grader 'g'", f"{server.url}/grade", **given)
            grader = EndpointGrader(name="g", endpoint=endpoint)
            try:
                return await grader.grade(task, TRAJECTORY, None), server
            except GraderError as error:
                return error, server

    return asyncio.run(scenario())


def test_the_rollout_is_sent_as_the_contract_says_with_the_conversation_beside_it() -> None:
    given, server = grade(reply('{"score": 0.85}'))
    assert given == Grade(score=0.85, grader="g")
    (request,) = server.requests
    assert request.headers["authorization"] == SECRET
    assert request.headers["idempotency-key"].startswith("trace_ab:grade:g:")
    assert request.body == {
        "trace_id": "trace_ab",
        "item": {"reference": "lost"},
        "sample": {
            "output_text": '{"status": "lost"}',
            "output_json": {"status": "lost"},
            "output_tools": [SHOWN_CALL],
            "output_audio": None,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": '{"status": "lost"}'},
                    "finish_reason": "stop",
                }
            ],
            "messages": [
                {"role": "user", "content": "Where is W1?"},
                {
                    "role": "assistant",
                    "content": "",
                    "tool_calls": [SHOWN_CALL],
                    "duration_s": 0.5,
                },
                {
                    "role": "tool",
                    "tool_call_id": "call_1",
                    "name": "get_order",
                    "content": "Error: 404: gone",
                    "is_error": True,
                    "duration_s": 0.25,
                },
                {"role": "assistant", "content": '{"status": "lost"}', "duration_s": 0.5},
            ],
        },
    }


@pytest.mark.parametrize(
    ("body", "score"),
    [('{"score": 1}', 1.0), ('{"score": -0.5, "note": "x"}', -0.5), ('{"score": 1e-3}', 0.001)],
)
def test_any_finite_number_is_a_score(body: str, score: float) -> None:
    given, _ = grade(reply(body))
    assert isinstance(given, Grade)
    assert given.score == score


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (reply(status=500), "HTTP 500"),
        (reply('{"score": 1.0}', status=400), 'HTTP 400: {"score": 1.0}'),
        (reply(f"bad key {SECRET}", status=401), "HTTP 401: bad key [redacted]"),
        (reply("x" * 190 + SECRET, status=401), "[redacted]"),
        (reply("[0.5]"), "no numeric `score` in '[0.5]'"),
        (reply("{}"), "no numeric `score`"),
        (reply('{"score": null}'), "no numeric `score`"),
        (reply('{"score": "0.5"}'), "no numeric `score`"),
        (reply('{"score": true}'), "no numeric `score`"),
        (reply('{"score": NaN}'), "`score` is not a finite number"),
        (reply('{"score": 1e999}'), "`score` is not a finite number"),
        (reply(f'{{"score": 1{"0" * 400}}}'), "`score` is not a finite number"),
        (reply('{"score": 0.'), "not complete JSON"),
        (reply(f'{{"score": 1{"0" * 5000}}}'), "not complete JSON"),
        (reply('{"score"', missing_bytes=5), "RemoteProtocolError"),
        (reply("x" * (MAX_BODY_BYTES + 1)), "the reply is too large"),
    ],
)
def test_whatever_is_no_score_is_tried_three_more_times_and_never_a_zero(
    answer: Raw, shown: str
) -> None:
    error, server = grade(answer)
    assert isinstance(error, GraderError)
    assert shown in str(error)
    assert "abcdef" not in str(error)
    assert error.code == "endpoint_grader_server_error"
    assert len(server.requests) == 4


def test_a_fault_that_passes_costs_nothing() -> None:
    given, server = grade(reply(status=503), reply('{"score": "?"}'), reply('{"score": 0.5}'))
    assert given == Grade(score=0.5, grader="g")
    assert len(server.requests) == 3


def test_a_grader_that_never_answers_is_named_with_its_limit() -> None:
    error, _ = grade(HANGS, timeout_s=0.1)
    assert isinstance(error, GraderError)
    assert "grader 'g' at http://" in str(error)
    assert "gave no result in 0.1 s" in str(error)


def test_what_is_too_large_to_send_is_our_side_of_the_fault() -> None:
    error, server = grade(task=Task(id="t", messages=(), row={"blob": "x" * MAX_BODY_BYTES}))
    assert isinstance(error, GraderError)
    assert error.code == "endpoint_grader_internal_error"
    assert server.requests == []


def test_every_attempt_is_signed_so_that_the_endpoint_knows_who_asks() -> None:
    given, server = grade(reply(status=503), reply('{"score": 0.5}'), signing_key=SIGNING_KEY)
    assert isinstance(given, Grade)
    for request in server.requests:
        assert request.headers["webhook-id"] == request.headers["idempotency-key"]
        headers = dict(request.headers)
        assert Webhook(SIGNING_KEY).verify(request.content.decode(), headers) == request.body
        with pytest.raises(WebhookVerificationError):
            Webhook(SIGNING_KEY).verify(request.content.decode() + " ", headers)
        with pytest.raises(WebhookVerificationError):
            Webhook(ANOTHER_KEY).verify(request.content.decode(), headers)


def test_a_grader_is_built_with_the_key_of_its_backends_and_unsigned_without_one() -> None:
    async def scenario() -> None:
        async with serving(reply('{"score": 0.5}')) as server:
            for backends in (Backends(signing_key=SIGNING_KEY), Backends()):
                grader = build_grader({"type": "endpoint", "url": server.url}, backends=backends)
                await grader.grade(TASK, TRAJECTORY, None)
            signed, unsigned = ("webhook-signature" in r.headers for r in server.requests)
            assert (signed, unsigned) == (True, False)

    asyncio.run(scenario())


def test_a_signature_cannot_come_from_the_grader_object() -> None:
    config = {"type": "endpoint", "url": "http://127.0.0.1:1/", "headers": {"Webhook-Id": "x"}}
    with pytest.raises(ConfigError, match="header 'Webhook-Id' is set by the sender"):
        build_grader(config)


def test_an_address_that_turned_bad_is_a_safety_fault() -> None:
    async def elsewhere(host: str, port: int) -> tuple[str, ...]:
        return ("169.254.169.254",)

    async def scenario() -> None:
        config = {"type": "endpoint", "url": "http://grader.example/"}
        grader = build_grader(config, backends=Backends(policy=EgressPolicy(resolve=elsewhere)))
        with pytest.raises(GraderError, match="leads to 169.254.169.254") as caught:
            await grader.grade(TASK, TRAJECTORY, None)
        assert caught.value.code == "endpoint_grader_safety_check_error"

    asyncio.run(scenario())


def test_a_grader_by_url_may_be_a_part_of_a_formula() -> None:
    async def scenario() -> None:
        async with serving(reply('{"score": 0.5}')) as server:
            check = {
                "type": "string_check",
                "operation": "eq",
                "input": "{{sample.output_json.status}}",
                "reference": "{{item.reference}}",
            }
            hosted = {
                "type": "endpoint",
                "url": f"{server.url}/grade",
                "headers": {"X-Key": "k"},
                "rate_limit": 50,
                "pass_threshold": 0.75,
            }
            config = {
                "type": "multi",
                "graders": {"exact": check, "hosted": hosted},
                "calculate_output": "min(exact, hosted)",
            }
            given = await build_grader(config).grade(TASK, TRAJECTORY, None)
            assert (given.score, given.parts) == (0.5, {"exact": 1.0, "hosted": 0.5})
            key = server.requests[0].headers["idempotency-key"]
            assert key.startswith("trace_ab:grade:hosted:")

    asyncio.run(scenario())


def test_attempts_of_one_grading_share_a_key_and_another_grading_has_its_own() -> None:
    async def scenario() -> list[str]:
        busy = reply(status=503)
        async with serving(busy, reply('{"score": 0.5}')) as server:
            endpoint = Endpoint(
                "grader 'g'", server.url, headers={}, policy=EgressPolicy(), wait=Waited()
            )
            for _ in range(2):
                await EndpointGrader(name="g", endpoint=endpoint).grade(TASK, TRAJECTORY, None)
            return [request.headers["idempotency-key"] for request in server.requests]

    first, again, other = asyncio.run(scenario())
    assert first == again != other


def test_five_hundred_gradings_at_once_are_all_graded_within_the_cap() -> None:
    async def scenario() -> None:
        async with serving(reply('{"score": 0.5}')) as server:
            hosted = {"type": "endpoint", "url": server.url}
            config = {"type": "multi", "graders": {"a": hosted}, "calculate_output": "a"}
            grader = build_grader(config)
            grades = await asyncio.gather(
                *(grader.grade(TASK, TRAJECTORY, None) for _ in range(500))
            )
            assert [grade.score for grade in grades] == [0.5] * 500
            assert server.open_most <= MAX_CONCURRENT

    asyncio.run(scenario())
