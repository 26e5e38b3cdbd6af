"""Names that the agent's own model would give its tools, asked of it again and again.

A name that a model comes up with by itself is one that it also writes by itself. After PA-Tool
(arXiv 2510.07248); the harness maps the names back, so nothing else ever sees them.
"""

import asyncio
import keyword
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrft.core.task import Message, ToolSpec
from agentrft.measure.diagnosis import FailureClass
from agentrft.optimize.edits import viewing
from agentrft.optimize.evidence import parameters_of
from agentrft.optimize.problem import Known
from agentrft.optimize.trials import BudgetSpentError, Question
from agentrft.optimize.variants import Knob, Level

SAMPLES = 24
TEMPERATURE = 0.7
"""Small models write at 1.0 what comes to nobody twice."""
MOST = 32
"""Questions of one search, at most: tools first, then awkward parameters."""
FIRST = 2
"""Tools that are asked about first; a model without a clear name for any of them is asked no more."""
_NAME = re.compile(r"[a-z][a-z0-9]*(?:_[a-z0-9]+)*")
_EXAMPLES = (
    ("Multiplies two matrices.", "multiply_matrices"),
    ("Turns a lamp in a room on or off.", "switch_lamp"),
    ("Returns tomorrow's weather in a city.", "get_forecast"),
)
_SAYS_NOTHING = {
    "name", "function", "tool", "the", "a", "an", "this", "def", "return", "call", "method",
    "parameter", "argument", "value", "description", "answer", "i", "it", "none", "null", "example",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class SelfNaming:
    """Renames tools, and parameters with awkward names."""

    async def knobs(self, known: Known) -> Sequence[Knob]:
        """Return one knob, or none if the model has no other clear opinion on any name."""
        tools = known.problem.tools
        try:
            favourites = await _favourites(known)
            if not any(favourites.values()):
                known.told("own names: the model's answers agree on none")
                return ()
            taken = {tool.name for tool in tools}
            taken |= {view.name for view in known.problem.baseline.tools.values()}
            names = unique(favourites, taken)
            parameters = await _parameter_names(known, MOST - len(tools))
        except BudgetSpentError as spent:
            known.told(f"no names asked for: {spent}")
            return ()
        levels: list[Level] = []
        if names:
            levels.append(_level("tools", names, {}))
        if parameters:
            levels.append(
                _level("tools and parameters" if names else "parameters", names, parameters)
            )
        treats = (FailureClass.UNKNOWN_TOOL, FailureClass.WRONG_TOOL, FailureClass.WRONG_ARGUMENTS)
        knob = Knob(name="own names", levels=tuple(levels), treats=treats, source="self-naming")
        return (knob,) if levels else ()


async def _favourites(known: Known) -> dict[str, str]:
    """Return canonical names of tools to clearly favoured ones, or to nothing."""
    asked = [tool for tool in known.problem.tools if tool.description][:MOST]
    found: dict[str, str] = {}
    for some in (asked[:FIRST], asked[FIRST:]):
        answers = await asyncio.gather(
            *(known.trials.ask(_question("tool", _told(tool))) for tool in some)
        )
        found |= {tool.name: favourite(given) for tool, given in zip(some, answers, strict=True)}
        if not any(found.values()):
            break
    return found


def favourite(answers: Sequence[str]) -> str:
    """Return the name most answers give, if it is a clear one; else nothing.

    Clear is a quarter of all answers, and half as often again as the next name.
    """
    counts = Counter(name for answer in answers if (name := clean_name(answer)))
    ranked = counts.most_common(2)
    if not ranked:
        return ""
    name, count = ranked[0]
    runner_up = ranked[1][1] if len(ranked) > 1 else 0
    return name if 4 * count >= len(answers) and count >= 1.5 * runner_up else ""


def clean_name(answer: str) -> str:
    """Return the name that an answer begins with, in snake case; nothing if it is not one."""
    first = answer.strip().split("\n", 1)[0].strip().strip("`'\"*. ").removesuffix("()")
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", first).lower().replace("-", "_")
    if not _NAME.fullmatch(name) or not 3 <= len(name) <= 40 or keyword.iskeyword(name):
        return ""
    return "" if name in _SAYS_NOTHING | {example for _, example in _EXAMPLES} else name


def unique(wanted: Mapping[str, str], canonical: Collection[str]) -> dict[str, str]:
    """Keep new names that no other tool or parameter has or wants, so that the map has an inverse."""
    counts = Counter(wanted.values())
    return {
        name: new
        for name, new in wanted.items()
        if new and new != name and counts[new] == 1 and new not in canonical
    }


def awkward(name: str) -> bool:
    """Whether a parameter's name is hard to guess: abbreviated, numbered or not in snake case."""
    words = set(name.split("_")) - {"by", "key"}
    return not _NAME.fullmatch(name) or any(
        len(word) < 2 or not re.search(r"[aeiou]", word) for word in words
    )


async def _parameter_names(known: Known, most: int) -> dict[str, dict[str, str]]:
    """Return, by tool, canonical parameters to favoured names."""
    asked = [
        (tool, name, str(schema.get("description", "")))
        for tool in known.problem.tools
        for name, schema in parameters_of(tool).items()
        if awkward(name) and schema.get("description")
    ][: max(0, most)]
    answers = await asyncio.gather(
        *(
            known.trials.ask(_question("parameter", f"{told} (of: {tool.description})"))
            for tool, _, told in asked
        )
    )
    wanted: dict[str, dict[str, str]] = {}
    for (tool, name, _), given in zip(asked, answers, strict=True):
        wanted.setdefault(tool.name, {})[name] = favourite(given)
    of_tool = {tool.name: set(parameters_of(tool)) for tool in known.problem.tools}
    renamed = {tool: unique(names, of_tool[tool]) for tool, names in wanted.items()}
    return {tool: names for tool, names in renamed.items() if names}


def _told(tool: ToolSpec) -> str:
    """Return a description that does not give the name away."""
    told = re.sub(rf"\b{re.escape(tool.name)}\b", "it", tool.description)
    takes = ", ".join(parameters_of(tool))
    return f"{told} Takes: {takes}." if takes else told


def _question(kind: str, told: str) -> Question:
    lines = [f"Each line describes a {kind}, and the next gives its name in snake_case."]
    for example, name in (*_EXAMPLES, (told, "")):
        lines += [f"Description: {example}", f"Name: {name}".rstrip()]
    return Question(
        messages=(Message(role="user", content="\n".join(lines)),),
        samples=SAMPLES,
        temperature=TEMPERATURE,
        max_tokens=16,
    )


def _level(
    name: str, tools: Mapping[str, str], parameters: Mapping[str, Mapping[str, str]]
) -> Level:
    views: dict[str, dict[str, Any]] = {tool: {"name": new} for tool, new in tools.items()}
    for tool, names in parameters.items():
        views.setdefault(tool, {})["parameters"] = dict(names)
    renamed = [f"{tool} -> {new}" for tool, new in tools.items()]
    renamed += [
        f"{t}.{old} -> {new}" for t, names in parameters.items() for old, new in names.items()
    ]
    return Level(name=name, change=viewing(views), why=", ".join(renamed))
