"""Fewer tools before the model: those nobody ever needed, or all but the nearest to the request."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentrft.core.spec import AgentSpec, Exposure
from agentrft.measure.diagnosis import FailureClass
from agentrft.optimize.edits import viewing
from agentrft.optimize.evidence import Solution, evidence
from agentrft.optimize.problem import Known
from agentrft.optimize.variants import Change, Knob, Level

SOLUTIONS = 30
"""Solutions below which a tool that none used says nothing: with 30, a tool that one task in ten
needs stays unseen in one search of 24."""
MANY = 6
"""Tools from which a choice of the nearest is worth trying."""


@dataclass(frozen=True, slots=True)
class Pruning:
    """Hides tools from the model; the environment keeps them."""

    async def knobs(self, known: Known) -> Sequence[Knob]:
        """Return one knob, or none if the tools are few and all used."""
        tools = [tool.name for tool in known.problem.tools]
        solutions = evidence(known).solutions
        levels = (*_unused(tools, solutions), *_nearest(tools, solutions))
        knob = Knob(
            name="tools shown",
            levels=levels,
            treats=(FailureClass.UNKNOWN_TOOL, FailureClass.WRONG_TOOL, FailureClass.NO_CALL),
            source="pruning",
        )
        return (knob,) if levels else ()


def _unused(tools: Sequence[str], solutions: Sequence[Solution]) -> tuple[Level, ...]:
    used = {name for solution in solutions for name in solution.tools}
    unused = [name for name in tools if name not in used]
    if len(solutions) < SOLUTIONS or not unused or len(unused) == len(tools):
        return ()
    why = f"no use of {', '.join(unused)} in {len(solutions)} solutions"
    return (
        Level(
            name="used only", change=viewing({name: {"exposed": False} for name in unused}), why=why
        ),
    )


def _nearest(tools: Sequence[str], solutions: Sequence[Solution]) -> tuple[Level, ...]:
    if len(tools) < MANY:
        return ()
    uses = Counter(name for solution in solutions for name in solution.tools)
    always = tuple(name for name in tools if solutions and 2 * uses[name] >= len(solutions))
    most = [n for n in (4, 8) if len(always) < n < len(tools)]
    why = f"{len(tools)} tools" + (f"; {', '.join(always)} always" if always else "")
    return tuple(Level(name=f"{n} nearest", change=_retrieving(n, always), why=why) for n in most)


def _retrieving(most: int, always: tuple[str, ...]) -> Change:
    def change(spec: AgentSpec) -> AgentSpec:
        return replace(spec, exposure=Exposure(mode="retrieved", most=most, always=always))

    return change
