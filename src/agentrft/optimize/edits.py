"""Small changes of a spec, as functions; what every proposer builds its levels of."""

import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from agentrft.core.spec import AgentSpec, Section, ToolView
from agentrft.optimize.variants import Change


def guarding(**changes: Any) -> Change:
    """Return the change that sets fields of the guards."""
    return lambda spec: replace(spec, guards=replace(spec.guards, **changes))


def limiting(**changes: Any) -> Change:
    """Return the change that sets fields of the limits."""
    return lambda spec: replace(spec, limits=replace(spec.limits, **changes))


def scaling(**factors: float) -> Change:
    """Return the change that multiplies fields of the limits, whatever they are then."""

    def change(spec: AgentSpec) -> AgentSpec:
        now = asdict(spec.limits)
        scaled = {name: math.ceil(now[name] * factor) for name, factor in factors.items()}
        return replace(spec, limits=replace(spec.limits, **scaled))

    return change


def decoding(**changes: Any) -> Change:
    """Return the change that sets how tokens are drawn."""
    return lambda spec: replace(spec, decoding=replace(spec.decoding, **changes))


def viewing(views: Mapping[str, Mapping[str, Any]]) -> Change:
    """Return the change that sets fields of tools' views, by canonical name."""

    def change(spec: AgentSpec) -> AgentSpec:
        changed = {n: replace(spec.tools.get(n, ToolView()), **v) for n, v in views.items()}
        return replace(spec, tools={**spec.tools, **changed})

    return change


def each_rendering(**changes: Any) -> Change:
    """Return the change of fields of every rendering, that of the spec and those of tools."""

    def change(spec: AgentSpec) -> AgentSpec:
        tools = {
            name: replace(view, rendering=replace(view.rendering, **changes))
            if view.rendering
            else view
            for name, view in spec.tools.items()
        }
        return replace(spec, rendering=replace(spec.rendering, **changes), tools=tools)

    return change


def tool_renderings(changes: Mapping[str, Mapping[str, Any]]) -> Change:
    """Return the change of how single tools' outputs are shown, by canonical name."""

    def change(spec: AgentSpec) -> AgentSpec:
        tools = dict(spec.tools)
        for name, fields in changes.items():
            view = tools.get(name, ToolView())
            tools[name] = replace(
                view, rendering=replace(view.rendering or spec.rendering, **fields)
            )
        return replace(spec, tools=tools)

    return change


def writing(texts: Mapping[str, str]) -> Change:
    """Return the change that sets sections by name, new ones last."""

    def change(spec: AgentSpec) -> AgentSpec:
        known = {section.name for section in spec.sections}
        kept = (replace(s, text=texts.get(s.name, s.text)) for s in spec.sections)
        new = (Section(name=n, text=text) for n, text in texts.items() if n not in known)
        return replace(spec, sections=(*kept, *new))

    return change


def roomier(characters: int) -> Change:
    """Return the change that gives the context room for that much more text."""
    tokens = room_tokens(characters)
    return lambda spec: replace(
        spec,
        limits=replace(spec.limits, max_context_tokens=spec.limits.max_context_tokens + tokens),
    )


def room_tokens(characters: int) -> int:
    """Return tokens that surely hold a text of this length: names, figures and JSON take most.

    2.5 characters per token is below what byte-level vocabularies of 32,000 entries and more need for
    English and JSON; too much room costs cache only.
    """
    return -(-characters * 2 // 5)


def both(*changes: Change) -> Change:
    """Return the changes one after the other."""

    def change(spec: AgentSpec) -> AgentSpec:
        for one in changes:
            spec = one(spec)
        return spec

    return change
