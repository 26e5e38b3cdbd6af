"""Prompt distillation: teach the weights what a long spec makes the policy do, under a short one.

Context distillation (arXiv 2112.00861, 2209.15189) on whole rollouts instead of single answers.
"""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from agentrft.core.errors import ConfigError
from agentrft.core.policy import Checkpoint
from agentrft.core.run import RolloutRecord
from agentrft.core.sample import Sample
from agentrft.core.spec import AgentSpec, Shown
from agentrft.jobs.context import Job
from agentrft.jobs.own_rollouts import chosen, own_rollouts, require_something, tell_choice
from agentrft.jobs.project import SPEC_FOLDER, Project, plain_spec
from agentrft.jobs.retelling import Retelling
from agentrft.jobs.serving import DemonstrationRenderer, ServedModel
from agentrft.jobs.supervised import fitting, imitate, imitated
from agentrft.jobs.trials import keep_spec
from agentrft.rollout.harness import Conversation
from agentrft.store.spec_files import read_spec, write_spec
from agentrft.training.credit import imitation


async def distillation(
    job: Job, model: ServedModel, start: Path | None, *, allow_findings: bool = False
) -> Checkpoint:
    """Roll out train tasks under the project's spec and imitate that under `short_spec`.

    The short spec is written into the run's folder. Raises UserError if nothing can be imitated,
    ConfigError if the short spec is the project's.
    """
    if job.is_done:
        return job.checkpoint()
    config, project = model.project.config.methods.distillation, model.project
    short = replace(project, spec=short_spec(project))
    async with job.running():
        plain = plain_spec(project.folder, project.config)
        write_spec(job.folder / SPEC_FOLDER, short.spec, plain)
        keep_spec(job.folder, short.spec)
        records = await own_rollouts(job, model, start, config, allow_findings=allow_findings)
        told = await _told(short, records)
        found = chosen(
            records,
            pass_threshold=project.config.pass_threshold,
            most_per_task=config.most_per_task,
            successes_only=config.successes_only,
            fits=lambda record: record.graded.trajectory.id in told,
        )
        require_something(job, found)
        kept = [
            _retold(record, told[record.graded.trajectory.id], model.renderer)
            for record in found.records
        ]
        before = statistics.fmean(one.prompt_before for one in kept)
        after = statistics.fmean(one.prompt_after for one in kept)
        if "kept" not in job.run.result:
            job.event(
                f"distillation: a prompt of {before:.0f} tokens under spec {project.spec.hash} "
                f"becomes {after:.0f} under {short.spec.hash}, on average"
            )
        tell_choice(
            job,
            found,
            not_retold=len(records) - len(told),
            mean_prompt_before=before,
            mean_prompt_after=after,
        )
        samples = fitting(job, [one.sample for one in kept], short, rows=len(kept))
        shortened = replace(model, project=short)
        return await imitate(job, shortened, samples, config.supervised, start)


def short_spec(project: Project) -> AgentSpec:
    """Return the spec to distil into: `methods.distillation.spec`, else the project's own made short.

    Made short means: the system text of `agent.toml` alone and no demonstrations; tools, guards and
    limits stay. Raises ConfigError if that changes nothing.
    """
    folder = project.config.methods.distillation.spec
    plain = plain_spec(project.folder, project.config)
    if folder and not (project.folder / folder).is_dir():
        raise ConfigError(f"methods.distillation.spec: {project.folder / folder} is no folder")
    if folder:
        short = read_spec(project.folder / folder, plain)
    else:
        short = replace(project.spec, sections=plain.sections, shown=Shown())
    if short.hash == project.spec.hash:
        raise ConfigError(
            "methods.distillation.spec: the short spec is the one that the project acts under, so "
            "there is nothing to distil; give the project a longer spec (`agentrft optimize`, then "
            "`agentrft spec apply`), or name the folder of a shorter one"
        )
    return short


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """A rollout as it is imitated."""

    sample: Sample
    prompt_before: int
    """Tokens."""
    prompt_after: int


async def _told(short: Project, records: list[RolloutRecord]) -> Mapping[str, Conversation]:
    """Retell rollouts under the short spec; those that could not have gone so are left out."""
    retelling = Retelling(short, short.spec)
    tasks = {task.id: task for task in short.tasks("train")}
    told: dict[str, Conversation] = {}
    for record in records:
        trajectory = record.graded.trajectory
        seen = await retelling.retold(tasks[trajectory.task_id], trajectory)
        if seen is not None:
            told[trajectory.id] = seen
    return told


def _retold(record: RolloutRecord, seen: Conversation, renderer: DemonstrationRenderer) -> _Kept:
    trajectory = record.graded.trajectory
    token_ids, action_mask = renderer.demonstration(seen.messages, seen.tools)
    mask = list(imitated(action_mask, (), before=seen.shown))
    return _Kept(
        sample=imitation(token_ids, mask, trajectory.id),
        prompt_before=len(trajectory.turns[0].observation_ids),
        prompt_after=mask.index(True),
    )
