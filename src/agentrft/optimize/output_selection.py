"""How tools' outputs are shown: the fields that solutions went on to use, other forms, less of it."""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from agentrft.measure.diagnosis import FailureClass
from agentrft.optimize.edits import each_rendering, tool_renderings
from agentrft.optimize.evidence import Solution, evidence
from agentrft.optimize.problem import Known
from agentrft.optimize.variants import Knob, Level

OUTPUTS = 10
"""Outputs of a tool in solutions, below which nothing is said about its fields."""
LONG = 1500
"""Characters of an output from which it may be cut."""
LONG_ID = 12
"""Characters of an identifier from which a short one may stand for it."""
_ID = re.compile(rf"(?<![\w-])(?=[\w-]*\d)[\w-]{{{LONG_ID},}}(?![\w-])")


@dataclass(frozen=True, slots=True)
class OutputSelection:
    """Shows less of what tools say, or says it otherwise."""

    async def knobs(self, known: Known) -> Sequence[Knob]:
        """Return up to three knobs; none for short plain text."""
        seen = evidence(known)
        outputs = [
            result.content
            for _, graded in known.rollouts
            for result in graded.trajectory.tool_results
            if not result.is_error and not result.guard
        ]
        outputs += [step.output for one in seen.solutions for step in one.steps]
        treats = (FailureClass.MISREAD_OUTPUT, FailureClass.TRUNCATED)
        knobs = (
            Knob(name="outputs", levels=_forms(seen.solutions), treats=treats, source="output"),
            Knob(name="output length", levels=_lengths(outputs), treats=treats, source="output"),
            Knob(
                name="long identifiers",
                levels=_short_ids(outputs),
                treats=(*treats, FailureClass.WRONG_ARGUMENTS),
                source="output",
            ),
        )
        return [knob for knob in knobs if knob.levels]


def _forms(solutions: Sequence[Solution]) -> tuple[Level, ...]:
    """Return levels for tools whose outputs are JSON objects, or lists of them."""
    objects = {tool: len(found) for tool, found in _objects(solutions).items()}
    if not objects:
        return ()
    used = used_fields(solutions)
    why = "; ".join(f"{tool}: {', '.join(fields)}" for tool, fields in used.items())
    levels = [Level(name="name: value lines", change=each_rendering(form="key_value"))]
    if used:
        for name, form in (("used fields", "fields"), ("used fields as lines", "key_value")):
            change = tool_renderings({t: {"form": form, "fields": f} for t, f in used.items()})
            levels.insert(0, Level(name=name, change=change, why=why))
    if any(rows > 1 for rows in _rows(solutions)):
        levels.append(Level(name="table", change=each_rendering(form="table")))
    return tuple(levels)


def used_fields(solutions: Sequence[Solution]) -> dict[str, tuple[str, ...]]:
    """Return the fields of each tool's outputs whose values some solution used later.

    Used is a value that a later argument or text of the agent repeats. A tool is left out if all of
    its fields are used, none is, or too few outputs are known.
    """
    fields: dict[str, tuple[str, ...]] = {}
    for tool, found in _objects(solutions).items():
        names = list(dict.fromkeys(name for output, _ in found for name in output))
        uses = Counter(
            name for output, later in found for name, value in output.items() if _in(value, later)
        )
        kept = tuple(name for name in names if uses[name])
        if len(found) >= OUTPUTS and kept and len(kept) < len(names):
            fields[tool] = kept
    return fields


def _objects(
    solutions: Sequence[Solution],
) -> dict[str, list[tuple[Mapping[str, Any], str]]]:
    """Return each tool's objects, with everything that the agent wrote afterwards."""
    found: dict[str, list[tuple[Mapping[str, Any], str]]] = {}
    for solution in solutions:
        for place, step in enumerate(solution.steps):
            written = [json.dumps(list(s.arguments.values())) for s in solution.steps[place + 1 :]]
            later = "\n".join((*written, *solution.said[-1:]))
            found.setdefault(step.tool, []).extend((o, later) for o in _parsed(step.output))
    return {tool: objects for tool, objects in found.items() if objects}


def _parsed(text: str) -> list[Mapping[str, Any]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return []
    rows = cast(list[Any], value) if isinstance(value, list) else [value]
    return [cast(dict[str, Any], row) for row in rows if isinstance(row, dict)]


def _rows(solutions: Sequence[Solution]) -> Iterator[int]:
    return (len(_parsed(step.output)) for one in solutions for step in one.steps)


def _in(value: object, text: str) -> bool:
    """Whether a text repeats a value, or one inside it; truth values stand for no text."""
    match value:
        case dict():
            return any(_in(inner, text) for inner in cast(dict[str, object], value).values())
        case list():
            return any(_in(inner, text) for inner in cast(list[object], value))
        case bool() | None:
            return False
        case _:
            written = str(value)
            return (
                bool(written) and re.search(rf"(?<!\w){re.escape(written)}(?!\w)", text) is not None
            )


def _lengths(outputs: Sequence[str]) -> tuple[Level, ...]:
    long = sum(len(output) > LONG for output in outputs)
    if 20 * long < max(1, len(outputs)):
        return ()
    why = f"{long} of {len(outputs)} outputs are longer than {LONG} characters"
    return tuple(
        Level(name=f"{keep} {LONG}", change=each_rendering(max_characters=LONG, keep=keep), why=why)
        for keep in ("head", "both")
    )


def _short_ids(outputs: Sequence[str]) -> tuple[Level, ...]:
    holding = sum(_ID.search(output) is not None for output in outputs)
    if not holding or 10 * holding < len(outputs):
        return ()
    why = f"identifiers of {LONG_ID} and more characters in {holding} of {len(outputs)} outputs"
    return (Level(name="short", change=each_rendering(shorten_ids=True), why=why),)
