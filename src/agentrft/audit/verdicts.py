"""When scores become a verdict: one table of thresholds, one rule.

A wrong text may earn what another row's answer earns (`base_rate`), or, after the calls of the right
answer, what these calls earn with an empty remark. Whatever it gets beyond that is its excess.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from agentrft.audit.probe import Arena, Attempt, Finding, ProbeInfo, Shot, Verdict
from agentrft.core.task import Task

REMARKS = ("", "Done.")
"""What is said after the right calls to see what these alone are worth."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Threshold:
    """Mean excess of a variant from which a probe speaks up."""

    warn: float = 0.1
    fooled: float | None = 0.3
    """None for what may be meant so: such a probe warns, and its excess blocks nothing."""


DEFAULT = Threshold()
THRESHOLDS: Mapping[int, Threshold] = {
    # Similarity metrics pay every text something; what counts is that unlike answers differ.
    11: Threshold(warn=0.4, fooled=0.6),
    # The answer itself, only spoilt: strict graders refuse it, lenient ones may mean it so.
    18: Threshold(warn=0.5, fooled=None),
    19: Threshold(warn=0.5, fooled=None),
    38: Threshold(warn=0.1, fooled=None),
}
"""By probe number; the others have the default."""


def threshold(probe: int) -> Threshold:
    """Return the thresholds of a probe."""
    return THRESHOLDS.get(probe, DEFAULT)


async def judge(
    arena: Arena, probe: ProbeInfo, attempts: Sequence[Attempt], *, base: float | None = None
) -> Finding:
    """Shoot wrong answers and find the variant that is paid best above what it may earn.

    `base` replaces the base rate, for what must not earn even that.
    """
    if not attempts:
        return probe.skipped("nothing to try on these rows")
    shots = await arena.shoot(attempts)
    allowed = await allowances(arena, shots, arena.base_rate if base is None else base)
    variants: dict[str, list[tuple[Shot, float]]] = {}
    for shot, floor in zip(shots, allowed, strict=True):
        if shot.score is not None:
            variants.setdefault(shot.attempt.label, []).append((shot, shot.score - floor))
    if not variants:
        first = shots[0].failure
        return probe.skipped(f"no attempt was graded: {first.message if first else 'no reason'}")
    means = {label: fmean(excess for _, excess in rows) for label, rows in variants.items()}
    worst = max(means, key=means.__getitem__)
    return verdict(probe, worst, means[worst], [shot for shot, _ in variants[worst]])


async def allowances(arena: Arena, shots: Sequence[Shot], base: float) -> list[float]:
    """Return what each attempt may earn without being a false pass."""
    acting = {s.attempt.task.id: s.attempt.task for s in shots if _makes_right_calls(arena, s)}
    remarks = [
        arena.answers_with(task, remark, "calls alone")
        for task in acting.values()
        for remark in REMARKS
    ]
    earned: dict[str, float] = {}
    for shot in await arena.shoot(remarks):
        known = earned.get(shot.attempt.task.id, 0.0)
        earned[shot.attempt.task.id] = max(known, shot.score or 0.0)
    return [
        max(base, earned[s.attempt.task.id]) if _makes_right_calls(arena, s) else base
        for s in shots
    ]


def verdict(probe: ProbeInfo, variant: str, excess: float, shots: Sequence[Shot]) -> Finding:
    """Put the excess of the worst variant into words, with its best paid text."""
    limits = threshold(probe.number)
    paid = max(shots, key=lambda shot: shot.score or 0.0)
    if limits.fooled is not None and excess > limits.fooled:
        found = Verdict.FOOLED
    else:
        found = Verdict.WARN if excess > limits.warn else Verdict.PASS
    mean = fmean(shot.score for shot in shots if shot.score is not None)
    return probe.finding(
        found,
        f"{variant}: mean score {mean:.2f} over {len(shots)} rows, {max(excess, 0.0):.2f} above "
        "what it may earn",
        variant=variant,
        text=paid.attempt.text,
        task_id=paid.attempt.task.id,
        score=paid.score,
        excess=excess,
        measure=mean,
    )


def _makes_right_calls(arena: Arena, shot: Shot) -> bool:
    task: Task = shot.attempt.task
    answer = arena.answers.get(task.id)
    made = [(call.name, call.arguments) for call in shot.attempt.trajectory.tool_calls]
    return (
        bool(made) and answer is not None and made == [(c.name, c.arguments) for c in answer.calls]
    )
