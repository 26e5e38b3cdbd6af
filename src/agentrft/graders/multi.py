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

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Grade with every part. Raises GraderError if one fails or the formula has no value."""
        grades = await asyncio.gather(
            *(grader.grade(task, trajectory, environment) for grader in self.graders.values())
        )
        parts: dict[str, float] = {}
        for name, grade in zip(self.graders, grades, strict=True):
            if grade.score is None:
                why = grade.failure.message if grade.failure else "no reason given"
                raise GraderError(f"grader {self.name!r}: part {name!r} gave no score: {why}")
            parts[name] = grade.score
        notes = [f"{name}: {g.explanation}" for name, g in zip(parts, grades, strict=True)]
        return Grade(
            score=self.formula.value(parts),
            parts=parts,
            explanation="; ".join(note for note in notes if not note.endswith(": ")),
            grader=self.name,
        )
