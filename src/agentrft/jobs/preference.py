"""Preference training (DPO): learn from pairs of which one is better, from a file or from rollouts.

Rollouts that pairs are mined from are made as an evaluation's are, by the weights training begins
from, and stored under the run; the loop is the one of `jobs/supervised.py`.
"""

from collections.abc import Sequence
from pathlib import Path

from agentrft.core.errors import DataError
from agentrft.core.policy import Checkpoint
from agentrft.core.sample import Sample
from agentrft.core.task import Preference
from agentrft.core.training_config import PreferenceConfig
from agentrft.jobs.context import Job
from agentrft.jobs.own_rollouts import own_rollouts
from agentrft.jobs.pairs import Mined, Pair, comparable, mined
from agentrft.jobs.serving import ServedModel
from agentrft.jobs.supervised import HeldOut, epoch_steps, learn
from agentrft.jobs.trained import NothingLearnedError
from agentrft.store.datasets import read_preferences


async def preference(
    job: Job, model: ServedModel, start: Path | None, *, allow_findings: bool = False
) -> Checkpoint:
    """Learn from the project's pairs, or from pairs of rollouts on train tasks if it has none.

    Raises UserError if there is no pair to learn from, and, where its grades tell what is better,
    GraderRefusedError for a grader that fails its audit, unless `allow_findings`.
    """
    project = model.project
    config = project.config.methods.preference
    if job.is_done:
        return job.checkpoint()
    async with job.running():
        if given := project.preferences():
            pairs = fitting_pairs(job, model, given)
        else:
            pairs = await mined_pairs(job, model, start, config, allow_findings=allow_findings)
        trainer = model.resumed_trainer(job, config.trainer, "preference", start)
        unseen: Sequence[Preference] = ()
        if name := project.config.data.held_out_preferences:
            unseen = read_preferences(project.folder / name, numbered=project.numbered_rows)
        interval = config.validation_interval or epoch_steps(len(pairs), config.batch_size)
        return await learn(
            job,
            trainer,
            pairs,
            config,
            held_out=held_out_pairs(job, model, unseen, interval),
            spec_hash=project.spec.hash,
        )


def fitting_pairs(job: Job, model: ServedModel, given: Sequence[Preference]) -> list[Pair]:
    """Render pairs, cut at the end of the context, and say how many have nothing to compare.

    Raises DataError if that is all of them.
    """
    limit = model.project.spec.limits.max_context_tokens
    pairs = comparable(given, model.project, model.renderer, longest=limit)
    if not pairs:
        raise DataError(
            f"in none of {len(given)} pairs do the two outputs differ within max_context_tokens "
            f"({limit}); shorten the rows, or raise limits.max_context_tokens"
        )
    if len(pairs) < len(given):
        job.event(
            f"{len(given) - len(pairs)} of {len(given)} pairs have outputs that do not differ within "
            f"max_context_tokens ({limit}) and are left out",
            level="warn",
        )
    return pairs


def held_out_pairs(
    job: Job, model: ServedModel, unseen: Sequence[Preference], interval: int
) -> HeldOut | None:
    """Return pairs to measure and not to learn from; None without any."""
    if not unseen:
        return None
    samples: list[Sample] = [s for pair in fitting_pairs(job, model, unseen) for s in pair]
    return HeldOut(samples=samples, interval=interval)


async def mined_pairs(
    job: Job,
    model: ServedModel,
    start: Path | None,
    config: PreferenceConfig,
    *,
    allow_findings: bool,
) -> list[Pair]:
    """Roll the train tasks out and return pairs of what came of it; a resumed run rolls out the rest.

    Raises NothingLearnedError if no two rollouts make a pair.
    """
    records = await own_rollouts(job, model, start, config, allow_findings=allow_findings)
    found = mined(
        [record.graded for record in records],
        least_gap=config.least_gap,
        most_per_task=config.most_per_task,
        seed=job.run.seed,
    )
    if "pairs" not in job.run.result:
        job.note_result(pairs=len(found.pairs))
        job.event(
            f"{len(found.pairs)} pairs from {len(records)} rollouts; {found.tasks_with_gap} of "
            f"{found.tasks} tasks have rollouts that score {config.least_gap:g} apart"
        )
    if not found.pairs:
        raise NothingLearnedError(_why_none(found, config))
    return list(found.pairs)


def _why_none(found: Mined, config: PreferenceConfig) -> str:
    if found.tasks_with_gap:
        return (
            f"no pair to learn from: {found.tasks_with_gap} of {found.tasks} tasks have rollouts that "
            "score apart, but what their tools answered differs before what the agent does; make the "
            "tools' answers repeat for a task (no times, no random ids), or write pairs into a file "
            "(data.preferences)"
        )
    return (
        f"no pair to learn from: none of {found.tasks} tasks has two rollouts that score "
        f"{config.least_gap:g} apart. Where all fail, imitate good conversations first (agentrft "
        "train PROJECT supervised) and begin from there with --start; where all succeed, nothing is "
        "left to prefer; else raise methods.preference.samples or lower least_gap"
    )
