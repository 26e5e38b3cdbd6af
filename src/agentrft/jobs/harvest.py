"""What a training step learns from: rollouts of chosen tasks, made on time or one step ahead."""

import asyncio
import math
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from agentrft.core.grade import GradedTrajectory, Group
from agentrft.core.sample import Sample
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Task
from agentrft.core.training_config import ReinforcementConfig
from agentrft.jobs.context import Job
from agentrft.jobs.task_choice import TaskStream
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.group import Collected, collect
from agentrft.training.credit import credited_group

Screen = Callable[[Collected], Collected]


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvest:
    """What the rollouts of one step come to."""

    collected: Collected
    samples: tuple[Sample, ...]
    informative: int
    """Groups that gave samples."""
    rounds: int
    position: int
    """Of the stream of tasks, once they were taken."""
    version: int
    """Policy that made them."""


class RollOut(Protocol):
    """Make one group of rollouts per task."""

    async def __call__(self, tasks: Sequence[Task], *, seed: int) -> Collected:
        """Some of the groups may be lost to infrastructure."""
        ...


class Harvester:
    """Rolls out for one step at a time, which may begin before the step before it has trained."""

    def __init__(
        self,
        job: Job,
        stream: TaskStream,
        config: ReinforcementConfig,
        *,
        screen: Screen,
        concurrency: int,
        on_trajectory: Callable[[GradedTrajectory], None],
    ) -> None:
        self._job, self._stream, self._config, self._screen = job, stream, config, screen
        self._collect = partial(
            collect,
            group_size=config.group_size,
            temperature=config.temperature,
            concurrency=concurrency,
            on_trajectory=on_trajectory,
        )
        self._begun: asyncio.Task[Harvest] | None = None

    def begin(self, step: int, setup: RolloutSetup) -> None:
        """Start the rollouts of a step, which all act under this setup; needs a running loop."""
        work: Coroutine[Any, Any, Harvest] = rounds(
            partial(self._collect, setup),
            self._stream,
            self._config,
            seed=derive_seed(self._job.run.seed, "step", step),
            screen=self._screen,
            version=setup.policy.version,
        )
        self._begun = asyncio.ensure_future(work)

    async def harvest(self, step: int, setup: RolloutSetup) -> Harvest:
        """Return the step's rollouts, beginning them if need be. Raises Stopped if the user asks to."""
        if self._begun is None:
            self.begin(step, setup)
        assert self._begun is not None
        begun, self._begun = self._begun, None
        return await self._job.unless_stopped(_awaited(begun))

    async def aclose(self) -> None:
        """Give up what was begun."""
        if self._begun is not None:
            self._begun.cancel()
            await asyncio.gather(self._begun, return_exceptions=True)


async def _awaited(begun: asyncio.Task[Harvest]) -> Harvest:
    return await begun


async def rounds(
    roll_out: RollOut,
    stream: TaskStream,
    config: ReinforcementConfig,
    *,
    seed: int,
    screen: Screen,
    version: int,
) -> Harvest:
    """Roll out further tasks until enough groups teach something or the rounds are used up.

    Every group that teaches is kept, also those beyond `tasks_per_step`: the loss is a mean over
    sequences, so more of them only calm it, and an agent's rollouts cost more than training on them.
    (DAPO cuts the batch to an even size.) A round that infrastructure spoils is the last.
    """
    groups: list[Group] = []
    lost: list[Group] = []
    samples: list[Sample] = []
    informative = number = 0
    while number < config.tasks.rounds and informative < config.tasks_per_step:
        wanted = math.ceil((config.tasks_per_step - informative) * config.tasks.oversampling)
        round_seed = derive_seed(seed, "round", number) if number else seed
        found = screen(await roll_out(stream.take(wanted), seed=round_seed))
        number += 1
        groups += found.groups
        lost += found.lost_groups
        for group in found.groups:
            credited = credited_group(group, config.credit, temperature=config.temperature)
            samples += credited
            informative += bool(credited)
        if len(found.lost_groups) > len(found.groups):
            break
    return Harvest(
        collected=Collected(groups=tuple(groups), lost_groups=tuple(lost)),
        samples=tuple(samples),
        informative=informative,
        rounds=number,
        position=stream.position,
        version=version,
    )


def rollout_metrics(harvest: Harvest) -> dict[str, float]:
    """Return the step's means over surviving rollouts: reward, parts, calls, tokens, counts."""
    collected = harvest.collected
    survivors = [graded for group in collected.groups for graded in group.survivors]
    everyone = [
        graded
        for group in (*collected.groups, *collected.lost_groups)
        for graded in (*group.graded, *group.dropped)
    ]
    screened = sum(bool(graded.screened) for graded in everyone)
    metrics = {
        "rollouts": float(len(survivors)),
        "rollouts_dropped": float(len(everyone) - len(survivors) - screened),
        "rollouts_screened": float(screened),
        "groups": float(len(collected.groups)),
        "groups_lost": float(len(collected.lost_groups)),
        "groups_without_spread": float(len(collected.groups) - harvest.informative),
        "rounds": float(harvest.rounds),
    }
    if collected.groups:
        metrics["spread_share"] = harvest.informative / len(collected.groups)
    if not survivors:
        return metrics
    scores = [graded.grade.score for graded in survivors if graded.grade.score is not None]
    metrics["reward"] = sum(scores) / len(scores)
    by_turn = [score for graded in survivors for score in graded.grade.turn_scores]
    if by_turn:
        metrics["turn_score"] = sum(by_turn) / len(by_turn)
    parts: dict[str, list[float]] = {}
    for graded in survivors:
        for name, value in graded.grade.parts.items():
            parts.setdefault(name, []).append(value)
    metrics |= {f"score/{name}": sum(values) / len(values) for name, values in parts.items()}
    per_rollout = {
        "tool_calls": [len(g.trajectory.tool_calls) for g in survivors],
        "turns": [len(g.trajectory.turns) for g in survivors],
        "sampled_tokens": [g.trajectory.sampled_tokens for g in survivors],
        "observed_tokens": [g.trajectory.observed_tokens for g in survivors],
        "parse_failures": [
            sum(len(t.parse_failures) for t in g.trajectory.turns) for g in survivors
        ],
        "rollout_s/line": [sum(t.waited_s for t in g.trajectory.turns) for g in survivors],
        "rollout_s/sampling": [sum(t.sampling_s for t in g.trajectory.turns) for g in survivors],
        "rollout_s/tools": [sum(t.tools_s for t in g.trajectory.turns) for g in survivors],
    }
    return metrics | {name: sum(values) / len(values) for name, values in per_rollout.items()}
