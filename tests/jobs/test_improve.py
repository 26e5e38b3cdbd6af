"""The whole climb on fakes: search, advice, training, the spec tested again, and a resume."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from search_project import TOML, Asking, Silent, a_project, willing
from tuning import FakeModel

from agentrft.core.errors import UserError
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import Method, RunStatus
from agentrft.core.spec import Section
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.improve import Improvement, improve, report_again
from agentrft.jobs.optimize import kept_spec
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import SPEC_FOLDER, Project, open_project
from agentrft.measure.next_steps import NextStep
from agentrft.measure.report import as_json
from agentrft.optimize.problem import Proposer
from agentrft.store.home import Home
from agentrft.store.spec_files import write_spec

CLIMB = (
    TOML
    + """
[methods.reinforcement]
steps = 2
tasks_per_step = 4
group_size = 4
[methods.preflight]
tasks = 8
samples = 4
[advisor]
tasks = 1
detectable = 1.0
train_tasks = 1
demonstrations = 1000
"""
)


def a_job(home: Home, project: Project, run_id: str = "") -> Job:
    return Job.start(
        home,
        project.config.name,
        Method.IMPROVE,
        config={"name": "desk", "environment": "tools.py:Desk"},
        seed=3,
        progress=SilentProgress(),
        stop=asyncio.Event(),
        run_id=run_id,
    )


def climbed(job: Job, project: Project, model: FakeModel, *proposers: Proposer) -> Improvement:
    return asyncio.run(
        improve(job, project, allow_findings=True, open_model=model, proposers=proposers)
    )


def test_an_improvement_searches_then_trains_what_is_advised(tmp_path: Path) -> None:
    project = a_project(tmp_path / "desk", toml=CLIMB)
    job = a_job(Home.open(tmp_path / "home"), project)
    result = climbed(job, project, FakeModel(script=willing), Asking())
    told = as_json(result.report)
    assert [stage["name"] for stage in told["stages"]] == ["base", "spec", "reinforcement"]
    assert told["search"]["promoted"]
    assert told["advice"][0]["method"] == NextStep.REINFORCEMENT
    assert [one["after"] for one in told["retests"]] == ["reinforcement"]
    assert [drop["knob"] for drop in told["retests"][0]["drop_one"]] == ["sections"]
    assert result.checkpoint is not None
    assert result.checkpoint.spec_hash == told["search"]["chosen_hash"]
    html = (result.folder / "report.html").read_text()
    assert "What was advised, and followed" in html
    rebuilt, _ = report_again(job.home, job.run.id)
    assert as_json(rebuilt)["advice"] == told["advice"]
    assert as_json(rebuilt)["retests"] == told["retests"]


def test_what_the_user_wrote_into_the_spec_is_never_taken_back(tmp_path: Path) -> None:
    project = a_project(tmp_path / "desk", toml=CLIMB)
    mine = replace(project.spec, sections=(Section(name="mine", text="Be polite."),))
    write_spec(tmp_path / "desk" / SPEC_FOLDER, mine, project.spec)
    project = open_project(tmp_path / "desk")
    job = a_job(Home.open(tmp_path / "home"), project)
    result = climbed(job, project, FakeModel(script=willing), Silent())
    assert as_json(result.report)["retests"] == []
    assert kept_spec(job.folder, job.run.result["spec"]).system == "Be polite."


def test_what_the_search_did_on_the_holdout_is_not_measured_again(tmp_path: Path) -> None:
    project = a_project(tmp_path / "desk", toml=CLIMB)
    job = a_job(Home.open(tmp_path / "home"), project)
    result = climbed(job, project, FakeModel(script=willing), Asking())
    told = as_json(result.report)
    base, spec = (stage["measured"]["pass_at_1"]["value"] for stage in told["stages"][:2])
    assert base == told["search"]["baseline_holdout"]["value"]
    assert spec == told["search"]["chosen_holdout"]["value"]
    ledger = (job.folder.parent / f"{job.run.id}.search" / "ledger.jsonl").read_text()
    confirmed = [line for line in ledger.splitlines() if '"holdout"' in line]
    assert confirmed


def test_nothing_is_trained_when_nothing_is_left_to_learn(tmp_path: Path) -> None:
    project = a_project(tmp_path / "desk", toml=CLIMB)
    job = a_job(Home.open(tmp_path / "home"), project)
    model = FakeModel(script=_yes)
    result = climbed(job, project, model, Silent())
    assert result.checkpoint is None
    assert result.advice.rule == "R2"
    assert model.trainers == []
    assert [s["name"] for s in as_json(result.report)["stages"]] == ["base"]


def _yes(request: SampleRequest) -> Sequence[int]:
    from byte_chat import says

    del request
    return says("yes")


def test_a_stopped_improvement_goes_on_where_it_was(tmp_path: Path) -> None:
    project = a_project(tmp_path / "desk", toml=CLIMB)
    home = Home.open(tmp_path / "home")
    whole = climbed(a_job(home, project), project, FakeModel(script=willing), Asking())
    job = a_job(Home.open(tmp_path / "other"), project)
    model = FakeModel(script=willing, on_step=lambda steps: job.stop.set() if steps == 0 else None)
    with pytest.raises(Stopped):
        climbed(job, project, model, Asking())
    assert job.home.store.run(job.run.id).status is RunStatus.PAUSED
    again = a_job(job.home, project, job.run.id)
    resumed = FakeModel(script=willing)
    result = climbed(again, project, resumed, Asking())
    assert len(resumed.batches) == 1
    told, expected = as_json(result.report), as_json(whole.report)
    assert told["search"]["chosen_hash"] == expected["search"]["chosen_hash"]
    assert [s["measured"]["pass_at_1"] for s in told["stages"]] == [
        s["measured"]["pass_at_1"] for s in expected["stages"]
    ]


def test_an_agent_behind_an_endpoint_is_refused_before_anything_runs(tmp_path: Path) -> None:
    endpoint = '\n[endpoint]\nbase_url = "http://127.0.0.1:9/v1"\nmodel = "far"\n'
    project = a_project(tmp_path / "desk", toml=CLIMB + endpoint)
    job = a_job(Home.open(tmp_path / "home"), project)
    with pytest.raises(UserError, match="open-weights base"):
        climbed(job, project, FakeModel(script=willing), Asking())
    assert json.dumps(dict(job.run.result)) == "{}"
