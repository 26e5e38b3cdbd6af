from dataclasses import replace

import pytest
from subjects import asked, check, finding, of_object, of_scores, sums, tickets

from agentrft.audit.probe import Subject, Verdict
from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.task import Task
from agentrft.core.trajectory import StopReason, Trajectory


def multi(formula: str) -> dict[str, object]:
    return {
        "type": "multi",
        "calculate_output": formula,
        "graders": {
            "answer": check("eq"),
            "form": check("ne", reference=""),
        },
    }


def rolled_out(score: float, number: int, task: str) -> GradedTrajectory:
    trajectory = Trajectory(
        id=f"trace_{number}",
        task_id=task,
        model="",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=(),
        stop_reason=StopReason.FINISHED,
    )
    return GradedTrajectory(trajectory=trajectory, grade=Grade(score=score))


def with_rollouts(scores: list[list[float]]) -> Subject:
    rollouts = [
        rolled_out(score, 10 * group + n, f"sum-{group}")
        for group, row in enumerate(scores, start=1)
        for n, score in enumerate(row)
    ]
    return replace(of_object(check("eq"), sums()), rollouts=rollouts)


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        (of_object(check("ne"), sums()), "sign is wrong"),
        (of_scores(lambda task, text: 1.0, sums()), "same score"),
        (of_scores(lambda task, text: 5.0 * (text == task["answer"]), sums()), "0 to 5"),
        (of_object(multi("answer / form"), sums()), "no value where"),
        (of_object(multi("answer + form"), sums()), "gives 1.5"),
        (of_object(multi("min(answer, 1 + 0 * form)"), sums()), "'form' never changes"),
    ],
)
def test_numbers_that_cannot_be_right_are_told(subject: Subject, words: str):
    found = finding(subject, 41)
    assert found.verdict in (Verdict.WARN, Verdict.FOOLED)
    assert words in found.summary


def test_a_side_term_that_pays_alone_is_found_and_a_gate_is_not():
    found = finding(of_object(multi("0.3 * answer + 0.7 * form"), sums()), 42)
    assert found.verdict is Verdict.FOOLED
    assert "gate with min()" in found.summary
    assert finding(of_object(multi("min(answer, form)"), sums()), 42).verdict is Verdict.PASS
    assert finding(of_object(multi("min(answer, form)"), sums()), 41).verdict is Verdict.PASS


def test_rollouts_without_spread_teach_nothing():
    assert finding(with_rollouts([[0.0, 0.0], [0.0, 0.0]]), 43).verdict is Verdict.WARN
    assert finding(with_rollouts([[0.0, 1.0], [1.0, 0.0]]), 43).verdict is Verdict.PASS


def test_refusing_right_answers_for_their_typography_is_a_warning():
    strict = finding(of_object(check("eq"), tickets()), 44)
    assert strict.verdict is Verdict.WARN
    assert strict.measure == 1.0

    def fair(task: Task, text: str) -> float:
        return float(text.strip(" \n.").casefold() == str(task["answer"]))

    assert finding(of_scores(fair, tickets()), 44).verdict is Verdict.PASS


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (
            [*sums(), asked("again", "What is 1 plus 31?", answer="32")],
            "1 of 13 prompts are repeated",
        ),
        ([*sums(), asked("other", "What is 1 plus 31?", answer="33")], "contradict each other"),
        (
            [asked(f"t{n}", f"{n}?", answer="yes" if n else "no") for n in range(9)],
            "8 of 9 answers are 'yes'",
        ),
        ([*sums(), asked("none", "What is it?", answer="")], "1 rows have an empty answer"),
    ],
)
def test_rows_that_mislead_are_counted(rows: list[Task], words: str):
    found = finding(of_object(check("eq"), rows), 45)
    assert found.verdict is Verdict.WARN
    assert words in found.summary


def test_validation_rows_that_are_train_rows_are_counted():
    subject = replace(of_object(check("eq"), sums()), validation=sums(3))
    assert "3 prompts are in the validation rows too" in finding(subject, 45).summary


def test_rows_without_problems_pass():
    assert finding(of_object(check("eq"), sums()), 45).verdict is Verdict.PASS
