"""Reinforcement fine-tuning: roll out, grade, step, publish, prove, repeat."""

import asyncio
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Protocol

from agentrft.core.errors import ConfigError, PausedError, UserError
from agentrft.core.grade import Group
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Sampler, Trainer
from agentrft.core.run import RolloutRecord, StepMetrics
from agentrft.core.sample import Sample
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Task
from agentrft.core.training_config import ReinforcementConfig
from agentrft.jobs.canaries import canary_tasks, reference_texts
from agentrft.jobs.checkpoints import CheckpointKeeper, Retention
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.evaluation import Measurement, stored_records, stored_summaries
from agentrft.jobs.following import Follower, StepResult, ValidationLines
from agentrft.jobs.monitoring import Monitoring
from agentrft.jobs.publication import Publisher, refuse_other_versions
from agentrft.jobs.serving import ServedModel, no_weights
from agentrft.jobs.task_choice import TaskStream
from agentrft.jobs.validation import STAGE, Clock, TaskSets, Validation, scores_of
from agentrft.rollout.dialogue import TokenSpeaker
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.group import Collected, collect
from agentrft.training.credit import credited_group
from agentrft.training.refusals import refused

TURNS = "task_turns"
"""What a checkpoint's cursor calls the position in the stream of tasks."""


class StormError(PausedError):
    """Too many rollouts are lost to infrastructure; the run stops instead of learning from the rest."""


async def reinforce(
    job: Job,
    setup: RolloutSetup,
    trainer: Trainer,
    tasks: TaskSets,
    config: ReinforcementConfig,
    *,
    first_step: int,
    concurrency: int,
    retention: Retention | None = None,
    follower: Follower | None = None,
) -> Checkpoint:
    """Train the policy on graded rollouts from `first_step` on and return the checkpoint to deliver.

    Raises ConfigError for settings that would not mean what they say, IdentityError if the sampler
    does not serve the trainer's weights, StormError after `max_storm_steps` steps in a row that lost
    half their groups to infrastructure, MonitorAlarmError if a monitor acts and may pause the run.
    """
    if reason := refused(config):
        raise ConfigError(f"methods.reinforcement.{reason}")
    follower = follower or ValidationLines(job)
    validation, monitoring = _watched(job, setup, tasks, config, concurrency)
    keeper = CheckpointKeeper(
        job,
        trainer,
        interval=config.checkpoint_interval,
        first_step=first_step,
        last_step=config.steps,
        retention=_retention(retention or Retention(), tasks),
        follower=follower,
        scores=validation.scores(),
        spec_hash=setup.harness.spec_hash,
    )
    publisher = Publisher(trainable(setup), bound=config.identity_bound)
    setup, _ = await published(setup, publisher, trainer)
    # Checkpoints of the versions before this key took `tasks_per_step` turns a step, and no others.
    turns = trainer.cursor.get(TURNS, first_step * config.tasks_per_step)
    stream = TaskStream(tasks.train, config.tasks, seed=job.run.seed, position=turns)
    _recall(job, stream)
    storms = 0

    async def close(result: StepResult, *, told: bool) -> None:
        result = await validation.after(result, setup)
        if result.validation is not None:
            keeper.validated(result.step, scores_of(result.validation))
        if not told:
            follower.stepped(result)
        monitoring.after(result)

    with job.progress.phase("reinforcement: steps", config.steps - first_step) as phase:
        async with keeper.snapshot_on(Stopped, PausedError):
            if first_step == 0:
                await validation.before_training(setup)
            monitoring.recall(first_step)
            if first_step > 0:
                told = follower.has_told(first_step) and not validation.is_unfinished(first_step)
                await close(stored_step(job, first_step), told=told)
            for step in range(first_step, config.steps):
                clock = Clock()
                roll_out = partial(
                    collect,
                    setup,
                    group_size=config.group_size,
                    temperature=config.temperature,
                    concurrency=concurrency,
                    on_trajectory=phase.rollout,
                )
                seed = derive_seed(job.run.seed, "step", step)
                harvest = await job.unless_stopped(
                    rounds(roll_out, stream, config, seed=seed, screen=monitoring.screen)
                )
                collected = harvest.collected
                clock.mark("rollout")
                storms = _count_storm(job, collected, config, storms, step + 1)
                refuse_other_versions(collected.groups, setup.policy.version)
                trained = await asyncio.to_thread(trainer.step, harvest.samples)
                clock.mark("training")
                setup, identity = await published(setup, publisher, trainer)
                clock.mark("publication")
                metrics = {**trained, **rollout_metrics(harvest), **identity, **clock.seconds}
                result = _commit(job, step + 1, collected, metrics)
                stream.note(_scores(result.train))
                place = {TURNS: stream.position}
                keeper.committed(step + 1, setup.policy.version, metrics, place)
                await close(result, told=False)
                await keeper.after_step()
                phase.advance()
    return keeper.deliver()


@dataclass(frozen=True, slots=True, kw_only=True)
class Harvest:
    """What the rollouts of one step come to."""

    collected: Collected
    samples: tuple[Sample, ...]
    informative: int
    """Groups that gave samples."""
    rounds: int


class RollOut(Protocol):
    """Make one group of rollouts per task."""

    async def __call__(self, tasks: Sequence[Task], *, seed: int) -> Collected:
        """Some of the groups may be lost to infrastructure."""
        ...


async def rounds(
    roll_out: RollOut,
    stream: TaskStream,
    config: ReinforcementConfig,
    *,
    seed: int,
    screen: Callable[[Collected], Collected],
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
    )


def _scores(records: Iterable[RolloutRecord]) -> Iterator[tuple[str, float | None]]:
    return ((r.graded.trajectory.task_id, r.graded.grade.score) for r in records)


def _recall(job: Job, stream: TaskStream) -> None:
    """Tell the stream the scores of all steps that are stored."""
    stored = stored_summaries(job, STAGE, "train")
    for _, of_step in groupby(stored, key=lambda summary: summary.step):
        stream.note((summary.task_id, summary.score) for summary in of_step)


def trainable(setup: RolloutSetup) -> Sampler:
    """Return the sampler whose rollouts may be trained on. Raises UserError with the way there."""
    if not isinstance(setup.speaker, TokenSpeaker):
        raise no_weights(setup.policy.model)
    if setup.policy.spec.decoding.grammar != "off":
        raise UserError(
            f"the spec draws tokens under a grammar (decoding.grammar = "
            f"{setup.policy.spec.decoding.grammar!r}), and the trainer would compute other "
            "probabilities than the sampler; set it to 'off' for training"
        )
    return setup.speaker.sampler


def _watched(
    job: Job, setup: RolloutSetup, tasks: TaskSets, config: ReinforcementConfig, concurrency: int
) -> tuple[Validation, Monitoring]:
    canaries = canary_tasks(
        tasks.train,
        tasks.grader,
        setup.open_environment,
        share=config.monitors.canary_share,
        seed=job.run.seed,
    )
    validation = Validation(job, tasks, config, canaries=canaries, concurrency=concurrency)
    references = reference_texts(tasks.train, tasks.grader)
    return validation, Monitoring(job, config.monitors, validation, references=references)


def _retention(retention: Retention, tasks: TaskSets) -> Retention:
    """Keep the best checkpoint if a held-out grader tells which it is: it is the run's result."""
    return replace(retention, best=max(1, retention.best)) if tasks.gold_grader else retention


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


async def serving(job: Job, model: ServedModel, checkpoint: Path | None) -> RolloutSetup:
    """Return a setup that acts with the base model, or with a checkpoint once proven to be served."""
    if checkpoint is None:
        return model.setup()
    config = model.project.config.methods.reinforcement
    # Of the losses the one that reads no reference: acting needs none.
    trainer = model.trainer(config.trainer, "cross_entropy", seed=job.run.seed, start=checkpoint)
    publisher = Publisher(model.sampler, bound=config.identity_bound)
    setup, _ = await published(model.setup(), publisher, trainer)
    return setup


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
            "Repair it, then resume"
        )
    return storms + 1


def _commit(job: Job, step: int, collected: Collected, metrics: Mapping[str, float]) -> StepResult:
    """Store the step's metrics and every rollout, lost ones included, in one transaction."""
    rollouts = [
        RolloutRecord(
            stage=STAGE, split="train", step=step, family=group.task.family, graded=graded
        )
        for group in (*collected.groups, *collected.lost_groups)
        for graded in (*group.graded, *group.dropped)
    ]
    job.append([StepMetrics(step=step, values=metrics), *rollouts])
    return StepResult(step=step, metrics=metrics, train=rollouts)


def stored_step(job: Job, step: int) -> StepResult:
    """Read a step's result back, without its validation."""
    metrics = next(found for found in job.read_all(StepMetrics) if found.step == step)
    train = stored_records(job, Measurement(stage=STAGE, split="train", step=step))
    return StepResult(step=step, metrics=metrics.values, train=train)


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
    }
    return metrics | {name: sum(values) / len(values) for name, values in per_rollout.items()}
