"""Policies with planted pass rates and costs."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from report_builders import rollout

from agentrft.core.grade import Grade
from agentrft.core.run import RolloutRecord
from agentrft.core.task import Message
from agentrft.measure.arms import Arm, RolloutKey, rollout_key

READ, WRITTEN = 60, 40
"""Tokens of a planted rollout."""


def sampled(
    task: str,
    score: float | None,
    number: int = 0,
    *,
    tokens: float = 1.0,
    start: float | None = None,
    duration: float = 2.0,
    spec: str = "s",
    name: str = "",
    asked: str = "",
    graded_by: str = "g",
) -> RolloutRecord:
    """Return the `number`-th rollout of a task; `tokens` is a multiple of the planted ones."""
    record = rollout(task, score, calls=1, trace=f"{name}{task}-{number}")
    (turn,) = record.graded.trajectory.turns
    actions = int(WRITTEN * tokens)
    trajectory = replace(
        record.graded.trajectory,
        turns=(
            replace(
                turn,
                observation_ids=(1,) * int(READ * tokens),
                action_ids=(2,) * actions,
                behavior_logprobs=(-0.5,) * actions,
            ),
        ),
        spec_hash=spec,
        prompt=(
            Message(role="system", content=spec),
            Message(role="user", content=asked or f"do {task}"),
        ),
        started_at=1000.0 + (number if start is None else start),
        duration_s=duration,
    )
    graded = replace(
        record.graded,
        trajectory=trajectory,
        grade=replace(record.graded.grade, grader=graded_by),
    )
    return replace(record, graded=graded)


def policy(name: str, scores: Mapping[str, Sequence[float | None]], **kwargs: Any) -> Arm:
    """Return an arm with these scores by task; `sampled` takes the rest, `Arm` what it knows."""
    of_arm = {key: kwargs.pop(key) for key in ("training", "trained", "grader") if key in kwargs}
    records = [
        sampled(task, score, number, name=name, **kwargs)
        for task, of_task in scores.items()
        for number, score in enumerate(of_task)
    ]
    return Arm(name=name, records=records, **of_arm)


def solving(share: float, tasks: int = 40, samples: int = 1, *, shift: int = 0) -> dict[str, Any]:
    """Return scores of which this share is 1, spread over rollouts, the first tasks first."""
    total = tasks * samples
    flat = [float((place + shift) % total < round(share * total)) for place in range(total)]
    return {f"t{n}": [flat[n + tasks * s] for s in range(samples)] for n in range(tasks)}


def verdicts(arm: Arm, said: Mapping[str, float], **kwargs: Any) -> dict[RolloutKey, Grade]:
    """Return a verifier's word on rollouts by their id; 0 where nothing is said."""
    keys = [rollout_key(record.graded.trajectory) for record in arm.records]
    return {key: Grade(score=said.get(key[0], 0.0), grader="v", **kwargs) for key in keys}
