import asyncio
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from builders import a_job
from search_project import ASKED, TOML, Asking, Silent, a_project, willing
from tuning import FakeModel

from agentrft.core.errors import ConfigError, UserError
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import Method, RolloutRecord
from agentrft.graders.backends import Backends
from agentrft.inference.grader_model import GradingReply, ScriptedGraderModel
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.holdout import holdout_looks
from agentrft.jobs.ledger import Ledger
from agentrft.jobs.optimize import found_again, optimize, reflection, search_report_again
from agentrft.jobs.project import Project, open_project, plain_spec
from agentrft.jobs.trials import LEDGER
from agentrft.optimize.gepa_proposer import GepaProposer
from agentrft.optimize.problem import Found, Proposer
from agentrft.store.datasets import read_demonstrations
from agentrft.store.spec_files import read_spec


def a_search(home: Path, project: Project) -> Job:
    return a_job(home, Method.OPTIMIZE, "run-search", config=asdict(project.config))


def searched(
    home: Path, project: Project, *proposers: Proposer, model: FakeModel | None = None
) -> tuple[Job, Found]:
    job = a_search(home, project)
    opened = model or FakeModel(script=willing)
    return job, asyncio.run(optimize(job, project, open_model=opened, proposers=proposers))


def test_a_change_that_helps_is_promoted_and_everything_lies_in_the_runs_folder(
    tmp_path: Path,
) -> None:
    project = a_project(tmp_path / "desk")
    job, found = searched(tmp_path / "home", project, Asking())
    assert found.summary.promoted
    assert "ask" in found.summary.chosen
    plain = plain_spec(project.folder, project.config)
    assert read_spec(job.folder / "spec", plain) == found.chosen
    assert {path.stem for path in (job.folder / "specs").iterdir()} >= {
        found.chosen.hash,
        project.spec.hash,
    }
    assert read_demonstrations(job.folder / "demonstrations.jsonl")
    assert found_again(job) == found
    spent = found.summary.spent
    assert spent["rollouts"] == len(job.read_all(RolloutRecord))
    assert (spent["interrupted"], found.summary.holdout_looks) == (0, 1)


def test_the_report_shows_baseline_changes_and_examples_and_can_be_made_again(
    tmp_path: Path,
) -> None:
    job, found = searched(tmp_path / "home", a_project(tmp_path / "desk"), Asking())
    page = tmp_path / "home" / "runs" / job.run.id / "report" / "report.html"
    html = page.read_text()
    assert "What was promoted" in html
    assert html.count('class="panel card"') == 2
    assert found.summary.mix_before
    for entry in found.summary.mix_before:
        assert f'id="{entry.example}"' in html
    page.unlink()
    report, folder = search_report_again(job.home, job.run.id)
    assert report.given.search == found.summary
    assert (folder / "report.html").is_file()


def test_without_a_change_that_helps_the_baseline_stays_and_no_look_is_counted(
    tmp_path: Path,
) -> None:
    project = a_project(tmp_path / "desk")
    job, found = searched(tmp_path / "home", project, Silent())
    assert not found.summary.promoted
    assert found.chosen == project.spec
    assert not (job.folder / "spec").exists()
    assert (found.summary.holdout_looks, holdout_looks(job)) == (0, 0)
    assert all(record.split != "holdout" for record in job.read_all(RolloutRecord))


def test_looks_at_the_holdout_add_up_and_are_warned_of(tmp_path: Path) -> None:
    project = a_project(tmp_path / "desk")
    home = tmp_path / "home"
    for number in range(5):
        earlier = a_job(home, Method.EVALUATION, f"run-{number}")
        earlier.note_result(split="holdout")
    _, found = searched(home, project, Asking())
    assert found.summary.holdout_looks == 6
    assert any("6 times" in note for note in found.summary.notes)


def test_a_stopped_search_goes_on_to_the_same_result(tmp_path: Path) -> None:
    project = a_project(tmp_path / "desk")
    _, whole = searched(tmp_path / "whole", project, Asking())
    requests: list[SampleRequest] = []

    async def stop(request: SampleRequest) -> None:
        requests.append(request)
        if len(requests) == 150:
            job.stop.set()
            await asyncio.Event().wait()

    job = a_search(tmp_path / "cut", project)
    model = FakeModel(script=willing, before=stop)
    with pytest.raises(Stopped):
        asyncio.run(optimize(job, project, open_model=model, proposers=[Asking()]))
    with pytest.raises(UserError, match="--resume"):
        found_again(job)
    resumed, found = searched(tmp_path / "cut", project, Asking())
    assert found.chosen == whole.chosen
    assert found.summary.tried == whole.summary.tried
    assert found.summary.spent["rollouts"] == whole.summary.spent["rollouts"]
    assert found.summary.spent["interrupted"] > 0
    assert len(resumed.read_all(RolloutRecord)) == found.summary.spent["rollouts"]


def test_a_search_is_not_resumed_under_another_spec(tmp_path: Path) -> None:
    project = a_project(tmp_path / "desk")
    searched(tmp_path / "home", project, Silent())
    (project.folder / "spec").mkdir()
    (project.folder / "spec" / "spec.toml").write_text("[guards]\ncoerce = true\n")
    changed = open_project(project.folder)
    with pytest.raises(ConfigError, match=project.spec.hash):
        searched(tmp_path / "home", changed, Silent())


def test_rows_in_two_splits_are_refused_before_anything_is_rolled_out(tmp_path: Path) -> None:
    project = a_project(tmp_path / "desk")
    rows = (project.folder / "train.jsonl").read_text()
    (project.folder / "holdout.jsonl").write_text(rows)
    with pytest.raises(UserError, match="holdout"):
        searched(tmp_path / "home", project, Asking())
    assert not (a_search(tmp_path / "home", project).folder / LEDGER).exists()


REFLECTING = TOML.replace("[methods.optimize]", '[methods.optimize]\nreflection_model = "strong"\n')


def test_a_reflection_model_is_one_of_the_grader_models(tmp_path: Path) -> None:
    project = a_project(tmp_path / "desk", toml=REFLECTING)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    with pytest.raises(ConfigError, match=r"reflection_model is 'strong'.*none"):
        reflection(project, ledger)


def test_a_reflection_model_writes_the_text_that_is_promoted(tmp_path: Path) -> None:
    reply = GradingReply(text=f"Thinking.\n```\n{ASKED}\n```", finish_reason="stop")
    model = ScriptedGraderModel([reply] * 400)
    toml = REFLECTING.replace("rollouts = 500", "rollouts = 1200")
    project = replace(
        a_project(tmp_path / "desk", toml=toml), backends=Backends(models={"strong": model})
    )
    job, found = searched(tmp_path / "home", project)
    assert found.summary.chosen == {"gepa": "candidate 1"}
    assert ASKED in found.chosen.system
    (effect, *_) = [one for one in found.summary.effects if one.source == "gepa"]
    assert effect.effect.low > 0
    records = job.read_all(RolloutRecord)
    gepa = [record for record in records if record.stage == "gepa"]
    assert {record.split for record in gepa} == {"train", "validation"}
    assert found.summary.spent["rollouts"] == len(records) <= 1200
    asked = "\n".join(str(request.messages) for request in model.requests)
    shown = [task.messages[-1].content for task in project.tasks("train")]
    assert any(request in asked for request in shown)
    kept_back = (*project.tasks("validation"), *project.tasks("holdout"))
    assert not any(task.messages[-1].content in asked for task in kept_back)


def test_what_a_reflection_model_said_is_kept_for_a_resumed_search(tmp_path: Path) -> None:
    replies = [GradingReply(text=text, finish_reason="stop") for text in ("one", "two", "three")]
    model = ScriptedGraderModel(replies)
    project = replace(
        a_project(tmp_path / "desk", toml=REFLECTING), backends=Backends(models={"strong": model})
    )

    def answers(*prompts: str) -> list[str]:
        (proposer,) = reflection(project, Ledger(tmp_path / "ledger.jsonl"))
        assert isinstance(proposer, GepaProposer)
        asked = proposer.reflect

        async def all_of_them() -> list[str]:
            return [await asked(prompt) for prompt in prompts]

        return asyncio.run(all_of_them())

    assert answers("why?", "why?") == ["one", "two"]
    assert answers("why?", "why?", "and then?") == ["one", "two", "three"]
    assert len(model.requests) == 3
    spent = Ledger(tmp_path / "ledger.jsonl").spent(reused=0)
    assert (spent.questions, spent.sampled_tokens) == (3, 0)
