"""What the checks before a fine-tuning job measure. Pure: rows, calls and rollouts in, counts out.

Rollouts lost to infrastructure are counted and left out of every mean.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.task import Demonstration, Preference, Task
from agentrft.core.trajectory import StopReason, Trajectory
from agentrft.measure.standing import SAME, grader_failed, score_changes

WRONG_ADDRESS = frozenset({401, 403, 404, 405, 410})
"""Statuses that speak of the URL or the headers rather than of the arguments."""
RESERVED = frozenset({"messages", "tools", "id", "family"})
"""Keys of a row that a grader's `item` is not about."""
LONG_REFERENCE = 500
"""Characters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RowFacts:
    """What the files hold."""

    rows: int
    validation_rows: int
    with_tools: int
    """Training rows that list tools."""
    duplicates: int
    """Training rows whose messages (of a pair: with both outputs) and tools an earlier one has."""
    shared: int
    """Validation rows whose messages and tools a training row has."""
    equal_outputs: int = 0
    """Training pairs whose two outputs are the same."""
    uneven_keys: tuple[str, ...] = ()
    """Extra keys that only some training rows have."""
    missing: Mapping[str, int] = field(default_factory=dict[str, int])
    """Keys that the grader reads, with the number of rows that lack them."""
    constant: tuple[str, ...] = ()
    """Keys that the grader reads and that hold the same in every row."""
    long: tuple[str, ...] = ()
    """Keys that the grader reads and that hold over 500 characters on average."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthFacts:
    """How supervised rows, or pairs, fit into the context."""

    rendered: int
    """Rows that have something to imitate, or to compare, at all."""
    limit_tokens: int
    mean_tokens: float | None
    longest_tokens: int
    cut: int
    """Rows longer than the limit."""
    unlearnable: int
    """Rendered rows without a token that carries loss within the limit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeCall:
    """One trial call of a tool."""

    seconds: float
    problem: str = ""
    """Why a rollout would have been dropped here; empty if the tool answered."""
    refusal: int | None = None
    """HTTP status, if the server refused the call without an answer for the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolFacts:
    """How one tool answered."""

    name: str
    alive: bool
    calls: int
    failed: int
    """Calls that would have dropped a rollout, retries included."""
    refused: int
    """Calls refused with 4xx and no `output`; the model sees such a refusal."""
    alone_s: float
    """The first call, made alone."""
    p50_s: float | None = None
    """Of the burst."""
    p95_s: float | None = None
    problem: str = ""
    """The first failure or refusal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutFacts:
    """What the untouched model did on a sample of tasks."""

    rollouts: int
    per_task: int
    """Rollouts asked of each task, the k of `best_of_k`."""
    dropped: int
    dropped_where: Mapping[str, int]
    """The five most frequent causes."""
    truncated: int
    """Surviving rollouts that a limit ended."""
    mean: float | None
    lowest: float | None
    highest: float | None
    pass_rate: float | None
    """Share of surviving rollouts that reach the pass threshold."""
    best_of_k: float | None
    """Mean over tasks of the best score: what choosing among k rollouts would give."""
    tasks: int
    """Tasks with at least two scores."""
    tasks_with_spread: int
    seconds_mean: float | None
    sampled_tokens_mean: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class GraderFacts:
    """How the grader behaved."""

    tried: int
    """Base rollouts it looked at."""
    crashed: int
    first_crash: str = ""
    regraded: int = 0
    """Trajectories that it graded again, unchanged."""
    changed: int = 0
    """Of those, the ones that got another score or none."""
    largest_change: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """Everything that was measured; what was not is None."""

    method: Literal["supervised", "dpo", "reinforcement"]
    rows: RowFacts
    lengths: LengthFacts | None = None
    tools: tuple[ToolFacts, ...] = ()
    rollouts: RolloutFacts | None = None
    grader: GraderFacts | None = None


Row = Task | Demonstration | Preference


def row_facts(
    train: Sequence[Row],
    validation: Sequence[Row],
    *,
    grader_keys: Sequence[str] = (),
) -> RowFacts:
    """Look at the rows; `grader_keys` are the keys of `item` that the grader reads."""
    prompts = Counter(_content(row) for row in train)
    pairs = [row for row in train if isinstance(row, Preference)]
    items = [row.row for row in train if isinstance(row, Task)]
    have = Counter(key for item in items for key in item if key not in RESERVED)
    held = {key: [str(item[key]) for item in items if key in item] for key in grader_keys}
    return RowFacts(
        rows=len(train),
        validation_rows=len(validation),
        with_tools=sum(bool(row.tools) for row in train),
        duplicates=len(train) - len(prompts),
        shared=sum(_content(row) in prompts for row in validation),
        equal_outputs=sum(pair.preferred == pair.rejected for pair in pairs),
        uneven_keys=tuple(sorted(key for key, count in have.items() if count < len(items))),
        missing={
            key: len(items) - len(values)
            for key, values in held.items()
            if len(values) < len(items)
        },
        constant=tuple(
            key for key, values in held.items() if len(values) > 1 and len(set(values)) == 1
        ),
        long=tuple(
            key
            for key, values in held.items()
            if values and sum(map(len, values)) / len(values) > LONG_REFERENCE
        ),
    )


def length_facts(action_masks: Sequence[Sequence[bool]], limit_tokens: int) -> LengthFacts:
    """Measure rendered rows, each as the mask of its tokens that carry loss."""
    lengths = [len(mask) for mask in action_masks]
    return LengthFacts(
        rendered=len(lengths),
        limit_tokens=limit_tokens,
        mean_tokens=_mean([float(length) for length in lengths]),
        longest_tokens=max(lengths, default=0),
        cut=sum(length > limit_tokens for length in lengths),
        unlearnable=sum(not any(mask[:limit_tokens]) for mask in action_masks),
    )


def tool_facts(name: str, alone: ProbeCall, burst: Sequence[ProbeCall]) -> ToolFacts:
    """Sum up the trial calls of a tool: one alone, then many at once (none if that one failed)."""
    calls = (alone, *burst)
    problems = [call.problem or f"HTTP {call.refusal}" for call in calls if not _answered(call)]
    refused = [call.refusal for call in calls if call.refusal is not None]
    lost = all(refusal in WRONG_ADDRESS for refusal in refused) and len(refused) == len(calls)
    seconds = sorted(call.seconds for call in burst)
    return ToolFacts(
        name=name,
        alive=not alone.problem and not lost,
        calls=len(calls),
        failed=sum(bool(call.problem) for call in calls),
        refused=len(refused),
        alone_s=alone.seconds,
        p50_s=_quantile(seconds, 0.5),
        p95_s=_quantile(seconds, 0.95),
        problem=problems[0] if problems else "",
    )


def rollout_facts(
    rollouts: Sequence[GradedTrajectory], *, per_task: int, pass_threshold: float
) -> RolloutFacts:
    """Sum up base rollouts; those lost to infrastructure are counted and left out of every mean."""
    lost = [r for r in rollouts if r.outcome is Outcome.INFRASTRUCTURE_FAULT]
    survivors = [r for r in rollouts if r.outcome is not Outcome.INFRASTRUCTURE_FAULT]
    by_task: dict[str, list[float]] = {}
    for rollout in survivors:
        if rollout.grade.score is not None:
            by_task.setdefault(rollout.trajectory.task_id, []).append(rollout.grade.score)
    scores = [score for of_task in by_task.values() for score in of_task]
    repeated = [of_task for of_task in by_task.values() if len(of_task) > 1]
    failures = [r.grade.failure or r.trajectory.failure for r in lost]
    return RolloutFacts(
        rollouts=len(rollouts),
        per_task=per_task,
        dropped=len(lost),
        dropped_where=dict(
            Counter(f"{f.where}: {f.message}" if f else "unknown" for f in failures).most_common(5)
        ),
        truncated=sum(_is_cut_off(r.trajectory) for r in survivors),
        mean=_mean(scores),
        lowest=min(scores, default=None),
        highest=max(scores, default=None),
        pass_rate=_mean([float(score >= pass_threshold) for score in scores]),
        best_of_k=_mean([max(of_task) for of_task in by_task.values()]),
        tasks=len(repeated),
        tasks_with_spread=sum(max(s) - min(s) > SAME for s in repeated),
        seconds_mean=_mean([r.trajectory.duration_s for r in survivors]),
        sampled_tokens_mean=_mean([float(r.trajectory.sampled_tokens) for r in survivors]),
    )


def grader_facts(
    rollouts: Sequence[GradedTrajectory], again: Mapping[str, Sequence[float | None]]
) -> GraderFacts:
    """Sum up the grader; `again` holds by trajectory id the further scores, None for a crash."""
    crashes = [r.grade.failure for r in rollouts if grader_failed(r) and r.grade.failure]
    changes = score_changes(rollouts, again).values()
    return GraderFacts(
        tried=sum(r.grade.score is not None for r in rollouts) + len(crashes),
        crashed=len(crashes),
        first_crash=crashes[0].message if crashes else "",
        regraded=len(changes),
        changed=sum(change > SAME for change in changes),
        largest_change=max((change for change in changes if change < math.inf), default=0.0),
    )


def _content(row: Row) -> object:
    outputs = (row.preferred, row.rejected) if isinstance(row, Preference) else ()
    return row.messages, outputs, tuple(tool.name for tool in row.tools)


def _is_cut_off(trajectory: Trajectory) -> bool:
    """Whether a limit ended it. A single turn that ends with calls is whole where nobody answers."""
    single = trajectory.stop_reason is StopReason.MAX_TURNS and len(trajectory.turns) == 1
    return trajectory.stop_reason is not StopReason.FINISHED and not single


def _answered(call: ProbeCall) -> bool:
    return not call.problem and call.refusal is None


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _quantile(ordered: Sequence[float], share: float) -> float | None:
    """Return the smallest value that at least this share does not exceed."""
    return ordered[math.ceil(share * len(ordered)) - 1] if ordered else None
