"""Several graders and a formula over their scores."""

import asyncio
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass

from agentrft.core.errors import GraderError, boundary
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment, Grader
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.core.usage import TokenUsage
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
        return self.combined(await self.results(task, trajectory, environment))

    async def results(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> dict[str, Grade | GraderError]:
        """Return what came of each part; every grade has a score."""
        given = await asyncio.gather(
            *(
                self._part(name, grader.grade(task, trajectory, environment))
                for name, grader in self.graders.items()
            ),
            return_exceptions=True,  # so that no part is left running when another one fails
        )
        results: dict[str, Grade | GraderError] = {}
        for name, result in zip(self.graders, given, strict=True):
            if isinstance(result, BaseException) and not isinstance(result, GraderError):
                raise result
            results[name] = result
        return results

    def combined(self, results: Mapping[str, Grade | GraderError]) -> Grade:
        """Compute the formula. Raises GraderError with the faults of all parts, or for no value."""
        errors = [result for result in results.values() if isinstance(result, GraderError)]
        used = usage(results.values())
        if errors:
            message = "; ".join(map(str, errors))
            raise GraderError(message, code=errors[0].code, usage=used) from errors[0]
        grades = {name: result for name, result in results.items() if isinstance(result, Grade)}
        parts = scores(grades)
        fault = next((grade.failure for grade in grades.values() if grade.failure), None)
        notes = [f"{name}: {grade.explanation}" for name, grade in grades.items()]
        invalid = fault is not None and self.invalid_grade is not None
        try:
            score = self.invalid_grade if invalid else self.formula.value(parts)
        except GraderError as error:
            error.usage = used
            raise
        return Grade(
            score=score,
            parts=parts,
            explanation="; ".join(note for note in notes if not note.endswith(": ")),
            failure=fault,
            grader=self.name,
            usage=used,
        )

    async def _part(self, name: str, grading: Awaitable[Grade]) -> Grade:
        where = f"grader {self.name!r}: part {name!r}"
        with boundary(GraderError, where):
            grade = await grading
        if grade.score is not None:
            return grade
        failure = grade.failure
        reason = failure.message if failure else "no reason given"
        code = (failure.code if failure else "") or "other_error"
        raise GraderError(f"{where} gave no score: {reason}", code=code, usage=grade.usage)


def scores(results: Mapping[str, Grade | GraderError]) -> dict[str, float]:
    """Return the scores of those parts that have one."""
    return {
        name: result.score
        for name, result in results.items()
        if isinstance(result, Grade) and result.score is not None
    }


def usage(results: Iterable[Grade | GraderError]) -> dict[str, TokenUsage]:
    """Add up, per model, what the parts took, those that failed included."""
    total: dict[str, TokenUsage] = {}
    for result in results:
        for model, used in result.usage.items():
            total[model] = total.get(model, TokenUsage()) + used
    return total
