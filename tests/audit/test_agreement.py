"""A model grader is asked again, the other way round, about clear cases, and beside another."""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from agentrft.audit.agreement import agreement, reliability_of
from agentrft.audit.probe import Subject
from agentrft.audit.references import find_answers
from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.task import Message, Task
from agentrft.core.trajectory import StopReason, Trajectory, Turn
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.fixed import FixedGrader
from agentrft.inference.grader_model import GradingReply, GradingRequest
from agentrft.measure.agreement import Reliability

TURN = Turn(
    observation_ids=(),
    action_ids=(),
    behavior_logprobs=(),
    first_version=0,
    last_version=0,
    message=Message(role="assistant", content="good"),
)
ROLLOUT = Trajectory(
    id="trace_1",
    task_id="t",
    model="",
    spec_hash="",
    seed=0,
    prompt=(),
    turns=(TURN,),
    stop_reason=StopReason.FINISHED,
)


def said(task: str, text: str) -> tuple[Task, Trajectory]:
    message = Message(role="assistant", content=text)
    trajectory = replace(ROLLOUT, task_id=task, turns=(replace(TURN, message=message),))
    return Task(id=task, messages=(), row={}), trajectory


ANSWERS = [said(f"t{n}", "good" if n % 2 else "bad") for n in range(8)]


@dataclass
class Judge:
    """A model whose verdict is a function of the question."""

    verdict: Callable[[GradingRequest], object]
    requests: list[GradingRequest] = field(default_factory=list[GradingRequest])

    async def ask(self, request: GradingRequest) -> GradingReply:
        self.requests.append(request)
        result = self.verdict(request)
        return GradingReply(text=json.dumps({"steps": [], "result": result}), finish_reason="stop")


def measured(judge: Judge, kind: str = "label_model", **options: object) -> Reliability:
    labels = {"labels": ["yes", "no"], "passing_labels": ["yes"]} if kind == "label_model" else {}
    prompt = [{"role": "user", "content": "Good? {{sample.output_text}}"}]
    grader = build_grader(
        {"type": kind, "model": "m", "input": prompt, **labels},
        backends=Backends(models={"m": judge}),
    )
    return asyncio.run(agreement(grader, ANSWERS, **options))  # pyright: ignore[reportArgumentType]


def sees_good(request: GradingRequest) -> bool:
    return "\ngood\n" in request.messages[-1].content


def test_a_judge_that_reads_the_answer_is_consistent_in_every_way() -> None:
    judge = Judge(lambda request: "yes" if sees_good(request) else "no")
    found = measured(judge, good=ANSWERS[1::2], bad=[said("t1", "bad"), said("t3", "bad")], times=3)
    assert found.repeats is not None
    assert (found.repeats.flips.value, found.repeats.items) == (0.0, 8)
    assert found.order is not None
    assert found.order.same_side.value == 1.0
    assert found.anchors is not None
    assert found.anchors.separated
    assert found.errors == {}
    assert len(judge.requests) == 8 * 3 + 4 + 2 + 8
    assert len({request.key for request in judge.requests}) == len(judge.requests)


def test_a_judge_that_takes_the_first_label_is_found_by_turning_them_round() -> None:
    def first(request: GradingRequest) -> object:
        assert request.schema is not None
        return request.schema["properties"]["result"]["enum"][0]

    found = measured(Judge(first), times=2)
    assert found.order is not None
    assert found.order.same_side.value == 0.0
    assert found.repeats is not None
    assert found.repeats.flips.value == 0.0


def test_a_judge_that_cannot_decide_flips_and_its_errors_are_counted() -> None:
    verdicts = iter([*["yes"] * 8, *["no"] * 8, *["maybe"] * 100])
    found = measured(Judge(lambda _request: next(verdicts)), times=3)
    assert found.repeats is not None
    assert found.repeats.flips.value == 1.0
    assert found.order is None  # nothing was graded the other way round
    assert found.errors == {"model_grader_parse_error": 16}


def test_a_second_grader_is_compared_with_the_mean_of_the_first() -> None:
    judge = Judge(lambda request: 0.9 if sees_good(request) else 0.2)
    second = FixedGrader(lambda _task, trajectory: float(trajectory.output_text == "good"))
    found = measured(judge, "score_model", second=second, times=2)
    assert found.order is None  # a score has no labels to turn round
    assert found.second is not None
    assert found.second.spearman is not None
    assert found.second.spearman.value == pytest.approx(1.0)
    assert found.second.within.value == 0.5
    assert found.second.same_side.value == 1.0


def test_nothing_that_could_be_graded_is_no_statistic() -> None:
    def fails(_task: Task, _trajectory: Trajectory) -> float:
        raise GraderError("down", code="model_grader_server_error")

    found = asyncio.run(agreement(FixedGrader(fails), ANSWERS, second=FixedGrader(fails), times=2))
    assert (found.repeats, found.order, found.anchors, found.second) == (None, None, None, None)
    assert found.errors == {"model_grader_server_error": 24}
    with pytest.raises(ConfigError, match="at least 2"):
        asyncio.run(agreement(FixedGrader(fails), ANSWERS, times=1))


QUALITY = {
    "type": "score_model",
    "model": "m",
    "input": [
        {"role": "user", "content": "Is {{sample.output_text}} the same as {{item.answer}}?"}
    ],
}


def test_right_answers_and_those_of_other_rows_are_the_anchors_of_a_subject() -> None:
    rows = [{"answer": f"number {n}"} for n in range(12)]
    tasks = [Task(id=f"row-{n}", messages=(), row=row) for n, row in enumerate(rows)]

    def same(request: GradingRequest) -> float:
        named = set(re.findall(r"number \d+", request.messages[-1].content))
        return float(len(named) == 1)

    backends = Backends(models={"m": Judge(same), "strict": Judge(lambda _: 0.0)})
    subject = Subject(
        grader=build_grader(QUALITY, backends=backends),
        config=QUALITY,
        tasks=tasks,
        backends=backends,
        answers=find_answers(QUALITY, tasks),
    )
    strict = build_grader({**QUALITY, "model": "strict"}, backends=backends)
    found = asyncio.run(reliability_of(subject, rows=12, seed=0, second=strict))
    assert found.anchors is not None
    assert found.anchors.separated
    assert found.repeats is not None
    assert found.repeats.flips.value == 0.0
    assert found.second is not None
    assert found.second.same_side.value == 0.5
    with pytest.raises(ConfigError, match="right answers"):
        asyncio.run(reliability_of(replace(subject, answers={}), rows=12, seed=0, second=None))
