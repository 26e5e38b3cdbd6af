"""Credit: who gets it, how much, and on which tokens."""

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.grade import Grade, GradedTrajectory, Group
from agentrft.core.sample import Sample
from agentrft.core.task import Message, Task
from agentrft.core.trajectory import Failure, FailureKind, StopReason, Trajectory, Turn
from agentrft.training.credit import centred, imitation

TASK = Task(id="task", messages=(Message(role="user", content="hi"),))
TOOL_DOWN = Failure(kind=FailureKind.INFRASTRUCTURE, where="tool 'search'", message="502")
NOT_GRADED = Failure(kind=FailureKind.GRADER, where="grader", message="timeout")


def _turn(observation: tuple[int, ...], action: tuple[int, ...], context: int = 0) -> Turn:
    return Turn(
        context=context,
        observation_ids=observation,
        action_ids=action,
        behavior_logprobs=tuple(-token / 10 for token in action),
        first_version=3,
        last_version=3,
        message=Message(role="assistant"),
    )


def _graded(
    score: float | None,
    *turns: Turn,
    name: str = "a",
    failure: Failure | None = None,
) -> GradedTrajectory:
    trajectory = Trajectory(
        id=f"trace_{name}",
        task_id="task",
        model="tiny",
        spec_hash="0",
        seed=0,
        prompt=TASK.messages,
        turns=turns or (_turn((1, 2), (3, 4)),),
        stop_reason=StopReason.FAILED if failure else StopReason.FINISHED,
        failure=failure,
    )
    grade = Grade(score=score, failure=NOT_GRADED if score is None else None)
    return GradedTrajectory(trajectory=trajectory, grade=grade)


def _group(*graded: GradedTrajectory) -> Group:
    return Group(task=TASK, policy_version=3, graded=graded)


def _credit(sample: Sample) -> float:
    (value,) = {a for a, m in zip(sample.advantages, sample.action_mask, strict=True) if m}
    return value


def test_the_advantage_is_the_distance_to_the_mean_and_nothing_divides_it() -> None:
    samples = centred(_group(_graded(1.0), _graded(0.0), _graded(0.0), _graded(0.0)))
    assert [_credit(sample) for sample in samples] == [0.75, -0.25, -0.25, -0.25]


def test_a_group_without_spread_gives_no_samples() -> None:
    assert centred(_group(_graded(0.5), _graded(0.5), _graded(0.5))) == []
    assert centred(_group(_graded(1.0))) == []
    assert centred(_group()) == []


def test_a_rollout_that_infrastructure_broke_moves_no_baseline() -> None:
    clean = centred(_group(_graded(1.0), _graded(0.0)))
    faulty = centred(
        _group(
            _graded(1.0),
            _graded(0.0),
            _graded(0.0, name="tool", failure=TOOL_DOWN),
            _graded(None, name="grader"),
        )
    )
    assert faulty == clean
    assert [_credit(sample) for sample in faulty] == [0.5, -0.5]


def test_a_fault_is_no_spread() -> None:
    assert centred(_group(_graded(1.0), _graded(1.0), _graded(0.0, failure=TOOL_DOWN))) == []


def test_a_model_fault_counts_like_any_other_score() -> None:
    fault = Failure(kind=FailureKind.MODEL, where="agent", message="gave up")
    samples = centred(_group(_graded(1.0), _graded(0.0, failure=fault)))
    assert [_credit(sample) for sample in samples] == [0.5, -0.5]


def test_each_context_is_a_sample_with_the_same_credit() -> None:
    forked = _graded(1.0, _turn((1, 2), (3,)), _turn((7, 8), (9,), 1), _turn((4,), (5,)))
    first, second, _ = centred(_group(forked, _graded(0.0)))
    assert first.token_ids == (1, 2, 3, 4, 5)
    assert second.token_ids == (7, 8, 9)
    assert _credit(first) == _credit(second) == 0.5


def test_a_context_without_action_tokens_is_no_sample() -> None:
    silent = _graded(1.0, _turn((1, 2), ()), name="silent")
    assert [s.trajectory_id for s in centred(_group(silent, _graded(0.0)))] == ["trace_a"]


def test_temperature_and_version_travel_with_the_sample() -> None:
    sample, _ = centred(_group(_graded(1.0), _graded(0.0)), temperature=0.7)
    assert (sample.temperature, sample.policy_version) == (0.7, 3)


token_lists = st.lists(st.integers(1, 500), min_size=1, max_size=6).map(tuple)


@given(st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=5))
def test_exactly_the_sampled_tokens_carry_loss(
    pieces: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    turns = [_turn(observation, action) for observation, action in pieces]
    sample, _ = centred(_group(_graded(1.0, *turns), _graded(0.0)))
    place = 0
    for turn in turns:
        seen = slice(place, place + len(turn.observation_ids))
        acted = slice(seen.stop, seen.stop + len(turn.action_ids))
        assert sample.token_ids[seen] == turn.observation_ids
        assert not any(sample.action_mask[seen])
        assert not any(sample.advantages[seen])
        assert sample.token_ids[acted] == turn.action_ids
        assert all(sample.action_mask[acted])
        assert sample.behavior_logprobs[acted] == turn.behavior_logprobs
        place = acted.stop
    assert place == len(sample.token_ids)


def test_imitation_weighs_masked_tokens_one_and_others_zero() -> None:
    sample = imitation((5, 6, 7), (False, True, True), "demo")
    assert sample.advantages == (0.0, 1.0, 1.0)
    assert sample.behavior_logprobs == (0.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="no context"):
        imitation((5, 6), (True, True), "demo")


def test_credit_and_the_fake_trainer_load_no_torch() -> None:
    code = (
        "import sys, agentrft.training.credit, agentrft.training.recording;"
        "sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
