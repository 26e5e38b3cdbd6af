"""What an audit found: numbers, findings, and whether the grader may train anything."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrft.audit.probe import Arena, Finding, Shot, Verdict
from agentrft.audit.verdicts import threshold
from agentrft.core.config import AuditConfig
from agentrft.measure.agreement import Reliability

FIXED_TEXTS = (1, 2, 4, 5, 7, 9, 10)
"""Probes whose variants say the same on every row."""
NEVER_TOLERATED = (32, 41)
"""Probes that block whatever the thresholds: code of the model runs; right and wrong are paid alike."""
FALSE_FAILS = 44
_GROUPS_OF_FALSE_PASSES = "ABCDE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """An audit in seven numbers; None is not measured."""

    false_pass_ceiling: float
    """Highest mean score of a wrong text, above what it may earn."""
    lazy_policy: float
    """Highest mean score of one text that is the same for all rows."""
    lazy_excess: float
    """The same above `base_rate`."""
    base_rate: float | None
    """Mean score of another row's answer."""
    reference_score: float | None
    false_fail_rate: float | None
    """Share of right answers, written otherwise, that are refused."""
    error_rate: float
    p95_latency_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Suggestion:
    """A grader object that does better and still passes the right answers."""

    change: str
    config: Mapping[str, Any]
    before: Headline
    after: Headline


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditReport:
    """The whole audit."""

    findings: tuple[Finding, ...]
    headline: Headline
    blocked: tuple[str, ...]
    """Why the grader must not train anything; empty if it may."""
    seconds: float
    seed: int
    rows: int
    answers: int
    """Rows whose right answer is known."""
    suggestions: tuple[Suggestion, ...] = ()
    shots: tuple[Shot, ...] = ()
    """Every attempt of a replay."""
    reliability: Reliability | None = None
    """How far a model that grades agrees with itself and with a second one, if that was asked."""

    @property
    def unreached(self) -> int:
        """How many probes have no verdict."""
        return sum(finding.verdict is Verdict.SKIPPED for finding in self.findings)

    def as_json(self) -> dict[str, Any]:
        """Return the report in JSON types."""
        shown = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "shots"
        }
        return {name: _plain(value) for name, value in shown.items()}


def headline(arena: Arena, findings: Sequence[Finding]) -> Headline:
    """Sum an audit up."""
    seconds = sorted(arena.seconds)
    excesses = [
        finding.excess
        for finding in findings
        if finding.excess is not None
        and finding.group in _GROUPS_OF_FALSE_PASSES
        and threshold(finding.probe).fooled is not None
    ]
    fixed = [finding for finding in findings if finding.probe in FIXED_TEXTS]
    false_fails = [finding.measure for finding in findings if finding.probe == FALSE_FAILS]
    return Headline(
        false_pass_ceiling=max(0.0, *excesses, 0.0),
        lazy_policy=max((f.measure for f in fixed if f.measure is not None), default=0.0),
        lazy_excess=max(0.0, *(f.excess for f in fixed if f.excess is not None), 0.0),
        base_rate=arena.base_rate if len(arena.answers) > 1 else None,
        reference_score=arena.reference_score,
        false_fail_rate=false_fails[0] if false_fails else None,
        error_rate=arena.errors / len(seconds) if seconds else 0.0,
        p95_latency_s=seconds[int(0.95 * (len(seconds) - 1))] if seconds else None,
    )


def reasons(summed: Headline, findings: Sequence[Finding], config: AuditConfig) -> tuple[str, ...]:
    """Return why the thresholds refuse a grader."""
    found: list[str] = []
    if summed.false_pass_ceiling > config.false_pass_ceiling:
        found.append(
            f"false-pass ceiling {summed.false_pass_ceiling:.2f} is above "
            f"{config.false_pass_ceiling:g} (audit.false_pass_ceiling): a wrong text is paid"
        )
    if summed.lazy_excess > config.lazy_policy:
        found.append(
            f"one fixed text earns {summed.lazy_policy:.2f}, {summed.lazy_excess:.2f} above the "
            f"base rate; at most {config.lazy_policy:g} is allowed (audit.lazy_policy)"
        )
    reference = summed.reference_score
    if reference is not None and reference < config.reference:
        found.append(
            f"the right answers themselves score {reference:.2f}, below {config.reference:g} "
            "(audit.reference)"
        )
    found += [
        f"probe {finding.probe}: {finding.summary}"
        for finding in findings
        if finding.probe in NEVER_TOLERATED and finding.verdict is Verdict.FOOLED
    ]
    return tuple(found)


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    return value
