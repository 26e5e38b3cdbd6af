"""Several graders and a formula over their scores."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass

from agentrft.core.errors import GraderError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment, Grader
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.formula import Formula


@dataclass(frozen=True, slots=True, kw_only=True)
class Multi:
    """Runs its graders together; the score is the formula's value, the parts are their scores."""

    name: str
    graders: Mapping[str, Grader]
    formula: Formula
    invalid_grade: float | None = None
    """Score where the model did not write what a part looks at; None lets that part score 0."""

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Grade with every part. Raises GraderError if one fails or the formula has no value."""
        results = await asyncio.gather(
            *(grader.grade(task, trajectory, environment) for grader in self.graders.values()),
            return_exceptions=True,  # so that no part is left running when another one fails
        )
        grades: dict[str, Grade] = {}
        parts: dict[str, float] = {}
        for name, result in zip(self.graders, results, strict=True):
            if isinstance(result, BaseException):
                raise result
            grades[name] = result
            parts[name] = self._score(name, result)
        fault = next((grade.failure for grade in grades.values() if grade.failure), None)
        notes = [f"{name}: {grade.explanation}" for name, grade in grades.items()]
        invalid = fault is not None and self.invalid_grade is not None
        return Grade(
            score=self.invalid_grade if invalid else self.formula.value(parts),
            parts=parts,
            explanation="; ".join(note for note in notes if not note.endswith(": ")),
            failure=fault,
            grader=self.name,
        )

    def _score(self, name: str, grade: Grade) -> float:
        if grade.score is not None:
            return grade.score
        failure = grade.failure
        raise GraderError(
            f"grader {self.name!r}: part {name!r} gave no score: "
            f"{failure.message if failure else 'no reason given'}",
            code=(failure.code if failure else "") or "other_error",
        )
