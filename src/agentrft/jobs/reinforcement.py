"""Reinforcement fine-tuning: roll out, grade, step, publish, prove, repeat."""

import asyncio
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import aclosing
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Self

from agentrft.core.errors import ConfigError, PausedError, UserError
from agentrft.core.policy import Checkpoint, Weights
from agentrft.core.protocols import Sampler, Trainer
from agentrft.core.run import RolloutRecord, StepMetrics
from agentrft.core.training_config import ReinforcementConfig
from agentrft.jobs.canaries import canary_tasks, reference_texts
from agentrft.jobs.checkpoints import CheckpointKeeper, Retention
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.evaluation import Measurement, stored_records, stored_summaries
from agentrft.jobs.following import Follower, StepResult, ValidationLines
from agentrft.jobs.harvest import Harvester, rollout_metrics
from agentrft.jobs.monitoring import Monitoring
from agentrft.jobs.publication import Publisher, refuse_other_versions
from agentrft.jobs.serving import ServedModel, no_weights
from agentrft.jobs.task_choice import TaskStream
from agentrft.jobs.validation import STAGE, Clock, TaskSets, Validation, scores_of
from agentrft.rollout.dialogue import TokenSpeaker
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.group import Collected
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
    acting = await Acting.begin(setup, trainable(setup), trainer, bound=config.identity_bound)
    # Checkpoints of the versions before this key took `tasks_per_step` turns a step, and no others.
    turns = trainer.cursor.get(TURNS, first_step * config.tasks_per_step)
    stream = TaskStream(tasks.train, config.tasks, seed=job.run.seed, position=turns)
    _recall(job, stream)
    storms = 0

    async def close(result: StepResult, *, told: bool) -> None:
        result = await validation.after(result, acting.setup)
        if result.validation is not None:
            keeper.validated(result.step, scores_of(result.validation))
        if not told:
            follower.stepped(result)
        monitoring.after(result)

    with job.progress.phase("reinforcement: steps", config.steps - first_step) as phase:
        harvester = Harvester(
            job,
            stream,
            config,
            screen=monitoring.screen,
            concurrency=concurrency,
            on_trajectory=phase.rollout,
        )
        async with keeper.snapshot_on(Stopped, PausedError), aclosing(harvester):
            if first_step == 0:
                await validation.before_training(acting.setup)
            monitoring.recall(first_step)
            if first_step > 0:
                told = follower.has_told(first_step) and not validation.is_unfinished(first_step)
                await close(stored_step(job, first_step), told=told)
            for step in range(first_step, config.steps):
                clock = Clock()
                harvest = await harvester.harvest(step, acting.setup)
                clock.mark("rollout")
                storms = _count_storm(job, harvest.collected, config, storms, step + 1)
                refuse_other_versions(harvest.collected.groups, harvest.version)
                stream.note(_scores(harvest.collected))
                facts = {**rollout_metrics(harvest), "staleness": acting.version - harvest.version}
                runs_ahead = _may_run_ahead(config, validation, step + 1)
                if runs_ahead:
                    facts |= await acting.catch_up()
                    harvester.begin(step + 1, acting.setup)
                clock.mark("publication")
                facts |= await asyncio.to_thread(trainer.step, harvest.samples)
                clock.mark("training")
                acting.behind = await asyncio.to_thread(trainer.weights)
                if not runs_ahead:
                    facts |= await acting.catch_up()
                clock.mark("publication")
                result = _commit(job, step + 1, harvest.collected, {**facts, **clock.seconds})
                keeper.committed(
                    step + 1, acting.version, result.metrics, {TURNS: harvest.position}
                )
                await close(result, told=False)
                await keeper.after_step()
                phase.advance()
    return keeper.deliver()


def _may_run_ahead(config: ReinforcementConfig, validation: Validation, step: int) -> bool:
    """Whether the rollouts of the step after this one may begin before this one has trained.

    Not across a checkpoint, so that a run resumed from it ends like one that was never interrupted,
    nor across an evaluation, which is of the newest weights.
    """
    pauses = step % config.checkpoint_interval == 0 or validation.is_due(step)
    return config.staleness > 0 and step < config.steps and not pauses


def _scores(collected: Collected) -> Iterator[tuple[str, float | None]]:
    return (
        (graded.trajectory.task_id, graded.grade.score)
        for group in (*collected.groups, *collected.lost_groups)
        for graded in (*group.graded, *group.dropped)
    )


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


class Acting:
    """The setup that rolls out, and newer weights until nothing acts under the old ones any more."""

    def __init__(self, setup: RolloutSetup, publisher: Publisher) -> None:
        self.setup = setup
        self.behind: Weights | None = None
        self._publisher = publisher

    @classmethod
    async def begin(
        cls, setup: RolloutSetup, sampler: Sampler, trainer: Trainer, *, bound: float
    ) -> Self:
        """Serve the trainer's weights. Raises IdentityError if the sampler cannot be shown to."""
        acting = cls(setup, Publisher(sampler, bound=bound))
        acting.behind = await asyncio.to_thread(trainer.weights)
        await acting.catch_up()
        return acting

    @property
    def version(self) -> int:
        """Of the newest weights, served or not."""
        return self.setup.policy.version if self.behind is None else self.behind.version

    async def catch_up(self) -> dict[str, float]:
        """Serve the newest weights, if they are not yet; return what was measured of them."""
        if self.behind is None:
            return {}
        policy, publication = await self._publisher.publish(self.behind, self.setup.policy)
        self.setup, self.behind = replace(self.setup, policy=policy), None
        measured = {"identity_difference": publication.mean_difference}
        if publication.move is not None:
            measured["identity_move"] = publication.move
        return measured


async def serving(job: Job, model: ServedModel, checkpoint: Path | None) -> RolloutSetup:
    """Return a setup that acts with the base model, or with a checkpoint once proven to be served."""
    if checkpoint is None:
        return model.setup()
    config = model.project.config.methods.reinforcement
    # Of the losses the one that reads no reference: acting needs none.
    trainer = model.trainer(config.trainer, "cross_entropy", seed=job.run.seed, start=checkpoint)
    begun = Acting.begin(model.setup(), model.sampler, trainer, bound=config.identity_bound)
    return (await begun).setup


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
