"""The grader of users who write Python: the environment grades its own rollout, state included."""

import asyncio
import math
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, cast, runtime_checkable

from agentrft.core.errors import GraderError, UserError, boundary
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory


@runtime_checkable
class GradesItself(Protocol):
    """An environment that can grade the rollout it hosted."""

    async def run_grade(self, trajectory: Trajectory) -> object:
        """Return a score, a Grade or a mapping of `score` and parts."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentGrader:
    """Calls the environment's own `grade`; GraderError if that raises, hangs or says nonsense."""

    name: str = "environment"
    timeout_s: float = 120.0

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Grade a finished rollout while its environment is open."""
        if not isinstance(environment, GradesItself):
            raise UserError(
                "this environment has no grade of its own; set a grader in the project "
                "or write the environment in Python"
            )
        return await read_grade(
            environment.run_grade(trajectory),
            trajectory,
            name=self.name,
            where=f"grade of {type(environment).__name__} on task {task.id!r}",
            timeout_s=self.timeout_s,
        )


async def read_grade(
    answer: Awaitable[object], trajectory: Trajectory, *, name: str, where: str, timeout_s: float
) -> Grade:
    """Await what code of users says; GraderError if it raises, hangs or says nonsense."""
    deadline = asyncio.timeout(timeout_s)
    with boundary(GraderError, where):
        try:
            async with deadline:
                given = await answer
        except TimeoutError:
            if not deadline.expired():
                raise
            raise GraderError(
                f"{where}: no grade within {timeout_s:g} s", code="unresponsive_reward_error"
            ) from None
        grade = _as_grade(given, name)
        check_turn_scores(grade, trajectory)
        return grade


def check_turn_scores(grade: Grade, trajectory: Trajectory) -> None:
    """Raise GraderError unless a grade has no scores by turn, or a finite one for each turn."""
    turns = len(trajectory.turns)
    if grade.turn_scores and len(grade.turn_scores) != turns:
        raise GraderError(
            f"grader {grade.grader!r} gave {len(grade.turn_scores)} turn_scores for {turns} turns; "
            "give one for each turn, or none"
        )
    if not all(math.isfinite(score) for score in grade.turn_scores):
        raise GraderError(
            f"grader {grade.grader!r} gave turn_scores {grade.turn_scores}; they must be finite"
        )


def _as_grade(given: object, name: str) -> Grade:
    match given:
        case Grade():
            return given if given.grader else replace(given, grader=name)
        case bool() | int() | float():
            return Grade(score=float(given), grader=name)
        case Mapping():
            entries = {str(k): v for k, v in cast(Mapping[object, object], given).items()}
            if "score" not in entries:
                raise GraderError(f"grade returned {entries!r}; it needs the key 'score'")
            by_turn = entries.pop("turn_scores", ())
            if not isinstance(by_turn, list | tuple):
                raise GraderError(
                    f"grade returned {by_turn!r} for 'turn_scores'; it must be a list"
                )
            numbers = {key: _number(value, key) for key, value in entries.items()}
            return Grade(
                score=numbers.pop("score"),
                parts=numbers,
                grader=name,
                turn_scores=tuple(
                    _number(value, "turn_scores") for value in cast(Sequence[object], by_turn)
                ),
            )
        case _:
            raise GraderError(
                f"grade returned {given!r}; return a number, a Grade or a mapping with 'score'"
            )


def _number(value: object, key: str) -> float:
    if not isinstance(value, bool | int | float):
        raise GraderError(f"grade returned {value!r} for {key!r}; it must be a number")
    if not math.isfinite(value):
        raise GraderError(f"grade returned {value} for {key!r}; it must be a finite number")
    return float(value)
