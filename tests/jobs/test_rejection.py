"""Rejection-sampled fine-tuning: what is kept, what is imitated, and that a resume changes nothing."""

import asyncio
from pathlib import Path

import pytest
from desk_model import TOOLS, a_desk, a_model, a_renderer, a_training, a_whole_run
from tuning import FakeModel

from agentrft.core.errors import UserError
from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import Method, RolloutRecord, RunStatus
from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import (
    Failure,
    FailureKind,
    StopReason,
    ToolResult,
    Trajectory,
    Turn,
)
from agentrft.jobs.audit import GraderRefusedError
from agentrft.jobs.context import Stopped
from agentrft.jobs.own_rollouts import chosen
from agentrft.jobs.rejection import rejection, sampled_tokens
from agentrft.rollout.episode import recorded_ids


def a_record(
    task: str,
    *,
    score: float | None = 1.0,
    arguments: str = "{}",
    answer: str = "a",
    errors: int = 0,
) -> RolloutRecord:
    call = ToolCall(id="c", name="look", arguments=arguments)
    result = ToolResult(call_id="c", name="look", content="x")
    wrong = ToolResult(call_id="w", name="look", content="Error: no", is_error=True)

    def turn(message: Message, *results: ToolResult) -> Turn:
        return Turn(
            observation_ids=(1, 2),
            action_ids=(3,),
            behavior_logprobs=(-0.5,),
            first_version=0,
            last_version=0,
            message=message,
            tool_results=results,
        )

    calling = Message(role="assistant", tool_calls=(call,))
    said = Message(role="assistant", content=answer)
    trajectory = Trajectory(
        id=f"{task}-{arguments}-{answer}-{errors}",
        task_id=task,
        model="m",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=(turn(calling, result, *(wrong,) * errors), turn(said)),
        stop_reason=StopReason.FINISHED,
    )
    failure = Failure(kind=FailureKind.GRADER, where="grader", message="down")
    grade = Grade(score=score, failure=failure if score is None else None)
    graded = GradedTrajectory(trajectory=trajectory, grade=grade)
    return RolloutRecord(stage="rejection", split="train", step=0, family="", graded=graded)


def test_different_successes_are_kept_up_to_the_cap_the_cleanest_first() -> None:
    records = [
        a_record("t1", arguments='{"a": 1, "b": 2}', errors=2),
        a_record("t1", arguments='{"b":2,"a":1}'),
        a_record("t1", answer="b", errors=1),
        a_record("t1", answer="c"),
        a_record("t1", answer="d", score=0.5),
        a_record("t2", score=None),
        a_record("t3", score=0.0),
    ]
    found = chosen(records, pass_threshold=0.9, most_per_task=2)
    assert list(found.records) == [records[1], records[3]]
    assert (found.solved, found.graded, found.duplicates, found.beyond) == (4, 6, 1, 1)
    assert (found.tasks, found.covered) == (3, 1)
    everything = chosen(records, pass_threshold=0.9, most_per_task=9, successes_only=False)
    assert [r.graded.grade.score for r in everything.records] == [1.0, 1.0, 1.0, 0.5, 0.0]


def test_successes_are_imitated_as_they_were_sampled(tmp_path: Path) -> None:
    project, model = a_desk(tmp_path / "desk"), FakeModel()
    job = a_training(tmp_path / "home", Method.REJECTION)
    renderer = a_renderer(tmp_path / "family")
    checkpoint = asyncio.run(rejection(job, a_model(project, renderer, model.open_trainer), None))
    assert checkpoint.spec_hash == project.spec.hash
    stored = job.read_all(RolloutRecord)
    assert {(r.stage, r.split) for r in stored} == {("rejection", "train")}
    result = job.run.result
    assert len(stored) == 18
    assert result["solved"] == sum(r.graded.grade.score == 1.0 for r in stored)
    # Two spellings of one call are one action, so one success per task is left.
    assert result["kept"] == result["tasks_covered"] == 3
    assert result["duplicates"] == result["solved"] - 3
    fed = {recorded_ids(r.graded.trajectory.turns) for r in stored if r.graded.grade.score}
    batches = [sample for batch in model.batches for sample in batch]
    assert len(batches) == 8
    assert {sample.token_ids for sample in batches} <= fed
    for sample in batches:
        acted = [
            i for i, action in zip(sample.token_ids, sample.action_mask, strict=True) if action
        ]
        assert "lookup" in renderer.decode(acted)
        assert "is sent." in renderer.decode(acted)
        assert "where is" not in renderer.decode(acted)
        assert sample.advantages == tuple(map(float, sample.action_mask))


def test_what_is_imitated_ignores_the_temperature_of_sampling() -> None:
    (sample,) = sampled_tokens([a_record("t1")])
    assert sample.temperature == 1.0
    assert sample.token_ids == (1, 2, 3, 1, 2, 3)
    assert sample.action_mask == (False, False, True) * 2


def test_without_a_success_it_says_what_to_do(tmp_path: Path) -> None:
    project, model = a_desk(tmp_path / "desk"), FakeModel()
    job = a_training(tmp_path / "home", Method.REJECTION)
    renderer = a_renderer(tmp_path / "family")
    opened = a_model(project, renderer, model.open_trainer, solved=lambda seed: False)
    with pytest.raises(UserError, match="--start"):
        asyncio.run(rejection(job, opened, None))
    assert job.run.status is RunStatus.FAILED
    assert model.trainers == []
    assert len(job.read_all(RolloutRecord)) == 18


def test_a_grader_that_lets_anything_pass_chooses_nothing(tmp_path: Path) -> None:
    tools = TOOLS.replace('trajectory.output_text == f"W{self.number} is sent."', "True")
    project, model = a_desk(tmp_path / "desk", tools=tools), FakeModel()
    job = a_whole_run(tmp_path / "home", Method.REJECTION)
    opened = a_model(project, a_renderer(tmp_path / "family"), model.open_trainer)
    with pytest.raises(GraderRefusedError):
        asyncio.run(rejection(job, opened, None))
    assert job.read_all(RolloutRecord) == []
    again = a_whole_run(tmp_path / "home", Method.REJECTION)
    assert asyncio.run(rejection(again, opened, None, allow_findings=True)).step == 4


def test_an_interruption_amid_rollouts_changes_nothing(tmp_path: Path) -> None:
    project, renderer = a_desk(tmp_path / "desk"), a_renderer(tmp_path / "family")
    whole, model = FakeModel(), FakeModel()
    job = a_training(tmp_path / "whole", Method.REJECTION)
    asyncio.run(rejection(job, a_model(project, renderer, whole.open_trainer), None))

    first = a_training(tmp_path / "home", Method.REJECTION)
    asked: list[SampleRequest] = []

    async def stop_later(request: SampleRequest) -> None:
        asked.append(request)
        if len(asked) > 20:
            first.stop.set()

    stopping = a_model(project, renderer, model.open_trainer, before=stop_later)
    with pytest.raises(Stopped):
        asyncio.run(rejection(first, stopping, None))
    again = a_training(tmp_path / "home", Method.REJECTION)
    kept = len(again.read_all(RolloutRecord))
    assert 0 < kept < 18
    asyncio.run(rejection(again, a_model(project, renderer, model.open_trainer), None))
    assert len(again.read_all(RolloutRecord)) == 18
    assert model.batches == whole.batches
    told = ("kept", "solved", "duplicates", "tasks_covered")
    assert [again.run.result[k] for k in told] == [job.run.result[k] for k in told]
