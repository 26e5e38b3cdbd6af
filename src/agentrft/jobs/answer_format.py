"""`response_format`: answers are checked against the schema, never forced into it."""

import json
from collections.abc import Mapping
from typing import Any

import jsonschema_rs

from agentrft.core.errors import ConfigError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment, Grader
from agentrft.core.task import Task
from agentrft.core.trajectory import Failure, FailureKind, Trajectory


class AnswerFormat:
    """Grades 0 what does not fit the schema, and leaves the rest to the job's grader."""

    def __init__(self, grader: Grader, schema: Mapping[str, Any]) -> None:
        """Read the schema. Raises ConfigError if it is none, or refers to another document."""
        self._grader = grader
        try:
            # Patterns of strangers: no backtracking. References of strangers: nothing is fetched.
            self._schema = jsonschema_rs.validator_for(
                dict(schema), offline=True, pattern_options=jsonschema_rs.RegexOptions()
            )
        except ValueError as error:
            reason = str(error).splitlines()[0]
            raise ConfigError(f"response_format: not a JSON schema: {reason}") from error

    @property
    def name(self) -> str:
        """As the grader behind."""
        return self._grader.name

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Grade a finished rollout; raises what the grader behind raises."""
        reason = self._misfit(trajectory.output_text)
        if reason is None:
            return await self._grader.grade(task, trajectory, environment)
        failure = Failure(
            kind=FailureKind.MODEL,
            where="answer",
            message=f"the answer does not fit response_format: {reason}",
            code="sample_parse_error",
        )
        return Grade(score=0.0, explanation=failure.message, failure=failure, grader=self.name)

    def _misfit(self, text: str) -> str | None:
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            return f"not JSON: {error}"
        problem = next(self._schema.iter_errors(answer), None)
        return None if problem is None else problem.message
