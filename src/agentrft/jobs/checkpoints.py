"""When to write checkpoints, which to keep, and where to go on after a kill."""

import asyncio
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from agentrft.core.errors import AgentRFTError, StoreError
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Trainer
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.following import Follower


def every_step(step: int) -> bool:
    """Leave no step out."""
    return step > 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ValidationScores:
    """What the graders, or the rows held out, say of one step, on average."""

    score: float | None = None
    gold: float | None = None
    """Of the held-out grader."""
    loss: float | None = None
    """On held-out rows, where nothing is rolled out."""

    @property
    def rank(self) -> float | None:
        """What checkpoints are compared by where no held-out grader looked: more is better."""
        return -self.loss if self.score is None and self.loss is not None else self.score


@dataclass(frozen=True, slots=True, kw_only=True)
class Retention:
    """Which checkpoints stay on disk."""

    newest: int = 2
    """One more than resuming needs, in case the newest is damaged."""
    best: int = 0
    """Those with the highest validation score; later steps win ties, any score beats none."""
    best_of: Callable[[int], bool] = every_step
    """Which steps may be among the best."""

    def kept(
        self, checkpoints: Sequence[Checkpoint], scores: Mapping[int, float]
    ) -> list[Checkpoint]:
        """Return those that stay, by step."""
        by_step = sorted(checkpoints, key=lambda checkpoint: checkpoint.step)
        ranked = sorted(
            (checkpoint for checkpoint in by_step if self.best_of(checkpoint.step)),
            key=lambda checkpoint: (scores.get(checkpoint.step, float("-inf")), checkpoint.step),
            reverse=True,
        )
        steps = {checkpoint.step for checkpoint in (*by_step[-self.newest :], *ranked[: self.best])}
        return [checkpoint for checkpoint in by_step if checkpoint.step in steps]


class CheckpointKeeper:
    """Writes a checkpoint every `interval` steps, at the last step, and when a run stops early."""

    def __init__(
        self,
        job: Job,
        trainer: Trainer,
        *,
        interval: int,
        first_step: int,
        last_step: int,
        retention: Retention,
        follower: Follower,
        scores: Mapping[int, ValidationScores],
        spec_hash: str = "",
    ) -> None:
        self._job, self._trainer, self._follower = job, trainer, follower
        self._spec_hash = spec_hash
        self._interval, self._last_step, self._retention = interval, last_step, retention
        self._scores = dict(scores)
        self._saved = first_step
        self._step, self._version = first_step, 0
        self._metrics: Mapping[str, float] = {}
        self._place: Mapping[str, int] = {}
        # Of a process that was killed while it wrote; whoever is here holds the run alone.
        for leftover in self._folder.glob(".step-*"):
            shutil.rmtree(leftover, ignore_errors=True)
        self._settle()

    @property
    def _folder(self) -> Path:
        return self._job.home.checkpoints(self._job.run.id)

    @property
    def _golds(self) -> dict[int, float]:
        return {step: s.gold for step, s in self._scores.items() if s.gold is not None}

    def committed(
        self,
        step: int,
        version: int,
        metrics: Mapping[str, float],
        place: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        """Note what the trainer now holds, once its results are stored.

        `place` is what else a resumed run must know; it comes back in the trainer's cursor.
        """
        self._step, self._version, self._metrics, self._place = step, version, metrics, place

    def validated(self, step: int, scores: ValidationScores) -> None:
        """Note the scores that decide which checkpoints are the best."""
        self._scores[step] = scores

    async def after_step(self) -> None:
        """Save if it is time; raises Stopped, after saving, if the run was asked to stop."""
        due = self._step % self._interval == 0 or self._step == self._last_step
        # A run's result is its best checkpoint by the held-out grader, so that one must exist.
        golds = self._golds
        due = due or (self._step in golds and golds[self._step] >= max(golds.values()))
        # So must the one with the lowest loss on rows held out, to be kept beside the newest.
        losses = {step: s.loss for step, s in self._scores.items() if s.loss is not None}
        due = due or (self._step in losses and losses[self._step] <= min(losses.values()))
        if due and self._step > self._saved and not self._job.abandoned:
            await self._save()
        if self._job.stop.is_set() and self._step < self._last_step:
            raise Stopped(
                f"run {self._job.run.id} was interrupted after step {self._step}; "
                "continue it with --resume"
            )

    @asynccontextmanager
    async def snapshot_on(self, *reasons: type[AgentRFTError]) -> AsyncIterator[None]:
        """Save the last committed step if the run ends for one of these reasons."""
        try:
            yield
        except reasons:
            if self._step > self._saved and not self._job.abandoned:
                await self._save()
            raise

    def deliver(self) -> Checkpoint:
        """Return the checkpoint that the held-out grader likes best, and note which it is.

        Without such a grader the newest. Raises StoreError if there is none.
        """
        golds = self._golds
        judged = [
            (golds[checkpoint.step], checkpoint.step, checkpoint)
            for checkpoint in self._job.read_all(Checkpoint)
            if checkpoint.step in golds and Path(checkpoint.path).is_dir()
        ]
        if not judged:
            return self._job.checkpoint()
        gold, step, best = max(judged, key=lambda one: one[:2])
        self._job.note_result(
            delivered_step=step, gold_score=gold, validation_score=self._scores[step].score
        )
        return best

    async def _save(self) -> None:
        step = self._step
        # A name of its own: a worker that lost its lease amid this must not replace its successor's.
        folder = self._folder / f"step-{step:06d}-{secrets.token_hex(4)}"
        await asyncio.to_thread(self._trainer.save, folder, {"step": step, **self._place})
        score = self._scores.get(step, ValidationScores()).score
        shown = {} if score is None else {"validation_score": score}
        # The row comes after the complete folder, so a row always names a usable checkpoint.
        self._job.append(
            [
                Checkpoint(
                    run_id=self._job.run.id,
                    step=step,
                    path=str(folder),
                    policy_version=self._version,
                    metrics={**self._metrics, **shown},
                    spec_hash=self._spec_hash,
                )
            ]
        )
        self._saved = step
        self._settle()

    def _settle(self) -> None:
        """Drop what need not be kept, folders that no row names included."""
        whole = [c for c in self._job.read_all(Checkpoint) if Path(c.path).is_dir()]
        scores = {step: rank for step, s in self._scores.items() if (rank := s.rank) is not None}
        # Two graders' scores do not compare, so a step without the better one's has none.
        kept = self._retention.kept(whole, self._golds or scores)
        # Told before the folders go, so that nobody is offered what is gone.
        self._follower.kept(kept)
        names = {Path(checkpoint.path).name for checkpoint in kept}
        for folder in self._folder.glob("step-*"):
            if folder.name not in names:
                shutil.rmtree(folder)


def delivered(job: Job) -> Checkpoint:
    """Return what a run that is done came to. Raises StoreError if it has no checkpoint."""
    step = job.run.result.get("delivered_step")
    noted = (checkpoint for checkpoint in job.read_all(Checkpoint) if checkpoint.step == step)
    return next(noted, None) or job.checkpoint()


def resume_point(job: Job, verify: Callable[[Path], None]) -> Path | None:
    """Return the newest sound checkpoint and drop records of later steps; None starts afresh.

    `verify` raises StoreError for a damaged folder; then the one before is taken, with a warning.
    Raises StoreError if none that was written is left whole.
    """
    damage: StoreError | None = None
    for checkpoint in reversed(job.read_all(Checkpoint)):
        try:
            verify(Path(checkpoint.path))
        except StoreError as error:
            damage = damage or error
            continue
        if damage is not None:
            job.event(
                f"went back to the checkpoint of step {checkpoint.step}: {damage}", level="warn"
            )
        job.home.store.rewind(job.run.id, checkpoint.step)
        return Path(checkpoint.path)
    if damage is not None:
        raise StoreError(f"run {job.run.id} cannot be resumed, start a new one: {damage}")
    job.home.store.rewind(job.run.id, 0)
    return None
