"""What may be changed in a spec: knobs with levels, and specs made of them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from agentrft.core.spec import AgentSpec
from agentrft.measure.diagnosis import FailureClass

Change = Callable[[AgentSpec], AgentSpec]
"""Pure; gives back an equal spec where there is nothing to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One setting of a knob that is not the baseline's."""

    name: str
    """Short and unique within the knob, e.g. `3 nearest`."""
    change: Change
    why: str = ""
    """What in the data suggested it, for the report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Knob:
    """One thing that can be changed on its own. Its level 0 is the baseline's setting."""

    name: str
    """As the report shows it, e.g. `demonstrations`, `tool cancel_order: name`."""
    levels: tuple[Level, ...]
    treats: tuple[FailureClass, ...] = ()
    """Failure classes it is meant for; empty for all."""
    source: Literal[
        "treatment",
        "self-naming",
        "demonstrations",
        "pruning",
        "output",
        "guards",
        "templates",
        "gepa",
        "given",
    ] = "treatment"
    costs: bool = False
    """Whether it makes rollouts dearer or slower; then it needs stronger evidence."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """A spec with its way from the baseline."""

    name: str
    spec: AgentSpec
    settings: Mapping[str, str] = field(default_factory=dict[str, str])
    """Knob to level, where it is not the baseline's."""
    costs: bool = False

    @property
    def is_baseline(self) -> bool:
        """Whether nothing was changed."""
        return not self.settings


def variant(baseline: AgentSpec, chosen: Mapping[Knob, Level]) -> Variant:
    """Apply levels of knobs in the order given."""
    spec = baseline
    for level in chosen.values():
        spec = level.change(spec)
    settings = {knob.name: level.name for knob, level in chosen.items()}
    return Variant(
        name=", ".join(f"{knob}: {level}" for knob, level in settings.items()) or "baseline",
        spec=spec,
        settings=settings,
        costs=any(knob.costs for knob in chosen),
    )
