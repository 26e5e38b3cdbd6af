"""A standing without rollouts behind it, for what is decided on its numbers alone."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from agentrft.measure.standing import Standing, TaskStanding
from agentrft.measure.statistics import Estimate


def an_estimate(value: float, margin: float = 0.05) -> Estimate:
    return Estimate(value=value, low=value - margin, high=value + margin, method="test")


def failing(tasks: int, rollouts: int, classes: Mapping[str, int]) -> tuple[TaskStanding, ...]:
    """Tasks whose rollouts fail in these ways, counted per task; the rest is solved."""
    failed = sum(classes.values())
    return tuple(
        TaskStanding(
            task_id=f"t{n}",
            family="f",
            rollouts=rollouts,
            solved=rollouts - failed,
            mean=1 - failed / rollouts,
            sd=0.1,
            classes=classes,
        )
        for n in range(tasks)
    )


HEALTHY = Standing(
    tasks=50,
    families=5,
    rollouts=400,
    samples=8,
    pass_1=an_estimate(0.4),
    pass_k=an_estimate(0.8),
    pass_hat_k=an_estimate(0.2),
    score=an_estimate(0.4),
    zero=an_estimate(0.2),
    full=an_estimate(0.1),
    group_size=8,
    informative=an_estimate(0.6),
    spread=an_estimate(0.7),
    within=0.5,
    mix=(),
    failures=240,
    truncated=an_estimate(0.0),
    infrastructure=an_estimate(0.0),
    grader_errors=an_estimate(0.0),
    flips=an_estimate(0.0),
    gold_agreement=0.95,
    tools=(),
    train_tasks=300,
    holdout_tasks=200,
    detectable=0.08,
    alpha=0.05,
    prompt_tokens=400.0,
    observed_tokens=500.0,
    sampled_tokens=100.0,
    tool_calls=2.0,
    seconds=0.3,
    by_task=failing(50, 8, {"wrong plan": 5}),
)
"""Nothing is out of order, and reinforcement is what remains once the search is through."""


def but(**changes: Any) -> Standing:
    """The healthy standing with some numbers changed; plain numbers become estimates."""
    estimated = {
        name: an_estimate(value) if isinstance(getattr(HEALTHY, name), Estimate) else value
        for name, value in changes.items()
    }
    return replace(HEALTHY, **estimated)
