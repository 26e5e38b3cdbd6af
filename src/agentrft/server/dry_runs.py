"""Graders and tools tried before anything trains, through the very code that training runs.

Both wait for foreign servers: one total deadline, and a client that leaves cancels the call.
"""

import asyncio
import json
import uuid
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from fastapi import Depends, Request
from pydantic import Discriminator, Field, Tag

from agentrft.core.config import HttpTool
from agentrft.core.errors import ConfigError, ToolError
from agentrft.core.task import Task, ToolCall, ToolSpec, content_id
from agentrft.graders.build import build_grader
from agentrft.graders.dry_run import run_grader
from agentrft.graders.wire import normalised
from agentrft.rollout.http_tools import HttpTools, http_environment
from agentrft.server.auth import require
from agentrft.server.chat import unless_gone
from agentrft.server.chat_wire import object_or_text
from agentrft.server.context import Here, Server
from agentrft.server.errors import ApiError, bad_request, wrong_grader
from agentrft.server.routing import router
from agentrft.server.wire import Body, Reply
from agentrft.store.access import Identity, Role

LONGEST_S = 290.0
"""Of one dry run, retries included; the contract's clients wait 300 s."""

routes = router("dry runs")
Submitter = Annotated[Identity, Depends(require(Role.SUBMIT))]
TraceId = Annotated[str, Field(min_length=1, max_length=256)]


class ValidateBody(Body):
    """A grader to look at."""

    grader: dict[str, Any]


class ValidateReply(Reply):
    """The grader with names filled in; header values are not shown."""

    grader: dict[str, Any]


class GraderRunBody(Body):
    """A grader, what it grades, and the row it grades by."""

    grader: dict[str, Any]
    model_sample: str
    item: dict[str, Any] | None = None
    trace_id: TraceId | None = None


class ToolRunBody(Body):
    """One call, as training would send it."""

    type: Literal["function_call"] = "function_call"
    name: Annotated[str, Field(min_length=1, max_length=128)]
    server_url: Annotated[str, Field(min_length=1, max_length=2048)]
    headers: dict[str, str] | None = None
    arguments: Annotated[
        Annotated[str, Tag("text")] | Annotated[dict[str, Any], Tag("object")],
        Discriminator(object_or_text),
    ] = "{}"
    item: dict[str, Any] | None = None
    trace_id: TraceId | None = None
    id: str | None = None
    call_id: Annotated[str, Field(min_length=1, max_length=256)] | None = None


class ToolRunReply(Reply):
    """What the model would have seen."""

    type: Literal["function_call_output"] = "function_call_output"
    id: str
    call_id: str
    output: str
    is_error: bool
    """The tool refused the call; a model may read why and try again."""


@routes.post("/fine_tuning/alpha/graders/validate")
def validate_grader(
    body: ValidateBody, server: Here, caller: Annotated[Identity, Depends(require(Role.READ))]
) -> ValidateReply:
    """Check a grader object and return it with names filled in."""
    try:
        build_grader(given(body.grader), backends=server.backends_of(caller.project))
    except ConfigError as error:
        raise wrong_grader(error) from None
    return ValidateReply(grader=normalised(body.grader)[0])


@routes.post("/fine_tuning/alpha/graders/run")
async def run_a_grader(
    request: Request, body: GraderRunBody, server: Here, caller: Submitter
) -> Any:
    """Grade one text. A grader that fails is told by the reply's error flags, not by a status."""
    return await unless_gone(request, _grade(server, caller, body))


@routes.post("/fine_tuning/alpha/tool/run", response_model=ToolRunReply)
async def run_a_tool(request: Request, body: ToolRunBody, server: Here, caller: Submitter) -> Any:
    """Send one call to a tool. What it refuses with 4xx is output; what it cannot answer is a 502."""
    tool = HttpTool(name=body.name, server_url=body.server_url, headers=body.headers or {})
    try:
        tools = http_environment([tool], policy=server.policy, timeout_s=LONGEST_S)
    except ConfigError as error:
        param = "server_url" if ": server_url" in str(error) else "headers"
        raise bad_request(str(error), param) from None
    return await unless_gone(request, _call(tools, body))


async def _grade(server: Server, caller: Identity, body: GraderRunBody) -> dict[str, Any]:
    trace_id = body.trace_id or _trace_id()
    try:
        async with asyncio.timeout(LONGEST_S):
            run = await run_grader(
                given(body.grader),
                body.item or {},
                body.model_sample,
                trace_id,
                server.backends_of(caller.project),
            )
    except ConfigError as error:
        raise wrong_grader(error) from None
    except TimeoutError:
        raise _not_again(
            504, f"The grader gave no grade in {LONGEST_S:g} s.", "grader_timeout"
        ) from None
    return run.reply()


async def _call(tools: HttpTools, body: ToolRunBody) -> ToolRunReply:
    row = body.item or {}
    schema = {"type": "object", "properties": {}}
    spec = ToolSpec(name=body.name, description="", parameters=schema)
    task = Task(id=content_id(row), messages=(), tools=(spec,), row=row)
    written = body.arguments if isinstance(body.arguments, str) else json.dumps(body.arguments)
    call = ToolCall(
        id=body.call_id or f"call_{uuid.uuid4().hex}", name=body.name, arguments=written
    )
    environment = tools(task, body.trace_id or _trace_id())
    try:
        result = await environment.call_tool(call)
    except ToolError as error:
        raise _not_again(502, f"The call could not be answered: {error}.", "tool_error") from None
    finally:
        await environment.close()
    return ToolRunReply(
        id=body.id or f"fc_{call.id.removeprefix('call_')}",
        call_id=call.id,
        output=result.content,
        is_error=result.is_error,
    )


def given(grader: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a grader object. Raises ConfigError for an empty one."""
    if not grader:
        raise ConfigError("grader is empty; give a grader object with a type")
    return grader


def _not_again(status: int, message: str, code: str) -> ApiError:
    """Return a failure that came after every retry; the official clients would all try it again."""
    return ApiError(status, message, code=code, headers={"x-should-retry": "false"})


def _trace_id() -> str:
    return f"trace_{uuid.uuid4().hex}"
