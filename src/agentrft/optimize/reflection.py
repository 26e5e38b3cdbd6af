"""What a reflection model is asked about one text of a spec, and what of its answer is accepted.

It sees rollouts of feedback tasks only, and its texts may hold nothing of dev or holdout tasks.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentrft.core.grade import GradedTrajectory
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Task, ToolSpec
from agentrft.measure.diagnosis import Diagnosis, FailureClass
from agentrft.optimize.edits import both, viewing, writing
from agentrft.optimize.leaks import request_of
from agentrft.optimize.problem import Problem, TaskSplits
from agentrft.optimize.variants import Change

SECTION, TOOL = "section ", "tool "
"""How the names of components begin."""
GROWTH = 1.5
"""A new text is at most so many times as long as the first one, or as `LEAST`."""
LEAST = {SECTION: 1200, TOOL: 500}
RECORDS = 4
RECORD = 1500
"""Characters of a record."""
_PLACEHOLDER = re.compile(r"\{\{?\s*[\w.]+\s*\}?\}|<curr_param>|<side_info>")
_FENCED = re.compile(r"```[^\n`]*\n(.*?)```", re.DOTALL)
_WORDS = re.compile(r"[\w.@-]+")
_RUN = 6
"""Words in a row that make a quotation."""
_OF_TOOLS = {
    FailureClass.WRONG_TOOL,
    FailureClass.WRONG_ARGUMENTS,
    FailureClass.UNSAFE_WRITE,
    FailureClass.TOO_MANY_CALLS,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One rollout of a feedback task, as reflection reads it."""

    task: Task
    graded: GradedTrajectory
    diagnosis: Diagnosis | None
    """None if it was solved."""
    contrast: GradedTrajectory | None = None
    """A solved rollout of the same task."""


def components(problem: Problem) -> dict[str, str]:
    """Return the texts of a spec by component: sections, and descriptions of tools it shows."""
    spec = problem.baseline
    sections = {f"{SECTION}{one.name}": one.text for one in spec.sections if one.text}
    views = {tool.name: spec.tools.get(tool.name) for tool in problem.tools}
    described = {
        f"{TOOL}{tool.name}": (view.description if view else "") or tool.description
        for tool in problem.tools
        if not (view := views[tool.name]) or view.exposed
    }
    return (sections or {f"{SECTION}instructions": ""}) | described


def applied(texts: Mapping[str, str]) -> Change:
    """Return the change that sets these components."""
    sections = {n.removeprefix(SECTION): t for n, t in texts.items() if n.startswith(SECTION)}
    tools = {n.removeprefix(TOOL): t for n, t in texts.items() if n.startswith(TOOL)}
    descriptions = {name: {"description": text} for name, text in tools.items()}
    return both(writing(sections), viewing(descriptions))


def concerned(seen: Seen, names: Iterable[str]) -> tuple[str, ...]:
    """Return the components that a failed rollout speaks to: a tool's, or those of all sections."""
    known = tuple(names)
    sections = tuple(name for name in known if name.startswith(SECTION))
    diagnosis = seen.diagnosis
    if not diagnosis or diagnosis.failure_class not in _OF_TOOLS or diagnosis.turn is None:
        return sections
    calls = seen.graded.trajectory.turns[diagnosis.turn].message.tool_calls
    called = tuple(n for call in calls if (n := f"{TOOL}{call.name}") in known)
    return called or sections


def records(name: str, rollouts: Sequence[Seen], names: Iterable[str]) -> list[dict[str, str]]:
    """Return what went wrong for one component, those that speak to it first."""
    known = tuple(names)
    failed = [seen for seen in rollouts if seen.diagnosis]
    ranked = sorted(failed, key=lambda seen: name not in concerned(seen, known))
    return [_record(seen) for seen in ranked[:RECORDS]]


def _record(seen: Seen) -> dict[str, str]:
    wrong = f"{seen.diagnosis.failure_class}: {seen.diagnosis.evidence}" if seen.diagnosis else ""
    said = seen.graded.grade.explanation
    record = {
        "Request": request_of(seen.task.messages)[: RECORD // 3],
        "What the agent did": transcript(seen.graded)[: RECORD // 3],
        "What was wrong": "\n".join(filter(None, [wrong, said]))[: RECORD // 6],
    }
    if seen.contrast:
        record["Solved another time"] = transcript(seen.contrast)[: RECORD // 6]
    return record


def transcript(graded: GradedTrajectory) -> str:
    """Return a rollout in a few lines: calls, what came back, texts."""
    lines: list[str] = []
    for turn in graded.trajectory.turns:
        lines += (f"call {call.name} {call.arguments}" for call in turn.message.tool_calls)
        lines += (f"unreadable call {failure.raw[:80]}" for failure in turn.parse_failures)
        lines += (f"-> {result.content[:160]}" for result in turn.tool_results)
        if turn.message.content:
            lines.append(f"says: {turn.message.content}")
    return "\n".join(lines)


def prompt(
    name: str, text: str, found: Sequence[Mapping[str, str]], tools: Sequence[ToolSpec]
) -> str:
    """Return what the reflection model is asked."""
    shown = "\n\n".join(
        f"Rollout {n}\n" + "\n".join(f"{key}: {value}" for key, value in record.items())
        for n, record in enumerate(found, 1)
    )
    listed = "\n".join(f"- {tool.name}: {tool.description}" for tool in tools)
    return (
        f"An agent works on requests with these tools:\n{listed}\n\n"
        f"{_about(name)} It reads now:\n```\n{text}\n```\n\n"
        f"Rollouts in which the agent failed:\n\n{shown}\n\n"
        "Find what these failures have in common, and write a text that prevents them. "
        f"{_rules(name)} It must fit requests that you have not seen: take over no name, number, "
        "identifier or sentence of these rollouts. Keep what is right, and everything in {braces}. "
        f"At most {limit(name, text)} characters; shorter is better, the agent's model is small.\n"
        "Answer with the whole new text between a line ``` and a line ```, and nothing after it."
    )


def _about(name: str) -> str:
    if name.startswith(TOOL):
        return f"Look at the description of the tool {name.removeprefix(TOOL)}."
    return f"Look at the part {name.removeprefix(SECTION)!r} of its system text."


def _rules(name: str) -> str:
    if name.startswith(TOOL):
        return (
            "Say what the tool does, when to use it, when not to, what each argument must look "
            "like and what comes back, in this order and only where it helps."
        )
    return "Write short plain instructions, in the order in which the agent needs them."


def limit(name: str, first: str) -> int:
    """Return how long a text of this component may be, in characters."""
    least = LEAST[TOOL if name.startswith(TOOL) else SECTION]
    return max(least, int(GROWTH * len(first)))


def written(reply: str) -> str:
    """Return the last fenced block of a reply; empty without one, as the rest is talk."""
    blocks = _FENCED.findall(reply)
    return blocks[-1].strip() if blocks else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Censor:
    """Refuses texts that must not stand in a spec."""

    first: Mapping[str, str]
    """The texts that the search began with."""
    quotations: frozenset[str]
    identifiers: frozenset[str]

    def refusal(self, name: str, text: str) -> str:
        """Return why a text is refused; empty if it is not."""
        first = self.first[name]
        if not text:
            return "no text between marks"
        if len(text) > limit(name, first):
            return f"{len(text)} characters, {limit(name, first)} are allowed"
        if set(_PLACEHOLDER.findall(text)) != set(_PLACEHOLDER.findall(first)):
            return "placeholders were lost or made up"
        if found := self.identifiers & _identifiers(text):
            return f"it holds {min(found)!r} of a task"
        if found := self.quotations & _quotations(text):
            return f"it quotes a dev or holdout task: {min(found)!r}"
        return ""


def censor(first: Mapping[str, str], splits: TaskSplits) -> Censor:
    """Return what refuses identifiers of any task, and sentences of dev and holdout tasks."""
    own = "\n".join(first.values())
    withheld = "\n".join(_texts((*splits.dev, *splits.holdout)))
    free = "\n".join((own, *_texts(splits.feedback)))
    # A grader's words may hold what a row knows, and they are read by the reflection model.
    everyone = (*splits.feedback, *splits.dev, *splits.holdout)
    everything = "\n".join((*_texts(everyone), *map(_hidden, everyone)))
    return Censor(
        first=first,
        # Greetings and phrases that feedback tasks share with the others give nothing away.
        quotations=_quotations(withheld) - _quotations(free),
        identifiers=_identifiers(everything) - _identifiers(own),
    )


def _texts(tasks: Iterable[Task]) -> list[str]:
    # System messages are instructions, and a better text may well repeat them.
    return [m.content for task in tasks for m in task.messages if m.role == "user"]


def _hidden(task: Task) -> str:
    row = {key: value for key, value in task.row.items() if key not in ("messages", "tools")}
    return json.dumps(row, default=str)


def _identifiers(text: str) -> frozenset[str]:
    words = (word.strip(".-_@").lower() for word in _WORDS.findall(text))
    return frozenset(w for w in words if len(w) >= 4 and any(c.isdigit() or c == "@" for c in w))


def _quotations(text: str) -> frozenset[str]:
    found: set[str] = set()
    for line in text.lower().splitlines():
        words = _WORDS.findall(line)
        found.update(" ".join(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1))
    return frozenset(found)


def changed(candidate: Mapping[str, str], first: Mapping[str, str]) -> dict[str, str]:
    """Return the components that differ from the first ones."""
    return {name: text for name, text in candidate.items() if text != first[name]}


def spec_with(spec: AgentSpec, candidate: Mapping[str, str], first: Mapping[str, str]) -> AgentSpec:
    """Return the spec with a candidate's texts; the first candidate gives the spec itself."""
    return applied(changed(candidate, first))(spec)
