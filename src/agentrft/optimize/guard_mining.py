"""Order of calls that solutions keep and failures break, and tools that decide outcomes."""

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

from agentrft.core.spec import AgentSpec, Guards, Precondition
from agentrft.measure.diagnosis import FailureClass, writing
from agentrft.optimize.edits import both, guarding
from agentrft.optimize.evidence import Evidence, Solution, Step, evidence, made_steps
from agentrft.optimize.problem import Known
from agentrft.optimize.variants import Change, Knob, Level

SOLUTIONS = 10
"""Solutions that call a tool, below which no order is learned."""
SHARE = 0.95
"""Of them that keep an order, from which it is one."""


@dataclass(frozen=True, slots=True)
class GuardMining:
    """Holds calls back until what solutions do before them has been done."""

    async def knobs(self, known: Known) -> Sequence[Knob]:
        """Return up to two knobs."""
        seen = evidence(known)
        treats = (FailureClass.UNSAFE_WRITE, FailureClass.WRONG_PLAN, FailureClass.WRONG_TOOL)
        told = writing(known.problem.tools)
        order = Knob(
            name="order of calls", levels=_order(seen, told), treats=treats, source="guards"
        )
        check = Knob(
            name="check before writing",
            levels=_checks(deciding_tools(seen, known) if told is None else told),
            treats=treats,
            source="guards",
            costs=True,
        )
        return [knob for knob in (order, check) if knob.levels]


def preconditions(solutions: Sequence[Solution]) -> list[tuple[Precondition, int, int]]:
    """Return orders that solutions keep, with how many of how many uses of the tool keep them.

    For each tool the strictest one: an earlier call with the same argument, else any earlier call.
    """
    found: list[tuple[Precondition, int, int]] = []
    uses: dict[str, list[tuple[Sequence[Step], Step]]] = {}
    for solution in solutions:
        for place, step in enumerate(solution.steps):
            uses.setdefault(step.tool, []).append((solution.steps[:place], step))
    for tool, places in sorted(uses.items()):
        kept = Counter(pair for before, step in places for pair in _before(before, step))
        rules = sorted(kept.items(), key=lambda one: (one[0][1] == "", -one[1], one[0]))
        for (after, argument), count in rules:
            if len(places) >= SOLUTIONS and count >= SHARE * len(places):
                rule = Precondition(tool=tool, after=(after,), same_argument=argument)
                found.append((rule, count, len(places)))
                break
    return found


def _before(before: Sequence[Step], step: Step) -> set[tuple[str, str]]:
    """Return earlier tools, each alone and with every parameter that had the same value."""
    others = [one for one in before if one.tool != step.tool]
    same = {
        (one.tool, name)
        for one in others
        for name, value in one.arguments.items()
        if name in step.arguments and step.arguments[name] == value
    }
    return {(one.tool, "") for one in others} | same


def _order(seen: Evidence, told: Collection[str] | None) -> tuple[Level, ...]:
    """Return the orders that some failure broke; others would change nothing.

    Where tools say which of them change something, only those are held back.
    """
    broken = [
        (rule, kept, uses, count)
        for rule, kept, uses in preconditions(seen.solutions)
        if (told is None or rule.tool in told)
        and (count := sum(_breaks(made_steps(graded), rule) for _, graded in seen.failed))
    ]
    if not broken:
        return ()
    why = "; ".join(
        f"{rule.tool} after {rule.after[0]}"
        + (f" with the same {rule.same_argument}" if rule.same_argument else "")
        + f" in {kept} of {uses} uses in solutions, broken in {count} failures"
        for rule, kept, uses, count in broken
    )
    change = _requiring(tuple(rule for rule, *_ in broken))
    return (Level(name="as in solutions", change=change, why=why),)


def _breaks(steps: Sequence[Step], rule: Precondition) -> bool:
    wanted = (rule.after[0], rule.same_argument)
    return any(
        step.tool == rule.tool and wanted not in _before(steps[:place], step)
        for place, step in enumerate(steps)
    )


def _requiring(rules: tuple[Precondition, ...]) -> Change:
    def change(spec: AgentSpec) -> AgentSpec:
        kept = tuple(p for p in spec.guards.preconditions if p not in rules)
        guards: Guards = replace(spec.guards, preconditions=(*kept, *rules))
        return replace(spec, guards=guards)

    return change


def deciding_tools(seen: Evidence, known: Known) -> tuple[str, ...]:
    """Return tools that failures call where no success of the same family does, twice at least.

    Such a call is what went wrong, so it is worth a second look before it runs.
    """
    right: dict[str, set[str]] = {}
    for solution in seen.solutions:
        right.setdefault(solution.family, set()).update(solution.tools)
    wrong = Counter(
        name
        for task, graded in seen.failed
        if task.family in right
        for name in {step.tool for step in made_steps(graded)} - right[task.family]
    )
    return tuple(tool.name for tool in known.problem.tools if wrong[tool.name] >= 2)


def _checks(tools: tuple[str, ...]) -> tuple[Level, ...]:
    if not tools:
        return ()
    why = f"{', '.join(tools)} decide outcomes"
    return (
        Level(name="asked once", change=both(guarding(check_first=tools), _one_more_turn), why=why),
        Level(name="written twice", change=both(guarding(confirm=tools), _one_more_turn), why=why),
    )


def _one_more_turn(spec: AgentSpec) -> AgentSpec:
    """The call that is held back takes a turn of its own."""
    limits = spec.limits
    more = replace(limits, max_turns=limits.max_turns + 1, max_tool_calls=limits.max_tool_calls + 1)
    return replace(spec, limits=more)
