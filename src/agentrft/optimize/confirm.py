"""Finalists against the baseline on the holdout, pair by pair: promoted, promising or rejected."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from agentrft.core.grade import GradedTrajectory
from agentrft.measure.power import rollouts_needed
from agentrft.measure.search_summary import Confirmation
from agentrft.measure.statistics import (
    Estimate,
    PairedDifference,
    holm,
    paired_difference,
    rate,
)
from agentrft.optimize.purse import Pair, Purse, interleaved, passes
from agentrft.optimize.trials import passed
from agentrft.optimize.variants import Variant

MARGIN = 0.1
"""Share by which tokens or calls may rise before a spec counts as dearer."""
BOTH = 10
"""Pairs that both arms solved, from which these alone say whether a spec is dearer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One spec's rollouts of the confirmation, in the order of the pairs."""

    variant: Variant
    graded: tuple[GradedTrajectory, ...]


async def rolled_out(
    variants: Sequence[Variant], pairs: Sequence[Pair], purse: Purse
) -> tuple[Arm, ...]:
    """Roll the arms out on the holdout, interleaved. Raises BudgetSpentError."""
    graded = await purse.confirm(interleaved(variants, "holdout", pairs, "confirm"))
    return tuple(
        Arm(variant=variant, graded=tuple(graded[place :: len(variants)]))
        for place, variant in enumerate(variants)
    )


def confirmed(
    baseline: Arm,
    finalists: Sequence[Arm],
    pairs: Sequence[Pair],
    *,
    threshold: float,
    alpha: float,
    alpha_costly: float,
    seed: int,
) -> tuple[Confirmation, ...]:
    """Judge each finalist, in the order given; at most one is promoted, the best of the significant.

    Whoever makes rollouts dearer, by its knobs or as measured where both arms succeed, is held to
    `alpha_costly`; a baseline that gives up early is cheap, and no measure.
    """
    before = _passes(baseline, pairs, threshold)
    differences = [
        paired_difference(before, _passes(arm, pairs, threshold), seed=seed) for arm in finalists
    ]
    adjusted = holm([one_sided(difference) for difference in differences])
    found = [
        _judged(
            arm,
            baseline,
            pairs,
            difference=difference,
            adjusted_p=p,
            threshold=threshold,
            alphas=(alpha, alpha_costly),
            seed=seed,
        )
        for arm, difference, p in zip(finalists, differences, adjusted, strict=True)
    ]
    significant = [one for one in found if one.verdict == "promoted"]
    if not significant:
        return tuple(found)
    best = max(significant, key=lambda one: one.difference.value)
    return tuple(
        one
        if one is best or one.verdict != "promoted"
        else replace(
            one, verdict="promising", reason=f"better than the baseline, less so than {best.name}"
        )
        for one in found
    )


def one_sided(difference: PairedDifference) -> float:
    """Return the p-value that the second policy is no better; the tests behind it are symmetric."""
    half = difference.p_value / 2
    return half if difference.value > 0 else 1 - half


def holdout_rate(arm: Arm, pairs: Sequence[Pair], threshold: float) -> Estimate:
    """Return pass@1 of an arm."""
    return rate(_passes(arm, pairs, threshold))


def _judged(
    arm: Arm,
    baseline: Arm,
    pairs: Sequence[Pair],
    *,
    difference: PairedDifference,
    adjusted_p: float,
    threshold: float,
    alphas: tuple[float, float],
    seed: int,
) -> Confirmation:
    places = [
        n
        for n, arms in enumerate(zip(baseline.graded, arm.graded, strict=True))
        if all(passed(one, threshold) for one in arms)
    ]
    costs = _costs(baseline, arm, pairs, threshold, seed)
    fair = costs
    if len(places) >= BOTH:
        shared = [pairs[n] for n in places]
        fair = _costs(_part(baseline, places), _part(arm, places), shared, threshold, seed)
    costly = arm.variant.costs or any(cost.risen for cost in fair)
    alpha = alphas[1] if costly else alphas[0]
    missing = 0
    points = f"{difference.value * 100:+.1f} points, adjusted p = {adjusted_p:.3f}"
    if difference.value > 0 and adjusted_p <= alpha:
        verdict, reason = "promoted", f"{points}, at most {alpha:g}"
    elif difference.value > 0:
        verdict, reason = "promising", f"{points}, above {alpha:g}"
        p = rate(_passes(baseline, pairs, threshold)).value
        missing = rollouts_needed(difference.value, p=p, alpha=alpha)
    else:
        verdict, reason = "rejected", f"{points}: no gain on the holdout"
    told = [cost.told for cost in costs if not cost.held]
    return Confirmation(
        name=arm.variant.name,
        spec_hash=arm.graded[0].trajectory.spec_hash,
        settings=arm.variant.settings,
        difference=difference,
        adjusted_p=adjusted_p,
        alpha=alpha,
        sampled_tokens=costs[0].difference,
        observed_tokens=costs[1].difference,
        tool_calls=costs[2].difference,
        verdict=verdict,
        reason="; ".join([reason, *told]),
        missing_rollouts=missing,
    )


_MEASURES = ("sampled tokens", "observed tokens", "tool calls")


def _costs(
    baseline: Arm, arm: Arm, pairs: Sequence[Pair], threshold: float, seed: int
) -> list["_Cost"]:
    return [_Cost.of(name, baseline, arm, pairs, threshold, seed) for name in _MEASURES]


def _part(arm: Arm, places: Sequence[int]) -> Arm:
    return replace(arm, graded=tuple(arm.graded[n] for n in places))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Cost:
    """What one measure of cost did."""

    name: str
    difference: PairedDifference
    before: float

    @classmethod
    def of(
        cls,
        name: str,
        baseline: Arm,
        arm: Arm,
        pairs: Sequence[Pair],
        threshold: float,
        seed: int,
    ) -> "_Cost":
        first, second = (_measured(name, one, pairs, threshold) for one in (baseline, arm))
        return cls(
            name=name,
            difference=paired_difference(first, second, seed=seed),
            before=float(np.mean([np.mean(of_task) for of_task in first.values()])),
        )

    @property
    def risen(self) -> bool:
        """Whether it is shown to be above the baseline, by more than the margin as it stands."""
        return self.difference.low > 0 and self.difference.value > MARGIN * self.before

    @property
    def held(self) -> bool:
        """Whether a rise beyond the margin is ruled out: non-inferior."""
        return self.difference.high <= MARGIN * self.before

    @property
    def told(self) -> str:
        """Say by how much it moved."""
        if not self.before:
            return f"{self.name} {self.difference.value:+.1f}, from none"
        seen = f"{self.name} {self.difference.value / self.before:+.0%}"
        return seen if self.risen else f"{seen}, not shown to stay within {MARGIN:.0%}"


def _passes(arm: Arm, pairs: Sequence[Pair], threshold: float) -> dict[str, list[bool]]:
    return passes([task for task, _ in pairs], arm.graded, threshold)


def _measured(
    name: str, arm: Arm, pairs: Sequence[Pair], threshold: float
) -> dict[str, list[float]]:
    values: dict[str, list[float]] = {}
    for (task, _), one in zip(pairs, arm.graded, strict=True):
        if passed(one, threshold) is None:
            continue
        trajectory = one.trajectory
        match name:
            case "sampled tokens":
                value = trajectory.sampled_tokens
            case "observed tokens":
                value = trajectory.observed_tokens
            case _:
                value = len(trajectory.tool_calls)
        values.setdefault(task.id, []).append(float(value))
    return values
