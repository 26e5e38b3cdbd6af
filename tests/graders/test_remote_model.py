"""Grader models over a real server that speaks chat completions, well or badly."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from answers import TASK, a_trajectory
from raw_server import HANGS, Raw, RawServer, Waited, reply, serving

from agentrft.core.config import GraderModel as GraderModelConfig
from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.grade import Grade
from agentrft.core.task import Message
from agentrft.core.usage import TokenUsage
from agentrft.egress.client import RETRIES
from agentrft.egress.policy import EgressPolicy
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.remote_model import RemoteEmbedder, RemoteGraderModel, grader_models
from agentrft.inference.grader_model import GradingReply, GradingRequest
from agentrft.inference.own_model import OwnGraderModel, OwnModels

KEY = "sk-very-secret-1234567890"
REQUEST = GradingRequest(
    messages=(Message(role="user", content="Good?"),),
    schema={"type": "object"},
    max_tokens=50,
    seed=7,
    key="trace_1:grade:judge:77",
)


def completion(content: object, finish_reason: str = "stop", **message: object) -> Raw:
    usage = {
        "prompt_tokens": 190,
        "completion_tokens": 34,
        "prompt_tokens_details": {"cached_tokens": 128},
    }
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": content, **message},
        "finish_reason": finish_reason,
    }
    return reply(json.dumps({"id": "c", "choices": [choice], "usage": usage}))


GOOD = completion('{"steps": [], "result": 0.75}')
NO_FORM = reply('{"error": {"message": "response_format is not supported"}}', 400)


def asked(
    *replies: Raw, times: int = 1, **config: Any
) -> tuple[list[GradingReply | GraderError], RawServer, Waited]:
    """What a model says when it is asked so many times, one after the other."""
    waited = Waited()

    async def scenario() -> tuple[list[GradingReply | GraderError], RawServer]:
        async with serving(*replies) as server:
            settings = GraderModelConfig(base_url=f"{server.url}/v1", model="judge-1", **config)
            model = RemoteGraderModel("judge", settings, policy=EgressPolicy(), wait=waited)
            answers: list[GradingReply | GraderError] = []
            for _ in range(times):
                try:
                    answers.append(await model.ask(REQUEST))
                except GraderError as error:
                    answers.append(error)
            return answers, server

    answers, server = asyncio.run(scenario())
    return answers, server, waited


def refused(answer: GradingReply | GraderError) -> GraderError:
    assert isinstance(answer, GraderError)
    assert answer.code == "model_grader_server_error"
    return answer


def test_the_question_is_sent_as_chat_completions_want_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\n")
    answers, server, _ = asked(GOOD, api_key_file=str(tmp_path / "key"))
    assert answers == [
        GradingReply(
            text='{"steps": [], "result": 0.75}',
            finish_reason="stop",
            usage=TokenUsage(prompt_tokens=190, completion_tokens=34, cached_tokens=128),
        )
    ]
    (request,) = server.requests
    assert request.line == "POST /v1/chat/completions HTTP/1.1"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["idempotency-key"] == REQUEST.key
    assert request.body == {
        "model": "judge-1",
        "messages": [{"role": "user", "content": "Good?"}],
        "max_completion_tokens": 50,
        "seed": 7,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "grading", "strict": True, "schema": {"type": "object"}},
        },
    }


@pytest.mark.parametrize(
    "bad",
    [
        reply("slow down", 429),
        reply("oops", 500),
        reply("<html>", 200),
        reply('{"choices": []}'),
        reply('{"choices": [{"message": "hi"}]}'),
        reply("[]"),
        reply(b"x" * 10, missing_bytes=5),
    ],
    ids=["429", "500", "html", "no choice", "no message", "a list", "cut off"],
)
def test_what_may_pass_is_tried_again_under_the_same_key(bad: Raw) -> None:
    answers, server, waited = asked(bad, bad, GOOD)
    assert isinstance(answers[0], GradingReply)
    assert len(waited.delays_s) == 2
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1


def test_a_server_that_never_answers_well_is_an_error_and_no_score() -> None:
    answers, server, _ = asked(reply("oops", 500))
    assert "failed 4 times: HTTP 500" in str(refused(answers[0]))
    assert len(server.requests) == RETRIES + 1


def test_a_server_that_hangs_is_left_at_the_deadline() -> None:
    answers, _, _ = asked(HANGS, timeout_s=0.2)
    assert "no result in 0.2 s" in str(refused(answers[0]))


@pytest.mark.parametrize("status", [401, 403])
def test_a_wrong_key_fails_at_once_and_is_not_shown(status: int, tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    echo = reply(json.dumps({"error": f"no access for Bearer {KEY}"}), status)
    answers, server, _ = asked(echo, api_key_file=str(tmp_path / "key"))
    message = str(refused(answers[0]))
    assert f"HTTP {status}" in message
    assert KEY not in message
    assert len(server.requests) == 1


def test_a_key_that_the_server_echoes_gets_into_no_grade(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    (answer,), _, _ = asked(completion(f"Your key is {KEY}."), api_key_file=str(tmp_path / "key"))
    assert isinstance(answer, GradingReply)
    assert answer.text == "Your key is [redacted]."


def test_a_server_without_structured_output_is_asked_plainly_from_then_on() -> None:
    answers, server, _ = asked(NO_FORM, GOOD, GOOD, times=2)
    assert all(isinstance(answer, GradingReply) for answer in answers)
    assert ["response_format" in request.body for request in server.requests] == [
        True,
        False,
        False,
    ]


def test_a_request_that_is_wrong_either_way_is_an_error_and_teaches_nothing() -> None:
    wrong = reply('{"error": {"message": "maximum context length is 4096"}}', 400)
    answers, server, _ = asked(wrong, wrong, GOOD, times=2)
    assert "maximum context length is 4096" in str(refused(answers[0]))
    assert isinstance(answers[1], GradingReply)
    assert "response_format" in server.requests[-1].body


@pytest.mark.parametrize(
    ("answer", "reason", "words"),
    [
        (completion(None, refusal="I cannot."), "refusal", "I cannot."),
        (completion("x", "content_filter"), "refusal", "its content filter stopped it"),
        (completion('{"steps": [', "length"), "length", ""),
        (completion(None), "stop", ""),
    ],
)
def test_refusals_and_cut_answers_are_told_apart(answer: Raw, reason: str, words: str) -> None:
    (given,), _, _ = asked(answer)
    assert isinstance(given, GradingReply)
    assert (given.finish_reason, given.refusal) == (reason, words)


def test_a_server_that_counts_nothing_costs_nothing() -> None:
    message = {"role": "assistant", "content": "x"}
    (given,), _, _ = asked(reply(json.dumps({"choices": [{"message": message}], "usage": None})))
    assert isinstance(given, GradingReply)
    assert given.usage == TokenUsage()


FAMILIES = [
    (completion(None, refusal="no"), "model_grader_refusal_error"),
    (completion('{"steps": [], "result": 1', "length"), "model_grader_exceeded_max_tokens_error"),
    (completion("It is right, 10/10."), "model_grader_parse_error"),
    (completion('{"result": 0} {"result": 1}'), "model_grader_parse_error"),
    (reply("oops", 500), "model_grader_server_error"),
    (reply("no such model", 404), "model_grader_server_error"),
]


@pytest.mark.parametrize(("answer", "family"), FAMILIES, ids=lambda value: str(value)[:40])
def test_every_misbehaviour_of_a_server_has_its_family(answer: Raw, family: str) -> None:
    async def scenario() -> Grade:
        async with serving(answer) as server:
            config = GraderModelConfig(base_url=f"{server.url}/v1")
            model = RemoteGraderModel("m", config, policy=EgressPolicy(), wait=Waited())
            grader = build_grader(
                {
                    "type": "score_model",
                    "model": "m",
                    "input": [{"role": "user", "content": "{{sample.output_text}}"}],
                },
                backends=Backends(models={"m": model}),
            )
            return await grader.grade(TASK, a_trajectory("Paris"), None)

    with pytest.raises(GraderError) as caught:
        asyncio.run(scenario())
    assert caught.value.code == family


def test_the_table_of_models_reaches_servers_and_our_own_engine(tmp_path: Path) -> None:
    configs = {
        "gpt-4.1": GraderModelConfig(base_url="https://api.example.com/v1"),
        "smollm2-135m": GraderModelConfig(),
    }
    own = OwnModels(tmp_path / "chat.sock")
    models = grader_models(configs, policy=EgressPolicy(), own=own)
    assert isinstance(models["gpt-4.1"], RemoteGraderModel)
    assert isinstance(models["smollm2-135m"], OwnGraderModel)
    with pytest.raises(ConfigError, match=r"grader_models\.smollm2-135m\.base_url is empty"):
        grader_models(configs, policy=EgressPolicy())


@pytest.mark.parametrize(
    ("config", "path"),
    [
        ({"base_url": "ftp://x/v1"}, "grader_models.m.base_url"),
        ({"base_url": "http://169.254.169.254/v1"}, "grader_models.m.base_url"),
        ({"base_url": "http://x:99999999/v1"}, "grader_models.m.base_url"),
        (
            {"base_url": "http://x/v1", "api_key_file": "/nowhere/key"},
            "grader_models.m.api_key_file",
        ),
    ],
)
def test_a_wrong_entry_is_refused_by_path(config: dict[str, Any], path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        grader_models({"m": GraderModelConfig(**config)}, policy=EgressPolicy())


def test_a_file_that_holds_no_key_is_refused_without_showing_it(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(f"{KEY}\nsecond line")
    config = GraderModelConfig(base_url="http://x/v1", api_key_file=str(tmp_path / "key"))
    with pytest.raises(ConfigError, match="holds no key") as caught:
        grader_models({"m": config}, policy=EgressPolicy())
    assert KEY not in str(caught.value)


def test_a_private_address_in_the_config_is_vouched_for_even_between_projects() -> None:
    async def scenario() -> GradingReply:
        async with serving(GOOD) as server:
            config = GraderModelConfig(base_url=f"{server.url}/v1")
            model = RemoteGraderModel("m", config, policy=EgressPolicy(multi_project=True))
            return await model.ask(REQUEST)

    assert asyncio.run(scenario()).finish_reason == "stop"


def embedded(answer: Raw, texts: list[str]) -> tuple[list[list[float]], RawServer]:
    async def scenario() -> tuple[list[list[float]], RawServer]:
        async with serving(answer) as server:
            config = GraderModelConfig(base_url=f"{server.url}/v1", model="e")
            embedder = RemoteEmbedder(config, policy=EgressPolicy(), wait=Waited())
            return await embedder.embed(texts), server

    return asyncio.run(scenario())


def test_texts_become_vectors_in_their_own_order() -> None:
    data = [{"index": 1, "embedding": [3, 4.5]}, {"index": 0, "embedding": [1, 2]}]
    vectors, server = embedded(reply(json.dumps({"data": data})), ["a", "b"])
    assert vectors == [[1.0, 2.0], [3.0, 4.5]]
    assert server.requests[0].line == "POST /v1/embeddings HTTP/1.1"
    assert server.requests[0].body == {"model": "e", "input": ["a", "b"]}


@pytest.mark.parametrize(
    "data",
    [
        "[]",
        '[{"index": 0, "embedding": [1]}]',
        '[{"index": 0, "embedding": []}, {"index": 1, "embedding": [1]}]',
        '[{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]',
        '[{"index": 0, "embedding": "AAAA"}, {"index": 1, "embedding": [1]}]',
        "null",
    ],
)
def test_embeddings_that_are_none_are_an_error(data: str) -> None:
    with pytest.raises(GraderError) as caught:
        embedded(reply(f'{{"data": {data}}}'), ["a", "b"])
    assert caught.value.code == "model_grader_server_error"


def test_the_embedded_engine_makes_no_embeddings() -> None:
    with pytest.raises(ConfigError, match="embedding_model needs base_url and model"):
        RemoteEmbedder(GraderModelConfig(model="smollm2-135m"), policy=EgressPolicy())
