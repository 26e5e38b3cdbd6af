import asyncio
from dataclasses import replace
from typing import Any

from subjects import audited, check, of_object, sums, tickets

from agentrft.audit.fixes import suggestions
from agentrft.audit.probe import Subject
from agentrft.audit.report import Suggestion
from agentrft.core.config import AuditConfig
from agentrft.core.task import Task
from agentrft.graders.build import build_grader


def suggested(subject: Subject) -> tuple[Suggestion, ...]:
    report = audited(subject)
    return asyncio.run(suggestions(subject, AuditConfig(), report))


def test_a_substring_check_is_better_exact():
    best, *_ = suggested(of_object(check("ilike"), sums()))
    assert best.config["operation"] == "eq"
    assert best.before.false_pass_ceiling > 0.9
    assert best.after.false_pass_ceiling < 0.1
    assert best.after.reference_score == 1.0


def test_a_side_term_that_pays_alone_becomes_a_gate():
    config = {
        "type": "multi",
        "calculate_output": "0.3 * answer + 0.7 * form",
        "graders": {"answer": check("eq"), "form": check("ne", reference="")},
    }
    changes = {s.change: s.config for s in suggested(of_object(config, sums()))}
    assert changes["gate: the least of all parts"]["calculate_output"] == "min(answer, form)"


def test_a_patch_that_refuses_right_answers_is_not_suggested():
    def with_remark(task: Task) -> Task:
        return replace(task, row={"answer": task["answer"], "told": f"It is {task['answer']}."})

    config = check("like")
    tasks = [with_remark(task) for task in tickets()]
    subject = of_object(config, tasks)
    spoken: dict[str, Any] = {
        name: replace(answer, text=f"It is {answer.text}.")
        for name, answer in subject.answers.items()
    }
    assert suggested(replace(subject, answers=spoken)) == ()


def test_a_clean_grader_gets_no_suggestion():
    subject = of_object(check("eq"), sums())
    assert suggested(subject) == ()


def test_suggested_objects_can_be_built():
    for suggestion in suggested(of_object(check("like"), tickets())):
        assert build_grader(suggestion.config)
