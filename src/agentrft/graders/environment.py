"""The grader of users who write Python: the environment grades its own rollout, state included."""

import asyncio
import math
from collections.abc import Mapping
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
        where = f"grade of {type(environment).__name__} on task {task.id!r}"
        deadline = asyncio.timeout(self.timeout_s)
        with boundary(GraderError, where):
            try:
                async with deadline:
                    given = await environment.run_grade(trajectory)
            except TimeoutError:
                if not deadline.expired():
                    raise
                raise GraderError(
                    f"{where}: no grade within {self.timeout_s:g} s",
                    code="unresponsive_reward_error",
                ) from None
            return as_grade(given, self.name)


def as_grade(given: object, name: str) -> Grade:
    """Read what a user's grade returned. Raises GraderError for anything but finite numbers."""
    match given:
        case Grade():
            return given if given.grader else replace(given, grader=name)
        case bool() | int() | float():
            return Grade(score=float(given), grader=name)
        case Mapping():
            parts = cast(Mapping[object, object], given)
            if "score" not in parts:
                raise GraderError(f"grade returned {dict(parts)!r}; it needs the key 'score'")
            numbers = {str(key): _number(value, str(key)) for key, value in parts.items()}
            return Grade(score=numbers.pop("score"), parts=numbers, grader=name)
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
