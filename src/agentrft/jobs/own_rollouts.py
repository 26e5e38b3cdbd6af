"""A policy's own rollouts on train tasks, as something to learn from: made, noted, chosen."""

import json
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path

from agentrft.core.config import EvaluationConfig
from agentrft.core.grade import Outcome
from agentrft.core.run import RolloutRecord
from agentrft.core.task import ToolCall
from agentrft.core.training_config import DistillationConfig, PreferenceConfig, RejectionConfig
from agentrft.core.trajectory import Trajectory
from agentrft.jobs.audit import audited
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement, evaluate, in_file_order
from agentrft.jobs.reinforcement import serving
from agentrft.jobs.serving import ServedModel
from agentrft.jobs.trained import NothingLearnedError
from agentrft.measure.summary import score_of


async def own_rollouts(
    job: Job,
    model: ServedModel,
    start: Path | None,
    config: RejectionConfig | DistillationConfig | PreferenceConfig,
    *,
    allow_findings: bool,
) -> list[RolloutRecord]:
    """Roll out train tasks with a checkpoint or the base model.

    What an interrupted run stored is not made again. In file order. Raises GraderRefusedError if the
    grader that is to choose among them fails its audit.
    """
    project = model.project
    await audited(job, project, allow_findings=allow_findings)
    tasks = project.tasks("train")
    records = await evaluate(
        job,
        await serving(job, model, start),
        tasks,
        EvaluationConfig(
            samples_per_task=config.samples, temperature=config.temperature, tasks=config.tasks
        ),
        Measurement(stage=job.run.method, split="train", seed=job.run.seed),
        concurrency=model.concurrency,
    )
    return in_file_order(records, tasks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """Which rollouts are learned from."""

    records: tuple[RolloutRecord, ...]
    solved: int
    graded: int
    duplicates: int
    """Eligible rollouts that do what an earlier one of their task does."""
    beyond: int
    """Different ones that `most_per_task` leaves out."""
    tasks: int
    """Tasks that were rolled out."""

    @property
    def covered(self) -> int:
        """Tasks that something is learned from."""
        return len({_trajectory(record).task_id for record in self.records})


def chosen(
    records: Sequence[RolloutRecord],
    *,
    pass_threshold: float,
    most_per_task: int,
    successes_only: bool = True,
    fits: Callable[[RolloutRecord], bool] = lambda record: True,
) -> Chosen:
    """Choose up to `most_per_task` different rollouts per task, those with the fewest errors first.

    Rollouts lost to infrastructure take no part, and of what `fits` turns down nothing is counted as
    a duplicate. Two rollouts are the same if they make the same calls and give the same answer.
    """
    graded = [r for r in records if r.graded.outcome is not Outcome.INFRASTRUCTURE_FAULT]
    solved = [r for r in graded if score_of(r.graded) >= pass_threshold]
    eligible = [r for r in (solved if successes_only else graded) if fits(r)]
    kept: dict[str, dict[Hashable, RolloutRecord]] = {}
    duplicates = 0
    for record in sorted(eligible, key=_errors):
        of_task = kept.setdefault(_trajectory(record).task_id, {})
        duplicates += of_task.setdefault(actions(_trajectory(record)), record) is not record
    taken = {id(r) for of_task in kept.values() for r in [*of_task.values()][:most_per_task]}
    return Chosen(
        records=tuple(record for record in records if id(record) in taken),
        solved=len(solved),
        graded=len(graded),
        duplicates=duplicates,
        beyond=len(eligible) - duplicates - len(taken),
        tasks=len({_trajectory(record).task_id for record in records}),
    )


def actions(trajectory: Trajectory) -> Hashable:
    """Return what a rollout did: its calls turn by turn, arguments in one order, and its answer."""
    calls = tuple(
        tuple((call.name, _arguments(call)) for call in turn.message.tool_calls)
        for turn in trajectory.turns
    )
    return calls, trajectory.output_text.strip()


def tell_choice(job: Job, found: Chosen, **more: float) -> None:
    """Write what was chosen into the run's log and its result, once."""
    if "kept" in job.run.result:
        return
    job.event(
        f"{job.run.method}: {found.solved} of {found.graded} graded rollouts on {found.tasks} tasks "
        f"are solved; {len(found.records)} are imitated, of {found.covered} tasks "
        f"({found.duplicates} duplicates, {found.beyond} beyond most_per_task)"
    )
    job.note_result(
        solved=found.solved,
        graded=found.graded,
        kept=len(found.records),
        duplicates=found.duplicates,
        beyond_most_per_task=found.beyond,
        tasks=found.tasks,
        tasks_covered=found.covered,
        **more,
    )


def require_something(job: Job, found: Chosen) -> None:
    """Raise NothingLearnedError if there is nothing to imitate."""
    if not found.records:
        raise NothingLearnedError(
            f"{job.run.method}: none of {found.graded} graded rollouts on {found.tasks} train tasks "
            f"can be imitated ({found.solved} solved); imitate demonstrations first (`agentrft train "
            "PROJECT supervised`) and give its checkpoint as --start, raise "
            f"methods.{job.run.method}.samples, or begin with easier tasks"
        )


def _arguments(call: ToolCall) -> str:
    try:
        return json.dumps(json.loads(call.arguments), sort_keys=True)
    except ValueError:
        return call.arguments


def _errors(record: RolloutRecord) -> int:
    """Return how many calls were refused or could not be read."""
    return sum(result.is_error for result in _trajectory(record).tool_results)


def _trajectory(record: RolloutRecord) -> Trajectory:
    return record.graded.trajectory
