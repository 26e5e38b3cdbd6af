import asyncio
import json
from pathlib import Path

import pytest

from agentrft.audit.probe import Verdict
from agentrft.audit.run import audit
from agentrft.core.config import AuditConfig
from agentrft.core.errors import DataError
from agentrft.core.run import Event, Method
from agentrft.core.task import Demonstration, Message, Task, ToolCall
from agentrft.graders.backends import Backends
from agentrft.jobs.audit import (
    FILE,
    GraderRefusedError,
    bare_subject,
    caveats,
    gate,
    known_good,
    project_source,
    project_subject,
)
from agentrft.jobs.context import Job
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import open_project
from agentrft.jobs.starter import write_starter
from agentrft.store.home import Home

DESK = Path(__file__).parents[2] / "examples" / "support_desk"
CONTAINED = {
    "type": "string_check",
    "operation": "like",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
}
FEW = AuditConfig(rows=8)


def rows_file(folder: Path) -> Path:
    path = folder / "rows.jsonl"
    lines = [json.dumps({"question": f"{n}?", "answer": str(n + 30)}) for n in range(10)]
    path.write_text("\n".join(lines))
    return path


def job_in(folder: Path, run_id: str = "run-1") -> Job:
    return Job.start(
        Home.open(folder / "home"),
        "desk",
        Method.REINFORCEMENT,
        config={},
        seed=0,
        progress=SilentProgress(),
        stop=asyncio.Event(),
        run_id=run_id,
    )


def test_the_support_desk_passes_its_own_audit():
    project = open_project(DESK)
    report = asyncio.run(audit(project_subject(project), AuditConfig()))
    assert report.blocked == ()
    assert report.answers == 24
    assert report.headline.reference_score == 1.0
    assert [f.probe for f in report.findings if f.verdict is Verdict.FOOLED] == []


def test_the_starter_project_passes_its_own_audit(tmp_path: Path):
    write_starter(tmp_path / "library")
    project = open_project(tmp_path / "library")
    report = asyncio.run(audit(project_subject(project), AuditConfig()))
    assert report.blocked == ()


def test_demonstrations_are_right_rollouts_of_the_task_with_their_id_or_prompt():
    asked = Message(role="user", content="Cancel W1.")
    call = ToolCall(id="call_1", name="cancel", arguments='{"order": "W1"}')
    answered = (
        asked,
        Message(role="assistant", tool_calls=(call,)),
        Message(role="tool", content="ok", tool_call_id="call_1", name="cancel"),
        Message(role="assistant", content="Cancelled."),
    )
    tasks = [Task(id="one", messages=(asked,)), Task(id="two", messages=(asked, asked))]
    by_id = known_good(tasks, [Demonstration(id="two", messages=answered)])
    by_prompt = known_good(tasks, [Demonstration(id="else", messages=answered)])
    assert list(by_id) == ["two"]
    assert list(by_prompt) == ["one"]
    gold = by_prompt["one"]
    assert gold.output_text == "Cancelled."
    assert gold.tool_calls == (call,)
    assert [result.content for result in gold.tool_results] == ["ok"]
    long = Demonstration(id="one", messages=(*answered, asked, answered[-1]))
    assert known_good(tasks, [long]) == {}


def test_the_source_behind_an_environment_holds_what_it_imports():
    source = project_source(open_project(DESK))
    assert "class SupportDesk" in source
    assert "def judge(" in source


def test_rows_of_a_bare_grader_need_no_messages(tmp_path: Path):
    subject = bare_subject(CONTAINED, rows_file(tmp_path), Backends())
    assert subject.answers["row-1"].text == "30"
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(DataError, match="empty"):
        bare_subject(CONTAINED, tmp_path / "none.jsonl", Backends())


def test_a_run_with_a_bad_grader_is_refused_with_the_reasons_and_keeps_the_report(tmp_path: Path):
    job = job_in(tmp_path)
    subject = bare_subject(CONTAINED, rows_file(tmp_path), Backends())
    with pytest.raises(GraderRefusedError, match=r"(?s)false-pass ceiling.*--allow-audit-findings"):
        asyncio.run(gate(job, subject, FEW))
    kept = json.loads((job.folder / FILE).read_text())
    assert kept["blocked"] == job.run.result["audit"]["blocked"]
    assert job.run.result["audit"]["allowed"] is False
    assert "error" in {event.level for event in job.read_all(Event)}


def test_findings_that_are_allowed_are_stored_as_such_and_not_looked_for_again(tmp_path: Path):
    subject = bare_subject(CONTAINED, rows_file(tmp_path), Backends())
    with pytest.raises(GraderRefusedError):
        asyncio.run(gate(job_in(tmp_path), subject, FEW))
    resumed = job_in(tmp_path)
    assert asyncio.run(gate(resumed, subject, FEW, allow_findings=True)) is None
    assert resumed.run.result["audit"]["allowed"] is True
    fresh = job_in(tmp_path, "run-2")
    report = asyncio.run(gate(fresh, subject, FEW, allow_findings=True))
    assert report is not None
    assert report.blocked
    assert fresh.run.result["audit"]["allowed"] is True
    assert "trained with all the same: false-pass ceiling" in caveats(fresh)[0]


def test_a_resumed_run_whose_grader_was_refused_is_audited_again(tmp_path: Path):
    bad = bare_subject(CONTAINED, rows_file(tmp_path), Backends())
    with pytest.raises(GraderRefusedError):
        asyncio.run(gate(job_in(tmp_path), bad, FEW))
    mended = bare_subject({**CONTAINED, "operation": "eq"}, rows_file(tmp_path), Backends())
    job = job_in(tmp_path)
    assert asyncio.run(gate(job, mended, FEW)) is not None
    assert job.run.result["audit"]["blocked"] == []
    assert caveats(job) == ()
    assert asyncio.run(gate(job_in(tmp_path), bad, FEW)) is None


def test_tools_by_url_are_not_called_unless_asked_for():
    project = open_project(DESK, config_file="agent-http.toml")
    names = {tool.name for tool in project.config.tools}
    assert project_subject(project).remote_tools == names
    assert project_subject(project, call_tools=True).remote_tools == frozenset()
