"""Reinforcement fine-tuning: roll out, grade, step, publish, prove, repeat."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agentrft.core.config import EvaluationConfig, ReinforcementConfig
from agentrft.core.errors import AgentRFTError
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Trainer
from agentrft.core.run import RolloutRecord, StepMetrics
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Task
from agentrft.jobs.checkpoints import CheckpointKeeper
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement, evaluate
from agentrft.jobs.publication import Publisher, refuse_other_versions
from agentrft.jobs.supervised import shuffled_batch
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.group import Collected, collect
from agentrft.training.credit import centred

STAGE = "reinforcement"


class StormError(AgentRFTError):
    """Too many rollouts are lost to infrastructure; the run stops instead of learning from the rest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSets:
    """What reinforcement reads: it learns from `train` and watches `validation`."""

    train: Sequence[Task]
    validation: Sequence[Task] = ()


async def reinforce(
    job: Job,
    setup: RolloutSetup,
    trainer: Trainer,
    tasks: TaskSets,
    config: ReinforcementConfig,
    *,
    first_step: int,
    concurrency: int,
) -> Checkpoint:
    """Train the policy on graded rollouts from `first_step` on and return the last checkpoint.

    Raises IdentityError if the sampler does not serve the trainer's weights, StormError after
    `max_storm_steps` steps in a row that lost half their groups to infrastructure.
    """
    keeper = CheckpointKeeper(job, interval=config.checkpoint_interval, last_step=config.steps)
    publisher = Publisher(setup.sampler, bound=config.identity_bound)
    setup, _ = await published(setup, publisher, trainer)
    storms = 0
    with job.progress.phase("reinforcement: steps", config.steps - first_step) as phase:
        for step in range(first_step, config.steps):
            batch = shuffled_batch(tasks.train, step, config.tasks_per_step, job.run.seed)
            clock = Clock()
            collected = await job.unless_stopped(
                collect(
                    setup,
                    batch,
                    group_size=config.group_size,
                    seed=derive_seed(job.run.seed, "step", step),
                    temperature=config.temperature,
                    concurrency=concurrency,
                    on_trajectory=phase.rollout,
                )
            )
            clock.mark("rollout")
            storms = _count_storm(job, collected, config, storms, step + 1)
            refuse_other_versions(collected.groups, setup.policy.version)
            samples = [
                sample
                for group in collected.groups
                for sample in centred(group, temperature=config.temperature)
            ]
            trained = await asyncio.to_thread(trainer.step, samples)
            clock.mark("training")
            setup, identity = await published(setup, publisher, trainer)
            clock.mark("publication")
            metrics = {**trained, **rollout_metrics(collected), **identity, **clock.seconds}
            _commit(job, step + 1, collected, metrics)
            await keeper.after_step(trainer, step + 1, setup.policy.version, metrics)
            if config.validation_interval and (step + 1) % config.validation_interval == 0:
                await _validate(job, setup, tasks.validation, config, step + 1, concurrency)
            phase.advance()
    return job.checkpoint()


async def published(
    setup: RolloutSetup, publisher: Publisher, trainer: Trainer
) -> tuple[RolloutSetup, dict[str, float]]:
    """Publish the trainer's weights; return the setup that acts with them and what was measured."""
    weights = await asyncio.to_thread(trainer.weights)
    policy, publication = await publisher.publish(weights, setup.policy)
    measured = {"identity_difference": publication.mean_difference}
    if publication.move is not None:
        measured["identity_move"] = publication.move
    return replace(setup, policy=policy), measured


def _count_storm(
    job: Job, collected: Collected, config: ReinforcementConfig, storms: int, step: int
) -> int:
    """Return how many steps in a row lost half their groups; raise when it is a storm."""
    lost = collected.lost_groups
    if not lost:
        return 0
    reasons = Counter(
        f"{graded.trajectory.failure.where}: {graded.trajectory.failure.message}"
        if graded.trajectory.failure
        else graded.grade.failure.message
        if graded.grade.failure
        else "unknown"
        for group in lost
        for graded in (*group.graded, *group.dropped)
        if graded.grade.score is None
    )
    worst, count = reasons.most_common(1)[0] if reasons else ("unknown", 0)
    total = len(lost) + len(collected.groups)
    job.event(
        f"step {step}: {len(lost)} of {total} groups lost to infrastructure, "
        f"most often ({count} rollouts): {worst}",
        level="warn",
        step=step,
    )
    if len(lost) * 2 <= total:
        return 0
    if storms + 1 >= config.max_storm_steps:
        raise StormError(
            f"{storms + 1} steps in a row lost more than half of their groups; most often: {worst}. "
            "Repair it, then continue with --resume"
        )
    return storms + 1


def _commit(job: Job, step: int, collected: Collected, metrics: Mapping[str, float]) -> None:
    """Store the step's metrics and every rollout, lost ones included, in one transaction."""
    rollouts = [
        RolloutRecord(
            stage=STAGE, split="train", step=step, family=group.task.family, graded=graded
        )
        for group in (*collected.groups, *collected.lost_groups)
        for graded in (*group.graded, *group.dropped)
    ]
    job.append([StepMetrics(step=step, values=metrics), *rollouts])


async def _validate(
    job: Job,
    setup: RolloutSetup,
    tasks: Sequence[Task],
    config: ReinforcementConfig,
    step: int,
    concurrency: int,
) -> None:
    records = await evaluate(
        job,
        setup,
        tasks,
        EvaluationConfig(temperature=config.temperature, tasks=config.validation_tasks),
        Measurement(stage=STAGE, split="validation", step=step, seed=job.run.seed),
        concurrency=concurrency,
    )
    scores = [r.graded.grade.score for r in records if r.graded.grade.score is not None]
    mean = sum(scores) / len(scores) if scores else float("nan")
    job.event(
        f"step {step}: validation score {mean:.3f} on {len(scores)} tasks", step=step, score=mean
    )


def rollout_metrics(collected: Collected) -> dict[str, float]:
    """Return the step's means over surviving rollouts: reward, parts, calls, tokens, counts."""
    survivors = [graded for group in collected.groups for graded in group.survivors]
    everyone = [
        graded
        for group in (*collected.groups, *collected.lost_groups)
        for graded in (*group.graded, *group.dropped)
    ]
    metrics = {
        "rollouts": float(len(survivors)),
        "rollouts_dropped": float(len(everyone) - len(survivors)),
        "groups": float(len(collected.groups)),
        "groups_lost": float(len(collected.lost_groups)),
        "groups_without_spread": float(sum(not group.has_spread for group in collected.groups)),
    }
    if not survivors:
        return metrics
    scores = [graded.grade.score for graded in survivors if graded.grade.score is not None]
    metrics["reward"] = sum(scores) / len(scores)
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
    }
    return metrics | {name: sum(values) / len(values) for name, values in per_rollout.items()}


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        """End a phase here."""
        now = time.monotonic()
        self.seconds[f"seconds/{phase}"] = now - self._last
        self._last = now
