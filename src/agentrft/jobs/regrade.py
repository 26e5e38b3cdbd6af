"""Stored rollouts graded again by another grader, without sampling, and what that would change.

The new grades are a run of their own, record by record in the order of the old ones, so that a
killed one goes on where it stopped. Memory holds a page of rollouts and a few numbers for each.
"""

import heapq
import json
import secrets
import time
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

from agentrft.core.errors import ConfigError, DataError, StoreError
from agentrft.core.job import FineTuningJob, ReinforcementMethod
from agentrft.core.protocols import Grader
from agentrft.core.run import Event, Method, RolloutRecord, Run, RunStatus, Split
from agentrft.core.task import Task
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.environment import EnvironmentGrader
from agentrft.graders.function import FunctionGrader
from agentrft.graders.multi import Multi
from agentrft.graders.reward_terms import GraderWithTerms
from agentrft.graders.wire import normalised
from agentrft.jobs.answer_format import AnswerFormat
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import summaries
from agentrft.jobs.improvement_report import children_of
from agentrft.jobs.project import Project
from agentrft.measure.ranks import group_change, kendall_tau_b, spearman
from agentrft.measure.regrading import Moved, Regrading, StageChange
from agentrft.rollout.episode import grade_rollout, in_order
from agentrft.store.datasets import read_tasks
from agentrft.store.home import Home
from agentrft.store.listing import TrajectorySummary
from agentrft.store.sql import SqlStore

PAGE = 64
"""Rollouts graded together and stored in one transaction."""
MOST_MOVED = 10
PROJECT_FILE = "project_file"
"""Key of a run's result under which its agent.toml is noted."""


class Regrader:
    """A grader for stored rollouts, and the rows they were made from."""

    def __init__(
        self,
        grader: Grader,
        tasks: Callable[[Split], Iterable[Task]],
        settings: Mapping[str, Any],
    ) -> None:
        """`settings` say what is stored about the grader; a resumed run must have the same.

        Raises ConfigError for a grader that looks at the environment, which is not stored.
        """
        if reason := needs_environment(grader):
            raise ConfigError(
                f"{reason} looks at the environment, whose state is gone with the rollout; only a "
                "grader that reads row and trajectory can grade again: give one with --grader"
            )
        self.settings = settings
        self._grader = grader
        self._rows = cache(lambda split: {task.id: task for task in tasks(split)})

    async def regraded(self, record: RolloutRecord) -> RolloutRecord:
        """Return the record with a new grade. Raises DataError if its row is gone."""
        assert record.split != "canary", "the row had a corrupted reference"
        trajectory = record.graded.trajectory
        task = self._rows(record.split).get(trajectory.task_id)
        if task is None:
            raise DataError(
                f"task {trajectory.task_id!r} of a stored rollout is no row of the {record.split} "
                "data any more; bring it back, or name a project that has it with --project"
            )
        grade = await grade_rollout(self._grader, task, trajectory, None)
        return replace(record, graded=replace(record.graded, grade=grade))


def project_regrader(project: Project) -> Regrader:
    """Return the grader of an open project, reward terms included."""
    config = project.config
    shown, _ = normalised(config.grader)
    settings = {"grader": shown, "reward": asdict(config.reward)}

    def tasks(split: Split) -> tuple[Task, ...]:
        return project.tasks(project.validation_rows if split == "validation" else split)

    return Regrader(project.grader, tasks, settings)


def job_regrader(
    home: Home, job: FineTuningJob, grader: Mapping[str, Any], backends: Backends
) -> Regrader:
    """Return a grader for a fine-tuning job's rollouts: the one given, or the job's own if empty.

    Raises ConfigError if the job's own needs secrets, which end with the job; NotFoundError if a
    file of the job was deleted.
    """
    method = job.method
    if not isinstance(method, ReinforcementMethod):
        raise ConfigError(f"job {job.id} is {method.type}; it has no rollouts to grade again")
    shown, secret = normalised(grader or method.grader)
    if secret and not grader:
        raise ConfigError(
            f"job {job.id}: the headers of its grader are secrets and ended with it; "
            "give the grader object, headers included, with --grader"
        )
    backends = replace(backends, owner=job.project)
    built = build_grader(grader or method.grader, backends=backends)
    if method.response_format is not None:
        built = AnswerFormat(built, method.response_format["schema"])

    def tasks(split: Split) -> tuple[Task, ...]:
        validation = job.validation_file if split == "validation" else None
        # Without such a file a held-out grader looks at train rows.
        stored = home.files.get(job.project, validation or job.training_file)
        return read_tasks(home.files.path(stored), numbered=True)

    return Regrader(built, tasks, {"grader": shown})


def project_file(store: SqlStore, run_id: str) -> Path:
    """Return the agent.toml that a run was started with. Raises ConfigError if nobody noted it."""
    root = store.run(run_id.partition(".")[0])
    noted = Path(str(root.result.get(PROJECT_FILE, "")))
    if not noted.is_file():
        raise ConfigError(
            f"run {run_id}: its project is not where it was; say where with --project FOLDER"
        )
    return noted


def needs_environment(grader: Grader) -> str:
    """Return which part of a grader looks at the environment; empty if none does."""
    match grader:
        case EnvironmentGrader():
            return "the environment's own `grade`"
        case FunctionGrader(name=name, code=code) if code.takes_environment:
            return f"grader {name!r}"
        case GraderWithTerms(grader=inner):
            return needs_environment(inner)
        case Multi(graders=parts):
            return next(filter(None, map(needs_environment, parts.values())), "")
        case _:
            return ""


def new_regrade(home: Home, source: Run, regrader: Regrader) -> Run:
    """Enter a run that grades the rollouts of another again."""
    run = replace(
        source,
        id=f"{source.id}.regrade-{secrets.token_hex(3)}",
        method=Method.REGRADE,
        status=RunStatus.QUEUED,
        config=regrader.settings,
        parent_id=source.id,
        created_at=time.time(),
        finished_at=None,
        error=None,
        result={},
    )
    home.store.put_run(run)
    return run


async def regrade(job: Job, regrader: Regrader) -> Regrading:
    """Grade what is not graded yet, then compare; the result is also `regrade.json` in the report.

    Raises StoreError if the rollouts of the source changed meanwhile, DataError if a row is gone.
    """
    source = job.home.store.run(job.run.parent_id or "")
    sources = rollout_runs(replace(job, run=source))
    async with job.running():
        await job.unless_stopped(_grade(job, regrader, sources))
        result = _compare(job, sources)
        folder = job.home.report(job.run.id)
        (folder / "regrade.json").write_text(
            json.dumps(asdict(result), indent=2, allow_nan=False) + "\n", encoding="utf-8"
        )
        job.note_result(report=str(folder), compared=result.compared, changed=result.changed)
    return result


def rollout_runs(job: Job) -> tuple[str, ...]:
    """Return a run and its stages, oldest first."""
    stages = [child.run for child in children_of(job).values()]
    return job.run.id, *(run.id for run in stages if run.method is not Method.REGRADE)


async def _grade(job: Job, regrader: Regrader, sources: Sequence[str]) -> None:
    store = job.home.store
    done = sum(1 for _ in listed_rollouts(store, [job.run.id]))
    total = sum(1 for _ in listed_rollouts(store, sources))
    missing = islice(listed_rollouts(store, sources), done, None)
    with job.progress.phase(f"regrade {job.run.parent_id}", max(total - done, 1)) as phase:
        while page := [store.trajectory(one.record_id) for one in islice(missing, PAGE)]:
            records = await in_order([regrader.regraded(record) for record in page])
            failures = Counter(filter(None, map(_family, records)))
            job.append([*records, *_told(failures, len(records))])
            phase.advance(len(records))


def _family(record: RolloutRecord) -> str:
    failure = record.graded.grade.failure
    if failure is None or record.graded.trajectory.failure == failure:
        return ""
    return failure.code or "other_error"


def _told(failures: Mapping[str, int], rollouts: int) -> Iterator[Event]:
    if failures:
        shown = ", ".join(f"{count} {family}" for family, count in sorted(failures.items()))
        message = f"of {rollouts} rollouts: {shown}"
        data = {"errors": dict(failures)}
        yield Event(level="warn", message=message, created_at=time.time(), data=data)


def listed_rollouts(store: SqlStore, run_ids: Sequence[str]) -> Iterator[TrajectorySummary]:
    """List rollouts in the order they were stored; those of rows with a corrupted reference are no
    measure of a grader.
    """
    for run_id in run_ids:
        yield from (one for one in summaries(store, run_id) if one.split != "canary")


@dataclass
class _Sums:
    rollouts: int = 0
    graded_before: int = 0
    graded_after: int = 0
    compared: int = 0
    changed: int = 0
    before: float = 0.0
    after: float = 0.0


def _compare(job: Job, sources: Sequence[str]) -> Regrading:
    store = job.home.store
    before, after, records, groups = array("d"), array("d"), array("q"), array("q")
    numbers: dict[tuple[str, str, int, str], int] = {}
    sums: dict[tuple[str, str], _Sums] = {}
    pairs = zip(listed_rollouts(store, sources), listed_rollouts(store, [job.run.id]), strict=False)
    for old, new in pairs:
        if (old.task_id, old.step) != (new.task_id, new.step):
            raise StoreError(
                f"run {job.run.parent_id} has other rollouts than when {job.run.id} began; "
                "regrade it anew, without --resume"
            )
        of_stage = sums.setdefault((old.stage, old.split), _Sums())
        of_stage.rollouts += 1
        of_stage.graded_before += old.score is not None
        of_stage.graded_after += new.score is not None
        if old.score is None or new.score is None:
            continue
        of_stage.compared += 1
        of_stage.changed += abs(old.score - new.score) > 1e-9
        of_stage.before += old.score
        of_stage.after += new.score
        group = (old.stage, old.split, old.step, old.task_id)
        groups.append(numbers.setdefault(group, len(numbers)))
        before.append(old.score)
        after.append(new.score)
        records.append(new.record_id)
    far = heapq.nlargest(MOST_MOVED, range(len(before)), lambda n: abs(after[n] - before[n]))
    errors: Counter[str] = Counter()
    for event in job.read_all(Event):
        errors.update(event.data.get("errors", {}))
    return Regrading(
        run_id=job.run.id,
        source_id=job.run.parent_id or "",
        grader=job.run.config["grader"]["name"],
        stages=tuple(_stage_change(*key, of_stage) for key, of_stage in sums.items()),
        compared=len(before),
        changed=sum(of_stage.changed for of_stage in sums.values()),
        tau_b=kendall_tau_b(before, after),
        spearman=spearman(before, after),
        groups=group_change(groups, before, after),
        moved=tuple(
            _moved(store.trajectory(records[n]), before[n], after[n])
            for n in far
            if before[n] != after[n]
        ),
        errors=dict(errors),
    )


def _stage_change(stage: str, split: str, sums: _Sums) -> StageChange:
    return StageChange(
        stage=stage,
        split=split,
        rollouts=sums.rollouts,
        graded_before=sums.graded_before,
        graded_after=sums.graded_after,
        changed=sums.changed,
        mean_before=sums.before / sums.compared if sums.compared else None,
        mean_after=sums.after / sums.compared if sums.compared else None,
    )


def _moved(record: RolloutRecord, before: float, after: float) -> Moved:
    return Moved(
        trajectory_id=record.graded.trajectory.id,
        task_id=record.graded.trajectory.task_id,
        stage=record.stage,
        split=record.split,
        step=record.step,
        before=before,
        after=after,
    )
