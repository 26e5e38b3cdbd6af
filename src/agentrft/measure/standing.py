"""Where an agent stands: what several rollouts of each of some tasks say about it. Pure, JSON-able.

Rollouts lost to infrastructure are counted and left out of every rate but their own.
"""

import math
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev

from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.task import Task, ToolSpec
from agentrft.core.trajectory import FailureKind, StopReason, ToolResult
from agentrft.measure.diagnosis import diagnoses, failure_mix
from agentrft.measure.power import WITHIN, minimum_detectable
from agentrft.measure.ranks import spearman
from agentrft.measure.search_summary import MixEntry
from agentrft.measure.statistics import Estimate, mean, rate

SAME = 1e-9
"""Scores closer than this are the same score."""
CUT = frozenset({StopReason.MAX_TOKENS, StopReason.CONTEXT_FULL, StopReason.DEADLINE})


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskStanding:
    """One task over its rollouts."""

    task_id: str
    family: str
    rollouts: int
    """Those that count."""
    solved: int
    mean: float
    sd: float
    """Of the scores of its rollouts."""
    classes: Mapping[str, int]
    """Failure class to how many of the rollouts failed so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolHealth:
    """How a tool behaved in all rollouts."""

    name: str
    calls: int
    complaints: int
    """Results that told the model of an error."""
    lost: int
    """Rollouts that ended because the tool failed."""
    p95_s: float | None
    """95% of its calls took no longer; None if nobody called it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Everything an advice rests on. Shares are between 0 and 1; intervals cover 95%."""

    tasks: int
    """Distinct tasks with a rollout that counts."""
    families: int
    rollouts: int
    samples: int
    """The k of pass@k and pass^k; a task that lost rollouts counts with those it has."""
    pass_1: Estimate
    pass_k: Estimate
    """At least one of k rollouts passes."""
    pass_hat_k: Estimate
    """All of k rollouts pass."""
    score: Estimate
    zero: Estimate
    """Share of tasks that no rollout solved."""
    full: Estimate
    """Share of tasks that every rollout solved."""
    group_size: int
    """Of the reinforcement that is planned."""
    informative: Estimate
    """Share of groups of that size in which some rollouts pass and some do not."""
    spread: Estimate
    """Share of tasks whose scores differ, partial credit included."""
    within: float
    """Share of a single rollout's variance that repeats of its task show."""
    mix: tuple[MixEntry, ...]
    """Failure classes, of all rollouts, the most frequent first."""
    failures: int
    """Rollouts that count and did not solve their task."""
    truncated: Estimate
    infrastructure: Estimate
    """Share of rollouts that infrastructure spoiled, graders left aside."""
    grader_errors: Estimate
    flips: Estimate | None
    """Share of rollouts that get another score when graded again; None if none was."""
    gold_agreement: float | None
    """Rank correlation with the held-out grader; None if there is none, or no spread."""
    tools: tuple[ToolHealth, ...]
    train_tasks: int
    holdout_tasks: int
    detectable: float
    """Smallest gain of pass@1 that the holdout shows with 80% power."""
    alpha: float
    """One-sided level at which it does."""
    prompt_tokens: float
    """System text, tools, demonstrations and the task itself."""
    observed_tokens: float
    """Fed in, a rollout."""
    sampled_tokens: float
    tool_calls: float
    seconds: float
    """Wall clock per rollout, many running at once."""
    by_task: tuple[TaskStanding, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is planned with what the standing is measured for."""

    pass_threshold: float
    group_size: int
    train_tasks: int
    holdout_tasks: int
    holdout_samples: int = 1
    alpha: float = 0.05
    """One-sided level of the comparison on the holdout."""


def standing(
    rollouts: Sequence[tuple[Task, GradedTrajectory]],
    tools: Sequence[ToolSpec],
    plan: Plan,
    *,
    graded_again: Mapping[str, Sequence[float | None]] | None = None,
) -> Standing:
    """Measure. `graded_again` holds further scores by trajectory id, None where the grader failed.

    Raises ValueError if no rollout counts.
    """
    everyone = [graded for _, graded in rollouts]
    by_task = _by_task(rollouts, tools, plan.pass_threshold)
    counted = [graded for graded in everyone if _counts(graded)]
    if not by_task:
        raise ValueError("no rollout counts: infrastructure or grader spoiled all of them")
    k = max(task.rollouts for task in by_task)
    changes = score_changes(everyone, graded_again or {})
    solved = {task.task_id: [i < task.solved for i in range(task.rollouts)] for task in by_task}
    pass_1, within = rate(solved), _within(by_task)
    return Standing(
        tasks=len(by_task),
        families=len({task.family for task in by_task}),
        rollouts=len(everyone),
        samples=k,
        pass_1=pass_1,
        pass_k=_over_tasks(by_task, lambda n, c: 1 - _all_of(n, n - c, k)),
        pass_hat_k=_over_tasks(by_task, lambda n, c: _all_of(n, c, k)),
        score=mean({task.task_id: [task.mean] for task in by_task}),
        zero=_over_tasks(by_task, lambda _, c: float(c == 0)),
        full=_over_tasks(by_task, lambda n, c: float(c == n)),
        group_size=plan.group_size,
        informative=_over_tasks(by_task, lambda n, c: informative(n, c, plan.group_size)),
        spread=rate({task.task_id: [float(task.sd > SAME)] for task in by_task}),
        within=within,
        mix=failure_mix(rollouts, tools, pass_threshold=plan.pass_threshold),
        failures=sum(task.rollouts - task.solved for task in by_task),
        truncated=_share(counted, lambda g: g.trajectory.stop_reason in CUT),
        infrastructure=_share(everyone, _lost),
        grader_errors=_share(everyone, grader_failed),
        # Each rollout counts alone: it is the grader that is asked.
        flips=rate({name: [change > SAME] for name, change in changes.items()})
        if changes
        else None,
        gold_agreement=_gold_agreement(counted),
        tools=_tool_health(rollouts, tools),
        train_tasks=plan.train_tasks,
        holdout_tasks=plan.holdout_tasks,
        detectable=minimum_detectable(
            plan.holdout_tasks,
            plan.holdout_samples,
            p=pass_1.value,
            within=within,
            alpha=plan.alpha,
        ),
        alpha=plan.alpha,
        prompt_tokens=fmean(g.trajectory.turns[0].observed_tokens for g in counted),
        observed_tokens=fmean(g.trajectory.observed_tokens for g in counted),
        sampled_tokens=fmean(g.trajectory.sampled_tokens for g in counted),
        tool_calls=fmean(len(g.trajectory.tool_calls) for g in counted),
        seconds=_busy_seconds(everyone) / len(everyone),
        by_task=by_task,
    )


def score_changes(
    rollouts: Sequence[GradedTrajectory], again: Mapping[str, Sequence[float | None]]
) -> dict[str, float]:
    """Return by trajectory id how far further scores lie from the first, infinitely if one is None."""
    first = {g.trajectory.id: g.grade.score for g in rollouts if g.grade.score is not None}
    return {
        name: max(math.inf if score is None else abs(score - first[name]) for score in scores)
        for name, scores in again.items()
        if scores
    }


def informative(rollouts: int, solved: int, group_size: int) -> float:
    """Return the chance that a group drawn from a task's rollouts holds passes and failures.

    1 - C(c, G) / C(n, G) - C(n - c, G) / C(n, G); with fewer than G rollouts, all of them.
    """
    alike = _all_of(rollouts, solved, group_size) + _all_of(rollouts, rollouts - solved, group_size)
    return max(0.0, 1 - alike)


def _all_of(rollouts: int, kind: int, draws: int) -> float:
    """Return the chance that so many draws, or all there are, are of a kind."""
    size = min(draws, rollouts)
    return math.comb(kind, size) / math.comb(rollouts, size)


def share_of(found: Standing, classes: Collection[str]) -> Estimate:
    """Return the share of rollouts that fail in one of these ways."""
    return rate({t.task_id: _marks(_count(t, classes), t.rollouts) for t in found.by_task})


def share_of_failures(found: Standing, classes: Collection[str]) -> Estimate:
    """Return the share of failed rollouts that fail in one of these ways; 0 without failures."""
    failed = {
        t.task_id: _marks(_count(t, classes), t.rollouts - t.solved)
        for t in found.by_task
        if t.solved < t.rollouts
    }
    return rate(failed) if failed else Estimate(value=0.0, low=0.0, high=0.0, method="no failure")


def _count(task: TaskStanding, classes: Collection[str]) -> int:
    return sum(count for name, count in task.classes.items() if name in classes)


def _marks(hits: int, of: int) -> list[bool]:
    return [place < hits for place in range(of)]


def _counts(graded: GradedTrajectory) -> bool:
    return graded.outcome is not Outcome.INFRASTRUCTURE_FAULT and graded.grade.score is not None


def _by_task(
    rollouts: Sequence[tuple[Task, GradedTrajectory]], tools: Sequence[ToolSpec], threshold: float
) -> tuple[TaskStanding, ...]:
    seen = diagnoses(rollouts, tools, pass_threshold=threshold)
    scores: dict[str, list[float]] = {}
    classes: dict[str, Counter[str]] = {}
    families: dict[str, str] = {}
    for (task, graded), diagnosis in zip(rollouts, seen, strict=True):
        score = graded.grade.score
        if _counts(graded) and score is not None:
            families[task.id] = task.family
            scores.setdefault(task.id, []).append(score)
            failed = classes.setdefault(task.id, Counter())
            if diagnosis:
                failed[diagnosis.failure_class.value] += 1
    return tuple(
        TaskStanding(
            task_id=task_id,
            family=families[task_id],
            rollouts=len(of_task),
            solved=sum(score >= threshold for score in of_task),
            mean=fmean(of_task),
            sd=pstdev(of_task),
            classes=dict(classes[task_id]),
        )
        for task_id, of_task in scores.items()
    )


def _over_tasks(by_task: Sequence[TaskStanding], value: Callable[[int, int], float]) -> Estimate:
    """Average something between 0 and 1 that follows from a task's rollouts and successes."""
    return rate({task.task_id: [value(task.rollouts, task.solved)] for task in by_task})


def _within(by_task: Sequence[TaskStanding]) -> float:
    """Estimate which share of a rollout's variance lies within tasks; a usual one if nothing varies."""
    repeated = [task for task in by_task if task.rollouts > 1]
    p = fmean(task.solved / task.rollouts for task in by_task)
    if not repeated or p in (0.0, 1.0):
        return WITHIN
    inside = fmean(
        task.solved * (task.rollouts - task.solved) / (task.rollouts * (task.rollouts - 1))
        for task in repeated
    )
    return min(1.0, inside / (p * (1 - p)))


def _share(
    rollouts: Sequence[GradedTrajectory], of: Callable[[GradedTrajectory], bool]
) -> Estimate:
    marks: dict[str, list[bool]] = {}
    for graded in rollouts:
        marks.setdefault(graded.trajectory.task_id, []).append(of(graded))
    return rate(marks)


def grader_failed(graded: GradedTrajectory) -> bool:
    """Whether a rollout has no score through its grader's fault."""
    failure = graded.grade.failure
    return graded.grade.score is None and failure is not None and failure.kind is FailureKind.GRADER


def _lost(graded: GradedTrajectory) -> bool:
    return graded.outcome is Outcome.INFRASTRUCTURE_FAULT and not grader_failed(graded)


def _gold_agreement(rollouts: Sequence[GradedTrajectory]) -> float | None:
    pairs = [
        (graded.grade.score, graded.gold.score)
        for graded in rollouts
        if graded.gold is not None
        and graded.gold.score is not None
        and graded.grade.score is not None
    ]
    if not pairs:
        return None
    return spearman([score for score, _ in pairs], [gold for _, gold in pairs])


def _tool_health(
    rollouts: Sequence[tuple[Task, GradedTrajectory]], tools: Sequence[ToolSpec]
) -> tuple[ToolHealth, ...]:
    names = {tool.name for tool in tools} | {t.name for task, _ in rollouts for t in task.tools}
    results: dict[str, list[ToolResult]] = {name: [] for name in names}
    lost: Counter[str] = Counter()
    for _, graded in rollouts:
        for result in graded.trajectory.tool_results:
            if result.name in names and not result.guard:
                results[result.name].append(result)
        failure = graded.trajectory.failure
        if failure and failure.kind is not FailureKind.MODEL:
            lost[failure.where] += 1
    return tuple(
        ToolHealth(
            name=name,
            calls=len(found),
            complaints=sum(result.is_error for result in found),
            lost=lost[f"tool {name!r}"],
            p95_s=sorted(r.duration_s for r in found)[math.ceil(0.95 * len(found)) - 1]
            if found
            else None,
        )
        for name, found in sorted(results.items())
    )


def _busy_seconds(rollouts: Sequence[GradedTrajectory]) -> float:
    """Return for how long at least one rollout was running; breaks of a resumed run do not count."""
    busy, until = 0.0, -math.inf
    for began, lasted in sorted(
        (g.trajectory.started_at, g.trajectory.duration_s) for g in rollouts
    ):
        busy += max(0.0, began + lasted - max(began, until))
        until = max(until, began + lasted)
    return busy
