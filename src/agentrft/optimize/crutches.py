"""Which changes of a spec can be taken back one at a time: what training may have made needless."""

from collections.abc import Iterator
from dataclasses import fields, replace

from agentrft.core.spec import AgentSpec

_WHOLE = ("sections", "tools", "exposure", "rendering", "shown")
"""Taken back as one."""
_BY_PART = ("guards", "decoding", "limits")
_SIZES = frozenset(
    {
        "max_turns",
        "max_tool_calls",
        "max_tokens",
        "max_turn_tokens",
        "max_context_tokens",
        "timeout_s",
        "tool_timeout_s",
    }
)
"""Room that other changes may need; taken back alone it would break them."""


def without_one(baseline: AgentSpec, chosen: AgentSpec) -> dict[str, AgentSpec]:
    """Return the chosen spec without one of its changes, by the name of the change."""
    return {name: spec for name, spec in _without(baseline, chosen) if spec.hash != chosen.hash}


def without(baseline: AgentSpec, chosen: AgentSpec, names: frozenset[str]) -> AgentSpec:
    """Return the chosen spec without several of its changes."""
    spec = chosen
    for name in sorted(names):
        spec = dict(_without(baseline, spec))[name]
    return spec


def _without(baseline: AgentSpec, chosen: AgentSpec) -> Iterator[tuple[str, AgentSpec]]:
    for name in _WHOLE:
        yield name, replace(chosen, **{name: getattr(baseline, name)})
    for group in _BY_PART:
        mine, theirs = getattr(chosen, group), getattr(baseline, group)
        for part in fields(mine):
            if part.name not in _SIZES:
                value = getattr(theirs, part.name)
                changed = replace(mine, **{part.name: value})
                yield f"{group}.{part.name}", replace(chosen, **{group: changed})
