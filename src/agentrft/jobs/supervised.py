"""Supervised fine-tuning: imitate demonstrations, token by token as the policy would sample them."""

import asyncio
import random
from collections.abc import Sequence
from typing import TypeVar

from agentrft.core.config import SupervisedConfig
from agentrft.core.errors import DataError
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Trainer
from agentrft.core.run import StepMetrics
from agentrft.core.sample import Sample
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Task
from agentrft.inference.renderer import ChatRenderer
from agentrft.jobs.checkpoints import CheckpointKeeper
from agentrft.jobs.context import Job
from agentrft.jobs.project import Project
from agentrft.rollout.episode import prompt_messages, visible_tools
from agentrft.training.credit import imitation

T = TypeVar("T")


async def imitate(
    job: Job,
    trainer: Trainer,
    samples: Sequence[Sample],
    config: SupervisedConfig,
    *,
    first_step: int,
) -> Checkpoint:
    """Train on demonstrations from `first_step` on and return the last checkpoint."""
    keeper = CheckpointKeeper(job, interval=config.checkpoint_interval, last_step=config.steps)
    with job.progress.phase("supervised: steps", config.steps - first_step) as phase:
        for step in range(first_step, config.steps):
            batch = shuffled_batch(samples, step, config.batch_size, job.run.seed)
            metrics = await asyncio.to_thread(trainer.step, batch)
            job.append([StepMetrics(step=step + 1, values=metrics)])
            await keeper.after_step(trainer, step + 1, step + 1, metrics)
            phase.note(f"loss {metrics['loss']:.3f}")
            phase.advance()
    return job.checkpoint()


def demonstration_samples(project: Project, renderer: ChatRenderer) -> list[Sample]:
    """Render the project's demonstrations exactly as a rollout would have produced them."""
    samples: list[Sample] = []
    limit = project.spec.limits.max_context_tokens
    for demonstration in project.demonstrations():
        task = Task(id=demonstration.id, messages=demonstration.messages, tools=demonstration.tools)
        messages = prompt_messages(project.spec.system, task.messages)
        tools = visible_tools(project.tools, task, project.spec.tool_notes)
        token_ids, action_mask = renderer.demonstration(messages, tools)
        if len(token_ids) > limit:
            raise DataError(
                f"demonstration {demonstration.id!r} has {len(token_ids)} tokens, the limit "
                f"max_context_tokens is {limit}; shorten it or raise the limit"
            )
        samples.append(imitation(token_ids, action_mask, demonstration.id))
    if not samples:
        raise DataError(
            f"{project.folder}: no demonstrations; set data.demonstrations in agent.toml to a file"
        )
    return samples


def shuffled_batch(items: Sequence[T], step: int, size: int, seed: int) -> list[T]:
    """Return the batch of a step: a new seeded order each epoch, computed from counters alone."""
    batch: list[T] = []
    for position in range(step * size, (step + 1) * size):
        epoch, index = divmod(position, len(items))
        order = list(range(len(items)))
        random.Random(derive_seed(seed, "epoch", epoch)).shuffle(order)
        batch.append(items[order[index]])
    return batch
