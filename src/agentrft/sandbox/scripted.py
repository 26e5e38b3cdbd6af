"""A sandbox that runs nothing: it replays results and records the programs."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from agentrft.core.protocols import Program, ProgramResult


@dataclass
class ScriptedSandbox:
    """Replays `results` in order, the last one for ever."""

    results: Sequence[ProgramResult]
    programs: list[Program] = field(default_factory=list[Program])
    """What was asked for, in order."""

    def __post_init__(self) -> None:
        if not self.results:
            raise ValueError("a scripted sandbox needs at least one result")

    async def run(self, program: Program) -> ProgramResult:
        """Record the program and give the next result."""
        self.programs.append(program)
        return self.results[min(len(self.programs), len(self.results)) - 1]
