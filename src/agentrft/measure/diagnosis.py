"""Why a rollout failed: the class of its first decisive error, by rules on the record alone.

An error that the model made good later decides nothing. The rules know no tool by name; what a
task needs is learned from rollouts that solved it, or tasks of its family.
"""

import json
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, cast

from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.task import Task, ToolCall, ToolSpec
from agentrft.core.trajectory import StopReason, ToolResult, Trajectory, Turn
from agentrft.measure.search_summary import MixEntry
from agentrft.measure.statistics import rate

ALL = ""
"""The key of `Successes` under which all families stand together."""
LOOP = 3
"""Times that the same call with the same arguments is made, from which it is a loop."""

_ARGUMENTS = re.compile(
    r"argument|parameter|expected|missing|required|invalid|not valid|must be|must have|schema|type"
    r"|no such|not found|unknown|does not exist|doesn't exist|malformed|format",
    re.IGNORECASE,
)
_ERROR = re.compile(r'\s*(?:error\b|\{\s*"error")', re.IGNORECASE)
_NO_TOOL = re.compile(r"no (?:such )?tool|unknown tool", re.IGNORECASE)
_CALL_MARKS = re.compile(r'<tool_call|<function|"arguments"\s*:|"tool_calls?"\s*:', re.IGNORECASE)
_READS = re.compile(
    r"(?:get|list|find|search|read|look|fetch|query|show|count|view|check|describe|browse|open)"
    r"(?![a-z])|(?:is|has)_"
)
_REFERENCE = re.compile(r"reference|answer|expect|target|gold|solution|label|truth", re.IGNORECASE)
_NUMBER = re.compile(r"(?<![\w.])-?\d[\d,]*(?:\.\d+)?(?![\w]|\.\d)")
_SMALL = 100
"""Whole numbers below this are counted or made up all the time; nobody has to have shown them."""


class FailureClass(StrEnum):
    """What went wrong first, and decided the outcome."""

    MALFORMED_CALL = "malformed call"
    UNKNOWN_TOOL = "unknown tool"
    NO_CALL = "no call"
    """Answered without any call, although every success called a tool."""
    WRONG_TOOL = "wrong tool"
    WRONG_ARGUMENTS = "wrong arguments"
    MISREAD_OUTPUT = "misread output"
    EARLY_STOP = "early stop"
    TOO_MANY_CALLS = "too many calls"
    UNSAFE_WRITE = "unsafe write"
    WRONG_PLAN = "wrong plan"
    TRUNCATED = "truncated"
    """A limit on tokens or context cut it."""
    INFRASTRUCTURE = "infrastructure"
    """Also a grader that failed; no fault of the model."""


MECHANICAL = frozenset(
    {
        FailureClass.MALFORMED_CALL,
        FailureClass.UNKNOWN_TOOL,
        FailureClass.NO_CALL,
        FailureClass.WRONG_ARGUMENTS,
        FailureClass.TOO_MANY_CALLS,
        FailureClass.UNSAFE_WRITE,
        FailureClass.TRUNCATED,
    }
)
"""Classes that structure can treat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One failed rollout."""

    failure_class: FailureClass
    turn: int | None
    """Where it happened; None if it is the rollout as a whole."""
    evidence: str
    """One line: what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Successes:
    """What the solved rollouts of a sample have in common, by task family.

    The key "" holds all families together; it is missing if nothing was solved.
    """

    tools: Mapping[str, frozenset[str]]
    """Family to tools that some success called."""
    needed: Mapping[str, frozenset[str]]
    """Family to tools that every success called and that answered without an error."""
    calling: frozenset[str] = frozenset()
    """Families, "" among them, in which every success called some tool."""
    after: Mapping[str, frozenset[str]] = field(default_factory=dict[str, frozenset[str]])
    """Tool to those that had answered in an earlier turn whenever it answered in a success."""
    free: frozenset[tuple[str, str]] = frozenset()
    """Tool and parameter where successes mostly write values that nothing had shown."""


def successes(solved: Sequence[tuple[Task, GradedTrajectory]]) -> Successes:
    """Learn from solved rollouts what tasks of each family need."""
    called: dict[str, list[frozenset[str]]] = {}
    worked: dict[str, list[frozenset[str]]] = {}
    before: dict[str, list[frozenset[str]]] = {}
    unseen: Counter[tuple[str, str]] = Counter()
    written: Counter[tuple[str, str]] = Counter()
    for task, graded in solved:
        trajectory = graded.trajectory
        names = frozenset(call.name for call in trajectory.tool_calls)
        answered = frozenset(r.name for r in trajectory.tool_results if not _is_error(r))
        for family in {ALL, task.family}:
            called.setdefault(family, []).append(names)
            worked.setdefault(family, []).append(names & answered)
        for step in _steps(trajectory):
            if step.result and _worked(step.result):
                before.setdefault(step.call.name, []).append(step.answered)
                written.update((step.call.name, name) for name in arguments_of(step.call))
                unseen.update({(step.call.name, name) for name, _ in step.unseen(task, ())})
    return Successes(
        tools={family: frozenset().union(*sets) for family, sets in called.items()},
        needed={family: frozenset.intersection(*sets) for family, sets in worked.items()},
        calling=frozenset(family for family, sets in called.items() if all(sets)),
        after={tool: frozenset.intersection(*sets) - {tool} for tool, sets in before.items()},
        free=frozenset(place for place, n in unseen.items() if 2 * n >= written[place]),
    )


def writing(tools: Sequence[ToolSpec]) -> tuple[str, ...] | None:
    """Return the tools that change something; None where no tool says that it only reads."""
    if not any(tool.read_only for tool in tools):
        return None
    return tuple(tool.name for tool in tools if not tool.read_only)


def diagnose(
    task: Task, graded: GradedTrajectory, known: Successes, tools: Sequence[ToolSpec]
) -> Diagnosis | None:
    """Return the first decisive error of a rollout that did not solve its task.

    `tools` are canonical. If none of them is read-only, those count as changing something that
    successes call only after another one and whose names do not begin like a read. Whether a
    rollout is solved is the caller's to say; None is for one whose record shows no model turn.
    """
    trajectory = graded.trajectory
    if graded.outcome is Outcome.INFRASTRUCTURE_FAULT:
        failure = trajectory.failure or graded.grade.failure
        told = f"{failure.where}: {failure.message}" if failure else "no score"
        return _found(FailureClass.INFRASTRUCTURE, None, told)
    if not trajectory.turns:
        return None
    offered = tools or task.tools
    case = _Case(
        task=task, trajectory=trajectory, known=known, tools=offered, writes=writing(offered)
    )
    return next(case.errors(), None) or case.ending()


def diagnoses(
    rollouts: Sequence[tuple[Task, GradedTrajectory]],
    tools: Sequence[ToolSpec],
    *,
    pass_threshold: float,
) -> list[Diagnosis | None]:
    """Diagnose a sample by what its own successes have in common; None for each of those."""
    solved = [_solved(graded, pass_threshold) for _, graded in rollouts]
    known = successes([one for one, done in zip(rollouts, solved, strict=True) if done])
    return [
        None if done else diagnose(task, graded, known, tools)
        for (task, graded), done in zip(rollouts, solved, strict=True)
    ]


def failure_mix(
    rollouts: Sequence[tuple[Task, GradedTrajectory]],
    tools: Sequence[ToolSpec],
    *,
    pass_threshold: float,
) -> tuple[MixEntry, ...]:
    """Return the failure classes of a sample of rollouts, the most frequent first."""
    seen = diagnoses(rollouts, tools, pass_threshold=pass_threshold)
    found: dict[FailureClass, list[tuple[GradedTrajectory, Diagnosis]]] = {}
    of_task: dict[str, list[FailureClass | None]] = {}
    for (task, graded), diagnosis in zip(rollouts, seen, strict=True):
        failure_class = diagnosis.failure_class if diagnosis else None
        of_task.setdefault(task.id, []).append(failure_class)
        if diagnosis:
            found.setdefault(diagnosis.failure_class, []).append((graded, diagnosis))
    entries = [
        MixEntry(
            failure_class=failure_class.value,
            rollouts=len(cases),
            share=rate({t: [one is failure_class for one in c] for t, c in of_task.items()}),
            example=cases[0][0].trajectory.id,
            evidence=cases[0][1].evidence,
        )
        for failure_class, cases in found.items()
    ]
    return tuple(sorted(entries, key=lambda entry: (-entry.rollouts, entry.failure_class)))


def _solved(graded: GradedTrajectory, threshold: float) -> bool:
    score = graded.grade.score
    return (
        graded.outcome is not Outcome.INFRASTRUCTURE_FAULT
        and score is not None
        and score >= threshold
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    """One readable call where it was made."""

    turn: int
    call: ToolCall
    result: ToolResult | None
    answered: frozenset[str]
    """Tools that had answered without an error in earlier turns."""
    seen: str
    """Everything that stood before the model, in lower case."""

    def unseen(self, task: Task, tools: Sequence[ToolSpec]) -> list[tuple[str, str]]:
        """Return parameters, with their values, that look like data and that nobody had shown."""
        found = [
            (name, text)
            for name, value in arguments_of(self.call).items()
            for text in _data(value)
            if text.lower() not in self.seen and not _number_stands_in(text, self.seen)
        ]
        if found:  # rare enough that the tools are only then worth reading
            told = "".join(f"{t.description} {t.parameters}" for t in (*tools, *task.tools)).lower()
            found = [(name, text) for name, text in found if text.lower() not in told]
        return found


def _steps(trajectory: Trajectory) -> Iterator[_Step]:
    answered: set[str] = set()
    seen = "\n".join(message.content for message in trajectory.prompt).lower()
    for number, turn in enumerate(trajectory.turns):
        results = {result.call_id: result for result in turn.tool_results}
        before = frozenset(answered)
        for call in turn.message.tool_calls:
            result = results.get(call.id)
            yield _Step(turn=number, call=call, result=result, answered=before, seen=seen)
            if result and _worked(result):
                answered.add(call.name)
        for result in turn.tool_results:
            # Shortened identifiers stand in what was shown, whole ones in what the tool gave.
            seen += f"\n{result.content}\n{result.shown or ''}".lower()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """One failed rollout under examination."""

    task: Task
    trajectory: Trajectory
    known: Successes
    tools: Sequence[ToolSpec]
    writes: Collection[str] | None
    """None if nobody said."""

    @property
    def _family(self) -> str | None:
        """Where to look up what successes have in common; None if nothing was solved."""
        family = self.task.family if self.task.family in self.known.tools else ALL
        return family if family in self.known.tools else None

    def errors(self) -> Iterator[Diagnosis]:
        """Return errors that were not made good, in the order of the rollout."""
        steps = list(_steps(self.trajectory))
        worked = {s.call.name: s.turn for s in steps if s.result and _worked(s.result)}
        """Tool to the last turn in which it answered."""
        last = max(worked.values(), default=-1)
        made: dict[tuple[str, str], int] = {}
        for number, turn in enumerate(self.trajectory.turns):
            if turn.parse_failures and last <= number:
                failure = turn.parse_failures[0]
                told = f"{failure.reason}: {failure.raw}"
                yield _found(FailureClass.MALFORMED_CALL, number, told)
            for step in (step for step in steps if step.turn == number):
                made_good = worked.get(step.call.name, -1) > number
                yield from self._wrong_call(step, made_good=made_good, last=last)
                key = (step.call.name, _canonical(step.call))
                made[key] = made.get(key, 0) + 1
                if made[key] == LOOP:
                    told = f"the same call {LOOP} times: {_written(step.call)}"
                    yield _found(FailureClass.TOO_MANY_CALLS, number, told)

    def _wrong_call(self, step: _Step, *, made_good: bool, last: int) -> Iterator[Diagnosis]:
        """Judge one call; `made_good` says that its tool answered in a later turn."""
        call, result, turn = step.call, step.result, step.turn
        unknown = call.name not in {tool.name for tool in self.task.tools or self.tools}
        if unknown or (result and result.is_error and _NO_TOOL.search(result.content)):
            if last <= turn:
                told = f"no tool {call.name!r}: {_written(call)}"
                yield _found(FailureClass.UNKNOWN_TOOL, turn, told)
            return
        if result and result.guard == "preconditions" and not made_good:
            yield _found(FailureClass.UNSAFE_WRITE, turn, f"held back: {result.content}")
            return
        if result and not result.guard and _is_error(result):
            if _ARGUMENTS.search(result.content) and not made_good:
                told = f"{_written(call)} answered: {result.content}"
                yield _found(FailureClass.WRONG_ARGUMENTS, turn, told)
            return
        if result and result.guard and result.is_error and not made_good:
            told = f"{result.guard} refused {_written(call)}"
            yield _found(_refused(result.guard), turn, told)
            return
        if missing := self._unread(step):
            told = f"{_written(call)} before {missing}"
            yield _found(FailureClass.UNSAFE_WRITE, turn, told)
        unseen = [
            (n, v)
            for n, v in step.unseen(self.task, self.tools)
            if (call.name, n) not in self.known.free
        ]
        if unseen and not made_good:
            name, value = unseen[0]
            told = f"{call.name}: {name} = {value}, which nothing had shown"
            yield _found(FailureClass.WRONG_ARGUMENTS, turn, told)
        if self._never_in_success(step):
            told = f"{_written(call)}; no success of family {self.task.family!r} called {call.name}"
            yield _found(FailureClass.WRONG_TOOL, turn, told)

    def _is_write(self, name: str) -> bool:
        if self.writes is not None:
            return name in self.writes
        return bool(self.known.after.get(name)) and not _READS.match(name)

    def _unread(self, step: _Step) -> str:
        """Return what should have been read before this call; empty if nothing."""
        name = step.call.name
        if not self._is_write(name) or step.result is None or not _worked(step.result):
            return ""
        if name in self.known.after:
            return ", ".join(sorted(self.known.after[name] - step.answered))
        reads = {tool.name for tool in self.tools} - set(self.writes or ())
        return "" if not reads or step.answered & reads else "anything was read"

    def _never_in_success(self, step: _Step) -> bool:
        """Whether no success of the family called this tool, and calling it was not just idle."""
        usual = self.known.tools.get(self.task.family)
        if usual is None or step.call.name in usual:
            return False
        return self._is_write(step.call.name) or bool(self._not_done())

    def _not_done(self) -> frozenset[str]:
        """Return tools that every success used and that did not answer here."""
        if (family := self._family) is None:
            return frozenset()
        done = {result.name for result in self.trajectory.tool_results if _worked(result)}
        return self.known.needed[family] - done

    def ending(self) -> Diagnosis:
        """Judge a rollout whose single calls were all in order by how it ended."""
        trajectory = self.trajectory
        last = len(trajectory.turns) - 1
        match trajectory.stop_reason:
            case StopReason.MAX_TOKENS | StopReason.CONTEXT_FULL | StopReason.DEADLINE:
                told = trajectory.failure.message if trajectory.failure else "cut by a limit"
                told += f"; it was writing: {trajectory.turns[last].message.content}"
                return _found(FailureClass.TRUNCATED, last, told)
            case StopReason.MAX_TURNS | StopReason.MAX_TOOL_CALLS:
                calls = len(trajectory.tool_calls)
                told = f"no answer after {calls} calls in {last + 1} turns"
                return _found(FailureClass.TOO_MANY_CALLS, last, told)
            case _:
                return self._answered(trajectory.turns[last], last)

    def _answered(self, turn: Turn, last: int) -> Diagnosis:
        """Judge a rollout that came to an answer."""
        answer = self.trajectory.output_text
        if _looks_like_call(answer, self.tools):
            return _found(FailureClass.MALFORMED_CALL, last, f"a call as text: {answer}")
        if not self.trajectory.tool_calls and self.tools and self._calls_needed():
            return _found(FailureClass.NO_CALL, last, f"answered without a call: {answer}")
        if not answer.strip():
            return _found(FailureClass.EARLY_STOP, last, "an empty answer")
        if missing := self._not_done():
            told = f"answered without {', '.join(sorted(missing))}, which every success called"
            return _found(FailureClass.EARLY_STOP, last, told)
        if told := self._misread(answer):
            return _found(FailureClass.MISREAD_OUTPUT, last, told)
        return _found(FailureClass.WRONG_PLAN, last, f"all calls in order; answered: {answer}")

    def _calls_needed(self) -> bool:
        """Whether every success called something; with no success at all tools are there for use."""
        family = self._family
        return family is None or family in self.known.calling

    def _misread(self, answer: str) -> str:
        """Return how the answer differs from what tools had said; empty if it does not."""
        results = [result for result in self.trajectory.tool_results if _worked(result)]
        if not results:
            return ""
        said = "\n".join(result.content for result in results).lower()
        asked = "\n".join(message.content for message in self.trajectory.prompt).lower()
        low = answer.lower()
        for value in _references(self.task.row):
            text = value.lower()
            if _stands_in(text, said) and not _stands_in(text, asked) and not _stands_in(text, low):
                return f"a tool said {value}, the answer does not: {answer}"
        for number in _NUMBER.findall(answer):
            if len(number) > 2 and not _number_stands_in(number, f"{said}\n{asked}"):
                return f"the answer says {number}, which nothing had shown: {answer}"
        return ""


def _found(failure_class: FailureClass, turn: int | None, told: str) -> Diagnosis:
    line = " ".join(told.split())
    return Diagnosis(
        failure_class=failure_class,
        turn=turn,
        evidence=line if len(line) <= 200 else f"{line[:199]}…",
    )


def _refused(guard: str) -> FailureClass:
    return (
        FailureClass.TOO_MANY_CALLS if guard == "block_duplicates" else FailureClass.WRONG_ARGUMENTS
    )


def _is_error(result: ToolResult) -> bool:
    """Whether a tool complained; many say so in their text only."""
    return result.is_error or _ERROR.match(result.content) is not None


def _worked(result: ToolResult) -> bool:
    return not result.guard and not _is_error(result)


def _written(call: ToolCall) -> str:
    return f"{call.name} {call.arguments}"


def arguments_of(call: ToolCall) -> Mapping[str, Any]:
    """Return a call's arguments; none if they are no JSON object."""
    try:
        given = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], given) if isinstance(given, dict) else {}


def _canonical(call: ToolCall) -> str:
    return json.dumps(arguments_of(call), sort_keys=True) or call.arguments


def _leaves(value: object) -> Iterator[object]:
    match value:
        case dict():
            for inner in cast(dict[str, object], value).values():
                yield from _leaves(inner)
        case list() | tuple():
            for inner in cast(Iterable[object], value):
                yield from _leaves(inner)
        case _:
            yield value


def _data(value: object) -> Iterator[str]:
    """Return the leaves of an argument that can only come from somewhere: identifiers, figures."""
    for leaf in _leaves(value):
        match leaf:
            case bool() | None:
                pass
            case int() | float():
                if abs(leaf) >= _SMALL or leaf != int(leaf):
                    yield f"{leaf:g}" if abs(leaf) < 1e6 else repr(leaf)
            case str() if re.search(r"\d|@", leaf) and " " not in leaf.strip() and len(leaf) > 2:
                yield leaf.strip().lstrip("#")
            case _:
                pass


def _references(row: Mapping[str, Any]) -> Iterator[str]:
    """Return figures and identifiers of a row's keys that hold what is right."""
    for key, value in row.items():
        if _REFERENCE.search(key):
            for leaf in _leaves(value):
                text = "" if isinstance(leaf, bool) else str(leaf)
                if 1 < len(text) <= 40 and any(character.isdigit() for character in text):
                    yield text


def _stands_in(text: str, where: str) -> bool:
    if _number_stands_in(text, where):
        return True
    return re.search(rf"(?<!\w){re.escape(text)}(?!\w)", where) is not None


def _number_stands_in(text: str, where: str) -> bool:
    """Whether a figure stands in a text, however it is written."""
    try:
        figure = float(text.replace(",", ""))
    except ValueError:
        return False
    return any(
        float(found.replace(",", "").rstrip(".")) in (figure, -figure)
        for found in _NUMBER.findall(where)
    )


def _looks_like_call(text: str, tools: Sequence[ToolSpec]) -> bool:
    if not text:
        return False
    if _CALL_MARKS.search(text):
        return True
    return any(
        re.search(rf'\b{re.escape(tool.name)}\b["\s]*[({{]', text) is not None
        for tool in tools
        if tool.name in text
    )
