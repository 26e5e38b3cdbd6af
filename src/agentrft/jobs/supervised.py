"""Supervised fine-tuning: imitate conversations, token by token as the policy would sample them.

`learn` is the loop of every method that learns from a fixed set of rows.
"""

import asyncio
import hashlib
import math
import random
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from agentrft.core.errors import ConfigError, DataError
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Trainer
from agentrft.core.run import StepMetrics
from agentrft.core.sample import Sample
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Demonstration
from agentrft.core.training_config import PreferenceConfig, SupervisedConfig
from agentrft.jobs.checkpoints import CheckpointKeeper, Retention, ValidationScores
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.following import Follower, StepResult, ValidationLines, held_out_line
from agentrft.jobs.project import Project
from agentrft.jobs.serving import DemonstrationRenderer, ServedModel, first_step
from agentrft.rollout.harness import Harness
from agentrft.store.datasets import read_demonstrations
from agentrft.training.credit import imitation

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeldOut:
    """Rows that are scored every `interval` steps and never learned from."""

    samples: Sequence[Sample]
    interval: int


async def imitate(
    job: Job,
    model: ServedModel,
    samples: Sequence[Sample],
    config: SupervisedConfig,
    start: Path | None,
) -> Checkpoint:
    """Train on samples made under the project's spec, each a row of its own; see `learn`."""
    held_out = held_out_samples(job, model.project, model.renderer, config, rows=len(samples))
    return await learn(
        job,
        model.resumed_trainer(job, config.trainer, "cross_entropy", start),
        [(sample,) for sample in samples],
        config,
        held_out=held_out,
        spec_hash=model.project.spec.hash,
    )


async def learn(
    job: Job,
    trainer: Trainer,
    rows: Sequence[Sequence[Sample]],
    config: SupervisedConfig | PreferenceConfig,
    *,
    held_out: HeldOut | None = None,
    retention: Retention | None = None,
    follower: Follower | None = None,
    spec_hash: str = "",
) -> Checkpoint:
    """Train on rows, in an order of their own each epoch, to the last step; return what it left.

    A row's samples are never torn apart. `spec_hash` names the spec under which they were rendered,
    for the record. Where rows are held out, the checkpoint with their lowest loss is kept beside the
    newest ones, and the run's result names its step. Raises ConfigError if the run has begun with
    other rows.
    """
    follower, first = follower or ValidationLines(job), first_step(trainer)
    _require_same_rows(job, rows, held_out, begun=first > 0)
    keeper = CheckpointKeeper(
        job,
        trainer,
        interval=config.checkpoint_interval or epoch_steps(len(rows), config.batch_size),
        first_step=first,
        last_step=config.steps,
        retention=retention or Retention(best=int(held_out is not None)),
        follower=follower,
        scores={s: ValidationScores(loss=loss) for s, loss in stored_losses(job).items()},
        spec_hash=spec_hash,
    )
    if held_out and first == 0:
        before = await _look(trainer, held_out)
        job.event(f"before step 1: {held_out_line(before)}")
        job.note_result(held_out_before=before)
    with job.progress.phase(f"{job.run.method}: steps", config.steps - first) as phase:
        async with keeper.snapshot_on(Stopped):
            for step in range(first + 1, config.steps + 1):
                batch = shuffled_batch(rows, step - 1, config.batch_size, job.run.seed)
                metrics = await asyncio.to_thread(trainer.step, _flat(batch))
                if held_out and (step % held_out.interval == 0 or step == config.steps):
                    metrics = {**metrics, **await _look(trainer, held_out)}
                job.append([StepMetrics(step=step, values=metrics)])
                keeper.committed(step, step, metrics)
                # A loss that is no number is less than none, so it must not be the lowest.
                if math.isfinite(metrics.get(LOSS, math.nan)):
                    keeper.validated(step, ValidationScores(loss=metrics[LOSS]))
                follower.stepped(StepResult(step=step, metrics=metrics))
                await keeper.after_step()
                phase.note(f"loss {metrics['loss']:.3f}")
                phase.advance()
    if losses := stored_losses(job):
        # Of equal ones the last, as among checkpoints.
        job.note_result(best_step=min(losses, key=lambda step: (losses[step], -step)))
    return job.checkpoint()


def _require_same_rows(
    job: Job, rows: Sequence[Sequence[Sample]], held_out: HeldOut | None, *, begun: bool
) -> None:
    """Note what the rows are; a run that goes on with others would end as no run ever does."""
    digest = hashlib.sha256()
    for row in (*rows, held_out.samples if held_out else ()):
        for sample in row:
            digest.update(array("q", sample.token_ids).tobytes() + bytes(sample.action_mask))
    told = digest.hexdigest()[:16]
    if begun and job.run.result.get(ROWS, told) != told:
        raise ConfigError(
            f"run {job.run.id} cannot go on: it began with other rows than its data and spec give "
            "now; restore them, or start a new run"
        )
    job.note_result(**{ROWS: told})


def _flat(rows: Sequence[Sequence[Sample]]) -> list[Sample]:
    """Return the samples of a batch; a pair that comes twice, where an epoch ends, counts twice."""
    return [
        replace(sample, pair=f"{place}: {sample.pair}") if sample.pair else sample
        for place, row in enumerate(rows)
        for sample in row
    ]


ROWS = "rows_hash"
"""In a run's result: of the rows as they are learned from, those held out included."""
LOSS = "validation_loss"
"""What a step's metrics call the loss on held-out rows."""


async def _look(trainer: Trainer, held_out: HeldOut) -> Mapping[str, float]:
    """Measure held-out rows; the names of a step's metrics with `validation_` before them."""
    measured = await asyncio.to_thread(trainer.measure, held_out.samples)
    return {f"validation_{name}": value for name, value in measured.items()}


def stored_losses(job: Job) -> dict[int, float]:
    """Return the loss on held-out rows by step, where it was measured and is a number."""
    stored = job.read_all(StepMetrics)
    return {
        step.step: step.values[LOSS]
        for step in stored
        if LOSS in step.values and math.isfinite(step.values[LOSS])
    }


def epoch_steps(rows: int, batch_size: int) -> int:
    """Return the steps that an epoch takes, the last one begun counted whole."""
    return max(1, math.ceil(rows / batch_size))


def demonstration_samples(
    job: Job,
    project: Project,
    renderer: DemonstrationRenderer,
    demonstrations: Sequence[Demonstration] | None = None,
) -> list[Sample]:
    """Render conversations exactly as a rollout would have produced them; None takes the project's.

    What is longer than the context is cut at the end, with a warning. Raises DataError if there is
    nothing to imitate.
    """
    given = project.demonstrations() if demonstrations is None else demonstrations
    if not given:
        raise DataError(
            f"{project.folder}: no demonstrations; set data.demonstrations in agent.toml to a file"
        )
    samples = fitting(job, rendered(given, project, renderer), project, rows=len(given))
    if not samples:
        raise DataError(
            f"{project.folder}: no demonstration has anything to imitate; give assistant messages a "
            "weight of 1, or raise limits.max_context_tokens"
        )
    return samples


def held_out_samples(
    job: Job, project: Project, renderer: DemonstrationRenderer, config: SupervisedConfig, rows: int
) -> HeldOut | None:
    """Return the project's held-out demonstrations; None without any. `rows` make an epoch."""
    name = project.config.data.held_out_demonstrations
    if not name:
        return None
    given = read_demonstrations(project.folder / name, numbered=project.numbered_rows)
    samples = fitting(job, rendered(given, project, renderer), project, rows=len(given))
    interval = config.validation_interval or epoch_steps(rows, config.batch_size)
    return HeldOut(samples=samples, interval=interval) if samples else None


def fitting(job: Job, samples: Sequence[Sample], project: Project, *, rows: int) -> list[Sample]:
    """Cut what is longer than the context, and say of how many `rows` something is missing."""
    limit = project.spec.limits.max_context_tokens
    kept = [sample for whole in samples if (sample := _cut(whole, limit))]
    long = sum(len(sample.token_ids) > limit for sample in samples)
    if long or len(kept) < rows:
        job.event(
            f"{long} of {rows} conversations are longer than max_context_tokens ({limit}) and are "
            f"cut at the end; {rows - len(kept)} have nothing to imitate and are left out",
            level="warn",
        )
    return kept


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
        sample = _cut(imitation(token_ids, list(own), demonstration.id), longest)
        if sample:
            samples.append(sample)
    return samples


def _cut(sample: Sample, longest: int | None) -> Sample | None:
    """Return the sample without what is beyond `longest` tokens; None if nothing to imitate is left."""
    mask = sample.action_mask[:longest]
    if len(mask) == len(sample.action_mask) and any(mask):
        return sample
    return imitation(sample.token_ids[:longest], mask, sample.trajectory_id) if any(mask) else None


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
        batch.append(items[epoch_order(len(items), epoch, seed)[index]])
    return batch


@lru_cache(maxsize=4)
def epoch_order(count: int, epoch: int, seed: int) -> tuple[int, ...]:
    """Return the places of so many items in the order of an epoch."""
    order = list(range(count))
    random.Random(derive_seed(seed, "epoch", epoch)).shuffle(order)
    return tuple(order)
