"""`agentrft spec` and `agentrft report` over a search that is done."""

import asyncio
import subprocess
import sys
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from agentrft.core.run import Method
from agentrft.core.spec import AgentSpec, Guards
from agentrft.jobs.context import Job
from agentrft.jobs.optimize import keep
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import Project, open_project
from agentrft.jobs.starter import write_starter
from agentrft.measure.search_summary import SearchSummary
from agentrft.optimize.problem import Found
from agentrft.store.home import Home

RUN = "run-search"


def agentrft(home: Path, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-c", "from agentrft.cli import main; main()", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"AGENTRFT_HOME": str(home), "PATH": "", "COLUMNS": "160"},
    )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    write_starter(tmp_path / "loans")
    return open_project(tmp_path / "loans")


def a_search(home: Path, project: Project, chosen: AgentSpec) -> None:
    """A search that is done, as far as its folder shows."""
    settings = {} if chosen == project.spec else {"coerce arguments": "on"}
    summary = SearchSummary(
        baseline_hash=project.spec.hash,
        chosen_hash=chosen.hash,
        promoted=bool(settings),
        chosen=settings,
    )
    with closing(Home.open(home)) as opened:
        job = Job.start(
            opened,
            project.config.name,
            Method.OPTIMIZE,
            config=asdict(project.config),
            seed=0,
            progress=SilentProgress(),
            stop=asyncio.Event(),
            run_id=RUN,
        )
        keep(job.folder, Found(chosen=chosen, summary=summary), project)


def test_what_a_search_chose_is_shown_compared_and_applied(
    tmp_path: Path, project: Project
) -> None:
    home, folder = tmp_path / "home", project.folder
    chosen = replace(project.spec, guards=Guards(coerce=True))
    a_search(home, project, chosen)
    assert f"hash {project.spec.hash}" in agentrft(home, "spec", "show", folder).stdout
    shown = agentrft(home, "spec", "show", RUN).stdout
    assert f"hash {chosen.hash}" in shown
    assert "[guards]\ncoerce = true" in shown
    assert "+coerce = true" in agentrft(home, "spec", "diff", folder, RUN).stdout
    applied = agentrft(home, "spec", "apply", folder, RUN)
    assert applied.returncode == 0
    assert "coerce arguments: on" in applied.stdout
    assert open_project(folder).spec == chosen
    assert agentrft(home, "spec", "diff", folder, RUN).stdout == "no difference\n"
    assert agentrft(home, "spec", "apply", folder, RUN).returncode == 0


def test_a_spec_that_was_edited_since_is_not_overwritten(tmp_path: Path, project: Project) -> None:
    home, folder = tmp_path / "home", project.folder
    a_search(home, project, replace(project.spec, guards=Guards(coerce=True)))
    (folder / "spec").mkdir()
    (folder / "spec" / "spec.toml").write_text("[limits]\nmax_turns = 3\n")
    refused = agentrft(home, "spec", "apply", folder, RUN)
    assert refused.returncode == 1
    assert project.spec.hash in refused.stderr
    assert (folder / "spec" / "spec.toml").read_text() == "[limits]\nmax_turns = 3\n"


def test_a_search_that_promoted_nothing_has_nothing_to_apply(
    tmp_path: Path, project: Project
) -> None:
    home = tmp_path / "home"
    a_search(home, project, project.spec)
    refused = agentrft(home, "spec", "apply", project.folder, RUN)
    assert (refused.returncode, refused.stdout) == (1, "")
    assert "promoted nothing" in refused.stderr


def test_a_run_of_another_project_is_not_applied(tmp_path: Path, project: Project) -> None:
    home = tmp_path / "home"
    a_search(home, project, replace(project.spec, guards=Guards(coerce=True)))
    write_starter(tmp_path / "other")
    refused = agentrft(home, "spec", "apply", tmp_path / "other", RUN)
    assert "is of project 'loans', not 'other'" in refused.stderr


def test_the_report_of_a_search_is_made_again(tmp_path: Path, project: Project) -> None:
    home = tmp_path / "home"
    a_search(home, project, project.spec)
    shown = agentrft(home, "report", RUN)
    assert "Nothing was promoted" in shown.stdout
    page = home / "runs" / RUN / "report" / "report.html"
    assert "Prompt and structure" in page.read_text()
