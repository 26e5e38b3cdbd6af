import asyncio
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from answers import a_trajectory

from agentrft.core.errors import ConfigError, GraderError, UserError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment as AnyEnvironment
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.dry_run import run_grader
from agentrft.graders.function import FunctionGrader, GraderFunction, grader
from agentrft.rollout.environment import Environment, python_environment
from agentrft.rollout.http_tools import combined_environment

TASK = Task(id="task-1", messages=(), row={"wanted": "done"})


def a_rollout(*texts: str) -> Trajectory:
    """A trajectory with one turn for each text."""
    turns = tuple(turn for text in texts for turn in a_trajectory(text).turns)
    return replace(a_trajectory(""), turns=turns)


def graded(
    function: GraderFunction,
    *texts: str,
    environment: AnyEnvironment | None = None,
    timeout_s: float = 120.0,
) -> Grade:
    made = FunctionGrader(name="fn", code=function, timeout_s=timeout_s)
    return asyncio.run(made.grade(TASK, a_rollout(*(texts or ("done",))), environment))


class Counter(Environment):
    """Knows its thread, so that a test can tell where a function ran."""

    def __init__(self, task: Task) -> None:
        self.thread = threading.get_ident()
        self.count = 3


@grader
def whole(task: Task, trajectory: Trajectory) -> float:
    return float(trajectory.turns[0].message.content == task["wanted"])


def test_a_function_sees_task_and_whole_trajectory() -> None:
    assert graded(whole, "done", "later").score == 1
    assert graded(whole, "later", "done").score == 0
    assert whole(TASK, a_trajectory("done")) == 1, "by hand it is the function"


def test_an_async_function_is_awaited() -> None:
    @grader
    async def slowly(task: Task, trajectory: Trajectory) -> dict[str, float]:
        await asyncio.sleep(0)
        return {"score": 0.5, "shape": 1.0}

    grade = graded(slowly)
    assert (grade.score, grade.parts, grade.grader) == (0.5, {"shape": 1.0}, "fn")


def test_a_function_may_give_one_score_for_each_turn() -> None:
    @grader
    def by_turn(task: Task, trajectory: Trajectory) -> dict[str, Any]:
        return {"score": 1, "turn_scores": [0.5 for _ in trajectory.turns]}

    assert graded(by_turn, "a", "b").turn_scores == (0.5, 0.5)


@pytest.mark.parametrize("turn_scores", [[1.0], [1.0, float("nan")], [1.0, "x"], 7])
def test_turn_scores_that_fit_no_turn_are_an_error(turn_scores: object) -> None:
    @grader
    def wrong(task: Task, trajectory: Trajectory) -> dict[str, object]:
        return {"score": 1, "turn_scores": turn_scores}

    with pytest.raises(GraderError, match="turn_scores"):
        graded(wrong, "a", "b")


def test_turn_scores_of_a_grade_are_checked_too() -> None:
    @grader
    def wrong(task: Task, trajectory: Trajectory) -> Grade:
        return Grade(score=1.0, turn_scores=(1.0, 1.0, 1.0))

    with pytest.raises(GraderError, match="3 turn_scores for 2 turns"):
        graded(wrong, "a", "b")


def test_a_function_gets_the_users_own_environment_on_its_own_thread() -> None:
    @grader
    def state(task: Task, trajectory: Trajectory, environment: Counter) -> dict[str, float]:
        at_home = environment.thread == threading.get_ident()
        return {"score": environment.count, "at_home": float(at_home)}

    opened = combined_environment([python_environment(Counter)])(TASK, "trace_1")
    grade = graded(state, environment=opened)
    assert (grade.score, grade.parts) == (3.0, {"at_home": 1.0})


def test_a_function_that_needs_the_environment_says_so_where_there_is_none() -> None:
    @grader
    def state(task: Task, trajectory: Trajectory, environment: object) -> float:
        return 1.0

    with pytest.raises(UserError, match="looks at the environment"):
        graded(state)


def test_what_a_function_raises_is_the_graders_fault() -> None:
    @grader
    def broken(task: Task, trajectory: Trajectory) -> float:
        return float(task["missing"])

    with pytest.raises(GraderError, match=r"grader 'fn' on task 'task-1': KeyError.*missing"):
        graded(broken)


def test_a_function_that_hangs_is_unresponsive_and_blocks_nobody() -> None:
    @grader
    def hangs(task: Task, trajectory: Trajectory) -> float:
        time.sleep(60)
        return 1.0

    with pytest.raises(GraderError, match="no grade within") as raised:
        graded(hangs, timeout_s=0.05)
    assert raised.value.code == "unresponsive_reward_error"


@pytest.mark.parametrize("said", [None, "1.0", float("inf"), {"parts": 1}])
def test_anything_but_finite_numbers_is_an_error(said: object) -> None:
    @grader
    def odd(task: Task, trajectory: Trajectory) -> object:
        return said

    with pytest.raises(GraderError):
        graded(odd)


@pytest.mark.parametrize(
    "function", [lambda: 1.0, lambda task: 1.0, lambda a, b, c, d: 1.0, lambda a, *b: 1.0]
)
def test_another_signature_is_refused_where_it_is_written(function: Any) -> None:
    with pytest.raises(UserError, match=r"must take \(task, trajectory\)"):
        grader(function)


def found(reference: str, where: str) -> GraderFunction:
    assert (reference, where) == ("graders.py:whole", "grader.graders.fn.function")
    return whole


def test_a_function_may_be_a_part_of_a_formula() -> None:
    config: Mapping[str, object] = {
        "type": "multi",
        "graders": {"fn": {"type": "function", "function": "graders.py:whole"}},
        "calculate_output": "0.5 * fn",
    }
    built = build_grader(config, backends=Backends(functions=found))
    grade = asyncio.run(built.grade(TASK, a_trajectory("done"), None))
    assert (grade.score, grade.parts) == (0.5, {"fn": 1.0})


def test_a_request_never_names_code_of_the_server() -> None:
    config = {"type": "function", "function": "os:system"}
    with pytest.raises(ConfigError, match=r"grader\.type 'function'.*project folder"):
        asyncio.run(run_grader(config, {}, "text", "trace_1", Backends()))
