"""What `agentrft preflight` concludes: a verdict with reasons, and the advice. Pure."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from agentrft.measure.advisor import Advice
from agentrft.measure.next_steps import Cost, NextStep
from agentrft.measure.standing import Standing

Verdict = Literal["go", "fix", "no-go"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PreflightResult:
    """Everything that is told, shown and stored."""

    project: str
    model: str
    run_id: str
    created_at: float
    """Unix time."""
    standing: Standing
    advice: Advice
    costs: Mapping[NextStep, Cost]
    audit: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Headline of the grader's audit and what it blocks; empty if it was not audited."""
    notes: tuple[str, ...] = ()
    """What a reader must know besides, e.g. why grades were not given again."""

    @property
    def verdict(self) -> Verdict:
        """`fix` what measures or is measured, `no-go` where nothing here helps, else `go`."""
        match self.advice.method:
            case NextStep.FIX | NextStep.COLLECT:
                return "fix"
            case NextStep.DEMONSTRATIONS:
                return "no-go"
            case _:
                return "go"
