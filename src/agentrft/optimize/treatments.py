"""Failure class to what is tried against it: one table, at the end of this file.

A treatment is offered if its classes failed in the baseline, those of most failures first. What a
level needs to know it reads from solved rollouts and demonstrations, never from dev or holdout.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from agentrft.core.trajectory import FinishReason, StopReason, Trajectory
from agentrft.measure.diagnosis import FailureClass
from agentrft.optimize.descriptions import argument_notes, when_not_to_use, when_to_use
from agentrft.optimize.edits import (
    both,
    decoding,
    each_rendering,
    guarding,
    limiting,
    scaling,
    viewing,
)
from agentrft.optimize.evidence import (
    Evidence,
    evidence,
    failures_by_class,
    made_steps,
    parameters_of,
)
from agentrft.optimize.problem import Known, Problem
from agentrft.optimize.variants import Knob, Level

Levels = Callable[[Problem, Evidence], Iterator[Level]]


@dataclass(frozen=True, slots=True)
class Treatments:
    """Offers what `TREATMENTS` has against the failures that were seen."""

    async def knobs(self, known: Known) -> Sequence[Knob]:
        """Return knobs by how many failures they are meant for; of equals, as the table has them."""
        problem, seen = known.problem, evidence(known)
        failures = failures_by_class(known)
        meant = [(sum(failures.get(c, 0) for c in one.treats), one) for one in TREATMENTS]
        knobs = [
            one.knob(problem, seen, count)
            for count, one in sorted(meant, key=lambda pair: -pair[0])
            if count
        ]
        return [knob for knob in knobs if knob.levels]


@dataclass(frozen=True, slots=True)
class Treatment:
    """One row of the table."""

    name: str
    treats: tuple[FailureClass, ...]
    levels: Levels
    costs: bool = False

    def knob(self, problem: Problem, seen: Evidence, failures: int) -> Knob:
        """Return the knob for this problem; without levels if there is nothing to change."""
        meant = f"{failures} failed rollouts are of its kind"
        levels = (
            Level(name=one.name, change=one.change, why=f"{meant}; {one.why}" if one.why else meant)
            for one in self.levels(problem, seen)
            if one.change(problem.baseline) != problem.baseline
        )
        return Knob(name=self.name, levels=tuple(levels), treats=self.treats, costs=self.costs)


def _grammar(problem: Problem, seen: Evidence) -> Iterator[Level]:
    if problem.endpoint or not problem.tools:
        return
    calling = sum(bool(one.steps) for one in seen.solutions)
    if calling >= 0.9 * len(seen.solutions):
        why = f"{calling} of {len(seen.solutions)} solutions call a tool"
        yield Level(name="call first", change=decoding(grammar="call_first"), why=why)
    yield Level(name="well-formed calls", change=decoding(grammar="calls"))


def _temperature(problem: Problem, seen: Evidence) -> Iterator[Level]:
    for value in (0.0, 0.3):
        if value < problem.baseline.decoding.temperature:
            yield Level(name=f"{value:g}", change=decoding(temperature=value))


def _repair(problem: Problem, seen: Evidence) -> Iterator[Level]:
    change = guarding(nearest_names=True, coerce=True)
    yield Level(name="nearest names, fitting types", change=change)


def _hints(problem: Problem, seen: Evidence) -> Iterator[Level]:
    yield Level(
        name="expected form",
        change=each_rendering(error_hints=True),
    )


def _schemas(problem: Problem, seen: Evidence) -> Iterator[Level]:
    names = [tool.name for tool in problem.tools]
    nested = [
        tool.name
        for tool in problem.tools
        if any(shape.get("type") == "object" for shape in parameters_of(tool).values())
    ]
    if nested:
        yield Level(name="flat", change=viewing({name: {"schema": "flat"} for name in nested}))
    yield Level(name="strict", change=viewing({name: {"schema": "strict"} for name in names}))


def _notes(problem: Problem, seen: Evidence) -> Iterator[Level]:
    if notes := argument_notes(problem, seen.solutions):
        views = {tool: {"argument_notes": of_tool} for tool, of_tool in notes.items()}
        yield Level(name="as in solutions", change=viewing(views))


def _descriptions(problem: Problem, seen: Evidence) -> Iterator[Level]:
    for name, texts in (
        ("when", when_to_use(problem, seen.solutions)),
        ("when and when not", when_not_to_use(problem, seen.solutions)),
    ):
        if texts:
            views = {tool: {"description": text} for tool, text in texts.items()}
            why = f"from {len(seen.solutions)} solutions"
            yield Level(name=name, change=viewing(views), why=why)


def _duplicates(problem: Problem, seen: Evidence) -> Iterator[Level]:
    yield Level(name="not run again", change=guarding(block_duplicates=True))


def _remaining(problem: Problem, seen: Evidence) -> Iterator[Level]:
    yield Level(name="shown", change=limiting(show_remaining=True))


def _last_turn(problem: Problem, seen: Evidence) -> Iterator[Level]:
    yield Level(name="answers", change=limiting(final_answer=True))
    change = limiting(final_answer=True, argument_errors=3)
    yield Level(name="answers, also after 3 errors in a row", change=change)


def _more_turns(problem: Problem, seen: Evidence) -> Iterator[Level]:
    """More calls help only those that were still getting somewhere when they were stopped."""
    stopped = [
        [(call.name, call.arguments) for call in graded.trajectory.tool_calls]
        for _, graded in seen.failed
        if graded.trajectory.stop_reason in (StopReason.MAX_TURNS, StopReason.MAX_TOOL_CALLS)
    ]
    productive = sum(0 < len(calls) == len(set(calls)) for calls in stopped)
    if stopped and 2 * productive >= len(stopped):
        why = f"{productive} of {len(stopped)} stopped ones had repeated no call"
        # More turns need more of everything that is counted over turns.
        wider = ("max_turns", "max_tool_calls", "max_tokens", "max_context_tokens")
        for name, factor in (("half as many again", 1.5), ("twice as many", 2.0)):
            change = scaling(**dict.fromkeys(wider, factor))
            yield Level(name=name, change=change, why=why)


def _fewer_turns(problem: Problem, seen: Evidence) -> Iterator[Level]:
    lengths = [len(graded.trajectory.turns) for _, graded in seen.solved]
    if len(lengths) >= 10 and max(lengths) + 1 < problem.baseline.limits.max_turns:
        why = f"no more than {max(lengths)} turns in {len(lengths)} solved rollouts"
        change = limiting(max_turns=max(lengths) + 1, final_answer=True)
        yield Level(name=str(max(lengths) + 1), change=change, why=why)


def _length(problem: Problem, seen: Evidence) -> Iterator[Level]:
    """Longer turns help those that were at work when they were cut, not those that rambled."""
    ends = [graded for _, graded in seen.failed if _cut(graded.trajectory)]
    working = [graded for graded in ends if made_steps(graded)]
    if working and 4 * len(working) >= len(ends):
        full = sum(g.trajectory.stop_reason is StopReason.CONTEXT_FULL for g in working)
        why = f"{len(working)} of {len(ends)} cut rollouts had called a tool; {full} filled the context"
        room = scaling(max_context_tokens=2)
        tokens = scaling(max_tokens=2, max_turn_tokens=2, max_context_tokens=1.5)
        yield Level(name="twice", change=both(tokens, room) if full else tokens, why=why)


def _cut(trajectory: Trajectory) -> bool:
    if trajectory.stop_reason in (StopReason.CONTEXT_FULL, StopReason.MAX_TOKENS):
        return True
    return any(turn.finish_reason is FinishReason.LENGTH for turn in trajectory.turns)


C = FailureClass
TREATMENTS = (
    Treatment("call grammar", (C.MALFORMED_CALL, C.UNKNOWN_TOOL, C.NO_CALL, C.TRUNCATED), _grammar),
    Treatment("call repair", (C.UNKNOWN_TOOL, C.WRONG_ARGUMENTS), _repair),
    Treatment("when to use tools", (C.WRONG_TOOL, C.NO_CALL, C.EARLY_STOP), _descriptions),
    Treatment("argument notes", (C.WRONG_ARGUMENTS,), _notes),
    Treatment("error hints", (C.WRONG_ARGUMENTS, C.MALFORMED_CALL), _hints),
    Treatment("schemas", (C.WRONG_ARGUMENTS,), _schemas),
    Treatment("repeated calls", (C.TOO_MANY_CALLS,), _duplicates),
    Treatment("remaining calls", (C.TOO_MANY_CALLS, C.EARLY_STOP), _remaining),
    Treatment("last turn", (C.TOO_MANY_CALLS,), _last_turn),
    Treatment("turns", (C.TOO_MANY_CALLS,), _fewer_turns),
    Treatment("more turns", (C.TOO_MANY_CALLS, C.TRUNCATED), _more_turns, costs=True),
    Treatment("length", (C.TRUNCATED, C.MALFORMED_CALL), _length, costs=True),
    Treatment(
        "temperature",
        tuple(c for c in C if c not in (C.INFRASTRUCTURE, C.TOO_MANY_CALLS)),
        _temperature,
    ),
)
"""Name, failure classes, levels."""
