"""When to write checkpoints, how many to keep, and where to go on after a kill."""

import asyncio
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from agentrft.core.errors import StoreError
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Trainer
from agentrft.jobs.context import Job, Stopped

KEPT = 2
"""Checkpoints left on disk; one more than needed, in case the newest is damaged."""


class CheckpointKeeper:
    """Writes a checkpoint every `interval` steps, at the last step, and when asked to stop."""

    def __init__(self, job: Job, *, interval: int, last_step: int) -> None:
        self._job, self._interval, self._last_step = job, interval, last_step

    async def after_step(
        self, trainer: Trainer, step: int, version: int, metrics: Mapping[str, float]
    ) -> None:
        """Save if it is time; raises Stopped, after saving, if the user asked to stop."""
        stopping = self._job.stop.is_set() and step < self._last_step
        if step % self._interval == 0 or step == self._last_step or stopping:
            await self._save(trainer, step, version, metrics)
        if stopping:
            raise Stopped(
                f"run {self._job.run.id} was interrupted after step {step}; continue it with --resume"
            )

    async def _save(
        self, trainer: Trainer, step: int, version: int, metrics: Mapping[str, float]
    ) -> None:
        folder = self._job.home.checkpoints(self._job.run.id) / f"step-{step:06d}"
        await asyncio.to_thread(trainer.save, folder, {"step": step})
        # The row comes after the complete folder, so a row always names a usable checkpoint.
        self._job.append(
            [
                Checkpoint(
                    run_id=self._job.run.id,
                    step=step,
                    path=str(folder),
                    policy_version=version,
                    metrics=metrics,
                )
            ]
        )
        for old in sorted(folder.parent.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old)


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
