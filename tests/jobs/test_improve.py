"""The whole climb on fakes: search, advice, training, the spec tested again, and a resume."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from search_project import TOML, Asking, Silent, a_project, willing
from tuning import FakeModel, pairs

from agentrft.core.errors import UserError
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import Method, RunStatus
from agentrft.core.spec import Section
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.improve import Improvement, improve
from agentrft.jobs.improvement_report import report_again
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


EVERYTHING = (
    CLIMB.replace("demonstrations = 1000", "demonstrations = 1\npairs = 4\nlong_prompt = 1")
    + """
[data]
preferences = "pairs.jsonl"
[methods.supervised]
steps = 2
batch_size = 2
[methods.preference]
steps = 2
batch_size = 2
[methods.distillation.supervised]
steps = 2
batch_size = 2
[methods.evaluation]
best_of = 3
"""
)
ALONE = (
    CLIMB.replace("demonstrations = 1000", "demonstrations = 12")
    + """
[methods.rejection.supervised]
steps = 2
batch_size = 2
[methods.evaluation]
best_of = 0
"""
)


STAGES = ["base", "spec", "warm start", "preference", "reinforcement", "distillation"]


def all_methods(folder: Path) -> Project:
    a_project(folder)
    (folder / "agent.toml").write_text(EVERYTHING)
    (folder / "pairs.jsonl").write_text("\n".join(json.dumps(row) for row in pairs(4)))
    return open_project(folder)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Job, Project, Improvement]:
    """A climb that takes all methods but the one that needs no demonstrations."""
    folder = tmp_path_factory.mktemp("whole")
    project = all_methods(folder / "desk")
    job = a_job(Home.open(folder / "home"), project)
    return job, project, climbed(job, project, FakeModel(script=willing), Asking())


def test_every_advised_method_is_taken_once_and_each_is_measured(
    whole: tuple[Job, Project, Improvement],
) -> None:
    job, project, result = whole
    told = as_json(result.report)
    assert [stage["name"] for stage in told["stages"]] == STAGES
    assert all(stage["measured"]["tasks"] == 24 for stage in told["stages"])
    assert [one["method"] for one in told["advice"]][:-1] == [
        NextStep.SUPERVISED,
        NextStep.PREFERENCE,
        NextStep.REINFORCEMENT,
        NextStep.DISTILLATION,
    ]
    assert [one["after"] for one in told["retests"]] == STAGES[2:-1]
    assert {"best of", "distillation", "distillation measured"} <= told["phase_s"].keys()
    assert result.checkpoint is not None
    assert result.checkpoint.run_id == f"{job.run.id}.distillation"
    # What was distilled goes on under the short spec.
    assert kept_spec(job.folder, job.run.result["spec"]).sections == project.spec.sections


def test_training_is_held_against_several_rollouts_of_the_best_spec(
    whole: tuple[Job, Project, Improvement],
) -> None:
    job, _, result = whole
    control, best = result.report.given.control, result.report.given.stages[1]
    assert control is not None
    drawn = [record.graded.trajectory for record in control.records]
    known = [record.graded.trajectory for record in best.records]
    assert {one.spec_hash for one in drawn} == {one.spec_hash for one in known}
    assert {one.id for one in known} < {one.id for one in drawn}
    assert len({(one.task_id, one.seed) for one in drawn}) == len(drawn) == 3 * 24
    rebuilt, _ = report_again(job.home, job.run.id)
    assert rebuilt.given.control is not None
    assert len(rebuilt.given.control.records) == len(drawn)
    assert [stage.name for stage in rebuilt.given.stages] == STAGES


def test_a_climb_that_was_stopped_in_any_method_ends_as_if_it_had_not_been(
    whole: tuple[Job, Project, Improvement], tmp_path: Path
) -> None:
    project = all_methods(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    job = a_job(home, project)
    for _ in range(
        4
    ):  # the first step of each method is stopped at, the second one is gone on with
        job = a_job(home, project, job.run.id)

        def stop_at_first(steps: int, job: Job = job) -> None:
            if steps == 0:
                job.stop.set()

        with pytest.raises(Stopped):
            climbed(job, project, FakeModel(script=willing, on_step=stop_at_first), Asking())
    again = a_job(home, project, job.run.id)
    told, expected = (
        as_json(one.report)
        for one in (climbed(again, project, FakeModel(script=willing), Asking()), whole[2])
    )
    for name in ("stages", "advice", "retests"):
        assert len(told[name]) == len(expected[name])
    assert [s["measured"]["pass_at_1"] for s in told["stages"]] == [
        s["measured"]["pass_at_1"] for s in expected["stages"]
    ]


def test_without_demonstrations_the_agent_warms_up_on_its_own_successes(tmp_path: Path) -> None:
    project = a_project(tmp_path / "desk", toml=ALONE)
    job = a_job(Home.open(tmp_path / "home"), project)
    result = climbed(job, project, FakeModel(script=willing), Silent())
    told = as_json(result.report)
    assert [s["name"] for s in told["stages"]] == ["base", "rejection", "reinforcement"]
    assert result.report.given.control is None
    assert told["stages"][1]["training"], "the rollouts it imitated are in the report"


def test_what_teaches_nothing_is_passed_over(tmp_path: Path) -> None:
    """No own success to imitate, then a reinforcement that leaves the weights as they were."""
    unlucky = "[methods.rejection]\ntemperature = 0.5\n[methods.rejection.supervised]"
    toml = ALONE.replace("[methods.rejection.supervised]", unlucky)
    project = a_project(tmp_path / "desk", toml=toml)
    home = Home.open(tmp_path / "home")
    job = a_job(home, project, "run-1")
    result = climbed(job, project, FakeModel(script=_wavering, changed=False), Silent())
    assert job.run.status is RunStatus.SUCCEEDED
    assert result.checkpoint is None
    told = as_json(result.report)
    assert [(s["name"], s["measured"] is None) for s in told["stages"]] == [
        ("base", False),
        ("rejection", True),
        ("reinforcement", True),
    ]
    assert any("rejection left nothing to go on with" in text for text in told["warnings"])
    assert any("weights equal those of the base" in text for text in told["warnings"])
    again = as_json(report_again(home, "run-1")[0])
    for name in ("stages", "warnings"):
        assert len(again[name]) == len(told[name])
    assert home.store.run("run-1.reinforcement").status is RunStatus.FAILED


def _wavering(request: SampleRequest) -> Sequence[int]:
    from byte_chat import says

    return says("no") if request.temperature == 0.5 else willing(request)


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
