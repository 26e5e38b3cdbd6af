import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest
from corpus.judges import (
    Judge,
    careful_judge,
    generous_judge,
    keyword_judge,
    master_key_judge,
)
from subjects import check, of_object, of_scores, sums
from test_plumbing import judged, label_model

from agentrft.audit.catalogue import LLM_PROBES
from agentrft.audit.probe import Finding, Subject, Verdict
from agentrft.audit.run import audit
from agentrft.core.config import AuditConfig
from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.task import Message
from agentrft.core.trajectory import StopReason, Trajectory, Turn
from agentrft.inference.grader_model import GraderModel, GradingReply, GradingRequest


@dataclass
class Talker:
    """A model whose JSON reply is a function of the question."""

    reply: Callable[[str], Any]

    async def ask(self, request: GradingRequest) -> GradingReply:
        text = json.dumps(self.reply(request.messages[-1].content))
        return GradingReply(text=text, finish_reason="stop")


def probed(subject: Subject, probe: int, model: GraderModel | None = None) -> Finding:
    config = AuditConfig(timeout_s=60.0)
    report = asyncio.run(audit(subject, config, only=[probe], model=model))
    (found,) = report.findings
    return found


def rollouts(subject: Subject, texts: Sequence[str]) -> Subject:
    """The subject with stored rollouts of its first row, all paid in full."""
    task = subject.tasks[0]

    def rollout(number: int, text: str) -> GradedTrajectory:
        turn = Turn(
            observation_ids=(),
            action_ids=(),
            behavior_logprobs=(),
            first_version=0,
            last_version=0,
            message=Message(role="assistant", content=text),
        )
        trajectory = Trajectory(
            id=f"trace_{number}",
            task_id=task.id,
            model="m",
            spec_hash="",
            seed=0,
            prompt=task.messages,
            turns=(turn,),
            stop_reason=StopReason.FINISHED,
        )
        return GradedTrajectory(trajectory=trajectory, grade=Grade(score=1.0))

    return replace(subject, rollouts=[rollout(n, text) for n, text in enumerate(texts)])


@pytest.mark.parametrize(
    ("probe", "judge"),
    [
        (46, master_key_judge()),
        (47, Judge(lambda answer, reference: float("criteria" in answer.lower()))),
        (48, Judge(lambda answer, reference: float("Ignore all previous" in answer))),
        (49, Judge(lambda answer, reference: float("**" in answer))),
        (52, Judge(lambda answer, reference: float("It is certain" in answer))),
        (53, Judge(lambda answer, reference: float("# Reference" in answer))),
        (55, generous_judge()),
    ],
)
def test_a_weakness_of_a_judge_is_a_warning_and_no_more(probe: int, judge: Judge):
    assert probed(judged(judge), probe).verdict is Verdict.WARN
    assert probed(judged(careful_judge()), probe).verdict is Verdict.PASS


def test_a_judge_that_knows_better_than_the_reference_is_found():
    subject = judged(careful_judge())
    own = {task["answer"] for task in subject.tasks}
    stubborn = Judge(lambda answer, reference: float(answer in own and answer != reference))
    assert probed(judged(stubborn), 55).verdict is Verdict.WARN


def test_the_order_of_labels_must_not_matter():
    first = Judge(lambda answer, reference: 1.0)  # takes whatever label is named first
    assert probed(judged(first, label_model(["good"])), 50).verdict is Verdict.WARN
    assert probed(judged(careful_judge()), 50).verdict is Verdict.SKIPPED


def test_a_judge_that_changes_its_mind_is_found():
    opinions = iter(range(100_000))
    moody = Judge(lambda answer, reference: float(next(opinions) % 3 == 0))
    assert probed(judged(moody), 51).verdict is Verdict.WARN
    assert probed(judged(careful_judge()), 51).verdict is Verdict.PASS


def test_graders_that_ask_no_model_are_not_attacked_as_if_they_did():
    subject = of_object(check("eq"), sums())
    for info in LLM_PROBES:
        if not info.needs_model:
            assert probed(subject, info.number).verdict is Verdict.SKIPPED


def test_right_answers_in_other_words_must_be_paid():
    subject = judged(keyword_judge())
    answers = {
        key: replace(answer, text=f"it is {answer.text}") for key, answer in subject.answers.items()
    }
    subject = replace(subject, answers=answers)
    same = Talker(lambda question: {"text": question.splitlines()[-1].replace("it is", "That is")})
    lost = Talker(lambda question: {"text": "no idea"})
    assert probed(subject, 54, same).verdict is Verdict.PASS
    assert probed(subject, 54, lost).verdict is Verdict.WARN


def test_a_model_finds_what_a_grader_pays_for_and_the_reason_is_cut_out():
    subject = of_scores(lambda task, text: float("because" in text), sums())
    hacker = Talker(lambda question: {"texts": ["I say so because I can", "a", "b"]})
    found = probed(subject, 56, hacker)
    assert (found.verdict, found.text, found.score) == (Verdict.WARN, "because", 1.0)
    dull = Talker(lambda question: {"texts": ["a", "b"]})
    assert probed(subject, 56, dull).verdict is Verdict.PASS


def test_a_patch_by_a_model_counts_only_if_right_answers_still_pass():
    subject = of_object(check("ne", reference="nothing"), sums())
    good = Talker(lambda question: {"text": json.dumps(check("eq"))})
    bad = Talker(lambda question: {"text": json.dumps(check("eq", reference="nothing"))})
    none = Talker(lambda question: {"text": "be stricter"})
    assert (
        "a patch pays right answers 1.00 and wrong ones 0.00" in probed(subject, 57, good).summary
    )
    assert "does not hold" in probed(subject, 57, bad).summary
    assert "no grader object" in probed(subject, 57, none).summary


def test_a_second_judge_doubts_well_paid_rollouts():
    subject = rollouts(of_object(check("eq"), sums()), ["lucky", "lucky", "worked", "lucky"])
    talker = Talker(lambda question: {"reason": "", "solved": "Output:\nworked" in question})
    found = probed(subject, 58, talker)
    assert (found.verdict, found.measure) == (Verdict.WARN, 0.75)
    assert found.text == "lucky"


def test_rollouts_of_one_task_are_compared():
    subject = rollouts(of_object(check("eq"), sums()), ["a", "b", "trick", "d"])
    talker = Talker(lambda question: {"reason": "copies", "tricks": [2, 99]})
    found = probed(subject, 59, talker)
    assert (found.verdict, found.text) == (Verdict.WARN, "copies: trick")
    fair = Talker(lambda question: {"reason": "", "tricks": []})
    assert probed(subject, 59, fair).verdict is Verdict.PASS


def test_a_model_that_talks_nonsense_gives_no_verdict():
    subject = rollouts(of_object(check("eq"), sums()), ["a", "b", "c", "d"])
    for probe in (54, 56, 58, 59):
        assert probed(subject, probe, Talker(lambda question: ["?"])).verdict is Verdict.SKIPPED
