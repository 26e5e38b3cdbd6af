import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from live import Live, live_server
from openai.types.fine_tuning.alpha import GraderRunResponse, GraderValidateResponse
from tool_server import Reply, ToolServer, output

from agentrft.inference.scripted import ScriptedChat
from agentrft.store.access import Role

STRING_CHECK: Any = {
    "type": "string_check",
    "name": "exact",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "eq",
}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    with live_server(tmp_path_factory.mktemp("home"), ScriptedChat([])) as live:
        yield live


@pytest.fixture
def tools() -> Iterator[ToolServer]:
    server = ToolServer()
    yield server
    server.close()


def tool_run(live: Live, **body: Any) -> Any:
    """Call the route as the contract's own notebook does: `client.post` with a plain body."""
    return live.client().post("/fine_tuning/alpha/tool/run", body=body, cast_to=httpx2.Response)


def test_a_grader_comes_back_normalised_and_without_its_secrets(live: Live) -> None:
    validate = live.client().fine_tuning.alpha.graders.validate
    nameless: Any = {key: STRING_CHECK[key] for key in STRING_CHECK if key != "name"}
    reply = validate(grader=nameless)
    assert isinstance(reply, GraderValidateResponse)
    assert reply.grader is not None
    assert reply.grader.name.startswith("grader-")
    headers = {"Authorization": "Bearer secret-of-the-grader"}
    endpoint: Any = {"type": "endpoint", "url": "http://127.0.0.1:9/grade", "headers": headers}
    shown = live.client().fine_tuning.alpha.graders.with_raw_response.validate(grader=endpoint)
    assert shown.http_response.json()["grader"]["headers"] == {"Authorization": "[redacted]"}


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"operation": "about"}, "grader.operation"),
        ({"type": "guess"}, "grader.type"),
        ({"type": "lambda"}, "grader.type"),
        ({"mood": 1}, "grader.mood"),
    ],
)
def test_a_wrong_grader_is_refused_by_path(live: Live, change: dict[str, Any], param: str) -> None:
    graders = live.client().fine_tuning.alpha.graders
    wrong: Any = STRING_CHECK | change
    with pytest.raises(openai.BadRequestError) as validated:
        graders.validate(grader=wrong)
    with pytest.raises(openai.BadRequestError) as run:
        graders.run(grader=wrong, model_sample="x")
    assert (validated.value.param, run.value.param) == (param, param)
    with pytest.raises(openai.BadRequestError, match="empty"):
        graders.validate(grader={})  # pyright: ignore[reportArgumentType]


def test_a_grader_grades_a_text(live: Live) -> None:
    run = live.client().fine_tuning.alpha.graders.run
    right = run(grader=STRING_CHECK, item={"answer": "7"}, model_sample="7")
    wrong = run(grader=STRING_CHECK, item={"answer": "7"}, model_sample="8")
    assert (right.reward, wrong.reward) == (1.0, 0.0)
    GraderRunResponse.model_validate(right.to_dict(), strict=True)
    assert right.metadata.name == "exact"
    assert not right.metadata.errors.other_error


def test_an_endpoint_grader_gets_the_trace_id_and_its_failure_is_a_flag(
    live: Live, tools: ToolServer
) -> None:
    grader: Any = {"type": "endpoint", "name": "g", "url": f"{tools.url}/grade"}
    tools.replies["/grade"] = [Reply('{"score": 0.25}')]
    run = live.client().fine_tuning.alpha.graders.run
    reply = run(
        grader=grader,
        item={"answer": "7"},
        model_sample="seven",
        extra_body={"trace_id": "trace_ab"},
    )
    assert reply.reward == 0.25
    (request,) = tools.requests
    assert request.body["trace_id"] == "trace_ab"
    assert request.body["item"] == {"answer": "7"}
    assert request.body["sample"]["output_text"] == "seven"
    tools.replies["/grade"] = [Reply("no", status=403)]
    failed = run(grader=grader, model_sample="seven").to_dict()
    assert failed["reward"] is None
    errors: Any = failed["metadata"]
    assert any(hit is True for hit in errors["errors"].values())


def test_a_tool_is_called_as_training_would(live: Live, tools: ToolServer) -> None:
    tools.replies["/search"] = lambda request: output(request, "2 reports")
    reply = tool_run(
        live,
        type="function_call",
        name="search",
        server_url=f"{tools.url}/search",
        headers={"Authorization": "Bearer x"},
        arguments='{"query": "x"}',
        item={"id": "row-1"},
        trace_id="trace_ab",
        id="fc_9",
        call_id="call_1",
    ).json()
    assert reply == {
        "type": "function_call_output",
        "id": "fc_9",
        "call_id": "call_1",
        "output": "2 reports",
        "is_error": False,
    }
    (request,) = tools.requests
    assert request.body == {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": "search",
        "arguments": '{"query": "x"}',
        "trace_id": "trace_ab",
        "item": {"id": "row-1"},
    }
    assert {k.lower(): v for k, v in request.headers.items()}["authorization"] == "Bearer x"


def test_arguments_may_be_an_object_and_ids_are_made_up(live: Live, tools: ToolServer) -> None:
    reply = tool_run(live, name="t", server_url=f"{tools.url}/t", arguments={"n": 1}).json()
    (request,) = tools.requests
    assert json.loads(request.body["arguments"]) == {"n": 1}
    assert request.body["trace_id"].startswith("trace_")
    assert request.body["call_id"] == reply["call_id"]


def test_what_a_tool_refuses_is_output(live: Live, tools: ToolServer) -> None:
    tools.replies["/t"] = [Reply('{"detail": "no such order"}', status=404)]
    reply = tool_run(live, name="t", server_url=f"{tools.url}/t").json()
    assert reply["is_error"]
    assert "404" in reply["output"]
    assert "no such order" in reply["output"]


def test_a_tool_that_fails_is_tried_again_and_then_a_bad_gateway(
    live: Live, tools: ToolServer
) -> None:
    tools.replies["/t"] = [Reply("down", status=500)]
    client = live.client().with_options(max_retries=2)
    body = {"name": "t", "server_url": f"{tools.url}/t"}
    with pytest.raises(openai.InternalServerError, match="failed 4 times: HTTP 500") as caught:
        client.post("/fine_tuning/alpha/tool/run", body=body, cast_to=httpx2.Response)
    assert (caught.value.status_code, caught.value.code) == (502, "tool_error")
    # The client does not multiply the retries with its own.
    assert len(tools.requests) == 4


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"server_url": "ftp://127.0.0.1/x"}, "server_url"),
        ({"server_url": "http://169.254.169.254/latest"}, "server_url"),
        ({"headers": {"X": "a\nb"}}, "headers"),
        ({"arguments": 5}, "arguments"),
        ({"rate": 5}, "rate"),
    ],
)
def test_a_call_that_cannot_be_sent_is_refused(
    live: Live, tools: ToolServer, change: dict[str, Any], param: str
) -> None:
    body = {"name": "t", "server_url": f"{tools.url}/t", **change}
    with pytest.raises(openai.BadRequestError) as caught:
        tool_run(live, **body)
    assert caught.value.param == param
    assert tools.requests == []


def test_who_may_only_read_may_not_make_calls(live: Live, tools: ToolServer) -> None:
    reader = live.client(live.token_of("default", Role.READ))
    body = {"name": "t", "server_url": f"{tools.url}/t"}
    with pytest.raises(openai.PermissionDeniedError):
        reader.post("/fine_tuning/alpha/tool/run", body=body, cast_to=httpx2.Response)
    with pytest.raises(openai.PermissionDeniedError):
        reader.fine_tuning.alpha.graders.run(grader=STRING_CHECK, model_sample="x")
    assert reader.fine_tuning.alpha.graders.validate(grader=STRING_CHECK)
