"""From rollouts to the numbers of a report. Pure: no files, no drawing.

Dropped rollouts (infrastructure faults) are counted and left out of every mean.
"""

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.run import RolloutRecord, Split, StepMetrics
from agentrft.measure.advisor import Advice
from agentrft.measure.monitors import Alarm
from agentrft.measure.search_summary import Retest, SearchSummary
from agentrft.measure.statistics import (
    Estimate,
    PairedDifference,
    holm,
    mean,
    paired_difference,
    pass_at_k,
    pass_hat_k,
    rate,
)

HOLDOUT_LOOKS = 5
"""From so many looks at one holdout on, a report asks for fresh tasks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageResult:
    """What one stage left behind: its rollouts of every split, and its training metrics."""

    name: str
    """As shown, e.g. `base`, `warm start`, `reinforcement`."""
    records: Sequence[RolloutRecord]
    """Those of the report's split are compared; training and validation are drawn by their step."""
    metrics: Sequence[StepMetrics] = ()
    alarms: Sequence[Alarm] = ()
    """What monitors raised while it trained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInput:
    """Everything a report is made from."""

    project: str
    stages: tuple[StageResult, ...]
    """In the order they were climbed; each is compared with the one before."""
    pass_threshold: float
    """Score from which a rollout counts as solved."""
    model: str = ""
    run_id: str = ""
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The resolved config."""
    seeds: tuple[int, ...] = ()
    phase_s: Mapping[str, float] = field(default_factory=dict[str, float])
    """Wall seconds by phase."""
    created_at: float = 0.0
    """Unix time."""
    split: Split = "holdout"
    """Which rollouts measure a stage."""
    holdout_looks: int = 1
    """How often this holdout has been measured, this time included."""
    caveats: tuple[str, ...] = ()
    """What happened before the stages that a reader must know; shown among the warnings."""
    search: SearchSummary | None = None
    """What a search before weights found; None if there was none."""
    search_examples: tuple[RolloutRecord, ...] = ()
    """The rollouts that `search` names."""
    advice: tuple[Advice, ...] = ()
    """In the order given, each after a measurement."""
    retests: tuple[Retest, ...] = ()
    """What the spec's changes were worth after each training."""
    control: StageResult | None = None
    """Several rollouts per task of the best spec without training, from which the best is chosen; None
    if that was not measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One kind of task within a stage."""

    name: str
    tasks: int
    pass_at_1: Estimate
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One stage on the report's split."""

    tasks: int
    rollouts: int
    dropped: int
    """Infrastructure faults, left out."""
    model_faults: int
    """Scored, but stopped by a failure of the model's own."""
    pass_at_1: Estimate
    repeats: int
    """Fewest rollouts of a task; the k of the next two."""
    pass_at_k: float
    pass_hat_k: float
    score: Estimate
    tool_calls: Estimate
    sampled_tokens: Estimate
    seconds: Estimate
    stop_reasons: Mapping[str, int]
    families: tuple[Family, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepPoint:
    """The rollouts of one split at one step, averaged."""

    step: int
    rollouts: int
    tasks: int
    score: float
    score_sd: float
    """Over rollouts."""
    low: float
    high: float
    """95% interval of the mean score, clustered by task."""
    tool_calls: float
    sampled_tokens: float
    gold: float | None
    """Mean of the held-out grader; None if it was not asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpread:
    """How the scores of one task vary over its rollouts."""

    task_id: str
    family: str
    rollouts: int
    mean: float
    sd: float
    best: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSummary:
    """One stage in numbers."""

    name: str
    measured: Measured | None
    """None if the stage has no graded rollout of the report's split."""
    training: tuple[StepPoint, ...]
    validation: tuple[StepPoint, ...]
    spread_split: Split | None
    """Split that `spread` is about; None without repeated rollouts."""
    spread: tuple[TaskSpread, ...]
    """Each task's last group of at least two rollouts of one policy, sorted by mean score."""
    metrics: tuple[StepMetrics, ...]
    alarms: tuple[Alarm, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two stages over the same tasks; differences are second minus first."""

    first: str
    second: str
    pass_at_1: PairedDifference
    adjusted_p: float
    """Holm's, over the comparisons of this report."""
    score: PairedDifference
    tool_calls: PairedDifference
    sampled_tokens: PairedDifference
    seconds: PairedDifference


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A report in numbers."""

    stages: tuple[StageSummary, ...]
    comparisons: tuple[Comparison, ...]
    warnings: tuple[str, ...]


def summarize(given: ReportInput) -> Summary:
    """Return the numbers of a report."""
    stages = tuple(_stage(stage, given) for stage in given.stages)
    comparisons = _comparisons(given)
    return Summary(
        stages=stages,
        comparisons=comparisons,
        warnings=tuple(_warnings(given, stages)),
    )


def measured_tasks(stage: StageResult, split: Split) -> dict[str, list[GradedTrajectory]]:
    """Return a stage's graded rollouts of a split by task."""
    return by_task(record for record in stage.records if record.split == split)


def _stage(stage: StageResult, given: ReportInput) -> StageSummary:
    split, spread = _spread(stage)
    return StageSummary(
        name=stage.name,
        measured=_measured(stage, given),
        training=_points(stage, "train"),
        validation=_points(stage, "validation"),
        spread_split=split,
        spread=spread,
        metrics=tuple(stage.metrics),
        alarms=tuple(stage.alarms),
    )


def _measured(stage: StageResult, given: ReportInput) -> Measured | None:
    records = [record for record in stage.records if record.split == given.split]
    tasks = by_task(records)
    if not tasks:
        return None
    graded = [g for of_task in tasks.values() for g in of_task]
    solved = passed(tasks, given.pass_threshold)
    repeats = min(map(len, solved.values()))
    stops = Counter(g.trajectory.stop_reason.value for g in graded)
    return Measured(
        tasks=len(tasks),
        rollouts=len(graded),
        dropped=len(records) - len(graded),
        model_faults=sum(g.outcome is Outcome.MODEL_FAULT for g in graded),
        pass_at_1=rate(solved),
        repeats=repeats,
        pass_at_k=pass_at_k(solved, repeats),
        pass_hat_k=pass_hat_k(solved, repeats),
        score=mean(_each(tasks, score_of)),
        tool_calls=mean(_each(tasks, tool_calls_of)),
        sampled_tokens=mean(_each(tasks, tokens_of)),
        seconds=mean(_each(tasks, seconds_of)),
        stop_reasons=dict(stops.most_common()),
        families=_families(records, given.pass_threshold),
    )


def _families(records: Sequence[RolloutRecord], threshold: float) -> tuple[Family, ...]:
    families: list[Family] = []
    for name in sorted({record.family for record in records}):
        tasks = by_task(record for record in records if record.family == name)
        if tasks:
            scores = [_average(of_task, score_of) for of_task in tasks.values()]
            families.append(
                Family(
                    name=name,
                    tasks=len(tasks),
                    pass_at_1=rate(passed(tasks, threshold)),
                    score=statistics.fmean(scores),
                )
            )
    return tuple(families)


def _points(stage: StageResult, split: Split) -> tuple[StepPoint, ...]:
    by_step: dict[int, list[RolloutRecord]] = {}
    for record in stage.records:
        if record.split == split:
            by_step.setdefault(record.step, []).append(record)
    points: list[StepPoint] = []
    for step, records in sorted(by_step.items()):
        tasks = by_task(records)
        if not tasks:
            continue
        graded = [g for of_task in tasks.values() for g in of_task]
        scores = [score_of(g) for g in graded]
        interval = mean(_each(tasks, score_of))
        points.append(
            StepPoint(
                step=step,
                rollouts=len(graded),
                tasks=len(tasks),
                score=statistics.fmean(scores),
                score_sd=statistics.pstdev(scores),
                low=interval.low,
                high=interval.high,
                tool_calls=_average(graded, tool_calls_of),
                sampled_tokens=_average(graded, tokens_of),
                gold=_gold(graded),
            )
        )
    return tuple(points)


def _gold(rollouts: Sequence[GradedTrajectory]) -> float | None:
    golds = [g.gold.score for g in rollouts if g.gold and g.gold.score is not None]
    return statistics.fmean(golds) if golds else None


def _spread(stage: StageResult) -> tuple[Split | None, tuple[TaskSpread, ...]]:
    """Per-task spread on the first split with repeats under one policy: each task's last group."""
    splits: tuple[Split, ...] = ("holdout", "validation", "train")
    for split in splits:
        groups: dict[tuple[str, int], list[RolloutRecord]] = {}
        for record in stage.records:
            if record.split == split and record.graded.outcome is not Outcome.INFRASTRUCTURE_FAULT:
                key = (record.graded.trajectory.task_id, record.step)
                groups.setdefault(key, []).append(record)
        repeated = sorted(key for key, group in groups.items() if len(group) > 1)
        last = {task: groups[task, step] for task, step in repeated}
        if last:
            spread = [_task_spread(task, group) for task, group in last.items()]
            return split, tuple(sorted(spread, key=lambda s: (s.mean, s.best, s.task_id)))
    return None, ()


def _task_spread(task: str, group: Sequence[RolloutRecord]) -> TaskSpread:
    scores = [score_of(record.graded) for record in group]
    return TaskSpread(
        task_id=task,
        family=group[0].family,
        rollouts=len(group),
        mean=statistics.fmean(scores),
        sd=statistics.pstdev(scores),
        best=max(scores),
    )


_Stage = tuple[str, dict[str, list[GradedTrajectory]]]
"""Name, and rollouts by task."""


def _comparisons(given: ReportInput) -> tuple[Comparison, ...]:
    measured = [
        (stage.name, tasks)
        for stage in given.stages
        if (tasks := measured_tasks(stage, given.split))
    ]
    steps = [*itertools.pairwise(measured), *_last_with_the_best_before(measured, given)]
    pairs = [(first, second) for first, second in steps if first[1].keys() & second[1].keys()]
    passes = [
        paired_difference(passed(first, given.pass_threshold), passed(second, given.pass_threshold))
        for (_, first), (_, second) in pairs
    ]
    adjusted = holm([difference.p_value for difference in passes])
    return tuple(
        Comparison(
            first=first_name,
            second=second_name,
            pass_at_1=difference,
            adjusted_p=p,
            score=_paired(first, second, score_of),
            tool_calls=_paired(first, second, tool_calls_of),
            sampled_tokens=_paired(first, second, tokens_of),
            seconds=_paired(first, second, seconds_of),
        )
        for ((first_name, first), (second_name, second)), difference, p in zip(
            pairs, passes, adjusted, strict=True
        )
    )


def _last_with_the_best_before(
    measured: Sequence[_Stage], given: ReportInput
) -> Iterator[tuple[_Stage, _Stage]]:
    """Compare the last stage with the best one before it too, if a worse one lies between."""
    if len(measured) > 2:
        earlier = [(_pass_rate(stage, given), -n) for n, stage in enumerate(measured[:-1])]
        best = -max(earlier)[1]
        if best < len(measured) - 2:
            yield measured[best], measured[-1]


def _pass_rate(stage: _Stage, given: ReportInput) -> float:
    return rate(passed(stage[1], given.pass_threshold)).value


def _warnings(given: ReportInput, stages: Sequence[StageSummary]) -> Iterable[str]:
    yield from given.caveats
    if given.holdout_looks > HOLDOUT_LOOKS:
        yield (
            f"This holdout has been measured {given.holdout_looks} times; every look makes it "
            "easier to fool yourself. Collect fresh tasks."
        )
    for stage in given.stages:
        for alarm in stage.alarms:
            if alarm.level == "act":
                yield f"{stage.name}, step {alarm.step}: {alarm.message}."
    ids: set[str] | None = None
    for stage, summary in zip(given.stages, stages, strict=True):
        if summary.measured is None:
            continue
        faults, rollouts = summary.measured.dropped, summary.measured.rollouts
        if faults > 0.01 * (rollouts + faults):
            yield (
                f"{stage.name}: {faults} of {rollouts + faults} {given.split} rollouts were dropped "
                "for infrastructure faults; the rest may not be a fair sample."
            )
        tasks = set(measured_tasks(stage, given.split))
        if ids is not None and tasks != ids:
            yield (
                f"{stage.name} was measured on other tasks than the stage before; "
                f"the comparison uses the {len(tasks & ids)} they share."
            )
        ids = tasks


def score_of(graded: GradedTrajectory) -> float:
    """Return the score of a graded rollout."""
    score = graded.grade.score
    if score is None:
        raise ValueError(f"trajectory {graded.trajectory.id!r} is not graded")
    return score


def tool_calls_of(graded: GradedTrajectory) -> float:
    """Return how many tool calls a rollout made."""
    return float(len(graded.trajectory.tool_calls))


def tokens_of(graded: GradedTrajectory) -> float:
    """Return how many tokens a rollout sampled."""
    return float(graded.trajectory.sampled_tokens)


def seconds_of(graded: GradedTrajectory) -> float:
    """Return how long a rollout took, in seconds."""
    return graded.trajectory.duration_s


def by_task(records: Iterable[RolloutRecord]) -> dict[str, list[GradedTrajectory]]:
    """Return graded rollouts by task, infrastructure faults left out."""
    tasks: dict[str, list[GradedTrajectory]] = {}
    for record in records:
        if record.graded.outcome is not Outcome.INFRASTRUCTURE_FAULT:
            tasks.setdefault(record.graded.trajectory.task_id, []).append(record.graded)
    return tasks


def passed(
    tasks: Mapping[str, Sequence[GradedTrajectory]], threshold: float
) -> dict[str, list[bool]]:
    """Return whether each rollout solved its task."""
    return {task: [score_of(g) >= threshold for g in graded] for task, graded in tasks.items()}


def _each(
    tasks: Mapping[str, Sequence[GradedTrajectory]], number: Callable[[GradedTrajectory], float]
) -> dict[str, list[float]]:
    return {task: [number(g) for g in graded] for task, graded in tasks.items()}


def _paired(
    first: Mapping[str, Sequence[GradedTrajectory]],
    second: Mapping[str, Sequence[GradedTrajectory]],
    number: Callable[[GradedTrajectory], float],
) -> PairedDifference:
    return paired_difference(_each(first, number), _each(second, number))


def _average(
    graded: Iterable[GradedTrajectory], number: Callable[[GradedTrajectory], float]
) -> float:
    return statistics.fmean(map(number, graded))
