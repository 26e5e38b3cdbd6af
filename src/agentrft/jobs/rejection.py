"""Rejection-sampled fine-tuning: imitate the policy's own successes (arXiv 2308.01825)."""

from collections.abc import Sequence
from pathlib import Path

from agentrft.core.policy import Checkpoint
from agentrft.core.run import RolloutRecord
from agentrft.core.sample import Sample
from agentrft.jobs.context import Job
from agentrft.jobs.own_rollouts import chosen, own_rollouts, require_something, tell_choice
from agentrft.jobs.serving import ServedModel
from agentrft.jobs.supervised import imitate
from agentrft.training.credit import credited


async def rejection(
    job: Job, model: ServedModel, start: Path | None, *, allow_findings: bool = False
) -> Checkpoint:
    """Roll out train tasks, keep what was solved, and imitate it from the same start.

    Raises UserError if nothing was solved.
    """
    config, project = model.project.config.methods.rejection, model.project
    if job.is_done:
        return job.checkpoint()
    async with job.running():
        records = await own_rollouts(job, model, start, config, allow_findings=allow_findings)
        found = chosen(
            records,
            pass_threshold=project.config.pass_threshold,
            most_per_task=config.most_per_task,
        )
        require_something(job, found)
        tell_choice(job, found)
        return await imitate(job, model, sampled_tokens(found.records), config.supervised, start)


def sampled_tokens(records: Sequence[RolloutRecord]) -> list[Sample]:
    """Return rollouts as samples to imitate: the very tokens that were sampled, all weighing one.

    Temperature, top-p and grammar of the rollouts do not matter, since no ratio to them is formed:
    a grammar's tokens teach the model to write without it what it was made to write.
    """
    return [
        sample
        for record in records
        for sample in credited(
            record.graded.trajectory,
            (1.0,) * len(record.graded.trajectory.turns),
            temperature=1.0,
        )
    ]
