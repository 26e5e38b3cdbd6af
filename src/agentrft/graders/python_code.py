"""`grade(sample, item)` that somebody wrote, run where it can do no harm."""

import symtable
import sys
import warnings
from dataclasses import dataclass

from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment, Function, FunctionFault, FunctionResult, Sandbox
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.template import sample_of

MAX_SOURCE_BYTES = 256 << 10

_FAMILIES = {
    FunctionFault.RAISED: "python_grader_runtime_error",
    FunctionFault.TIMEOUT: "unresponsive_reward_error",
    FunctionFault.RESOURCES: "python_grader_runtime_error",
    FunctionFault.RESULT: "python_grader_runtime_error",
    FunctionFault.SANDBOX: "python_grader_server_error",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class PythonGrader:
    """Calls `grade(sample, item)` in a sandbox; whatever gives no number is never a zero."""

    name: str
    function: Function
    sandbox: Sandbox

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Call. Raises GraderError for an exception, a limit that was hit, or no finite number."""
        result = await self.sandbox.call(self.function, (sample_of(trajectory), task.row))
        return Grade(score=self._score(result), grader=self.name)

    def _score(self, result: FunctionResult) -> float:
        if result.fault is not None:
            detail = result.detail or result.fault.value
            raise GraderError(f"grader {self.name!r}: {detail}", code=_FAMILIES[result.fault])
        value = result.value
        # The comparison is false for NaN too, and bears integers that no float can hold.
        if isinstance(value, int | float) and abs(value) <= sys.float_info.max:
            return float(value)
        raise GraderError(
            f"grader {self.name!r}: grade returned {repr(value)[:200]}; return a finite number",
            code="python_grader_runtime_error",
        )


def check_source(source: str, path: str) -> None:
    """Refuse what cannot be a grader. Raises ConfigError with the line; runs nothing."""
    size = len(source.encode(errors="replace"))
    if size >= MAX_SOURCE_BYTES:
        raise ConfigError(f"{path} has {size} bytes; it must have fewer than {MAX_SOURCE_BYTES}")
    try:
        with warnings.catch_warnings(action="ignore"):  # of its style, on our standard error
            names = symtable.symtable(source, "grader", "exec")
    except SyntaxError as error:
        raise ConfigError(f"{path} line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError):
        raise ConfigError(f"{path} holds a NUL or is nested too deeply to be read") from None
    if "grade" not in {symbol.get_name() for symbol in names.get_symbols() if _is_bound(symbol)}:
        raise ConfigError(f"{path} defines no `grade`; write `def grade(sample, item):`")


def _is_bound(symbol: symtable.Symbol) -> bool:
    return symbol.is_assigned() or symbol.is_imported()
