"""Supervised fine-tuning: imitate demonstrations, token by token as the policy would sample them."""

import asyncio
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from agentrft.core.errors import DataError
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Trainer
from agentrft.core.run import StepMetrics
from agentrft.core.sample import Sample
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Demonstration
from agentrft.core.training_config import SupervisedConfig
from agentrft.jobs.checkpoints import CheckpointKeeper, Retention
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.following import Follower, StepResult, ValidationLines
from agentrft.jobs.project import Project
from agentrft.jobs.serving import DemonstrationRenderer
from agentrft.rollout.harness import Harness
from agentrft.training.credit import imitation

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Demonstrations that are scored every `interval` steps and never imitated."""

    samples: Sequence[Sample]
    interval: int


async def imitate(
    job: Job,
    trainer: Trainer,
    samples: Sequence[Sample],
    config: SupervisedConfig,
    *,
    first_step: int,
    held_out: HeldOut | None = None,
    retention: Retention | None = None,
    follower: Follower | None = None,
    spec_hash: str = "",
) -> Checkpoint:
    """Train on demonstrations from `first_step` on and return the last checkpoint.

    `spec_hash` names the spec under which they were rendered, for the record.
    """
    follower = follower or ValidationLines(job)
    keeper = CheckpointKeeper(
        job,
        trainer,
        interval=config.checkpoint_interval,
        first_step=first_step,
        last_step=config.steps,
        retention=retention or Retention(),
        follower=follower,
        scores={},
        spec_hash=spec_hash,
    )
    with job.progress.phase("supervised: steps", config.steps - first_step) as phase:
        async with keeper.snapshot_on(Stopped):
            for step in range(first_step + 1, config.steps + 1):
                batch = shuffled_batch(samples, step - 1, config.batch_size, job.run.seed)
                metrics = await asyncio.to_thread(trainer.step, batch)
                if held_out and (step % held_out.interval == 0 or step == config.steps):
                    loss = await asyncio.to_thread(mean_loss, trainer, held_out.samples)
                    metrics = {**metrics, "validation_loss": loss}
                job.append([StepMetrics(step=step, values=metrics)])
                keeper.committed(step, step, metrics)
                follower.stepped(StepResult(step=step, metrics=metrics))
                await keeper.after_step()
                phase.note(f"loss {metrics['loss']:.3f}")
                phase.advance()
    return job.checkpoint()


def mean_loss(trainer: Trainer, samples: Sequence[Sample]) -> float:
    """Return the mean negative log-probability of imitated tokens, in nats."""
    scored = trainer.score([sample.token_ids for sample in samples])
    logprobs = [
        logprob
        for sample, row in zip(samples, scored, strict=True)
        for logprob, action in zip(row, sample.action_mask[1:], strict=True)
        if action
    ]
    return -sum(logprobs) / len(logprobs)


def demonstration_samples(
    project: Project,
    renderer: DemonstrationRenderer,
    demonstrations: Sequence[Demonstration] | None = None,
) -> list[Sample]:
    """Render conversations exactly as a rollout would have produced them; None takes the project's.

    Raises DataError for one that does not fit into the context.
    """
    given = project.demonstrations() if demonstrations is None else demonstrations
    samples = rendered(given, project, renderer)
    limit = project.spec.limits.max_context_tokens
    for sample in samples:
        if len(sample.token_ids) > limit:
            raise DataError(
                f"demonstration {sample.trajectory_id!r} has {len(sample.token_ids)} tokens, the "
                f"limit max_context_tokens is {limit}; shorten it or raise the limit"
            )
    if not samples:
        raise DataError(
            f"{project.folder}: no demonstrations; set data.demonstrations in agent.toml to a file"
        )
    return samples


def rendered(
    demonstrations: Sequence[Demonstration],
    project: Project,
    renderer: DemonstrationRenderer,
    *,
    longest: int | None = None,
) -> list[Sample]:
    """Render conversations to imitate; what is longer than `longest` tokens is cut at the end.

    Those that keep nothing to imitate are left out.
    """
    samples: list[Sample] = []
    harness = Harness(project.spec)
    for demonstration in demonstrations:
        seen = harness.demonstration(demonstration, project.offered(demonstration))
        token_ids, action_mask = renderer.demonstration(seen.messages, seen.tools)
        own = imitated(action_mask, demonstration.imitated, before=seen.shown)
        mask = list(own)[:longest]
        if any(mask):
            samples.append(imitation(token_ids[:longest], mask, demonstration.id))
    return samples


def imitated(
    action_mask: Sequence[bool], wanted: Sequence[bool], *, before: int = 0
) -> Iterator[bool]:
    """Leave out assistant messages that are not wanted, and those `before` the demonstration's own.

    Each message is one run of True in the mask; `wanted` empty means all.
    """
    messages, inside = -1 - before, False
    for action in action_mask:
        messages += action and not inside
        inside = action
        yield action and messages >= 0 and (not wanted or wanted[messages])


def shuffled_batch(items: Sequence[T], step: int, size: int, seed: int) -> list[T]:
    """Return the batch of a step: a new seeded order each epoch, computed from counters alone."""
    batch: list[T] = []
    for position in range(step * size, (step + 1) * size):
        epoch, index = divmod(position, len(items))
        order = list(range(len(items)))
        random.Random(derive_seed(seed, "epoch", epoch)).shuffle(order)
        batch.append(items[order[index]])
    return batch
