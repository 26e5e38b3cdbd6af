"""Grade one text before anything trains, with the very graders of training and every error shown."""

import asyncio
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from agentrft.core.errors import ConfigError, GraderError, boundary
from agentrft.core.grade import Grade
from agentrft.core.task import Message, Task, content_id
from agentrft.core.trajectory import Failure, FailureKind, StopReason, Trajectory, Turn
from agentrft.core.usage import TokenUsage
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.multi import Multi, scores

ERROR_FAMILIES = {
    "formula_parse_error": "",
    "sample_parse_error": "details",
    "truncated_observation_error": "",
    "unresponsive_reward_error": "",
    "invalid_variable_error": "details",
    "other_error": "",
    "python_grader_server_error": "type",
    "python_grader_runtime_error": "details",
    "model_grader_server_error": "details",
    "model_grader_refusal_error": "details",
    "model_grader_parse_error": "details",
    "model_grader_exceeded_max_tokens_error": "",
    "endpoint_grader_internal_error": "details",
    "endpoint_grader_server_error": "details",
    "endpoint_grader_safety_check_error": "",
}
"""Every family of the contract's run response, and how the field with its message ends, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GraderRun:
    """What one grading gave."""

    type: str
    grade: Grade
    failures: tuple[Failure, ...] = ()
    """Everything that went wrong, in whichever part."""

    def reply(self) -> dict[str, Any]:
        """Return the contract's response; `reward` is null, not 0, if there is no grade."""
        parts = dict(self.grade.parts)
        tokens = {model: _tokens(used) for model, used in self.grade.usage.items()}
        return {
            "reward": self.grade.score,
            "sub_rewards": parts,
            "model_grader_token_usage_per_model": tokens,
            "metadata": {
                "name": self.grade.grader,
                "type": self.type,
                "execution_time": self.grade.duration_s,
                "scores": parts,
                "token_usage": sum(t["total_tokens"] for t in tokens.values()) if tokens else None,
                "sampled_model_name": next(iter(tokens)) if len(tokens) == 1 else None,
                "errors": _errors(self.failures),
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
    # Long source code takes most of a second to check.
    grader = await asyncio.to_thread(build_grader, config, backends=backends)
    task = Task(id=content_id(item), messages=(), row=item)
    trajectory = _rollout(model_sample, task, trace_id)
    where = f"grader {grader.name!r}"
    parts: Mapping[str, Grade | GraderError] = {}
    started = time.monotonic()
    try:
        with boundary(GraderError, where):
            if isinstance(grader, Multi):
                parts = await grader.results(task, trajectory, None)
                grade = grader.combined(parts)
            else:
                grade = await grader.grade(task, trajectory, None)
    except GraderError as error:
        grade = Grade(
            score=None,
            parts=scores(parts),
            failure=_failure(where, error),
            grader=grader.name,
            usage=error.usage,
        )
    grade = replace(grade, duration_s=time.monotonic() - started)
    return GraderRun(
        type=str(config["type"]), grade=grade, failures=tuple(_failures(grade, parts, where))
    )


def _failures(
    grade: Grade, parts: Mapping[str, Grade | GraderError], where: str
) -> Iterator[Failure]:
    """Yield what went wrong in every part, and then whatever went wrong with the whole."""
    families: set[str] = set()
    for part in parts.values():
        failure = _failure(where, part) if isinstance(part, GraderError) else part.failure
        if failure is not None:
            families.add(failure.code)
            yield failure
    if grade.failure is not None and grade.failure.code not in families:
        yield grade.failure


def _failure(where: str, error: GraderError) -> Failure:
    return Failure(kind=FailureKind.GRADER, where=where, message=str(error), code=error.code)


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


def _tokens(used: TokenUsage) -> dict[str, int]:
    return {
        "prompt_tokens": used.prompt_tokens,
        "completion_tokens": used.completion_tokens,
        "total_tokens": used.prompt_tokens + used.completion_tokens,
        "cached_tokens": used.cached_tokens,
    }


def _errors(failures: Collection[Failure]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for family, details in ERROR_FAMILIES.items():
        messages = [failure.message for failure in failures if failure.code == family]
        fields[family] = bool(messages)
        if details:
            fields[f"{family}_{details}"] = "; ".join(messages) or None
    return fields
