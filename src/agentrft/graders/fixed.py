"""A grader that was told its scores; for tests and dry runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agentrft.core.errors import GraderError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class FixedGrader:
    """Scores by task id, or by a function of task and trajectory."""

    scores: Mapping[str, float] | Callable[[Task, Trajectory], float]
    name: str = "fixed"

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Look the score up. Raises GraderError for a task it was told nothing about."""
        if not isinstance(self.scores, Mapping):
            return Grade(score=self.scores(task, trajectory), grader=self.name)
        if task.id not in self.scores:
            raise GraderError(f"grader {self.name!r} has no score for task {task.id!r}")
        return Grade(score=self.scores[task.id], grader=self.name)
