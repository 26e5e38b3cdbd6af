"""Policies measured on the same holdout tasks, in one table: what each solves, takes, and took to make.

Pure: rollouts in, rows and one sentence out. Best-of-k is worked out from all subsets of k of a
task's rollouts, so that more rollouts than k sharpen it. A policy that was made with several seeds is
measured, and chosen from, within each seed; a row holds the mean of its seeds.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Literal

import numpy as np

from agentrft.core.config import PriceList
from agentrft.core.errors import UserError
from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.measure.arms import (
    GRADER,
    Arm,
    RolloutKey,
    Spending,
    best_of,
    check_comparable,
    choice_name,
    machine_seconds,
    odds,
    rollout_key,
    samples,
    seeds_of,
    spent,
)
from agentrft.measure.statistics import (
    Estimate,
    PairedDifference,
    Values,
    holm,
    pass_hat_k,
    pooled,
    rate,
    seeded_difference,
    seeded_rate,
)
from agentrft.measure.summary import by_task, passed, score_of

__all__ = [
    "Arm",
    "Comparison",
    "Row",
    "Spending",
    "Verdict",
    "Versus",
    "best_of",
    "compare",
    "samples",
    "spent",
]

RELIABLE = 4
"""The k of pass^k, and of the best-of-k that an answer names beside the one of equal cost."""
LEVEL = 0.05
"""Holm-corrected p up to which a difference with an interval beside zero is believed."""

NOT_MEASURED = (
    "Best-of-k was not measured: set methods.evaluation.best_of to 4 before `agentrft improve`, or "
    "measure the best spec with methods.evaluation.samples_per_task = 4 and temperature = 1 and "
    "compare the runs."
)

Verdict = Literal["better", "worse", "cannot tell"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One line of the table."""

    name: str
    trained: bool
    k: int
    chosen_by: str
    seeds: int
    """Runs of this name; everything below is the mean of theirs, what each needs within itself."""
    lowest: float
    """Pass rate of the seed that solves least."""
    highest: float
    tasks: int
    rollouts: int
    """Of all seeds."""
    dropped: int
    """Infrastructure faults, left out."""
    pass_at_1: Estimate
    pass_hat_4: float | None
    """None with fewer than four rollouts of a task, and for a choice among several."""
    difference: PairedDifference | None
    """Pass rate minus the reference's; None for the reference."""
    adjusted_p: float | None
    """Holm's, over the rows of this table."""
    seconds_p50: float
    seconds_p95: float
    """Wall clock until a task is answered; k rollouts run side by side, and the slowest counts."""
    per_task: Spending
    training: Spending
    money_per_task: float
    money_training: float
    cost_per_task: float
    """In the comparison's unit."""
    cost_training: float
    break_even: int | None
    """Tasks from which a solved task costs less than by the rival's choice, all that either took
    before included; None if never, or without a rival."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Versus:
    """Trained weights against one control, over the same tasks."""

    trained: str
    control: str
    k: int
    pass_at_1: float
    """Of the control."""
    equal_cost: bool
    """Whether the control is the best-of-k of equal cost."""
    times_the_cost: float
    """What the control costs per task, as a multiple of the trained arm's."""
    difference: PairedDifference
    """Trained minus control."""
    adjusted_p: float
    """Holm's, over what every trained arm was held against."""
    verdict: Verdict
    """What interval and p allow to say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """The table, and what follows from it."""

    rows: tuple[Row, ...]
    """Those without changed weights first, each kind by what came before the first task."""
    reference: str
    """Whom the differences are to."""
    rival: str
    """The best-of-k that training is held against; empty if none was measured."""
    unit: Literal["money", "tokens"]
    """What costs are counted in."""
    versus: tuple[Versus, ...]
    """The best trained arm against its controls."""
    answer: str
    """Did weights beat the best prompt, and best-of-k at equal cost?"""
    notes: tuple[str, ...]
    """What a reader must know besides."""


def compare(
    arms: Sequence[Arm],
    *,
    pass_threshold: float,
    prices: PriceList | None = None,
    reference: str = "",
) -> Comparison:
    """Put arms into one table. Without a `reference` it is the best one without changed weights.

    Raises UserError for arms that cannot be compared, with the reason.
    """
    check_comparable(arms)
    price_list = prices or PriceList()
    clock = machine_seconds(arms)
    measured = sorted(
        (_Measured(seeds, pass_threshold, price_list, clock) for seeds in seeds_of(arms)),
        key=lambda one: (one.arm.trained, one.cost_training, one.arm.k, one.arm.name),
    )
    base = _reference(measured, reference)
    choices = _choices(measured)
    rival = _best(choices)
    others = [one for one in measured if one is not base]
    differences = [seeded_difference(base.seeds, one.seeds) for one in others]
    adjusted = holm([difference.p_value for difference in differences])
    compared = {
        one.arm.name: (difference, p)
        for one, difference, p in zip(others, differences, adjusted, strict=True)
    }
    versus = _versus(measured, choices)
    best = _best(one for one in measured if one.arm.trained and one.arm.k == 1)
    own = tuple(one for one in versus if best and one.trained == best.arm.name)
    return Comparison(
        rows=tuple(_row(one, *compared.get(one.arm.name, (None, None)), rival) for one in measured),
        reference=base.arm.name,
        rival=rival.arm.name if rival else "",
        unit=_unit(price_list),
        versus=own,
        answer=_answer(base, best, rival, own),
        notes=tuple(_notes(measured, best, choices)),
    )


class _Measured:
    """The seeds of one policy in numbers."""

    def __init__(
        self,
        arms: Sequence[Arm],
        threshold: float,
        prices: PriceList,
        clock: Mapping[RolloutKey, float],
    ) -> None:
        self.arms, self.arm = arms, arms[0]
        self.threshold, self.prices, self.clock = threshold, prices, clock
        self.graded = [by_task(arm.records) for arm in arms]
        solved = [passed(graded, threshold) for graded in self.graded]
        self.seeds: Sequence[Values] = (
            solved
            if self.arm.k == 1
            else [
                {task: [self._choice(arm, made)] for task, made in graded.items()}
                for arm, graded in zip(arms, self.graded, strict=True)
            ]
        )
        self.rate = seeded_rate(self.seeds)
        self.by_seed = [rate(values).value for values in self.seeds]
        self.tasks = len(pooled(self.seeds))
        fewest = min(len(of_task) for of_seed in solved for of_task in of_seed.values())
        self.pass_hat_4 = (
            fmean(pass_hat_k(of_seed, RELIABLE) for of_seed in solved)
            if self.arm.k == 1 and fewest >= RELIABLE
            else None
        )
        self.rollouts = sum(len(made) for graded in self.graded for made in graded.values())
        self.dropped = sum(len(arm.records) for arm in arms) - self.rollouts
        self.training = _mean(arm.training for arm in arms)
        self.per_task = _mean(map(self._each, arms, self.graded)).times(self.arm.k)
        self.cost_per_task = cost(self.per_task, prices)
        self.cost_training = cost(self.training, prices)

    @property
    def most(self) -> int:
        """Rollouts per task that every seed has."""
        return min(map(samples, self.arms))

    def at(self, k: int) -> "_Measured":
        """Return the same choice among another number of rollouts."""
        name = choice_name(self.arm.policy, k, self.arm.chosen_by)
        arms = [replace(arm, k=k, name=name) for arm in self.arms]
        return _Measured(arms, self.threshold, self.prices, self.clock)

    def cost_per_solved(self, tasks: float) -> float:
        """Return what a solved task costs when so many are served."""
        if not self.rate.value:
            return math.inf
        return (self.cost_training / tasks + self.cost_per_task) / self.rate.value

    def handling(self) -> tuple[float, float]:
        """Return median and 95th percentile of the seconds until a task is answered."""
        seconds: list[float] = []
        weights: list[float] = []
        for graded in self.graded:
            for made in graded.values():
                slowest_first = sorted((g.trajectory.duration_s for g in made), reverse=True)
                seconds += slowest_first
                weights += odds(len(slowest_first), self.arm.k)
        p50, p95 = np.quantile(seconds, [0.5, 0.95], weights=weights, method="inverted_cdf")
        return float(p50), float(p95)

    def _choice(self, arm: Arm, graded: Sequence[GradedTrajectory]) -> float:
        """Return the chance that the chosen one of k rollouts of this task solves it."""

        def liked(one: GradedTrajectory) -> float:
            score = _verdict_on(arm, one).score
            return -math.inf if score is None else score

        in_order = sorted(graded, key=lambda g: (g.trajectory.started_at, g.trajectory.id))
        ranked = sorted(in_order, key=liked, reverse=True)  # stable: a tie takes the first
        chances = odds(len(ranked), arm.k)
        solving = (
            chance
            for chance, one in zip(chances, ranked, strict=True)
            if score_of(one) >= self.threshold
        )
        return min(1.0, math.fsum(solving))  # rounded parts may come to more

    def _each(self, arm: Arm, graded: Mapping[str, Sequence[GradedTrajectory]]) -> Spending:
        """Return what a rollout of a seed takes, averaged as its rates are."""
        return _mean(_mean(self._one(arm, one) for one in made) for made in graded.values())

    def _one(self, arm: Arm, graded: GradedTrajectory) -> Spending:
        """Return what one rollout takes, and to judge it where one is chosen."""
        made = graded.trajectory
        usage = _verdict_on(arm, graded).usage.values() if arm.k > 1 else ()
        return Spending(
            rollouts=1,
            prompt_tokens=made.observed_tokens + sum(one.prompt_tokens for one in usage),
            sampled_tokens=made.sampled_tokens + sum(one.completion_tokens for one in usage),
            tool_calls=len(made.made_calls),
            seconds=self.clock[rollout_key(made)],
        )


def _verdict_on(arm: Arm, graded: GradedTrajectory) -> Grade:
    if arm.chosen_by == GRADER:
        return graded.grade
    return arm.verdicts[rollout_key(graded.trajectory)]


def cost(spending: Spending, prices: PriceList) -> float:
    """Return money where anything has a price, else tokens through the model."""
    return spending.money(prices) if _unit(prices) == "money" else spending.weighed_tokens


def _unit(prices: PriceList) -> Literal["money", "tokens"]:
    return "tokens" if prices == PriceList() else "money"


def _row(
    one: _Measured,
    difference: PairedDifference | None,
    adjusted_p: float | None,
    rival: _Measured | None,
) -> Row:
    arm = one.arm
    p50, p95 = one.handling()
    return Row(
        name=arm.name,
        trained=arm.trained,
        k=arm.k,
        chosen_by=arm.chosen_by,
        seeds=len(one.arms),
        lowest=min(one.by_seed),
        highest=max(one.by_seed),
        tasks=one.tasks,
        rollouts=one.rollouts,
        dropped=one.dropped,
        pass_at_1=one.rate,
        pass_hat_4=one.pass_hat_4,
        difference=difference,
        adjusted_p=adjusted_p,
        seconds_p50=p50,
        seconds_p95=p95,
        per_task=one.per_task,
        training=one.training,
        money_per_task=one.per_task.money(one.prices),
        money_training=one.training.money(one.prices),
        cost_per_task=one.cost_per_task,
        cost_training=one.cost_training,
        break_even=_break_even(one, rival) if rival and arm.trained and arm.k == 1 else None,
    )


def _break_even(trained: _Measured, rival: _Measured) -> int | None:
    """Solve (before + served * n) / (solved * n), of both, for the least whole n."""
    p, rival_p = trained.rate.value, rival.rate.value
    if not p or not rival_p:
        return 1 if p else None
    before = trained.cost_training / p - rival.cost_training / rival_p
    saved = rival.cost_per_task / rival_p - trained.cost_per_task / p
    if saved > 0:
        return max(1, math.ceil(before / saved))
    return 1 if saved == 0 and before <= 0 else None


def _best(measured: Iterable[_Measured]) -> _Measured | None:
    """Return the one that solves most; of equals the cheapest, then by name."""
    return min(
        measured, key=lambda one: (-one.rate.value, one.cost_per_task, one.arm.name), default=None
    )


def _reference(measured: Sequence[_Measured], name: str) -> _Measured:
    if name:
        found = next((one for one in measured if one.arm.name == name), None)
        if found is None:
            known = ", ".join(repr(one.arm.name) for one in measured)
            raise UserError(f"no arm {name!r} to compare with; there are {known}")
        return found
    single = [one for one in measured if one.arm.k == 1]
    best = _best(one for one in single if not one.arm.trained) or _best(single)
    if best is None:
        raise UserError("only choices among several rollouts are given; add what they choose from")
    return best


def _choices(measured: Sequence[_Measured]) -> list[_Measured]:
    """Return the controls: choices that can be served; only without any those by the grader."""
    choices = [one for one in measured if one.arm.k > 1 and not one.arm.trained]
    served = [one for one in choices if one.arm.chosen_by != GRADER]
    return served or choices


def _versus(measured: Sequence[_Measured], choices: Sequence[_Measured]) -> list[Versus]:
    """Hold every trained arm against the best prompt, best-of-k at equal cost, and best of four."""
    prompt = _best(one for one in measured if not one.arm.trained and one.arm.k == 1)
    rival = _best(choices)
    pairs: list[tuple[_Measured, _Measured, bool]] = []
    for one in measured:
        if one.arm.trained and one.arm.k == 1 and prompt:
            pairs.append((one, prompt, False))
            equal = _at_equal_cost(one, choices)
            if equal:
                pairs.append((one, equal, True))
            if rival:
                four = rival.at(min(RELIABLE, rival.most))
                if not equal or four.arm.name != equal.arm.name:
                    pairs.append((one, four, False))
    differences = [seeded_difference(second.seeds, first.seeds) for first, second, _ in pairs]
    adjusted = holm([difference.p_value for difference in differences])
    return [
        Versus(
            trained=first.arm.name,
            control=second.arm.name,
            k=second.arm.k,
            pass_at_1=second.rate.value,
            equal_cost=equal_cost,
            times_the_cost=second.cost_per_task / first.cost_per_task
            if first.cost_per_task
            else math.inf,
            difference=difference,
            adjusted_p=p,
            verdict=_verdict(difference, p),
        )
        for (first, second, equal_cost), difference, p in zip(
            pairs, differences, adjusted, strict=True
        )
    ]


def _verdict(difference: PairedDifference, adjusted_p: float) -> Verdict:
    if adjusted_p > LEVEL or difference.low <= 0 <= difference.high:
        return "cannot tell"
    return "better" if difference.value > 0 else "worse"


def _at_equal_cost(trained: _Measured, choices: Sequence[_Measured]) -> _Measured | None:
    """Return the best of what the choices come to at the trained arm's cost per task, if it buys any.

    Each takes the largest measured k whose cost is at most that: a cheaper policy may be drawn more
    often than the one that is best at any price.
    """
    affordable = (
        next((at for at in drawn if at.cost_per_task <= trained.cost_per_task), None)
        for drawn in (map(choice.at, range(choice.most, 1, -1)) for choice in choices)
    )
    return _best(filter(None, affordable))


def _answer(
    reference: _Measured,
    best: _Measured | None,
    rival: _Measured | None,
    versus: Sequence[Versus],
) -> str:
    """Say in one sentence what the numbers allow to say."""
    tasks = reference.tasks
    if best is None:
        solves = f"{reference.arm.name} solves {reference.rate.value:.1%} of {tasks} holdout tasks"
        more = f", and {rival.arm.name} {rival.rate.value:.1%}" if rival else ""
        return f"No weights were changed: {solves}{more}."
    if not versus:
        return (
            f"Cannot tell whether weights paid: {best.arm.name} solves {best.rate.value:.1%}, and "
            "nothing without changed weights was measured beside it."
        )
    prompt, *choices = versus
    lead = {
        "better": "Weights beat the best prompt",
        "worse": "Weights lost to the best prompt",
        "cannot tell": "Cannot tell whether weights beat the best prompt",
    }[prompt.verdict]
    solves = f"{best.arm.name} solves {best.rate.value:.1%} of {tasks} holdout tasks"
    if len(best.arms) > 1:
        solves += (
            f" (mean of {len(best.arms)} seeds, {min(best.by_seed):.1%} to {max(best.by_seed):.1%})"
        )
    told = [f"{lead}: {solves}, {prompt.control} {prompt.pass_at_1:.1%}, {_points(prompt)}"]
    if rival is None:
        told.append("best-of-k was not measured")
    elif not any(one.equal_cost for one in choices):
        told.append("at equal cost best-of-k buys no second rollout")
    told += map(_against, choices)
    return "; ".join(told) + "."


def _against(one: Versus) -> str:
    said = {
        "better": "they beat",
        "worse": "they lost to",
        "cannot tell": "it cannot be told whether they beat",
    }[one.verdict]
    place = "at equal cost" if one.equal_cost else f"at {one.times_the_cost:.1f} times the cost"
    return f"{place} {said} {one.control} ({one.pass_at_1:.1%}), {_points(one)}"


def _points(one: Versus) -> str:
    found = one.difference
    p = "p < 0.001" if one.adjusted_p < 0.001 else f"p {one.adjusted_p:.3f}"
    return (
        f"{100 * found.value:+.1f} points (95% interval {100 * found.low:+.1f} to "
        f"{100 * found.high:+.1f}, {p})"
    )


def _notes(
    measured: Sequence[_Measured], best: _Measured | None, choices: Sequence[_Measured]
) -> Iterable[str]:
    if not choices:
        yield NOT_MEASURED
    elif choices[0].arm.chosen_by == GRADER:
        yield (
            "Best-of-k by the grader is an upper bound: to serve it, the grader must be there when "
            "the task is, reference included."
        )
    equal = best and _at_equal_cost(best, choices)
    if best and equal and equal.arm.k == equal.most:
        yield (
            f"{best.arm.name} costs as much per task as {equal.arm.name} or more, and no more rollouts "
            "were measured; equal cost may buy a larger k."
        )
    prices, trains = measured[0].prices, any(one.training.trained_tokens for one in measured)
    if trains and _unit(prices) == "money" and not prices.machine_hour:
        yield (
            "Costs are money and prices.machine_hour is 0, so what training computes costs nothing "
            "here; break-even is earlier than it should be."
        )
    for one in measured:
        short = sum(len(made) < one.arm.k for graded in one.graded for made in graded.values())
        if one.dropped and one.arm.k == 1:
            yield f"{one.arm.name}: {one.dropped} rollouts were dropped for infrastructure faults."
        if short:
            yield f"{one.arm.name}: {short} tasks have fewer rollouts; theirs are all chosen from."


def _mean(parts: Iterable[Spending]) -> Spending:
    first, *rest = parts
    return sum(rest, first).times(1 / (1 + len(rest)))
