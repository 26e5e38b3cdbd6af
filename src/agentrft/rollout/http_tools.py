"""Tools reached by URL, as the agentic fine-tuning contract has them.

A 4xx is the model's to read; 5xx, 429, connection errors and truncated bodies are tried again and
then drop the rollout. Headers go to the server verbatim and nowhere else.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, cast
from weakref import WeakKeyDictionary

import httpx2

from agentrft.core.config import HttpTool
from agentrft.core.errors import ConfigError, ToolError, UserError
from agentrft.core.protocols import Environment, OpenEnvironment
from agentrft.core.task import Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult, Trajectory
from agentrft.rollout.deadline import within
from agentrft.rollout.environment import Environment as PythonEnvironment
from agentrft.rollout.environment import PythonEnvironments
from agentrft.rollout.tools import ArgumentsError, error_result, read_object, unknown_tool

MAX_BODY_BYTES = 1 << 20
"""Of a request and of a reply."""
CALL_TIMEOUT_S = 600.0
"""One call, retries and waiting included."""
CONNECT_TIMEOUT_S = 5.0
RETRIES = 3
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0

Wait = Callable[[float], Awaitable[None]]


class _TryAgain(Exception):
    """The endpoint failed in a way that may pass."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s


@dataclass
class _Pool:
    client: httpx2.AsyncClient
    borrowers: int = 0


class HttpTools:
    """Opens environments whose tools are URLs; rollouts at the same time share one client."""

    def __init__(
        self,
        tools: Sequence[HttpTool],
        *,
        wait: Wait = asyncio.sleep,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self.tools = {tool.name: tool for tool in tools}
        if len(self.tools) != len(tools):
            names = [tool.name for tool in tools]
            twice = next(name for name in names if names.count(name) > 1)
            raise ConfigError(f"tools: two entries are named {twice!r}; rename one of them")
        for tool in tools:
            _check_entry(tool)
        self.timeout_s = timeout_s
        self.wait = wait
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool] = WeakKeyDictionary()

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

    def borrow(self) -> httpx2.AsyncClient:
        """Lend the client of this event loop; it lives while any environment holds it."""
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            timeout = httpx2.Timeout(self.timeout_s, connect=CONNECT_TIMEOUT_S)
            limits = httpx2.Limits(max_connections=256, max_keepalive_connections=64)
            client = httpx2.AsyncClient(timeout=timeout, limits=limits, follow_redirects=False)
            self._pools[loop] = _Pool(client)
        pool = self._pools[loop]
        pool.borrowers += 1
        return pool.client

    async def give_back(self) -> None:
        """Return the client; the last one to do so closes its connections."""
        loop = asyncio.get_running_loop()
        pool = self._pools[loop]
        pool.borrowers -= 1
        if pool.borrowers == 0:
            del self._pools[loop]
            await pool.client.aclose()


def http_environment(
    tools: Sequence[HttpTool], *, wait: Wait = asyncio.sleep, timeout_s: float = CALL_TIMEOUT_S
) -> HttpTools:
    """Return the opener of tools by URL. `wait` sleeps between retries, in seconds."""
    return HttpTools(tools, wait=wait, timeout_s=timeout_s)


class HttpEnvironment:
    """The tools of one rollout; state, if any, lives on the servers under the trace id."""

    def __init__(self, tools: HttpTools, task: Task, trace_id: str) -> None:
        self._tools = tools
        self._task = task
        self._trace_id = trace_id
        self._specs = tools.specs(task)
        self._client: httpx2.AsyncClient | None = None

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
        tool = self._tools.tools[call.name]
        where = f"tool {tool.name!r} at {_shown_url(tool.server_url)}"
        limit_s = self._tools.timeout_s
        async with within(limit_s, ToolError(f"{where} gave no result in {limit_s:g} s")):
            for retry in range(RETRIES):
                try:
                    return await self._send(tool, call, body, where)
                except _TryAgain as failure:
                    await self._tools.wait(_delay_s(retry, failure.retry_after_s))
            try:
                return await self._send(tool, call, body, where)
            except _TryAgain as failure:
                raise ToolError(f"{where} failed {RETRIES + 1} times: {failure}") from failure

    async def _send(self, tool: HttpTool, call: ToolCall, body: bytes, where: str) -> ToolResult:
        if self._client is None:
            self._client = self._tools.borrow()
        headers = httpx2.Headers({"content-type": "application/json"})
        headers.update(tool.headers)
        try:
            async with self._client.stream(
                "POST", tool.server_url, content=body, headers=headers
            ) as response:
                status = response.status_code
                if status == 429 or status >= 500:
                    raise _TryAgain(f"HTTP {status}", _retry_after_s(response.headers))
                if 300 <= status < 400:
                    raise ToolError(f"{where} redirects (HTTP {status}); give its final URL")
                content = await _read(response)
        except httpx2.HTTPError as error:
            raise _TryAgain(f"{type(error).__name__}: {error}") from error
        if content is None:
            return error_result(
                call, f"413: the result of {tool.name} is too large (over {MAX_BODY_BYTES} bytes)"
            )
        if status >= 400:
            return _refused(tool, call, status, content)
        return _accepted(call, content, where)

    async def close(self) -> None:
        """Give the client back; servers are told nothing."""
        if self._client is not None:
            self._client = None
            await self._tools.give_back()


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
        for part in self._parts:
            if isinstance(part, PythonEnvironment):
                return await part.run_grade(trajectory)
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


def _check_entry(tool: HttpTool) -> None:
    """Refuse what could only fail later, without repeating a value that may be a secret."""
    try:
        url = httpx2.URL(tool.server_url)
    except httpx2.InvalidURL as error:
        raise ConfigError(f"tool {tool.name!r}: server_url is not a URL") from error
    if url.scheme not in ("http", "https") or not url.host:
        raise ConfigError(f"tool {tool.name!r}: server_url must begin with http:// or https://")
    for name, value in tool.headers.items():
        if not name or not f"{name}{value}".isascii() or not f"{name}{value}".isprintable():
            raise ConfigError(
                f"tool {tool.name!r}: header {name!r} must be printable ASCII, without line breaks"
            )


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


async def _read(response: httpx2.Response) -> bytes | None:
    """Return the body, None if it is larger than a reply may be."""
    received = bytearray()
    async for chunk in response.aiter_bytes():
        received += chunk
        if len(received) > MAX_BODY_BYTES:
            return None
    return bytes(received)


def _refused(tool: HttpTool, call: ToolCall, status: int, content: bytes) -> ToolResult:
    text = content.decode(errors="replace").strip()
    reply = _as_json(text)
    if isinstance(reply, dict) and "output" in reply:
        shown = _text(cast(Mapping[str, Any], reply)["output"])
    else:
        shown = text if reply is None else _text(reply)
    return error_result(call, f"{status}: {_without_headers(shown, tool.headers)}")


def _accepted(call: ToolCall, content: bytes, where: str) -> ToolResult:
    reply = _as_json(content.decode(errors="replace"))
    if reply is None:
        raise _TryAgain("the body is not complete JSON")
    if not isinstance(reply, dict) or "output" not in reply:
        raise ToolError(f'{where} answered without `output`; reply {{"output": "<text>", ...}}')
    fields = cast(Mapping[str, Any], reply)
    if fields.get("call_id", call.id) != call.id:
        raise ToolError(f"{where} answered another call: sent {call.id!r}, got other `call_id`")
    return ToolResult(call_id=call.id, name=call.name, content=_text(fields["output"]))


def _as_json(text: str) -> object | None:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _without_headers(text: str, headers: Mapping[str, str]) -> str:
    """Take out header values that a server echoes: the model and the record must not hold them."""
    for value in headers.values():
        for secret in (value, value.rsplit(" ", 1)[-1]):
            if len(secret) >= 6:
                text = text.replace(secret, "[redacted]")
    return text


def _shown_url(url: str) -> str:
    """Return the URL without user, password and query, which may hold secrets."""
    parsed = httpx2.URL(url)
    port = f":{parsed.port}" if parsed.port else ""
    return f"{parsed.scheme}://{parsed.host}{port}{parsed.path}"


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait; it may give seconds or a date."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return None


def _delay_s(retry: int, retry_after_s: float | None) -> float:
    """Exponential backoff with full jitter; never sooner than the server asks."""
    jittered_s = random.uniform(0.0, min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**retry))
    return max(jittered_s, retry_after_s or 0.0)
