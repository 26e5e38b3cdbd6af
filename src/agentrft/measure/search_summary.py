"""What a search before weights found, as reports show it. Plain data: JSON types and estimates."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrft.measure.statistics import Estimate, PairedDifference


@dataclass(frozen=True, slots=True, kw_only=True)
class KnobEffect:
    """One level of one knob against the baseline's, from the screening design."""

    knob: str
    level: str
    effect: Estimate
    """Change of the pass rate at the mean of the design, a share, with its 95% interval."""
    rollouts: int
    """Those that had this level."""
    source: str
    treats: tuple[str, ...] = ()
    why: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """One spec that was rolled out, and where it ended."""

    name: str
    spec_hash: str
    settings: Mapping[str, str]
    ended: str
    """E.g. `screen`, `race round 2`, `confirm`."""
    rollouts: int
    pass_rate: Estimate | None
    """On dev, over the rollouts it got."""
    verdict: str
    """Why it went no further, or that it was promoted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Confirmation:
    """One finalist against the baseline on tasks that the search never read."""

    name: str
    spec_hash: str
    settings: Mapping[str, str]
    difference: PairedDifference
    """Of pass@1, finalist minus baseline."""
    adjusted_p: float
    """One-sided, Holm over the finalists."""
    alpha: float
    sampled_tokens: PairedDifference
    observed_tokens: PairedDifference
    tool_calls: PairedDifference
    verdict: Literal["promoted", "promising", "rejected"]
    reason: str
    missing_rollouts: int = 0
    """For `promising`: rollouts per arm that would show a difference of this size with 80% power."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DropOne:
    """The chosen spec without one of its changes: what that change is worth where it is used."""

    knob: str
    level: str
    difference: PairedDifference
    """Chosen spec minus the spec without it, on dev."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Retest:
    """What a spec's changes are worth under new weights."""

    after: str
    """The stage that changed the weights."""
    tasks: int
    drop_one: tuple[DropOne, ...]
    dropped: tuple[str, ...]
    """Changes that were taken back."""
    together: DropOne | None
    """All of these taken back at once; None if there are not several."""
    spec_hash: str
    """What goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MixEntry:
    """One failure class in a sample of rollouts."""

    failure_class: str
    rollouts: int
    share: Estimate
    """Of all rollouts."""
    example: str = ""
    """Trajectory id."""
    evidence: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSummary:
    """The whole search."""

    baseline_hash: str
    chosen_hash: str
    promoted: bool
    chosen: Mapping[str, str]
    """Knob to level of the promoted spec; empty if the baseline stays."""
    baseline_holdout: Estimate | None = None
    """pass@1 in the confirmation; None if nothing was confirmed."""
    chosen_holdout: Estimate | None = None
    effects: tuple[KnobEffect, ...] = ()
    tried: tuple[Tried, ...] = ()
    confirmations: tuple[Confirmation, ...] = ()
    drop_one: tuple[DropOne, ...] = ()
    mix_before: tuple[MixEntry, ...] = ()
    mix_after: tuple[MixEntry, ...] = ()
    spent: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The ledger's totals."""
    minimum_detectable: float | None = None
    """Smallest paired difference that the confirmation shows with 80% power."""
    holdout_looks: int = 0
    plateau: bool = False
    """Whether the last rounds promoted nothing."""
    notes: tuple[str, ...] = ()
    """What a reader must know: small data, budget spent, proposers that gave nothing."""
