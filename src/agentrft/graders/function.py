"""A grader that is a function in a project's own Python: `@grader`, given the whole trajectory.

Only projects on this machine have such functions; a request never brings code into our own process.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Protocol, runtime_checkable

from agentrft.core.call_thread import in_thread
from agentrft.core.errors import ConfigError, UserError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.environment import read_grade
from agentrft.graders.fields import name_field, only_keys, text_field


@runtime_checkable
class RunsFunctions(Protocol):
    """An environment that calls a function where its own code runs."""

    async def run_function(self, function: Callable[..., object], *arguments: object) -> object:
        """Call the function with the user's environment as its last argument."""
        ...


@dataclass(frozen=True, slots=True)
class GraderFunction:
    """A function marked as a grader; calling it by hand calls the function."""

    function: Callable[..., object]
    takes_environment: bool

    def __call__(self, *arguments: object) -> object:
        """Call the function as it was written."""
        return self.function(*arguments)


def grader(function: Callable[..., object]) -> GraderFunction:
    """Mark `(task, trajectory)` or `(task, trajectory, environment)`, sync or async, as a grader.

    It returns what an environment's `grade` may return. Raises UserError for another signature.

    >>> @grader
    ... def short(task, trajectory):
    ...     return float(trajectory.sampled_tokens < 200)
    """
    name = getattr(function, "__name__", repr(function))
    parameters = inspect.signature(function).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    if len(positional) != len(parameters) or len(positional) not in (2, 3):
        raise UserError(
            f"grader {name!r} takes ({', '.join(p.name for p in parameters)}); "
            "it must take (task, trajectory) or (task, trajectory, environment)"
        )
    return GraderFunction(function, takes_environment=len(positional) == 3)


class FindFunction(Protocol):
    """Look a grader function up in a project."""

    def __call__(self, reference: str, where: str) -> GraderFunction:
        """`reference` is `file.py:name`. Raises ConfigError, beginning with `where`."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionGrader:
    """Calls a function of the project; GraderError if that raises, hangs or says nonsense."""

    name: str
    code: GraderFunction
    timeout_s: float = 120.0

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Grade a finished rollout; a function that takes the environment gets it still open."""
        return await read_grade(
            self._answer(task, trajectory, environment),
            trajectory,
            name=self.name,
            where=f"grader {self.name!r} on task {task.id!r}",
            timeout_s=self.timeout_s,
        )

    async def _answer(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> object:
        call = partial(self.code.function, task, trajectory)
        if self.code.takes_environment:
            if environment is None:
                raise UserError(
                    f"grader {self.name!r} looks at the environment, and here is none; "
                    "write it as (task, trajectory) to grade what is stored"
                )
            if isinstance(environment, RunsFunctions):
                return await environment.run_function(self.code.function, task, trajectory)
            call = partial(call, environment)
        if inspect.iscoroutinefunction(self.code.function):
            value = call()
        else:
            value = await in_thread(call, name=f"grader {trajectory.id}")
        return await value if inspect.isawaitable(value) else value


def build_function_grader(
    config: Mapping[str, object], path: str, name: str, find: FindFunction | None
) -> FunctionGrader:
    """Build a grader from its object. Raises ConfigError naming the path."""
    if find is None:
        raise ConfigError(
            f"{path}.type 'function' names Python code of a project folder, and none is open here; "
            'send a "python" grader, which runs in the sandbox, or host yours behind an "endpoint"'
        )
    only_keys(config, ("type", "name", "function"), path)
    reference = text_field(config, "function", path)
    return FunctionGrader(
        name=name_field(config, path, name or reference.rpartition(":")[2]),
        code=find(reference, f"{path}.function"),
    )
