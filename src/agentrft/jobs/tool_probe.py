"""Trial calls of tools before compute: one alone, then many at once, each with its own trace id.

The calls go the way of a rollout's calls; their arguments are the least that the schema asks for.
"""

import json
import secrets
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from agentrft.core.call_thread import in_thread
from agentrft.core.errors import ToolError, boundary
from agentrft.core.protocols import Environment
from agentrft.core.task import Task, ToolCall, ToolSpec
from agentrft.measure.job_preflight_facts import ProbeCall, ToolFacts, tool_facts
from agentrft.rollout.deadline import within
from agentrft.rollout.episode import RolloutSetup, close_environment, in_order
from agentrft.rollout.harness import visible_tools

BURST = 50
"""Calls at the same time; the load that tool servers of the contract are built for."""
MAX_DEPTH = 8

_TEXTS: Mapping[str, str] = {
    "date": "2026-01-01",
    "date-time": "2026-01-01T00:00:00Z",
    "time": "00:00:00Z",
    "email": "someone@example.com",
    "uri": "https://example.com",
    "uuid": "00000000-0000-4000-8000-000000000000",
    "ipv4": "192.0.2.1",
    "hostname": "example.com",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """A tool with a row that offers it."""

    task: Task
    spec: ToolSpec


async def probe_tools(
    setup: RolloutSetup, tasks: Sequence[Task], names: Collection[str]
) -> tuple[ToolFacts, ...]:
    """Call those of the named tools that the rows offer; one whose first call fails is spared more.

    Raises UserError for a row with an unknown tool.
    """
    probes = [p for p in await offered_tools(setup, tasks) if p.spec.name in names]
    firsts = await in_order([_call(setup, probe) for probe in probes])
    facts: list[ToolFacts] = []
    for probe, first in zip(probes, firsts, strict=True):
        burst: Sequence[ProbeCall] = ()
        if not first.problem:
            burst = await in_order([_call(setup, probe) for _ in range(BURST)])
        facts.append(tool_facts(probe.spec.name, first, burst))
    return tuple(facts)


async def offered_tools(setup: RolloutSetup, tasks: Sequence[Task]) -> list[Probe]:
    """Return every tool that a rollout of these tasks may be offered, with the first such row."""
    seen: set[tuple[str, ...]] = set()
    probes: dict[str, Probe] = {}
    for task in tasks:
        names = tuple(tool.name for tool in task.tools)
        if names in seen:
            continue
        seen.add(names)
        environment = await _opened(setup, task)
        try:
            specs = visible_tools(environment.tool_specs(), task, setup.policy.spec.tools)
        finally:
            await close_environment(environment, f"tools of task {task.id!r}")
        for spec in specs:
            probes.setdefault(spec.name, Probe(task=task, spec=spec))
    return list(probes.values())


async def _call(setup: RolloutSetup, probe: Probe) -> ProbeCall:
    limit_s = setup.policy.spec.limits.tool_timeout_s
    where = f"tool {probe.spec.name!r}"
    started = time.monotonic()
    environment: Environment | None = None
    try:
        with boundary(ToolError, where):
            async with within(limit_s, ToolError(f"{where} gave no result in {limit_s:g} s")):
                call = ToolCall(
                    id=f"call_{secrets.token_hex(8)}",
                    name=probe.spec.name,
                    arguments=json.dumps(least_value(probe.spec.parameters)),
                )
                environment = await _opened(setup, probe.task)
                result = await environment.call_tool(call)
    except ToolError as error:
        return ProbeCall(seconds=time.monotonic() - started, problem=str(error))
    else:
        return ProbeCall(seconds=time.monotonic() - started, refusal=result.refusal)
    finally:
        if environment is not None:
            await close_environment(environment, f"trial call of {where}")


async def _opened(setup: RolloutSetup, task: Task) -> Environment:
    trace_id = f"trace_{secrets.token_hex(16)}"
    return await in_thread(partial(setup.open_environment, task, trace_id), name=f"open {trace_id}")


def least_value(schema: Mapping[str, Any]) -> Any:
    """Return a plausible value of a JSON schema with as little in it as the schema allows.

    >>> least_value({"type": "object", "properties": {"id": {"type": "string"}}, "required": ["id"]})
    {'id': 'example'}
    """
    return _value(schema, schema, 0)


def _value(schema: Any, root: Mapping[str, Any], depth: int) -> Any:
    if not isinstance(schema, Mapping) or depth > MAX_DEPTH:
        return None
    node = _resolved(cast(Mapping[str, Any], schema), root, depth)
    for key in ("const", "default"):
        if key in node:
            return node[key]
    for key in ("enum", "examples"):
        if node.get(key):
            return node[key][0]
    match _type(node):
        case "object":
            properties = node.get("properties", {})
            return {
                name: _value(properties.get(name, {}), root, depth + 1)
                for name in node.get("required", ())
            }
        case "array":
            item = _value(node.get("items", {}), root, depth + 1)
            return [item] * int(node.get("minItems", 0))
        case "integer" | "number":
            return _number(node)
        case "boolean":
            return False
        case "null":
            return None
        case _:
            return _text(node)


def _resolved(node: Mapping[str, Any], root: Mapping[str, Any], depth: int) -> Mapping[str, Any]:
    """Follow local references and take the first of several alternatives."""
    for _ in range(MAX_DEPTH - depth):
        if "$ref" in node:
            target: Any = root
            for step in str(node["$ref"]).removeprefix("#/").split("/"):
                target = target.get(step, {}) if isinstance(target, Mapping) else {}
            node = cast(Mapping[str, Any], target)
        elif options := node.get("anyOf") or node.get("oneOf"):
            node = options[0]
        elif parts := node.get("allOf"):
            merged = {key: value for part in parts for key, value in part.items()}
            node = {**{key: value for key, value in node.items() if key != "allOf"}, **merged}
        else:
            break
    return node


def _type(node: Mapping[str, Any]) -> str:
    kind = node.get("type")
    if isinstance(kind, list):
        return next((str(k) for k in cast(list[Any], kind) if k != "null"), "null")
    return str(kind or ("object" if "properties" in node else "string"))


def _number(node: Mapping[str, Any]) -> float:
    lowest = node.get("minimum", node.get("exclusiveMinimum", 0) + 1)
    highest = node.get("maximum", node.get("exclusiveMaximum", lowest + 1) - 1)
    return min(max(1, lowest), highest)


def _text(node: Mapping[str, Any]) -> str:
    text = _TEXTS.get(str(node.get("format")), "example")
    return text.ljust(int(node.get("minLength", 0)), "x")[: node.get("maxLength")]
