import asyncio
import gzip
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from byte_chat import a_setup, a_task, calls, says
from tool_server import Reply, Request, ToolServer, output

from agentrft.core.config import HttpTool
from agentrft.core.errors import ConfigError, ToolError, UserError
from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.task import Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult, Trajectory
from agentrft.egress.policy import EgressPolicy
from agentrft.graders.fixed import FixedGrader
from agentrft.rollout.environment import Environment, python_environment
from agentrft.rollout.episode import run_episode
from agentrft.rollout.http_tools import (
    MAX_BODY_BYTES,
    HttpTools,
    combined_environment,
    http_environment,
)
from agentrft.rollout.tools import tool

SCHEMA: dict[str, object] = {"type": "object", "properties": {"q": {"type": "string"}}}
SECRET = "Bearer abcdef-secret"


@pytest.fixture
def server() -> Iterator[ToolServer]:
    server = ToolServer()
    yield server
    server.close()


class Waited:
    """Stands for the clock between retries."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []

    async def __call__(self, delay_s: float) -> None:
        self.delays_s.append(delay_s)


def an_entry(server: ToolServer, name: str = "search", **fields: Any) -> HttpTool:
    given: dict[str, Any] = {
        "server_url": f"{server.url}/{name}",
        "headers": {"Authorization": SECRET},
        "description": f"Use {name}.",
        "parameters": SCHEMA,
    }
    return HttpTool(name=name, **{**given, **fields})


def send(
    tools: HttpTools,
    task: Task | None = None,
    *,
    name: str = "search",
    arguments: str = '{"q":"x"}',
) -> ToolResult:
    async def scenario() -> ToolResult:
        environment = tools(task or a_task(), "trace_ab")
        try:
            call = ToolCall(id="call_12", name=name, arguments=arguments)
            return await environment.call_tool(call)
        finally:
            await environment.close()

    return asyncio.run(scenario())


def roll(tools: HttpTools, script: list[tuple[int, ...]], task: Task) -> GradedTrajectory:
    async def scenario() -> GradedTrajectory:
        grader = FixedGrader(lambda task, trajectory: 1.0)
        return await run_episode(a_setup(script, tools, grader=grader), task, seed=3)

    return asyncio.run(scenario())


def test_a_call_is_sent_as_the_contract_says(server: ToolServer) -> None:
    task = a_task(reference="R-1", messages=[{"role": "user", "content": "hello"}])
    result = send(http_environment([an_entry(server)]), task)
    (request,) = server.requests
    assert request.body == {
        "type": "function_call",
        "id": "fc_12",
        "call_id": "call_12",
        "name": "search",
        "arguments": '{"q":"x"}',
        "trace_id": "trace_ab",
        "item": {"reference": "R-1", "messages": [{"role": "user", "content": "hello"}]},
    }
    assert request.headers["Authorization"] == SECRET
    assert request.headers["Idempotency-Key"] == "trace_ab:call_12"
    assert (result.call_id, result.name, result.content, result.is_error) == (
        "call_12",
        "search",
        "ok",
        False,
    )


@pytest.mark.parametrize(
    ("body", "shown"),
    [
        ('{"output": "short form", "call_id": "call_12", "id": "fc_12"}', "short form"),
        ('{"output": "Error: not a valid directory"}', "Error: not a valid directory"),
        ('{"output": {"n": 1}}', '{"n": 1}'),
    ],
)
def test_replies_are_shown_as_they_are(server: ToolServer, body: str, shown: str) -> None:
    server.replies["/search"] = [Reply(body)]
    result = send(http_environment([an_entry(server)]))
    assert (result.content, result.is_error) == (shown, False)


def test_trace_and_row_stay_the_same_over_a_rollout_and_calls_keep_their_order(
    server: ToolServer,
) -> None:
    slow_may_end = threading.Event()

    def slow(request: Request) -> Reply:
        reply = output(request, "slow")
        reply.before = lambda: slow_may_end.wait(30)
        return reply

    def fast(request: Request) -> Reply:
        slow_may_end.set()
        return output(request, "fast")

    server.replies |= {"/slow": slow, "/fast": fast}
    tools = http_environment([an_entry(server, "slow"), an_entry(server, "fast")])
    script = [calls(("slow", {}), ("fast", {})), calls(("fast", {})), says("done")]
    graded = roll(tools, script, a_task(reference="R-1"))
    assert graded.outcome is Outcome.SCORED
    assert [r.content for r in graded.trajectory.tool_results] == ["slow", "fast", "fast"]
    assert {r.body["trace_id"] for r in server.requests} == {graded.trajectory.id}
    assert [r.body["item"] for r in server.requests] == [{"reference": "R-1"}] * 3
    assert len({r.body["call_id"] for r in server.requests}) == 3


def test_a_4xx_body_is_shown_to_the_model_and_not_tried_again(server: ToolServer) -> None:
    server.replies["/search"] = [Reply('{"error": {"message": "no such folder"}}', 404)]
    script = [calls(("search", {"q": "x"})), says("sorry")]
    graded = roll(http_environment([an_entry(server)]), script, a_task())
    (result,) = graded.trajectory.tool_results
    assert result.is_error
    assert result.content == 'Error: 404: {"error": {"message": "no such folder"}}'
    assert graded.outcome is Outcome.SCORED
    assert len(server.requests) == 1


def test_the_output_of_a_4xx_is_shown_and_headers_it_echoes_are_not(server: ToolServer) -> None:
    server.replies["/search"] = [Reply(json.dumps({"output": f"bad key {SECRET}"}), 401)]
    result = send(http_environment([an_entry(server)]))
    assert result.content == "Error: 401: bad key [redacted]"


def test_a_result_that_echoes_a_header_is_shown_without_it(server: ToolServer) -> None:
    server.replies["/search"] = [Reply(json.dumps({"output": f"you are {SECRET}"}))]
    assert send(http_environment([an_entry(server)])).content == "you are [redacted]"


def test_a_5xx_is_tried_three_more_times_and_then_drops_the_rollout(server: ToolServer) -> None:
    server.replies["/search"] = [Reply("oops", 503)]
    waited = Waited()
    script = [calls(("search", {"q": "x"})), says("sorry")]
    entry = an_entry(server, server_url=f"{server.url}/search?key=hunter22")
    graded = roll(http_environment([entry], wait=waited), script, a_task())
    assert len(server.requests) == 4
    assert len({r.body["call_id"] for r in server.requests}) == 1
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    assert graded.grade.score is None
    failure = graded.trajectory.failure
    assert failure is not None
    assert failure.where == "tool 'search'"
    assert failure.message == f"tool 'search' at {server.url}/search failed 4 times: HTTP 503"
    assert len(waited.delays_s) == 3
    assert all(0 <= delay <= 0.5 * 2**n for n, delay in enumerate(waited.delays_s))


@pytest.mark.parametrize(
    "first",
    [
        Reply("", 500),
        Reply("", 429, {"retry-after": "7"}),
        Reply('{"output": "cu', missing_bytes=10),
        Reply('{"output": "cu'),
    ],
    ids=["500", "429", "truncated body", "truncated JSON"],
)
def test_a_passing_fault_is_tried_again(server: ToolServer, first: Reply) -> None:
    server.replies["/search"] = [first, Reply('{"output": "there"}')]
    waited = Waited()
    assert send(http_environment([an_entry(server)], wait=waited)).content == "there"
    assert len(server.requests) == 2
    if first.status == 429:
        assert waited.delays_s == [7.0]


def test_a_date_in_retry_after_that_has_passed_means_now(server: ToolServer) -> None:
    past = Reply("", 503, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"})
    server.replies["/search"] = [past, Reply('{"output": "there"}')]
    waited = Waited()
    assert send(http_environment([an_entry(server)], wait=waited)).content == "there"
    assert waited.delays_s[0] <= 0.5


def test_a_server_that_is_not_there_is_an_endpoint_fault(server: ToolServer) -> None:
    server.close()
    with pytest.raises(ToolError, match="failed 4 times: ConnectError"):
        send(http_environment([an_entry(server)], wait=Waited()))


def test_headers_and_query_never_appear_in_errors(
    server: ToolServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.replies["/search"] = [Reply("{}")]
    entry = an_entry(server, server_url=f"{server.url}/search?key=hunter22")
    with pytest.raises(ToolError, match="answered without `output`") as caught:
        send(http_environment([entry]))
    assert "hunter22" not in str(caught.value)
    assert "secret" not in str(caught.value) + caplog.text


@pytest.mark.parametrize(
    ("reply", "shown"),
    [
        (Reply('{"output": "x", "call_id": "call_99"}'), "answered another call"),
        (Reply('["x"]'), "answered without `output`"),
        (Reply("", 302, {"location": "http://elsewhere.invalid/"}), "redirects"),
    ],
)
def test_a_reply_against_the_contract_drops_the_rollout(
    server: ToolServer, reply: Reply, shown: str
) -> None:
    server.replies["/search"] = [reply]
    with pytest.raises(ToolError, match=shown):
        send(http_environment([an_entry(server)]))
    assert len(server.requests) == 1


def test_a_result_that_is_too_large_is_a_413_that_the_model_sees(server: ToolServer) -> None:
    server.replies["/search"] = [Reply(json.dumps({"output": "x" * MAX_BODY_BYTES}))]
    result = send(http_environment([an_entry(server)]))
    assert result.is_error
    assert result.content.startswith("Error: 413: the result of search is too large")


def test_a_small_body_that_unpacks_to_a_large_one_is_cut_too(server: ToolServer) -> None:
    packed = gzip.compress(b'{"output": "' + b"x" * (4 * MAX_BODY_BYTES) + b'"}')
    server.replies["/search"] = [Reply(packed, headers={"content-encoding": "gzip"})]
    assert len(packed) < 100_000
    assert "413" in send(http_environment([an_entry(server)])).content


def test_arguments_that_are_too_large_are_refused_without_sending(server: ToolServer) -> None:
    arguments = json.dumps({"q": "x" * MAX_BODY_BYTES})
    result = send(http_environment([an_entry(server)]), arguments=arguments)
    assert result.is_error
    assert "413" in result.content
    assert server.requests == []


def test_a_row_that_is_too_large_is_not_the_models_fault(server: ToolServer) -> None:
    with pytest.raises(ToolError, match="the row of task 'task-1' has"):
        send(http_environment([an_entry(server)]), a_task(blob="x" * MAX_BODY_BYTES))


def test_a_tool_that_never_answers_is_named_with_its_limit(server: ToolServer) -> None:
    release = threading.Event()
    server.replies["/search"] = [Reply('{"output": "x"}', before=lambda: release.wait(30))]
    with pytest.raises(ToolError, match="tool 'search' at .* gave no result in 0.05 s"):
        send(http_environment([an_entry(server)], timeout_s=0.05))
    release.set()


@pytest.mark.parametrize(
    ("arguments", "shown"), [("{", "not valid JSON"), ("[]", "must be a JSON object")]
)
def test_unreadable_arguments_are_answered_without_sending(
    server: ToolServer, arguments: str, shown: str
) -> None:
    result = send(http_environment([an_entry(server)]), arguments=arguments)
    assert result.is_error
    assert shown in result.content
    assert server.requests == []


def test_an_unknown_name_is_answered_with_the_nearest(server: ToolServer) -> None:
    result = send(http_environment([an_entry(server)]), name="serch")
    assert "did you mean 'search'?" in result.content


def listed(name: str, description: str) -> ToolSpec:
    return ToolSpec(name=name, description=description, parameters={"type": "object"})


def test_the_schema_of_the_row_wins_over_the_entry(server: ToolServer) -> None:
    tools = http_environment([an_entry(server), an_entry(server, "other")])
    task = replace(a_task(), tools=(listed("search", "As the row says."),))
    described = {s.name: s.description for s in tools(task, "trace_1").tool_specs()}
    assert described == {"search": "As the row says.", "other": "Use other."}


def test_a_tool_without_any_schema_is_the_users_mistake(server: ToolServer) -> None:
    tools = http_environment([an_entry(server, parameters={}), an_entry(server, "other")])
    with pytest.raises(
        UserError, match="tool 'search' has no schema: task 'task-1' lists no tools"
    ):
        tools(a_task(), "trace_1")
    task = replace(a_task(), tools=(listed("other", "Row."),))
    assert [s.name for s in tools(task, "trace_1").tool_specs()] == ["other"]


def test_wrong_entries_are_refused_before_anything_runs(server: ToolServer) -> None:
    with pytest.raises(ConfigError, match="two entries are named 'search'"):
        http_environment([an_entry(server), an_entry(server)])
    with pytest.raises(ConfigError, match="server_url must begin with http"):
        http_environment([an_entry(server, server_url="example.com/x")])
    with pytest.raises(ConfigError, match="server_url is not a URL"):
        http_environment([an_entry(server, server_url="http://host:port/x")])
    with pytest.raises(ConfigError, match="header 'X-Key' must be printable") as caught:
        http_environment([an_entry(server, headers={"X-Key": "hunter22\n"})])
    assert "hunter22" not in str(caught.value)
    with pytest.raises(ConfigError, match="server_url leads to 169.254.169.254"):
        http_environment([an_entry(server, server_url="http://169.254.169.254/")])


def test_the_policy_decides_where_a_tool_may_live(server: ToolServer) -> None:
    shared = EgressPolicy(multi_project=True)
    with pytest.raises(ConfigError, match="an administrator can allow '127.0.0.1:"):
        http_environment([an_entry(server)], policy=shared)
    vouched = replace(shared, allowed=frozenset({server.url.removeprefix("http://")}))
    assert send(http_environment([an_entry(server)], policy=vouched)).content == "ok"


def test_a_name_that_leads_astray_drops_the_rollout(server: ToolServer) -> None:
    async def astray(host: str, port: int) -> tuple[str, ...]:
        return ("127.0.0.1",)

    entry = an_entry(server, server_url=server.url.replace("127.0.0.1", "tools.example"))
    tools = http_environment([entry], policy=EgressPolicy(resolve=astray))
    script = [calls(("search", {"q": "x"})), says("sorry")]
    graded = roll(tools, script, a_task())
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    assert server.requests == []


class Desk(Environment):
    @tool
    def note(self, text: str) -> str:
        """Write a note down."""
        return f"noted {text}"

    def grade(self, trajectory: Trajectory) -> object:
        return float(len(trajectory.tool_results))


def test_python_and_http_tools_act_as_one_environment(server: ToolServer) -> None:
    tools = http_environment([an_entry(server)])
    script = [
        calls(("note", {"text": "a"}), ("search", {"q": "b"}), ("serch", {})),
        says("done"),
    ]

    async def scenario() -> GradedTrajectory:
        both = combined_environment([python_environment(Desk), tools])
        return await run_episode(a_setup(script, both), a_task(), seed=1)

    graded = asyncio.run(scenario())
    assert graded.grade.score == 3.0
    contents = [result.content for result in graded.trajectory.tool_results]
    assert contents[:2] == ["noted a", "ok"]
    assert "did you mean 'search'?" in contents[2]


def test_a_name_in_python_and_by_url_is_refused(server: ToolServer) -> None:
    openers = [python_environment(Desk), http_environment([an_entry(server, "note")])]
    with pytest.raises(UserError, match="tool 'note' exists in Python and by URL"):
        combined_environment(openers)


def test_one_opener_serves_several_event_loops(server: ToolServer) -> None:
    tools = http_environment([an_entry(server)])

    assert [send(tools).content, send(tools).content] == ["ok", "ok"]


def test_rollouts_at_the_same_time_share_connections(server: ToolServer) -> None:
    tools = http_environment([an_entry(server)])

    async def scenario() -> None:
        environments = [tools(a_task(), f"trace_{n}") for n in range(3)]
        call = ToolCall(id="call_1", name="search", arguments="{}")
        for environment in environments:
            await environment.call_tool(call)
        await environments[0].close()
        result = await environments[1].call_tool(call)
        assert result.content == "ok"
        for environment in environments:
            await environment.close()

    asyncio.run(scenario())
    assert len({request.client for request in server.requests}) == 1
