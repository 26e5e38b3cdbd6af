"""A fine-tuning job of the API as a project: its files, tools and grader, with their secrets."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from agentrft.core.config import DataFiles, HttpTool, ProjectConfig
from agentrft.core.errors import StoreError
from agentrft.core.job import (
    REDACTED,
    FineTuningJob,
    PreferenceMethod,
    ReinforcementMethod,
    SupervisedMethod,
)
from agentrft.core.protocols import Grader, OpenEnvironment
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.fixed import FixedGrader
from agentrft.jobs.answer_format import AnswerFormat
from agentrft.jobs.hyperparameters import Resolved
from agentrft.jobs.project import Project
from agentrft.rollout.http_tools import http_environment


@dataclass(frozen=True, slots=True, kw_only=True)
class JobFiles:
    """The content of a job's files on disk."""

    training: Path
    validation: Path | None = None


def tuning_project(
    job: FineTuningJob,
    resolved: Resolved,
    files: JobFiles,
    secrets: Mapping[str, str],
    *,
    folder: Path,
    backends: Backends,
) -> Project:
    """Put a job into the form that every method reads. The secrets stay inside tools and grader.

    Raises ConfigError for tools, a grader or an answer format that cannot be built.
    """
    method, limits = job.method, resolved.limits
    open_environment: OpenEnvironment = DeclaredTools
    grader: Grader = FixedGrader({})
    gold_grader: Grader | None = None
    declared: Mapping[str, Any] = {}
    if isinstance(method, ReinforcementMethod):
        if method.tools:
            open_environment = http_environment(
                with_headers(method.tools, secrets), policy=backends.policy
            )
        else:
            # Nobody answers the calls, so they are the last thing to be graded.
            limits = replace(limits, max_turns=1)
        declared = method.grader
        grader = build_grader(restored(method.grader, "grader", secrets), backends=backends)
        if method.gold_grader:
            gold = restored(method.gold_grader, "gold_grader", secrets)
            gold_grader = build_grader(gold, "gold_grader", backends=backends)
        if method.response_format is not None:
            grader = AnswerFormat(grader, method.response_format["schema"])
    training = str(files.training)
    return Project(
        folder=folder,
        config=ProjectConfig(
            name=job.project,
            model=job.base,
            data=DataFiles(
                train=training,
                validation=str(files.validation or ""),
                holdout="",
                demonstrations=training if isinstance(method, SupervisedMethod) else "",
                preferences=training if isinstance(method, PreferenceMethod) else "",
            ),
            limits=limits,
            grader=dict(declared),
            methods=resolved.methods,
        ),
        spec=AgentSpec(limits=limits),
        open_environment=open_environment,
        grader=grader,
        gold_grader=gold_grader,
        tools=(),
        numbered_rows=True,
    )


def with_headers(tools: Sequence[HttpTool], secrets: Mapping[str, str]) -> tuple[HttpTool, ...]:
    """Return the tools with the header values that the job's record does not hold."""
    return tuple(
        replace(tool, headers=restored(tool.headers, f"tools[{number}].headers", secrets))
        for number, tool in enumerate(tools)
    )


def restored(value: Any, path: str, secrets: Mapping[str, str]) -> Any:
    """Return a JSON value with secrets in place of `REDACTED`, found by their dotted path.

    Raises StoreError for a secret that is gone.
    """
    match value:
        case str() if value == REDACTED and ".headers." in path:
            if path not in secrets:
                raise StoreError(f"the secret {path} of this job is gone; create the job again")
            return secrets[path]
        case Mapping():
            entries = cast(Mapping[str, Any], value)
            return {key: restored(part, f"{path}.{key}", secrets) for key, part in entries.items()}
        case list() | tuple():
            parts = cast(Sequence[Any], value)
            return [restored(part, f"{path}[{n}]", secrets) for n, part in enumerate(parts)]
        case _:
            return value


class DeclaredTools:
    """Tools that a row describes and nobody runs; the calls themselves are graded."""

    def __init__(self, task: Task, trace_id: str) -> None:
        del trace_id
        self._task = task

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Tools of the row."""
        return self._task.tools

    async def call_tool(self, call: ToolCall) -> ToolResult:
        """Answer nothing."""
        return ToolResult(call_id=call.id, name=call.name, content="")

    async def close(self) -> None:
        """Hold nothing."""
