"""System text without an author: a bank of short sections, and less of what there is.

The texts know no domain. Each is one knob, so that a screen says what each is worth.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from agentrft.core.spec import AgentSpec
from agentrft.measure.diagnosis import FailureClass
from agentrft.optimize.edits import writing
from agentrft.optimize.evidence import failures_by_class
from agentrft.optimize.problem import Known
from agentrft.optimize.variants import Knob, Level

C = FailureClass
LONG = 300
"""Characters of system text from which less of it is tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Template:
    """One section and the failures it speaks to."""

    name: str
    text: str
    treats: tuple[FailureClass, ...]


BANK = (
    Template(
        name="use tools",
        text="Do not answer from memory. Get what you need with a tool, then answer from what it "
        "said.",
        treats=(C.NO_CALL, C.EARLY_STOP, C.MISREAD_OUTPUT),
    ),
    Template(
        name="call format",
        text="When you call a tool, write the call and nothing else, with every argument that the "
        "tool requires and values exactly as you were given them.",
        treats=(C.MALFORMED_CALL, C.WRONG_ARGUMENTS, C.UNKNOWN_TOOL),
    ),
    Template(
        name="plan",
        text="Before you act, settle which steps the request needs. First look up, then decide, "
        "then change something, and only what was asked for.",
        treats=(C.WRONG_PLAN, C.WRONG_TOOL, C.UNSAFE_WRITE),
    ),
    Template(
        name="stop",
        text="You are done when everything that was asked for has been done. Then answer at once "
        "and call no more tools. Never end without an answer.",
        treats=(C.TOO_MANY_CALLS, C.EARLY_STOP),
    ),
    Template(
        name="ask nothing",
        text="Nobody answers questions. Decide with what the request and the tools give you.",
        treats=(C.EARLY_STOP, C.NO_CALL),
    ),
    Template(
        name="answer from results",
        text="Repeat names, numbers and identifiers in your answer exactly as the tools gave them.",
        treats=(C.MISREAD_OUTPUT, C.WRONG_PLAN),
    ),
)
MOST = 3
"""Sections of the bank that are offered: those for most failures."""


@dataclass(frozen=True, slots=True)
class Templates:
    """Adds a section of the bank, or takes system text away."""

    async def knobs(self, known: Known) -> Sequence[Knob]:
        """Return knobs by how many failures they speak to, and one for the text there is."""
        failures = failures_by_class(known)
        meant = [(sum(failures.get(c, 0) for c in one.treats), one) for one in BANK]
        speaking = [one for count, one in sorted(meant, key=lambda pair: -pair[0]) if count]
        offered = [
            Knob(
                name=f"section: {one.name}",
                levels=(Level(name="added", change=writing({one.name: one.text}), why=one.text),),
                treats=one.treats,
                source="templates",
            )
            for one in speaking[:MOST]
        ]
        return (*offered, *_less(known.problem.baseline))


def _less(spec: AgentSpec) -> tuple[Knob, ...]:
    if len(spec.system) < LONG:
        return ()
    why = f"{len(spec.system)} characters of system text; a small model may lose the thread"
    levels = (
        Level(name="first sentences", change=_shortened, why=why),
        Level(name="none", change=_without, why=why),
    )
    return (Knob(name="system text", levels=levels, source="templates"),)


def _shortened(spec: AgentSpec) -> AgentSpec:
    """Keep the first paragraph of each section, its first three sentences at most."""
    sections = (replace(s, text=first_sentences(s.text)) for s in spec.sections)
    return replace(spec, sections=tuple(sections))


def _without(spec: AgentSpec) -> AgentSpec:
    """Keep nothing but what the bank added."""
    bank = {one.name for one in BANK}
    return replace(spec, sections=tuple(s for s in spec.sections if s.name in bank))


def first_sentences(text: str) -> str:
    """Return up to three sentences of a text's first paragraph; lists end a paragraph too."""
    paragraph = re.split(r"\n\s*\n|\n(?=\s*[-*\d])", text.strip(), maxsplit=1)[0]
    lines = paragraph.split("\n")
    if len(lines) > 1 and lines[-1].rstrip().endswith(":"):  # the head of a list that is gone
        lines.pop()
    return " ".join(re.split(r"(?<=[.!?])\s+", "\n".join(lines))[:3])
