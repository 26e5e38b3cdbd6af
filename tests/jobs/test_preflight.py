"""Preflight on the starter project with a scripted model: measured, resumed, graded again."""

import asyncio
import itertools
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from builders import a_job
from byte_chat import calls, decode, says
from tuning import FakeModel

from agentrft.core.config import AdvisorConfig, AuditConfig, EngineConfig, PreflightConfig
from agentrft.core.errors import UserError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment, SampleRequest
from agentrft.core.run import Method, RolloutRecord
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.preflight import preflight, sample_of
from agentrft.jobs.project import Project, open_project
from agentrft.jobs.starter import write_starter
from agentrft.measure.preflight_result import PreflightResult

TASKS, SAMPLES = 6, 4


def clerk(request: SampleRequest) -> Sequence[int]:
    """Looks the loan up, and then does what is asked on about half of the tries."""
    said = decode(request.prompt_ids)
    loan = re.findall(r"L\d{4}", said.rpartition("user\n")[2])[0]
    if "title=" not in said:
        return calls(("get_loan", {"loan_id": loan}))
    if "renewed" not in said.rpartition("title=")[2] and "reserved=no" in said:
        return calls(("renew_loan", {"loan_id": loan})) if request.seed % 2 else says("Done.")
    return says("Done.")


def a_project(folder: Path, settings: str = "") -> Project:
    home = folder / "starter"
    write_starter(home)
    file = home / "agent.toml"
    text = file.read_text().replace("max_context_tokens = 768", "max_context_tokens = 20000")
    text = text.replace("max_tokens = 160", "max_tokens = 4000")
    file.write_text(text.replace("max_turn_tokens = 64", "max_turn_tokens = 1000") + settings)
    project = open_project(home)
    chosen = PreflightConfig(tasks=TASKS, samples=SAMPLES, regraded=5)
    methods = replace(project.config.methods, preflight=chosen)
    config = replace(
        project.config,
        methods=methods,
        audit=AuditConfig(rows=4),
        engine=EngineConfig(max_sequences=2),
        advisor=AdvisorConfig(),  # the starter's own lets a dozen tasks pass
    )
    return replace(project, config=config)


def flown(
    folder: Path, project: Project, model: FakeModel | None = None
) -> tuple[Job, PreflightResult]:
    job = a_job(folder / "home", Method.PREFLIGHT)
    opened = model or FakeModel(script=clerk)
    return job, asyncio.run(preflight(job, project, open_model=opened))


def test_preflight_measures_stores_audits_and_advises(tmp_path: Path) -> None:
    project = a_project(tmp_path)
    job, result = flown(tmp_path, project)
    found = result.standing
    assert (found.tasks, found.rollouts, found.samples) == (TASKS, TASKS * SAMPLES, SAMPLES)
    assert 0 < found.pass_1.value < 1
    assert found.flips is not None
    assert found.flips.value == 0
    assert {tool.name: tool.calls > 0 for tool in found.tools} == {
        "get_loan": True,
        "renew_loan": True,
    }
    assert (result.advice.rule, result.verdict) == ("R1", "fix")
    assert result.audit["headline"]
    records = job.read_all(RolloutRecord)
    assert {(r.stage, r.split) for r in records} == {("preflight", "train")}
    folder = job.home.report(job.run.id)
    assert (folder / "preflight.html").is_file()
    assert json.loads((folder / "preflight.json").read_text())["verdict"] == "fix"
    assert job.home.store.run(job.run.id).result["verdict"] == "fix"


def test_a_project_without_holdout_validation_and_demonstrations_is_told_to_collect_tasks(
    tmp_path: Path,
) -> None:
    project = a_project(tmp_path)
    for name in ("holdout", "validation"):
        (project.folder / f"{name}.jsonl").unlink()
    data = replace(project.config.data, demonstrations="")
    project = replace(project, config=replace(project.config, data=data))
    _, result = flown(tmp_path, project)
    assert result.advice.rule == "R1"
    assert (result.standing.holdout_tasks, result.standing.detectable) == (0, 1.0)


def test_a_search_that_ended_with_this_spec_is_not_advised_again(tmp_path: Path) -> None:
    project = a_project(tmp_path)
    easy = AdvisorConfig(tasks=1, detectable=1.0, mechanical_rollouts=1.0, mechanical_failures=1.0)
    project = replace(project, config=replace(project.config, advisor=easy))
    for name, hash_, rule in (("other", "0123", "R4"), ("same", project.spec.hash, "-")):
        folder = tmp_path / name
        search = a_job(folder / "home", Method.OPTIMIZE, "run-search")

        async def ends(of: Job = search, chose: str = hash_) -> None:
            async with of.running():
                of.note_result(spec=chose)

        asyncio.run(ends())
        _, result = flown(folder, project)
        assert result.advice.rule == rule


def test_tasks_are_drawn_by_seed_and_kept_in_file_order(tmp_path: Path) -> None:
    tasks = a_project(tmp_path).tasks("train")
    first, again, other = (sample_of(tasks, 5, seed) for seed in (1, 1, 2))
    assert first == again != other
    assert first == sorted(first, key=tasks.index)
    assert sample_of(tasks, 10_000, 0) == list(tasks)


def test_a_preflight_that_was_stopped_goes_on_and_finds_the_same(tmp_path: Path) -> None:
    project = a_project(tmp_path)
    _, whole = flown(tmp_path / "whole", project)
    job = a_job(tmp_path / "home", Method.PREFLIGHT)
    asked = itertools.count()

    async def interrupt(request: SampleRequest) -> None:
        if next(asked) == 20:
            job.stop.set()

    with pytest.raises(Stopped):
        asyncio.run(preflight(job, project, open_model=FakeModel(before=interrupt, script=clerk)))
    kept = len(job.read_all(RolloutRecord))
    assert 0 < kept < TASKS * SAMPLES
    again, result = flown(tmp_path, project)
    assert len(again.read_all(RolloutRecord)) == TASKS * SAMPLES

    def timeless(one: PreflightResult) -> object:
        found = replace(one.standing, seconds=0.0, tools=())
        return asdict(found), one.advice.reason

    assert timeless(result) == timeless(whole)


class Moody:
    """Gives every rollout another score each time."""

    name = "moody"

    def __init__(self) -> None:
        self.given = 0

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        self.given += 1
        return Grade(score=self.given / 1000, grader=self.name)


def test_a_grader_that_changes_its_mind_is_found_out(tmp_path: Path) -> None:
    project = replace(a_project(tmp_path), grader=Moody())
    _, result = flown(tmp_path, project)
    assert result.standing.flips is not None
    assert result.standing.flips.value == 1
    assert (result.advice.rule, result.verdict) == ("R0", "fix")


def test_calls_that_a_limit_kept_from_running_are_not_made_for_a_second_grade(
    tmp_path: Path,
) -> None:
    def greedy(request: SampleRequest) -> Sequence[int]:
        loan = re.findall(r"L\d{4}", decode(request.prompt_ids))[-1]
        return calls(*5 * [("get_loan", {"loan_id": loan})])

    _, result = flown(tmp_path, a_project(tmp_path), FakeModel(script=greedy))
    assert result.standing.flips is not None
    assert result.standing.flips.value == 0


def test_calls_that_cannot_be_repeated_say_nothing_of_the_grader(tmp_path: Path) -> None:
    project = a_project(tmp_path)
    opened = 0

    def open_once(task: Task, trace_id: str) -> Environment:
        nonlocal opened
        opened += 1
        if opened > TASKS * SAMPLES:
            raise OSError("no more of these")
        return project.open_environment(task, trace_id)

    _, result = flown(tmp_path, replace(project, open_environment=open_once))
    assert result.standing.flips is None
    assert "could not be repeated" in result.notes[0]


def test_tools_by_url_are_not_called_again_for_a_second_grade(tmp_path: Path) -> None:
    tool = """
[[tools]]
name = "elsewhere"
server_url = "http://127.0.0.1:9/none"
description = "Never called."
parameters = {type = "object", properties = {}}
"""
    _, result = flown(tmp_path, a_project(tmp_path, tool))
    assert result.standing.flips is None
    assert "flip rate not measured" in result.notes[0]


def test_the_held_out_grader_is_asked_too(tmp_path: Path) -> None:
    project = replace(a_project(tmp_path), gold_grader=Moody())
    _, result = flown(tmp_path, project)
    assert result.standing.gold_agreement is not None


def failing_to_open(why: str) -> Callable[[Task, str], Environment]:
    def opening(task: Task, trace_id: str) -> Environment:
        raise OSError(why)

    return opening


def test_rollouts_that_all_fail_are_an_error_that_says_why(tmp_path: Path) -> None:
    project = replace(a_project(tmp_path), open_environment=failing_to_open("no disk"))
    with pytest.raises(UserError, match=r"none of 24 rollouts.*no disk"):
        flown(tmp_path, project)
