"""Grade one text before anything trains, with the very graders of training and every error shown."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agentrft.core.errors import ConfigError, GraderError, boundary
from agentrft.core.grade import Grade
from agentrft.core.task import Message, Task, content_id
from agentrft.core.trajectory import Failure, FailureKind, StopReason, Trajectory, Turn
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader

ERROR_FAMILIES = {
    "formula_parse_error": False,
    "sample_parse_error": True,
    "truncated_observation_error": False,
    "unresponsive_reward_error": False,
    "invalid_variable_error": True,
    "other_error": False,
    "python_grader_server_error": False,
    "python_grader_runtime_error": True,
    "model_grader_server_error": True,
    "model_grader_refusal_error": True,
    "model_grader_parse_error": True,
    "model_grader_exceeded_max_tokens_error": False,
    "endpoint_grader_internal_error": True,
    "endpoint_grader_server_error": True,
    "endpoint_grader_safety_check_error": False,
}
"""Every family of the contract's run response; True if it has a `_details` field of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraderRun:
    """What one grading gave."""

    type: str
    grade: Grade

    def reply(self) -> dict[str, Any]:
        """Return the contract's response; `reward` is null, not 0, if there is no grade."""
        scores = dict(self.grade.parts)
        return {
            "reward": self.grade.score,
            "sub_rewards": scores,
            "model_grader_token_usage_per_model": {},
            "metadata": {
                "name": self.grade.grader,
                "type": self.type,
                "execution_time": self.grade.duration_s,
                "scores": scores,
                "token_usage": None,
                "sampled_model_name": None,
                "errors": _errors(self.grade.failure),
            },
        }


async def run_grader(
    config: Mapping[str, Any],
    item: Mapping[str, Any],
    model_sample: str,
    trace_id: str,
    backends: Backends,
) -> GraderRun:
    """Grade a final answer as if a rollout had ended with it. Raises ConfigError for the object."""
    if not config:
        raise ConfigError("grader is empty; give a grader object with a type")
    grader = build_grader(config, backends=backends)
    task = Task(id=content_id(item), messages=(), row=item)
    where = f"grader {grader.name!r}"
    started = time.monotonic()
    try:
        with boundary(GraderError, where):
            grade = await grader.grade(task, _rollout(model_sample, task, trace_id), None)
    except GraderError as error:
        failure = Failure(kind=FailureKind.GRADER, where=where, message=str(error), code=error.code)
        grade = Grade(score=None, failure=failure, grader=grader.name)
    grade = replace(grade, duration_s=time.monotonic() - started)
    return GraderRun(type=str(config["type"]), grade=grade)


def _rollout(text: str, task: Task, trace_id: str) -> Trajectory:
    turn = Turn(
        observation_ids=(),
        action_ids=(),
        behavior_logprobs=(),
        first_version=0,
        last_version=0,
        message=Message(role="assistant", content=text),
    )
    return Trajectory(
        id=trace_id,
        task_id=task.id,
        model="",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=(turn,),
        stop_reason=StopReason.FINISHED,
    )


def _errors(failure: Failure | None) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for family, has_details in ERROR_FAMILIES.items():
        hit = failure is not None and failure.code == family
        fields[family] = hit
        if has_details:
            fields[f"{family}_details"] = failure.message if failure and hit else None
    fields["python_grader_server_error_type"] = None
    return fields
