import asyncio
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from subjects import audited, check, of_object, of_scores, sums, tickets

from agentrft.audit.catalogue import LLM_PROBES, PROBES
from agentrft.audit.probe import Subject, Verdict
from agentrft.audit.report import AuditReport
from agentrft.audit.run import audit, chosen
from agentrft.core.config import AuditConfig
from agentrft.core.errors import ConfigError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory


class SlowGrader:
    """Takes its time for every text."""

    name = "slow"

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        await asyncio.sleep(0.05)
        return Grade(score=float(trajectory.output_text == task["answer"]), grader=self.name)


def told(report: AuditReport) -> list[object]:
    return [replace(finding, replay="") for finding in report.findings]


def test_the_catalogue_has_the_forty_five_probes_in_order():
    assert [info.number for info in PROBES] == list(range(1, 46))
    assert len({info.number for info in (*PROBES, *LLM_PROBES)}) == len(PROBES) + len(LLM_PROBES)


def test_a_substring_check_is_blocked_and_an_exact_one_is_not():
    fooled = audited(of_object(check("like"), tickets()))
    assert "false-pass ceiling" in fooled.blocked[0]
    assert "one fixed text" in fooled.blocked[1]
    clean = audited(of_object(check("eq"), tickets()))
    assert clean.blocked == ()
    assert clean.headline.reference_score == 1.0


def test_a_grader_that_refuses_right_answers_is_blocked():
    half = of_scores(lambda task, text: float(text == task["answer"] and text < "5"), sums())
    report = audited(half, only=[1])
    assert report.headline.reference_score is not None
    assert report.headline.reference_score < 0.95
    assert "(audit.reference)" in report.blocked[0]


def test_a_constant_score_is_blocked_although_it_is_its_own_base_rate():
    report = audited(of_scores(lambda task, text: 1.0, sums()))
    assert report.headline.base_rate == 1.0
    assert report.blocked


@pytest.mark.parametrize("form", ["\\boxed{%s}", "#### %s", '{"answer": %s}'])
def test_answers_are_written_as_the_grader_wants_them(form: str):
    subject = of_scores(
        lambda task, text: float(text == form.replace("%s", task["answer"])), sums()
    )
    assert audited(subject, only=[1]).headline.reference_score == 1.0


def test_the_same_seed_gives_the_same_findings_and_another_one_other_rows():
    subject = of_object(check("ilike"), tickets(60))
    first, again = audited(subject, seed=3), audited(subject, seed=3)
    assert told(first) == told(again)
    assert chosen(subject, 32, 3) == chosen(subject, 32, 3)
    assert chosen(subject, 32, 3) != chosen(subject, 32, 4)


def test_a_replay_of_one_probe_and_row_shoots_the_text_of_the_finding_again():
    subject = of_object(check("ilike"), sums(40))
    found = next(f for f in audited(subject, seed=5).findings if f.probe == 14)
    replayed = audited(subject, seed=5, only=[14], task=found.task_id)
    assert found.replay == f"agentrft audit PROJECT --probe 14 --seed 5 --task {found.task_id}"
    shots = {shot.attempt.label: shot for shot in replayed.shots}
    assert shots[found.variant].attempt.text == found.text
    assert shots[found.variant].score == found.score
    assert {shot.attempt.task.id for shot in replayed.shots} == {found.task_id}


def test_when_time_is_up_the_probes_that_were_not_reached_say_so():
    subject = replace(of_object(check("eq"), sums()), grader=SlowGrader())
    report = asyncio.run(audit(subject, AuditConfig(timeout_s=0.5)))
    late = [finding for finding in report.findings if "0.5 s" in finding.summary]
    assert late
    assert {finding.verdict for finding in late} == {Verdict.SKIPPED}
    assert {finding.probe for finding in late} >= {13, 14, 15}
    assert "cut off" in late[0].summary
    assert "not reached" in late[-1].summary


def test_three_in_four_rows_have_a_known_answer_where_few_have_one():
    tasks = sums(80)
    subject = of_object(check("eq"), tasks)
    few = replace(subject, answers={task.id: subject.answers[task.id] for task in tasks[:30]})
    rows = chosen(few, 32, 0)
    assert len(rows) == 32
    assert sum(row.id in few.answers for row in rows) == 24


@pytest.mark.parametrize(("only", "task"), [([999], ""), ([1], "no-such-row")])
def test_a_probe_or_row_that_does_not_exist_is_an_error(only: list[int], task: str):
    with pytest.raises(ConfigError, match=r"999|no-such-row"):
        audited(of_object(check("eq"), sums()), only=only, task=task)


def test_an_audit_without_rows_is_refused():
    with pytest.raises(ConfigError, match="at least one row"):
        audited(Subject(grader=SlowGrader(), config={}, tasks=()))


def test_probes_that_ask_a_model_are_skipped_without_one():
    report = audited(of_object(check("eq"), sums(3)), only=[info.number for info in LLM_PROBES])
    assert {finding.verdict for finding in report.findings if finding.group == "L"} <= {
        Verdict.SKIPPED
    }


def test_the_report_is_json():
    report = audited(of_object(check("ilike"), sums()), only=[1, 14])
    shown = json.loads(json.dumps(report.as_json()))
    assert [finding["probe"] for finding in shown["findings"]] == [1, 14]
    assert shown["headline"]["false_pass_ceiling"] == report.headline.false_pass_ceiling
    assert shown["findings"][1]["verdict"] == "fooled"


def test_the_docs_list_every_probe_by_its_title():
    page = (Path(__file__).parents[2] / "docs" / "audit.md").read_text()
    listed = re.findall(r"^\| (\d+) \| ([^|]+?) \|", page, re.MULTILINE)
    assert listed == [(str(info.number), info.title) for info in (*PROBES, *LLM_PROBES)]
