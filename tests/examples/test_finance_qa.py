"""The finance questions as a task: solvable, split cleanly, the same bytes again, honest to grade."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import StopReason, Trajectory, Turn
from agentrft.jobs.project import Project, open_project

FOLDER = Path(__file__).parents[2] / "examples" / "finance_qa"
SPLITS = ("train", "validation", "holdout")


@pytest.fixture(scope="module")
def project() -> Project:
    return open_project(FOLDER)


def rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


async def played(
    project: Project, task_id: str, split: Any, calls: Sequence[ToolCall], text: str
) -> float:
    task = next(task for task in project.tasks(split) if task.id == task_id)
    environment = project.open_environment(task, "trace_x")
    for call in calls:
        await environment.call_tool(call)
    turn = Turn(
        observation_ids=(),
        action_ids=(),
        behavior_logprobs=(),
        first_version=0,
        last_version=0,
        message=Message(role="assistant", content=text),
    )
    trajectory = Trajectory(
        id="trace_x",
        task_id=task.id,
        model="",
        spec_hash="",
        seed=0,
        prompt=task.messages,
        turns=(turn,),
        stop_reason=StopReason.FINISHED,
    )
    grade = await project.grader.grade(task, trajectory, environment)
    await environment.close()
    assert grade.score is not None
    return grade.score


def calls_of(messages: Sequence[dict[str, Any]]) -> list[ToolCall]:
    return [
        ToolCall(id=call["id"], **call["function"])
        for message in messages
        for call in message.get("tool_calls", ())
    ]


def test_every_demonstration_solves_its_task_within_ten_calls(project: Project) -> None:
    for row in rows("demonstrations"):
        calls = calls_of(row["messages"])
        assert len(calls) <= 10
        text = row["messages"][-1]["content"]
        assert asyncio.run(played(project, row["id"], "train", calls, text)) == 1.0, row["id"]


def test_an_answer_counts_only_after_reading_and_only_as_the_whole_reply(project: Project) -> None:
    row = next(row for row in rows("demonstrations") if row["family"] == "figure")
    calls, text = calls_of(row["messages"]), row["messages"][-1]["content"]

    def score(made: Sequence[ToolCall], said: str) -> float:
        return asyncio.run(played(project, row["id"], "train", made, said))

    assert score([], text) == 0.0
    assert score(calls, text.replace("million", "thousand")) == 0.5
    for wrong in (f"It is not {text}", f"{text} or 3 percent", "", "1 2 3 4", f"{text} {text}"):
        assert score(calls, wrong) == 0.1


def test_a_missing_filing_must_be_looked_for(project: Project) -> None:
    row = next(row for row in rows("demonstrations") if row["family"] == "missing")
    calls = calls_of(row["messages"])
    assert asyncio.run(played(project, row["id"], "train", calls, "Not available.")) == 1.0
    assert asyncio.run(played(project, row["id"], "train", [], "not available")) == 0.0


def test_splits_share_no_company_and_no_question() -> None:
    companies = [{row["expect"]["company"] for row in rows(split)} for split in SPLITS]
    questions = [{row["messages"][0]["content"] for row in rows(split)} for split in SPLITS]
    for sets in (companies, questions):
        assert not sets[0] & sets[1]
        assert not sets[0] & sets[2]
        assert not sets[1] & sets[2]
    assert len(list((FOLDER / "filings").glob("*.txt"))) >= 300


def test_it_writes_the_same_bytes_again(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "write.py", str(tmp_path)], cwd=FOLDER, check=True)
    for path in tmp_path.rglob("*.*"):
        assert path.read_bytes() == (FOLDER / path.relative_to(tmp_path)).read_bytes()


def test_the_audit_finds_no_way_around_the_grader(project: Project) -> None:
    from agentrft.audit.run import audit
    from agentrft.jobs.audit import project_subject

    report = asyncio.run(audit(project_subject(project), project.config.audit))
    assert not report.blocked, report.blocked
