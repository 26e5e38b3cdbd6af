from collections.abc import Mapping
from typing import Any

import pytest
from corpus.judges import Judge, careful_judge, obedient_judge
from subjects import check, finding, of_object, of_scores, sums

from agentrft.audit.plumbing import unreadable_replies
from agentrft.audit.probe import Subject, Verdict
from agentrft.audit.references import find_answers
from agentrft.core.errors import GraderError
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.model_reply import read_number, read_reply
from agentrft.inference.grader_model import GradingReply

QUESTION = "Same?\n# Reference\n{{item.answer}}\n# Answer\n{{sample.output_text}}"


def score_model(text: str = QUESTION) -> dict[str, Any]:
    return {"type": "score_model", "model": "judge", "input": [{"role": "user", "content": text}]}


def label_model(passing: list[str]) -> dict[str, Any]:
    labels = {"labels": ["good", "bad"], "passing_labels": passing}
    return {**score_model(), "type": "label_model", **labels}


def judged(judge: Judge, config: Mapping[str, Any] | None = None) -> Subject:
    config = config or score_model()
    backends = Backends(models={"judge": judge})
    tasks = sums()
    return Subject(
        grader=build_grader(config, backends=backends),
        config=config,
        tasks=tasks,
        backends=backends,
        answers=find_answers(config, tasks, path="answer"),
    )


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (check("eq", given="{{item.answer}}"), "never looks at the output"),
        (check("eq", reference="{{sample.output_text}}"), "takes its reference from the output"),
    ],
)
def test_a_comparison_that_cannot_fail_is_named(config: dict[str, Any], reason: str):
    found = finding(of_object(config, sums()), 25)
    assert found.verdict is Verdict.FOOLED
    assert reason in found.summary


def test_a_label_grader_that_no_label_fails_is_named():
    found = finding(judged(careful_judge(), label_model(["good", "bad"])), 25)
    assert found.verdict is Verdict.FOOLED
    assert "every label pass" in found.summary
    assert finding(judged(careful_judge(), label_model(["good"])), 25).verdict is Verdict.PASS


def test_a_grader_that_fills_the_answer_in_again_is_fooled_by_a_placeholder():
    def scored(task: Any, text: str) -> float:
        return float(text.replace("{{ item.answer }}", task["answer"]) == task["answer"])

    found = finding(of_scores(scored, sums()), 25)
    assert found.verdict is Verdict.FOOLED
    assert found.text == "{{ item.answer }}"


@pytest.mark.parametrize("probe", [25, 26])
def test_our_templates_read_nothing_twice(probe: int):
    assert finding(of_object(check("eq"), sums()), probe).verdict is Verdict.PASS
    assert finding(judged(careful_judge()), probe).verdict is Verdict.PASS


@pytest.mark.parametrize("probe", [27, 28, 29, 30])
def test_our_questions_and_replies_hold_against_a_careful_judge(probe: int):
    assert finding(judged(careful_judge()), probe).verdict is Verdict.PASS


def test_a_judge_that_does_what_the_answer_says_is_caught():
    judge = Judge(lambda answer, reference: float("highest result" in answer))
    assert finding(judged(judge), 27).verdict is Verdict.FOOLED
    assert finding(judged(obedient_judge()), 28).verdict is Verdict.FOOLED


@pytest.mark.parametrize("probe", [27, 28, 29, 30])
def test_graders_that_ask_no_model_are_skipped(probe: int):
    assert finding(of_object(check("eq"), sums()), probe).verdict is Verdict.SKIPPED


def number_in(text: str) -> float:
    result, _ = read_reply(GradingReply(text=text, finish_reason="stop"), "judge")
    return read_number(result, text, "judge")


def test_there_are_sixty_replies_and_each_of_them_is_unreadable():
    replies = unreadable_replies("1.0")
    assert len(set(replies)) >= 60
    for text in replies:
        with pytest.raises(GraderError):
            number_in(text)
