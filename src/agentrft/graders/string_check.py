"""Compare two texts: equal, different, or one inside the other."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.template import AbsentFromOutput, Template, sample_of

OPERATIONS: Mapping[str, Callable[[str, str], bool]] = {
    "eq": lambda given, reference: given == reference,
    "ne": lambda given, reference: given != reference,
    "neq": lambda given, reference: given != reference,
    "like": lambda given, reference: reference in given,
    "ilike": lambda given, reference: reference.casefold() in given.casefold(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StringCheck:
    """1 if the operation holds, else 0; also 0 where the model did not write what is compared."""

    name: str
    given: Template
    reference: Template
    operation: str

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Fill both templates and compare. Raises GraderError if the row lacks a path."""
        sample = sample_of(trajectory)
        try:
            given = self.given.fill(task.row, sample)
            reference = self.reference.fill(task.row, sample)
        except AbsentFromOutput as absent:
            return absent.grade(self.name)
        holds = OPERATIONS[self.operation](given, reference)
        return Grade(score=float(holds), grader=self.name)
