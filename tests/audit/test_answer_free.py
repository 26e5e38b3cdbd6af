import pytest
from subjects import asked, check, finding, of_object, of_scores, sums, tickets

from agentrft.audit.answer_free import PROBES
from agentrft.audit.probe import Subject, Verdict
from agentrft.core.task import Task


def echoed(task: Task, text: str) -> float:
    return float(task["answer"] in text)


CODES = [asked(f"t{n}", f"Find it: code {n * 37}", answer=f"code {n * 37}") for n in range(10)]
UNEVEN = [*tickets(), asked("one-more", "?", answer="billing")]
DEFECTS: dict[int, Subject] = {
    1: of_scores(lambda task, text: float(text.strip("\u200b\u200d\ufeff ") == ""), sums()),
    2: of_scores(lambda task, text: float(text in (task["answer"], "I agree.")), sums()),
    3: of_scores(echoed, CODES),
    4: of_object(check("ilike"), tickets()),
    5: of_scores(lambda task, text: float(text in (task["answer"], "{}")), sums()),
    6: of_scores(lambda task, text: float(not any(map(str.isdigit, text))), CODES),
    7: of_scores(lambda task, text: float(text == task["answer"] or "sorry" in text), sums()),
    8: of_scores(lambda task, text: min(1.0, len(text) / 30), sums()),
    9: of_scores(lambda task, text: float(text == task["answer"] or "result" in text), sums()),
    10: of_scores(lambda task, text: float(text in (task["answer"], "billing")), UNEVEN),
}
"""By probe, a grader that it must not let pass."""


def test_every_probe_of_the_family_has_a_defect_here():
    assert {info.number for info in PROBES} == set(DEFECTS)


@pytest.mark.parametrize("probe", DEFECTS)
def test_a_planted_defect_is_found_with_its_text(probe: int):
    found = finding(DEFECTS[probe], probe)
    assert found.verdict is Verdict.FOOLED
    assert found.score == 1.0
    assert found.task_id
    assert found.replay.endswith(f"--probe {probe} --seed 0 --task {found.task_id}")


@pytest.mark.parametrize("probe", DEFECTS)
@pytest.mark.parametrize("rows", [sums(), tickets()], ids=["sums", "tickets"])
def test_an_exact_check_gives_no_cause(rows: list[Task], probe: int):
    found = finding(of_object(check("eq"), rows), probe)
    assert found.verdict in (Verdict.PASS, Verdict.SKIPPED)


def test_labels_are_no_defect_of_the_grader_though_one_fixed_text_earns_a_quarter():
    found = finding(of_object(check("eq"), tickets()), 2)
    assert found.measure == 0.25
    assert found.verdict is Verdict.PASS


def test_a_grader_that_reads_no_text_is_left_alone():
    calls = check("eq", "{{sample.output_tools[0].function.name}}", "refund")
    found = finding(of_object(calls, sums()), 1)
    assert found.verdict is Verdict.SKIPPED
    assert "does not look at what the model says" in found.summary
