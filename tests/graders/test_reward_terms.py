import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from answers import a_trajectory
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.config import Allowance, RewardTerms
from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment
from agentrft.core.task import Task, ToolCall
from agentrft.core.trajectory import Failure, FailureKind, Trajectory
from agentrft.graders.build import build_grader
from agentrft.graders.fixed import FixedGrader
from agentrft.graders.formula import parse_formula
from agentrft.graders.multi import Multi
from agentrft.graders.reward_terms import with_terms

TASK = Task(id="task-1", messages=(), row={"answer": "4"})


@dataclass(frozen=True)
class Says:
    """A grader that gives a grade made beforehand."""

    grade_given: Grade
    name: str = "says"

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        return self.grade_given


def a_rollout(*, tool_calls: int = 0, tokens: int = 1, seconds: float = 0.0) -> Trajectory:
    calls = [ToolCall(id=f"c{n}", name="get", arguments="{}") for n in range(tool_calls)]
    made = a_trajectory("done", *calls)
    turn = replace(made.turns[0], action_ids=(2,) * tokens, behavior_logprobs=(-0.1,) * tokens)
    return replace(made, turns=(turn,), duration_s=seconds)


def graded(terms: RewardTerms, given: Grade, trajectory: Trajectory | None = None) -> Grade:
    grader = with_terms(Says(given), terms)
    return asyncio.run(grader.grade(TASK, trajectory or a_rollout(), None))


def test_without_terms_the_grader_stays_as_it_is() -> None:
    grader = Says(Grade(score=1.0))
    assert with_terms(grader, RewardTerms()) is grader


def test_sums_leak_and_min_does_not() -> None:
    """A policy that never solves a task, but writes in the right form, on both compositions."""
    parts = {"solved": FixedGrader({"task-1": 0.0}), "form": FixedGrader({"task-1": 1.0})}

    def paid(formula: str, terms: RewardTerms) -> float | None:
        multi = Multi(name="m", graders=parts, formula=parse_formula(formula, parts, "f"))
        grade = asyncio.run(with_terms(multi, terms).grade(TASK, a_rollout(), None))
        return grade.score

    added = "0.5 * solved + 0.5 * form"
    assert paid(added, RewardTerms()) == 0.5
    assert paid(added, RewardTerms(gates=("solved",))) == 0
    assert paid("min(solved, form)", RewardTerms()) == 0


def test_gates_are_parts_that_cap_the_score() -> None:
    given = Grade(score=0.9, parts={"safe": 0.2, "kind": 0.7}, grader="g")
    grade = graded(RewardTerms(gates=("safe", "kind")), given)
    assert grade.score == 0.2
    assert grade.parts == {"safe": 0.2, "kind": 0.7, "before_terms": 0.9}


def test_a_gate_on_a_part_that_is_not_there_names_those_that_are() -> None:
    with pytest.raises(GraderError, match=r"'safety'.*its parts: kind, safe"):
        graded(RewardTerms(gates=("safety",)), Grade(score=1.0, parts={"safe": 1, "kind": 1}))


def test_a_gate_that_is_no_number_gives_no_grade() -> None:
    with pytest.raises(GraderError, match="finite"):
        graded(RewardTerms(gates=("safe",)), Grade(score=1.0, parts={"safe": float("nan")}))


def test_what_goes_beyond_the_free_allowance_costs_and_is_reported() -> None:
    terms = RewardTerms(
        tool_calls=Allowance(free=2, cost=0.05),
        sampled_tokens=Allowance(free=100, cost=0.001),
        seconds=Allowance(free=10, cost=0.01),
    )
    grade = graded(terms, Grade(score=1.0), a_rollout(tool_calls=3, tokens=120, seconds=11.0))
    assert grade.parts == pytest.approx(
        {
            "tool_calls_penalty": 0.05,
            "sampled_tokens_penalty": 0.02,
            "seconds_penalty": 0.01,
            "before_terms": 1.0,
        }
    )
    assert grade.score == pytest.approx(0.92)


def test_within_the_allowance_nothing_is_taken_off() -> None:
    terms = RewardTerms(tool_calls=Allowance(free=2, cost=0.05))
    assert graded(terms, Grade(score=1.0), a_rollout(tool_calls=2)).score == 1


@given(
    score=st.floats(-2, 2),
    calls=st.integers(0, 30),
    free=st.floats(0, 10),
    cost=st.floats(0, 1),
    most=st.floats(0, 1),
)
def test_penalties_are_capped_never_raise_and_never_go_below_zero(
    score: float, calls: int, free: float, cost: float, most: float
) -> None:
    terms = RewardTerms(tool_calls=Allowance(free=free, cost=cost), most_penalty=most)
    after = graded(terms, Grade(score=score), a_rollout(tool_calls=calls)).score
    assert after is not None
    assert min(score, 0) <= after <= score
    assert after >= score - most - 1e-12


def test_what_has_no_grade_gets_none() -> None:
    failure = Failure(kind=FailureKind.GRADER, where="g", message="down")
    given = Grade(score=None, failure=failure)
    assert graded(RewardTerms(gates=("safe",)), given) == given


def test_scores_by_turn_pass_through_and_fit_the_turns() -> None:
    terms = RewardTerms(tool_calls=Allowance(free=0, cost=0.1))
    assert graded(terms, Grade(score=1.0, turn_scores=(0.3,))).turn_scores == (0.3,)
    with pytest.raises(GraderError, match="2 turn_scores for 1 turns"):
        graded(terms, Grade(score=1.0, turn_scores=(0.3, 0.4)))


@pytest.mark.parametrize(
    ("terms", "path"),
    [
        (RewardTerms(most_penalty=-0.1), r"reward\.most_penalty"),
        (RewardTerms(seconds=Allowance(free=-1, cost=1)), r"reward\.seconds\.free"),
        (RewardTerms(tool_calls=Allowance(free=1, cost=-1)), r"reward\.tool_calls\.cost"),
        (RewardTerms(tool_calls=Allowance(free=1, cost=float("nan"))), r"reward\.tool_calls\.cost"),
    ],
)
def test_terms_that_cannot_be_meant_are_named(terms: RewardTerms, path: str) -> None:
    with pytest.raises(ConfigError, match=path):
        with_terms(Says(Grade(score=1.0)), terms)


def test_a_gate_that_a_formula_does_not_have_is_refused_before_any_work() -> None:
    check: Mapping[str, Any] = {
        "type": "string_check",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
        "operation": "eq",
    }
    multi = {"type": "multi", "graders": {"right": check}, "calculate_output": "right"}
    with pytest.raises(ConfigError, match=r"reward\.gates names rihgt.*its parts: right"):
        with_terms(build_grader(multi), RewardTerms(gates=("rihgt",)))
