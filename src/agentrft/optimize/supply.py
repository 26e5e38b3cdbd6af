"""Which of the knobs that were thought of are worth rollouts. Pure."""

import itertools
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from agentrft.core.spec import AgentSpec
from agentrft.measure.diagnosis import FailureClass
from agentrft.measure.search_summary import MixEntry
from agentrft.optimize.leaks import Withheld
from agentrft.optimize.variants import Knob, Level

MOST_LEVELS = 3
"""Settings of one knob that are tried, its baseline's besides."""
FOR_ALL = 0.1
"""Share of failures that a knob without named classes is taken to treat."""

Name = tuple[str, str]
"""Of a knob and its level."""


def failure_shares(mix: Sequence[MixEntry]) -> Mapping[str, float]:
    """Return each class's share of the model's own failures."""
    own = {
        entry.failure_class: entry.rollouts
        for entry in mix
        if entry.failure_class != FailureClass.INFRASTRUCTURE
    }
    total = sum(own.values())
    return {name: count / total for name, count in own.items()}


def treated(knob: Knob, shares: Mapping[str, float]) -> float:
    """Return the share of whatever `shares` counts that a knob is meant for."""
    return sum(shares.get(failure_class.value, 0.0) for failure_class in knob.treats)


def useful_knobs(
    offers: Sequence[Sequence[Knob]],
    spec: AgentSpec,
    mix: Sequence[MixEntry],
    *,
    tried: Collection[Name],
    withheld: Withheld,
) -> tuple[list[Knob], list[Name]]:
    """Return knobs that change this spec, those for frequent failures first, and leaking levels.

    Left out: levels that were tried, change nothing or show a task of dev or holdout, and knobs
    for failures that do not occur. Between equals the order of each proposer decides.
    """
    shares = failure_shares(mix)
    ranked: list[tuple[float, int, int, Knob]] = []
    leaking: list[Name] = []
    seen = set(tried)
    for place, offer in enumerate(offers):
        for turn, knob in enumerate(offer):
            levels = [level for level in knob.levels if (knob.name, level.name) not in seen]
            seen.update((knob.name, level.name) for level in levels)
            clean, leaks = _changing(levels, spec, withheld)
            leaking += [(knob.name, level.name) for level in leaks]
            share = treated(knob, shares) if knob.treats else FOR_ALL
            if clean and share:
                kept = replace(knob, levels=tuple(clean[:MOST_LEVELS]))
                ranked.append((-share, turn, place, kept))
    ranked.sort(key=lambda entry: entry[:3])
    first = dict[str, Knob]()
    for _, _, _, knob in ranked:
        first.setdefault(knob.name, knob)
    return list(first.values()), leaking


def _changing(
    levels: Sequence[Level], spec: AgentSpec, withheld: Withheld
) -> tuple[list[Level], list[Level]]:
    """Return levels that make specs of their own, and those that show what must not be shown."""
    kept, leaking, specs = list[Level](), list[Level](), [spec]
    already = withheld.shown_by(spec)
    for level in levels:
        changed = level.change(spec)
        if changed in specs:
            continue
        if withheld.shown_by(changed) - already:
            leaking.append(level)
            continue
        specs.append(changed)
        kept.append(level)
    return kept, leaking


def large_treatments(
    knobs: Sequence[Knob], mix: Sequence[MixEntry], *, least: float, most: int
) -> list[dict[Knob, Level]]:
    """Return what to confirm without a search: first levels of knobs for classes of `least` share.

    The share is of all rollouts. First all of them together, then the leading ones alone.
    """
    shares = {entry.failure_class: entry.share.value for entry in mix}
    chosen = {knob: knob.levels[0] for knob in knobs if treated(knob, shares) >= least}
    alone = [{knob: level} for knob, level in chosen.items()]
    together = [chosen] if len(chosen) > 1 else []
    return list(itertools.islice([*together, *alone], most))
