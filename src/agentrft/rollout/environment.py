"""The world of one rollout as users write it: a class whose `@tool` methods the model may call.

A fresh instance per rollout. Its `__init__`, sync tools, sync `grade` and `teardown` all run on
one thread of its own; async tools run on the event loop, concurrently.
"""

import inspect
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, Self, final

from agentrft.core.call_thread import CallThread
from agentrft.core.errors import ToolError, UserError, boundary
from agentrft.core.task import Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult, Trajectory
from agentrft.rollout.tools import (
    ArgumentsError,
    PythonTool,
    ToolMethod,
    ToolRefusal,
    describe_tool,
    error_result,
    output_text,
    unknown_tool,
)

_RESERVED = (
    "tool_specs",
    "call_tool",
    "close",
    "corrupted",
    "grade",
    "run_function",
    "run_grade",
    "teardown",
)


class _ClassBody(dict[str, Any]):
    """Refuses a second tool of the same name, which Python would silently let replace the first."""

    def __init__(self, owner: str) -> None:
        super().__init__()
        self.owner = owner

    def __setitem__(self, key: str, value: Any) -> None:
        if isinstance(self.get(key), ToolMethod):
            raise UserError(f"{self.owner} defines tool {key!r} twice; rename one of them")
        if isinstance(value, ToolMethod) and key in _RESERVED:
            raise UserError(
                f"{self.owner}: a tool method cannot be called {key!r}, a name Environment uses; "
                f"call the method otherwise and write @tool(name={key!r})"
            )
        super().__setitem__(key, value)


class _EnvironmentType(type):
    @classmethod
    def __prepare__(  # pyright: ignore[reportIncompatibleMethodOverride]
        cls, name: str, bases: tuple[type, ...], /, **keywords: Any
    ) -> dict[str, Any]:
        return _ClassBody(name)


class Environment(metaclass=_EnvironmentType):
    """Base class of users' environments; implements `core.protocols.Environment`.

    >>> from agentrft.rollout.tools import tool
    >>> class Till(Environment):
    ...     def __init__(self, task):
    ...         self.cents = task["cents"]
    ...     @tool
    ...     def balance(self) -> int:
    ...         '''Count the money.'''
    ...         return self.cents
    ...     def grade(self, trajectory):
    ...         return float(str(self.cents) in trajectory.output_text)
    """

    _thread: CallThread | None

    def __new__(  # pyright: ignore[reportInconsistentConstructor]
        cls, *_args: object, **_keywords: object
    ) -> Self:
        """Tie the instance to the thread it is made on; subclasses need not call our `__init__`."""
        instance = super().__new__(cls)
        instance._thread = CallThread.current()
        if instance._thread is not None:
            weakref.finalize(instance, instance._thread.stop)
        return instance

    def __init__(self, task: Task) -> None:
        """Prepare the world of one rollout of this task."""

    def grade(self, trajectory: Trajectory) -> object:
        """Override it, sync or async; return a float, a Grade or a mapping of `score` and parts."""
        raise UserError(
            f"{type(self).__name__} has no grade; write `def grade(self, trajectory) -> float` "
            "or set a grader in the project"
        )

    @classmethod
    def corrupted(cls, task: Task, other: Task) -> Task | None:
        """Override it: the task with what is expected of another, so that no honest rollout scores.

        Monitors of a training roll such canary tasks out; None says that this pair makes none.
        """
        return None

    def teardown(self) -> None:
        """Override it to free what the instance holds; runs on the thread of `__init__`."""

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Tools of this class, in the order they are written."""
        return tool_specs(type(self))

    async def call_tool(self, call: ToolCall) -> ToolResult:
        """Run one call; raises ToolError if the tool raises anything but ToolRefusal."""
        tools = tools_of(type(self))
        if call.name not in tools:
            return unknown_tool(call, tools)
        tool = tools[call.name]
        try:
            arguments = tool.read_arguments(call.arguments)
        except ArgumentsError as error:
            return error_result(call, str(error))
        with boundary(ToolError, f"tool {call.name!r}"):
            try:
                value = await self._run(partial(tool.function, self, **arguments))
            except ToolRefusal as refusal:
                return error_result(call, str(refusal))
            return ToolResult(call_id=call.id, name=call.name, content=output_text(value))

    async def run_grade(self, trajectory: Trajectory) -> object:
        """Call `grade` where it belongs: on this environment's thread, or on the loop if async."""
        return await self._run(partial(self.grade, trajectory))

    async def run_function(self, function: Callable[..., object], *arguments: object) -> object:
        """Call a function with this environment as its last argument, where `grade` would run."""
        return await self._run(partial(function, *arguments, self))

    @final
    async def close(self) -> None:
        """Tear down and end the thread; behind a tool that hangs, as soon as that returns."""
        thread = self._thread
        try:
            if thread is not None and thread.stuck:
                thread.submit(self.teardown)
            else:
                await self._run(self.teardown)
        finally:
            if thread is not None:
                thread.stop()

    async def _run(self, call: Callable[[], object]) -> object:
        # Made by hand (a user's own test) there is no thread: calls run where they are made.
        function = call.func if isinstance(call, partial) else call
        if self._thread is None or inspect.iscoroutinefunction(function):
            value = call()
        else:
            value = await self._thread.call(call)
        return await value if inspect.isawaitable(value) else value


@cache
def tools_of(environment: type[Environment]) -> Mapping[str, PythonTool]:
    """Describe the tools of a class by name. Raises UserError for a wrong definition."""
    methods: dict[str, object] = {}
    for base in reversed(environment.__mro__):
        methods |= vars(base)
    tools: dict[str, PythonTool] = {}
    for method in methods.values():
        if not isinstance(method, ToolMethod):
            continue
        if method.name in tools:
            raise UserError(
                f"{environment.__name__} has two tools named {method.name!r}; rename one of them"
            )
        tools[method.name] = describe_tool(method, environment.__name__)
    return tools


def tool_specs(environment: type[Environment]) -> tuple[ToolSpec, ...]:
    """Return the tools of a class as the model is told about them. Raises UserError."""
    return tuple(tool.spec for tool in tools_of(environment).values())


@dataclass(frozen=True, slots=True)
class PythonEnvironments:
    """Opens a fresh instance of a class per rollout, on a thread of its own."""

    environment: type[Environment]

    @property
    def tool_names(self) -> tuple[str, ...]:
        """Names of every tool a rollout may be offered."""
        return tuple(tools_of(self.environment))

    def __call__(self, task: Task, trace_id: str) -> Environment:
        """Make the instance; blocks while its `__init__` runs and raises what it raises."""
        if thread := CallThread.current():
            # The thread that opens it becomes its own: half as many of them per rollout.
            environment = self.environment(task)
            thread.kept = True
            return environment
        thread = CallThread(f"environment {trace_id}")
        try:
            return thread.submit(lambda: self.environment(task)).result()
        except BaseException:
            thread.stop()
            raise


def python_environment(environment: type[Environment]) -> PythonEnvironments:
    """Return the opener of a class. Raises UserError at once if its tools are wrongly defined."""
    tools_of(environment)
    return PythonEnvironments(environment)
