"""Credit: who gets it, how much, and on which tokens."""

import statistics
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.errors import UserError
from agentrft.core.grade import Grade, GradedTrajectory, Group
from agentrft.core.sample import Sample
from agentrft.core.task import Message, Task
from agentrft.core.training_config import Credit
from agentrft.core.trajectory import Failure, FailureKind, StopReason, Trajectory, Turn
from agentrft.training.credit import credited_group, imitation, preference_pair

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
    turn_scores: tuple[float, ...] = (),
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
    grade = Grade(
        score=score, failure=NOT_GRADED if score is None else None, turn_scores=turn_scores
    )
    return GradedTrajectory(trajectory=trajectory, grade=grade)


def _group(*graded: GradedTrajectory) -> Group:
    return Group(task=TASK, policy_version=3, graded=graded)


def _credited(group: Group, **changes: Any) -> list[Sample]:
    return credited_group(group, Credit(**changes), temperature=1.0)


def _credit(sample: Sample) -> float:
    (value,) = {a for a, m in zip(sample.advantages, sample.action_mask, strict=True) if m}
    return value


def test_the_advantage_is_the_distance_to_the_mean_and_nothing_divides_it() -> None:
    samples = _credited(_group(_graded(1.0), _graded(0.0), _graded(0.0), _graded(0.0)))
    assert [_credit(sample) for sample in samples] == [0.75, -0.25, -0.25, -0.25]


def test_a_group_without_spread_gives_no_samples() -> None:
    assert _credited(_group(_graded(0.5), _graded(0.5), _graded(0.5))) == []
    assert _credited(_group(_graded(1.0))) == []
    assert _credited(_group()) == []


def test_a_rollout_that_infrastructure_broke_moves_no_baseline() -> None:
    clean = _credited(_group(_graded(1.0), _graded(0.0)))
    faulty = _credited(
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
    assert _credited(_group(_graded(1.0), _graded(1.0), _graded(0.0, failure=TOOL_DOWN))) == []


def test_a_model_fault_counts_like_any_other_score() -> None:
    fault = Failure(kind=FailureKind.MODEL, where="agent", message="gave up")
    samples = _credited(_group(_graded(1.0), _graded(0.0, failure=fault)))
    assert [_credit(sample) for sample in samples] == [0.5, -0.5]


def test_each_context_is_a_sample_with_the_same_credit() -> None:
    forked = _graded(1.0, _turn((1, 2), (3,)), _turn((7, 8), (9,), 1), _turn((4,), (5,)))
    first, second, _ = _credited(_group(forked, _graded(0.0)))
    assert first.token_ids == (1, 2, 3, 4, 5)
    assert second.token_ids == (7, 8, 9)
    assert _credit(first) == _credit(second) == 0.5


def test_a_context_without_action_tokens_is_no_sample() -> None:
    silent = _graded(1.0, _turn((1, 2), ()), name="silent")
    assert [s.trajectory_id for s in _credited(_group(silent, _graded(0.0)))] == ["trace_a"]


def test_temperature_and_version_travel_with_the_sample() -> None:
    sample, _ = credited_group(_group(_graded(1.0), _graded(0.0)), Credit(), temperature=0.7)
    assert (sample.temperature, sample.policy_version) == (0.7, 3)


scores_of_a_group = st.lists(st.floats(0, 1), min_size=2, max_size=8).filter(
    lambda scores: max(scores) - min(scores) > 1e-3
)


@given(scores_of_a_group)
def test_the_three_advantages_differ_by_a_factor_per_group(scores: list[float]) -> None:
    group = _group(*(_graded(score) for score in scores))
    centred, rloo, grpo = (
        [_credit(sample) for sample in _credited(group, advantage=advantage)]
        for advantage in ("centred", "rloo", "grpo")
    )
    assert sum(centred) == pytest.approx(0.0, abs=1e-9)
    size = len(scores)
    assert rloo == pytest.approx([size / (size - 1) * value for value in centred])
    for place, value in enumerate(rloo):
        others = scores[:place] + scores[place + 1 :]
        assert value == pytest.approx(scores[place] - sum(others) / len(others), abs=1e-9)
    assert grpo == pytest.approx([value / statistics.pstdev(scores) for value in centred])


def _two_turns(score: float, *turn_scores: float) -> GradedTrajectory:
    turns = (_turn((1, 2), (3,)), _turn((4,), (5,)))[: len(turn_scores)]
    return _graded(score, *turns, turn_scores=turn_scores)


def test_a_turn_is_credited_with_what_came_from_it_on() -> None:
    group = _group(_two_turns(1.0, 0.0, 1.0), _two_turns(0.0, 1.0, 0.0))
    first, second = _credited(group, turn_weight=2.0, turn_discount=0.5)
    # To go: (0 + 0.5, 1) and (1 + 0, 0); means 0.75 and 0.5.
    assert first.advantages == pytest.approx((0, 0, 0.5 - 0.5, 0, 0.5 + 1.0))
    assert second.advantages == pytest.approx((0, 0, -0.5 + 0.5, 0, -0.5 - 1.0))


def test_a_turn_is_compared_with_those_who_reached_it() -> None:
    group = _group(_two_turns(1.0, 0.25, 9.0), _two_turns(1.0, 0.75))
    long, short = _credited(group, turn_weight=1.0, turn_discount=0.0)
    assert long.advantages == pytest.approx((0, 0, -0.25, 0, 0.0))
    assert short.advantages == pytest.approx((0, 0, 0.25))


def test_turn_scores_alone_are_a_signal_if_they_count() -> None:
    group = _group(_two_turns(1.0, 0.0, 1.0), _two_turns(1.0, 1.0, 0.0))
    assert _credited(group) == []
    assert len(_credited(group, turn_weight=1.0)) == 2
    same = _group(_two_turns(1.0, 0.5, 1.0), _two_turns(1.0, 0.5, 1.0))
    assert _credited(same, turn_weight=1.0) == []


def test_turn_credit_without_a_score_for_each_turn_is_refused() -> None:
    group = _group(_two_turns(1.0, 0.5, 0.5), _graded(0.0))
    with pytest.raises(UserError, match="0 turn scores for 1 turns; let the grader score every"):
        _credited(group, turn_weight=1.0)
    assert len(_credited(group)) == 2


def test_a_pair_carries_loss_only_after_its_divergence() -> None:
    mask = (False, True, True, False, True)
    first, second = preference_pair(((1, 2, 3, 4, 5), mask), ((1, 2, 6), mask[:3]), "pair")
    assert first.advantages == (0.0, 0.0, 1.0, 0.0, 1.0)
    assert second.advantages == (0.0, 0.0, -1.0)
    assert first.pair == second.pair == "pair"


@pytest.mark.parametrize("rejected", [(1, 2, 3), (1, 2, 3, 9)])
def test_a_pair_whose_sides_say_the_same_is_refused(rejected: tuple[int, ...]) -> None:
    mask = (False, True, True, False)
    with pytest.raises(UserError, match="pair 'x': the preferred side has no token of its own"):
        preference_pair(((1, 2, 3), mask[:3]), (rejected, mask[: len(rejected)]), "x")


token_lists = st.lists(st.integers(1, 500), min_size=1, max_size=6).map(tuple)


@given(st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=5))
def test_exactly_the_sampled_tokens_carry_loss(
    pieces: list[tuple[tuple[int, ...], tuple[int, ...]]],
) -> None:
    turns = [_turn(observation, action) for observation, action in pieces]
    sample, _ = _credited(_group(_graded(1.0, *turns), _graded(0.0)))
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
