import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import a_job, a_setup, some_tasks
from tuning import GRADER, REINFORCEMENT, FakeModel, a_home, finished, submitted

from agentrft.core.config import EvaluationConfig
from agentrft.core.errors import ConfigError, DataError, GraderError, StoreError
from agentrft.core.grade import Grade
from agentrft.core.job import ReinforcementMethod
from agentrft.core.protocols import Environment, Grader
from agentrft.core.run import Event, Method, RolloutRecord, RunStatus, Split
from agentrft.core.task import Task
from agentrft.core.trajectory import Failure, FailureKind, StopReason, Trajectory
from agentrft.graders.backends import Backends
from agentrft.graders.environment import EnvironmentGrader
from agentrft.graders.fixed import FixedGrader
from agentrft.graders.formula import parse_formula
from agentrft.graders.function import FunctionGrader
from agentrft.graders.function import grader as as_grader
from agentrft.graders.multi import Multi
from agentrft.jobs.audit import project_subject
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.evaluation import Measurement, evaluate
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import assembled, read_config
from agentrft.jobs.regrade import (
    PAGE,
    Regrader,
    job_regrader,
    needs_environment,
    new_regrade,
    project_file,
    project_regrader,
    regrade,
)
from agentrft.jobs.resume import unfinished_run
from agentrft.jobs.starter import write_starter
from agentrft.measure.regrading import Regrading
from agentrft.store.home import Home

TASKS = some_tasks(6)


def rows(split: Split) -> Sequence[Task]:
    return TASKS


def says_yes(task: Task, trajectory: Trajectory) -> float:
    return float(trajectory.output_text == "yes")


def regrader(grader: Grader | None = None, **settings: Any) -> Regrader:
    return Regrader(grader or FixedGrader(says_yes), rows, {"grader": {"name": "new"}, **settings})


def a_measured_run(folder: Path, *, samples: int = 4) -> Home:
    """A home with a run of six tasks, some answered yes (scored 1) and some no."""
    job = a_job(folder, Method.EVALUATION)

    async def main() -> None:
        async with job.running():
            config = EvaluationConfig(samples_per_task=samples, temperature=1.0)
            at = Measurement(stage="base", split="validation")
            await evaluate(job, a_setup(), TASKS, config, at, concurrency=4)

    asyncio.run(main())
    return job.home


def again(home: Home, made: Regrader, *, run_id: str = "", source: str = "run-1") -> Job:
    run = home.store.run(run_id) if run_id else new_regrade(home, home.store.run(source), made)
    return Job(home=home, run=run, progress=SilentProgress(), stop=asyncio.Event())


def regraded(home: Home, made: Regrader, **which: Any) -> tuple[Regrading, Job]:
    job = again(home, made, **which)
    return asyncio.run(regrade(job, made)), job


def scores(job: Job) -> list[float | None]:
    return [record.graded.grade.score for record in job.read_all(RolloutRecord)]


def test_the_same_grader_changes_nothing(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path)
    result, job = regraded(home, regrader())
    assert (result.compared, result.changed, result.moved) == (24, 0, ())
    assert result.tau_b == pytest.approx(1)
    assert result.groups.tau_b == pytest.approx(1)
    assert (result.groups.reordered, result.groups.sign_flips) == (0, 0)
    assert job.run.parent_id == "run-1"
    assert job.run.status is RunStatus.SUCCEEDED


def test_the_new_run_holds_the_same_rollouts_with_the_new_grades(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path)
    _, job = regraded(home, regrader(FixedGrader(lambda task, rollout: 0.25)))
    old = list(home.store.read("run-1", RolloutRecord, limit=1000).items)
    new = job.read_all(RolloutRecord)
    assert [r.graded.trajectory for r in new] == [r.graded.trajectory for r in old]
    assert {r.graded.grade.score for r in new} == {0.25}
    assert {r.graded.grade.score for r in old} == {0.0, 1.0}


def test_a_reversed_grader_flips_what_the_gradient_sees(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path)
    result, job = regraded(home, regrader(FixedGrader(lambda t, r: 1 - says_yes(t, r))))
    [stage] = result.stages
    assert (stage.stage, stage.split, stage.rollouts, stage.changed) == (
        "base",
        "validation",
        24,
        24,
    )
    assert stage.mean_before is not None
    assert stage.mean_after == pytest.approx(1 - stage.mean_before)
    assert result.groups.tau_b == pytest.approx(-1)
    assert result.groups.reordered == result.groups.spread_before > 0
    assert result.groups.sign_flips > 0
    assert len(result.moved) == 10
    ids = {r.graded.trajectory.id for r in job.read_all(RolloutRecord)}
    assert all(moved.trajectory_id in ids and moved.before != moved.after for moved in result.moved)


def test_the_report_is_written_as_json(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path)
    result, job = regraded(home, regrader())
    written = json.loads((home.report(job.run.id) / "regrade.json").read_text())
    assert (written["source_id"], written["compared"]) == ("run-1", result.compared)


class Fails:
    """Has no grade for the first task."""

    name = "fails"

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        if task.id == "task-0":
            raise GraderError("no answer", code="endpoint_grader_server_error")
        return Grade(score=1.0, grader=self.name)


def test_rollouts_that_get_no_grade_are_counted_by_family(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path)
    result, job = regraded(home, regrader(Fails()))
    assert result.errors == {"endpoint_grader_server_error": 4}
    assert result.compared == 20
    [stage] = result.stages
    assert (stage.graded_before, stage.graded_after) == (24, 20)
    assert scores(job).count(None) == 4
    assert "4 endpoint_grader_server_error" in job.read_all(Event)[0].message


def test_what_infrastructure_spoiled_stays_without_a_grade(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path, samples=1)
    first = home.store.read("run-1", RolloutRecord, limit=1).items[0]
    down = Failure(kind=FailureKind.INFRASTRUCTURE, where="tool 'get'", message="down")
    trajectory = replace(first.graded.trajectory, stop_reason=StopReason.FAILED, failure=down)
    spoiled = replace(first.graded, trajectory=trajectory, grade=Grade(score=None, failure=down))
    home.store.append("run-1", [replace(first, graded=spoiled)])
    result, job = regraded(home, regrader())
    assert scores(job)[-1] is None
    assert result.errors == {}, "the failure is no grader's"


def test_rollouts_on_corrupted_rows_are_left_out(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path, samples=1)
    first = home.store.read("run-1", RolloutRecord, limit=1).items[0]
    home.store.append("run-1", [replace(first, split="canary")])
    result, job = regraded(home, regrader())
    assert (len(scores(job)), result.compared) == (6, 6)


def test_the_stages_of_an_improvement_are_regraded_together(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path, samples=1)
    stage = replace(home.store.run("run-1"), id="run-1.base-measured", parent_id="run-1")
    home.store.put_run(stage)
    first = home.store.read("run-1", RolloutRecord, limit=1).items[0]
    home.store.append(stage.id, [replace(first, split="holdout")])
    result, _ = regraded(home, regrader())
    assert [(s.split, s.rollouts) for s in result.stages] == [("validation", 6), ("holdout", 1)]
    result, _ = regraded(home, regrader())
    assert result.compared == 7, "an earlier regrade is no source"


class StopsAfter:
    """Grades a number of rollouts and then asks its job to stop."""

    name = "stops"

    def __init__(self, rollouts: int) -> None:
        self.left = rollouts
        self.job: Job | None = None

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        self.left -= 1
        if self.left < 0 and self.job is not None:
            self.job.stop.set()
            await asyncio.Event().wait()
        return Grade(score=says_yes(task, trajectory), grader=self.name)


def test_an_interrupted_regrade_goes_on_where_it_stopped(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path, samples=2 * PAGE // len(TASKS) + 1)
    stops = StopsAfter(PAGE + 3)
    made = regrader(stops)
    stops.job = job = again(home, made)
    with pytest.raises(Stopped):
        asyncio.run(regrade(job, made))
    assert len(scores(job)) == PAGE
    found = unfinished_run(home.store, "project", Method.REGRADE, made.settings, parent_id="run-1")
    stops.left = 10**6
    result, second = regraded(home, made, run_id=found)
    assert len(scores(second)) == result.compared == len(TASKS) * (2 * PAGE // len(TASKS) + 1)
    assert result.changed == 0


def test_another_grader_does_not_continue_a_regrade(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path, samples=1)
    again(home, regrader())
    other = regrader(threshold=1).settings
    with pytest.raises(ConfigError, match="threshold"):
        unfinished_run(home.store, "project", Method.REGRADE, other, parent_id="run-1")


def test_a_source_that_changed_meanwhile_is_noticed(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path, samples=1)
    made = regrader()
    job = again(home, made)
    last = home.store.read("run-1", RolloutRecord, limit=10).items[-1]
    home.store.append(job.run.id, [last])
    with pytest.raises(StoreError, match="other rollouts than when"):
        asyncio.run(regrade(job, made))


def test_a_row_that_is_gone_is_named(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path, samples=1)
    made = Regrader(FixedGrader(says_yes), lambda split: TASKS[1:], {"grader": {"name": "new"}})
    with pytest.raises(DataError, match=r"task 'task-0'.*validation"):
        regraded(home, made)


def test_only_a_grader_that_reads_what_is_stored_may_regrade() -> None:
    @as_grader
    def state(task: Task, trajectory: Trajectory, environment: object) -> float:
        return 1.0

    looks = FunctionGrader(name="state", code=state)
    parts: dict[str, Grader] = {"a": FixedGrader({}), "state": looks}
    multi = Multi(name="m", graders=parts, formula=parse_formula("a * state", parts, "f"))
    assert needs_environment(multi) == "grader 'state'"
    for grader in (EnvironmentGrader(), looks, multi):
        with pytest.raises(ConfigError, match="looks at the environment.*--grader"):
            regrader(grader)


def test_a_fine_tuning_job_is_regraded_from_its_own_files(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    submitted(home)
    job = finished(home, FakeModel()).job
    other = {**GRADER, "operation": "ne"}
    result, _ = regraded(home, job_regrader(home, job, other, Backends()), source=job.id)
    assert result.compared > 0
    assert result.changed == result.compared
    assert {stage.split for stage in result.stages} == {"train", "validation"}


def test_rollouts_of_train_rows_that_a_held_out_grader_looked_at_are_regraded(
    tmp_path: Path,
) -> None:
    home = a_home(tmp_path)
    watched = replace(REINFORCEMENT, gold_grader=GRADER, eval_interval=None, eval_samples=None)
    submitted(home, watched, validation=[])
    job = finished(home, FakeModel()).job
    result, _ = regraded(home, job_regrader(home, job, {}, Backends()), source=job.id)
    assert {stage.split for stage in result.stages} == {"train", "validation"}
    assert (result.compared > 0, result.changed) == (True, 0)


def test_a_project_without_validation_rows_finds_them_among_its_train_rows(tmp_path: Path) -> None:
    write_starter(tmp_path / "loans")
    (tmp_path / "loans" / "validation.jsonl").unlink()
    config = replace(read_config(tmp_path / "loans"), grader={**GRADER, "reference": "yes"})
    project = assembled(tmp_path / "loans", config, lambda _: Backends())
    task = project.tasks("train")[0]
    home = a_home(tmp_path / "home")
    job = a_job(home.path)
    at = Measurement(stage="reinforcement", split="validation")
    one = EvaluationConfig(samples_per_task=1)
    asyncio.run(evaluate(job, a_setup(), [task], one, at, concurrency=1))
    result, _ = regraded(home, project_regrader(project))
    assert [stage.graded_after for stage in result.stages] == [1]
    assert project_subject(project).validation == ()


def test_a_jobs_own_grader_is_not_used_without_the_secrets_it_had(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    headers = {"X-Key": "[redacted]"}
    grader = {"type": "endpoint", "url": "http://127.0.0.1:1/g", "headers": headers}
    job = submitted(home, ReinforcementMethod(grader=grader))
    with pytest.raises(ConfigError, match="ended with it.*--grader"):
        job_regrader(home, job, {}, Backends())


def test_a_run_whose_project_moved_says_how_to_name_it(tmp_path: Path) -> None:
    home = a_measured_run(tmp_path, samples=1)
    with pytest.raises(ConfigError, match="--project"):
        project_file(home.store, "run-1")
