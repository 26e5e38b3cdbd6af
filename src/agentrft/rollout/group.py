"""Groups of rollouts of one task, run concurrently. One bad rollout never stops a step.

Keep a group if enough survive, else replace the failed rollouts once with fresh seeds, else drop
it. Results come in task order, whatever finished first.
"""

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from agentrft.core.grade import GradedTrajectory, Group, Outcome, survivors_needed
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Task
from agentrft.rollout.episode import RolloutSetup, in_order, run_episode

OnTrajectory = Callable[[GradedTrajectory], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Collected:
    """What a round of rollouts gave."""

    groups: tuple[Group, ...]
    """Those that count."""
    lost_groups: tuple[Group, ...] = ()
    """Too few survivors even after the refill; for the record, never for training."""


def counts(group: Group, group_size: int) -> bool:
    """Whether enough of a group survived. One rollout per task (evaluation) needs just itself."""
    return len(group.survivors) >= min(group_size, survivors_needed(group_size))


async def run_group(
    setup: RolloutSetup,
    task: Task,
    *,
    group_size: int,
    seed: int,
    temperature: float | None = None,
    on_trajectory: OnTrajectory | None = None,
    slots: asyncio.Semaphore | None = None,
) -> Group:
    """Run a group, refilling once if too few survive; the caller checks `counts`.

    `slots` bounds rollouts that run at the same time across groups.
    """
    slots = slots or asyncio.Semaphore(group_size)

    async def rollout(index: int, attempt: int) -> GradedTrajectory:
        async with slots:
            rollout_seed = derive_seed(seed, "rollout", task.id, index, attempt)
            graded = await run_episode(setup, task, seed=rollout_seed, temperature=temperature)
        if on_trajectory is not None:
            on_trajectory(graded)
        return graded

    graded = await in_order([rollout(index, 0) for index in range(group_size)])
    group = Group(task=task, policy_version=setup.policy.version, graded=tuple(graded))
    if counts(group, group_size):
        return group
    failed = [i for i, g in enumerate(graded) if g.outcome is Outcome.INFRASTRUCTURE_FAULT]
    dropped = tuple(graded[index] for index in failed)
    refill = await in_order([rollout(index, 1) for index in failed])
    for index, replacement in zip(failed, refill, strict=True):
        graded[index] = replacement
    return replace(group, graded=tuple(graded), dropped=dropped)


async def collect(
    setup: RolloutSetup,
    tasks: Sequence[Task],
    *,
    group_size: int,
    seed: int,
    temperature: float | None = None,
    concurrency: int = 64,
    on_trajectory: OnTrajectory | None = None,
) -> Collected:
    """Run one group per task, at most `concurrency` rollouts at a time, results in task order."""
    slots = asyncio.Semaphore(concurrency)
    met = Counter[str]()

    def own_seed(task: Task) -> int:
        # A task that comes twice would else be rolled out twice alike, under the same trace ids.
        met[task.id] += 1
        again = met[task.id] - 1
        return derive_seed(seed, "again", again) if again else seed

    groups = await in_order(
        [
            run_group(
                setup,
                task,
                group_size=group_size,
                seed=own_seed(task),
                temperature=temperature,
                on_trajectory=on_trajectory,
                slots=slots,
            )
            for task in tasks
        ]
    )
    return Collected(
        groups=tuple(group for group in groups if counts(group, group_size)),
        lost_groups=tuple(group for group in groups if not counts(group, group_size)),
    )
