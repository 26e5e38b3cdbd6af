"""A sandbox that runs nothing: it replays results and records the programs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrft.core.protocols import Function, FunctionResult, Program, ProgramResult


@dataclass
class ScriptedSandbox:
    """Replays `results` and `values` in order, the last one for ever."""

    results: Sequence[ProgramResult] = (ProgramResult(exit_code=0, stdout=b"", stderr=b""),)
    values: Sequence[FunctionResult] = (FunctionResult(value=0.0),)
    programs: list[Program] = field(default_factory=list[Program])
    """What was asked for, in order."""
    calls: list[tuple[Function, Sequence[Any]]] = field(
        default_factory=list[tuple[Function, Sequence[Any]]]
    )

    def __post_init__(self) -> None:
        if not self.results or not self.values:
            raise ValueError("a scripted sandbox needs at least one result and one value")

    async def run(self, program: Program) -> ProgramResult:
        """Record the program and give the next result."""
        self.programs.append(program)
        return self.results[min(len(self.programs), len(self.results)) - 1]

    async def call(self, function: Function, arguments: Sequence[Any]) -> FunctionResult:
        """Record the call and give the next value."""
        self.calls.append((function, arguments))
        return self.values[min(len(self.calls), len(self.values)) - 1]
