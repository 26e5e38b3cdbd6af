"""Tools reached by URL, as the agentic fine-tuning contract has them.

A 4xx is the model's to read; what fails otherwise is tried again (`egress/client.py`) and then
drops the rollout. Headers go to the server verbatim and nowhere else.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from typing import Any, cast

from agentrft.core.config import HttpTool
from agentrft.core.errors import ConfigError, ToolError, UserError
from agentrft.core.protocols import Environment, OpenEnvironment
from agentrft.core.task import Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult, Trajectory
from agentrft.egress.client import (
    CALL_TIMEOUT_S,
    MAX_BODY_BYTES,
    Endpoint,
    EndpointReply,
    Wait,
    connections,
    idempotency_key,
)
from agentrft.egress.errors import (
    AddressRefusedError,
    EndpointError,
    HeaderRefusedError,
    TryAgain,
)
from agentrft.egress.policy import EgressPolicy
from agentrft.rollout.environment import Environment as PythonEnvironment
from agentrft.rollout.environment import PythonEnvironments
from agentrft.rollout.tools import ArgumentsError, error_result, read_object, unknown_tool


class HttpTools:
    """Opens environments whose tools are URLs; rollouts at the same time share connections."""

    def __init__(
        self, tools: Sequence[HttpTool], *, policy: EgressPolicy, wait: Wait, timeout_s: float
    ) -> None:
        self.policy = policy
        self.tools = {tool.name: tool for tool in tools}
        if len(self.tools) != len(tools):
            names = [tool.name for tool in tools]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"tools: two entries are named {twice!r}; rename one of them")
        self.endpoints = {
            tool.name: _endpoint(tool, policy, wait=wait, timeout_s=timeout_s) for tool in tools
        }

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of every tool a rollout may be offered."""
        return tuple(self.tools)

    def __call__(self, task: Task, trace_id: str) -> "HttpEnvironment":
        """Settle the tools of this row. Raises UserError if a tool has no schema anywhere."""
        return HttpEnvironment(self, task, trace_id)

    def specs(self, task: Task) -> tuple[ToolSpec, ...]:
        """Return schemas of this row's tools: the row's own entry wins over the config's."""
        listed = {spec.name: spec for spec in task.tools}
        specs: list[ToolSpec] = []
        for tool in self.tools.values():
            if tool.name in listed:
                specs.append(listed[tool.name])
            elif tool.parameters:
                specs.append(
                    ToolSpec(
                        name=tool.name, description=tool.description, parameters=tool.parameters
                    )
                )
            elif not listed:
                raise UserError(
                    f"tool {tool.name!r} has no schema: task {task.id!r} lists no tools and the "
                    "tool's entry has no `parameters`; give one of them"
                )
        return tuple(specs)


def http_environment(
    tools: Sequence[HttpTool],
    *,
    policy: EgressPolicy | None = None,
    wait: Wait = asyncio.sleep,
    timeout_s: float = CALL_TIMEOUT_S,
) -> HttpTools:
    """Return the opener of tools by URL. Raises ConfigError for an entry that can never work.

    `wait` sleeps between retries, in seconds.
    """
    return HttpTools(tools, policy=policy or EgressPolicy(), wait=wait, timeout_s=timeout_s)


class HttpEnvironment:
    """The tools of one rollout; state, if any, lives on the servers under the trace id."""

    def __init__(self, tools: HttpTools, task: Task, trace_id: str) -> None:
        self._tools = tools
        self._task = task
        self._trace_id = trace_id
        self._specs = tools.specs(task)
        self._held: AsyncExitStack | None = None

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Tools of this row, in the order of the config."""
        return self._specs

    async def call_tool(self, call: ToolCall) -> ToolResult:
        """Send the call, again if the endpoint fails. Raises ToolError when that does not help.

        What the server refuses with 4xx comes back as an error result.
        """
        names = [spec.name for spec in self._specs]
        if call.name not in names:
            return unknown_tool(call, names)
        try:
            read_object(call.arguments)
        except ArgumentsError as error:
            return error_result(call, f"{error}; write a JSON object")
        body = _request_body(call, self._trace_id, self._task)
        if body is None:
            return error_result(
                call, f"413: the arguments are too long; at most {MAX_BODY_BYTES} bytes are sent"
            )
        if self._held is None:
            self._held = AsyncExitStack()
            await self._held.enter_async_context(connections(self._tools.policy))
        endpoint = self._tools.endpoints[call.name]
        try:
            return await endpoint.call(
                body,
                lambda reply: _result(reply, call, endpoint),
                key=idempotency_key(self._trace_id, call.id),
            )
        except EndpointError as error:
            raise ToolError(str(error)) from error

    async def close(self) -> None:
        """Give the connections back; servers are told nothing."""
        if self._held is not None:
            await self._held.aclose()
            self._held = None


class CombinedEnvironment:
    """Several environments that act as one; a call goes to the one that has the tool."""

    def __init__(self, parts: Sequence[Environment]) -> None:
        self._parts = parts
        self._owners: dict[str, Environment] = {}
        for part in parts:
            for spec in part.tool_specs():
                if spec.name in self._owners:
                    raise UserError(f"two tools are named {spec.name!r}; rename one of them")
                self._owners[spec.name] = part

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Tools of all parts, in order."""
        return tuple(spec for part in self._parts for spec in part.tool_specs())

    async def call_tool(self, call: ToolCall) -> ToolResult:
        """Run the call where the tool lives."""
        if call.name not in self._owners:
            return unknown_tool(call, self._owners)
        return await self._owners[call.name].call_tool(call)

    async def run_grade(self, trajectory: Trajectory) -> object:
        """Let the part written in Python grade."""
        return await self._in_python().run_grade(trajectory)

    async def run_function(self, function: Callable[..., object], *arguments: object) -> object:
        """Call a function with the part written in Python as its last argument."""
        return await self._in_python().run_function(function, *arguments)

    def _in_python(self) -> PythonEnvironment:
        for part in self._parts:
            if isinstance(part, PythonEnvironment):
                return part
        raise UserError("no part of this environment is written in Python; set a grader")

    async def close(self) -> None:
        """Close every part, even if one fails."""
        results = await asyncio.gather(*(p.close() for p in self._parts), return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result


@dataclass(frozen=True, slots=True)
class CombinedEnvironments:
    """Opens all parts for each rollout."""

    openers: tuple[OpenEnvironment, ...]

    def __call__(self, task: Task, trace_id: str) -> CombinedEnvironment:
        """Open every part with the same task and trace id."""
        return CombinedEnvironment([opener(task, trace_id) for opener in self.openers])


def combined_environment(openers: Sequence[OpenEnvironment]) -> CombinedEnvironments:
    """Offer the tools of several openers together. Raises UserError for a name used twice."""
    seen: set[str] = set()
    for opener in openers:
        if not isinstance(opener, PythonEnvironments | HttpTools):
            continue
        for name in opener.tool_names:
            if name in seen:
                raise UserError(
                    f"tool {name!r} exists in Python and by URL, or twice; rename one of them"
                )
            seen.add(name)
    return CombinedEnvironments(tuple(openers))


def _endpoint(tool: HttpTool, policy: EgressPolicy, *, wait: Wait, timeout_s: float) -> Endpoint:
    name = f"tool {tool.name!r}"
    try:
        return Endpoint(
            name,
            tool.server_url,
            headers=tool.headers,
            policy=policy,
            rate_limit=tool.rate_limit,
            timeout_s=timeout_s,
            wait=wait,
        )
    except AddressRefusedError as error:
        raise ConfigError(f"{name}: server_url {error}") from error
    except HeaderRefusedError as error:
        raise ConfigError(f"{name}: {error}") from error


def _request_body(call: ToolCall, trace_id: str, task: Task) -> bytes | None:
    """Return the request, None if the model's arguments make it too large."""
    request = {
        "type": "function_call",
        "id": f"fc_{call.id.removeprefix('call_')}",
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments or "{}",
        "trace_id": trace_id,
        "item": task.row,
    }
    body = json.dumps(request, ensure_ascii=False).encode(errors="replace")
    if len(body) <= MAX_BODY_BYTES:
        return body
    row_bytes = len(json.dumps(task.row, ensure_ascii=False).encode(errors="replace"))
    if row_bytes > MAX_BODY_BYTES - 4096:
        raise ToolError(
            f"tool {call.name!r}: the row of task {task.id!r} has {row_bytes} bytes; "
            f"a request holds {MAX_BODY_BYTES}, so shorten the row"
        )
    return None


def _result(reply: EndpointReply, call: ToolCall, endpoint: Endpoint) -> ToolResult:
    """Read a reply. Raises TryAgain for JSON that is cut off, EndpointError for a wrong form."""
    if reply.body is None:
        return error_result(
            call, f"413: the result of {call.name} is too large (over {MAX_BODY_BYTES} bytes)"
        )
    if reply.status >= 400:
        text, answered = _refusal(reply)
        refused = error_result(call, f"{reply.status}: {endpoint.redact(text)}")
        return refused if answered else replace(refused, refusal=reply.status)
    value = reply.parsed()
    if not isinstance(value, dict) or "output" not in value:
        raise EndpointError(
            f'{endpoint.where} answered without `output`; reply {{"output": "<text>", ...}}'
        )
    fields = cast(Mapping[str, Any], value)
    if fields.get("call_id", call.id) != call.id:
        raise EndpointError(
            f"{endpoint.where} answered another call: sent {call.id!r}, got other `call_id`"
        )
    content = endpoint.redact(_text(fields["output"]))
    return ToolResult(call_id=call.id, name=call.name, content=content)


def _refusal(reply: EndpointReply) -> tuple[str, bool]:
    """Return what the model is told, and whether the tool meant it for the model."""
    try:
        value = reply.parsed()
    except TryAgain:
        return reply.text.strip(), False
    if isinstance(value, dict) and "output" in value:
        return _text(cast(Mapping[str, Any], value)["output"]), True
    return _text(value), False


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
