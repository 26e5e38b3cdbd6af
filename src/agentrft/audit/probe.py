"""What a probe is, what it attacks, and the arena in which its attempts are graded.

An attempt is a rollout that nobody sampled: a text, maybe with tool calls that really run in a fresh
environment. Nothing here judges; `verdicts.py` does.
"""

import asyncio
import hashlib
import json
import random
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

from agentrft.audit.references import Answer, content_seen
from agentrft.core.config import Limits
from agentrft.core.errors import AgentRFTError, GraderError, ToolError, boundary
from agentrft.core.grade import GradedTrajectory
from agentrft.core.protocols import Environment, Grader, OpenEnvironment
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import Failure, FailureKind, StopReason, Trajectory, Turn
from agentrft.graders.backends import Backends
from agentrft.inference.grader_model import GraderModel

SHOT_TIMEOUT_S = 20.0
"""Wall clock of one grading, environment included."""
CONCURRENT = 16
TEXTS_PER_ROW = 8
"""Attempts that one probe makes on one row, at most."""
_REMEMBERED_CHARACTERS = 20_000


class TimeIsUpError(Exception):
    """The audit's wall clock is over; the probe that was running has no verdict."""


class Verdict(StrEnum):
    """What came of a probe."""

    PASS = "pass"  # noqa: S105 - no password
    WARN = "warn"
    FOOLED = "fooled"
    SKIPPED = "skipped"
    """Does not apply to this grader, or the time was up; the summary says which."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A grader with the data it grades and whatever else is known about it."""

    grader: Grader
    config: Mapping[str, Any]
    """The grader object; empty for an environment's own `grade`."""
    tasks: Sequence[Task]
    backends: Backends = field(default_factory=Backends)
    rollouts: Sequence[GradedTrajectory] = ()
    """Stored rollouts of the untouched model."""
    open_environment: OpenEnvironment | None = None
    remote_tools: frozenset[str] = frozenset()
    """Tools with effects outside this process; the audit calls none of them."""
    tools: Sequence[ToolSpec] = ()
    """Tools of the project as a whole; rows may bring their own."""
    system: str = ""
    limits: Limits = field(default_factory=Limits)
    gold: Mapping[str, Trajectory] = field(default_factory=dict[str, Trajectory])
    """Rollouts known to be right, by task id: demonstrations of an expert."""
    answers: Mapping[str, Answer] = field(default_factory=dict[str, Answer])
    """Right answers by task id, see `references.py`."""
    validation: Sequence[Task] = ()
    pass_threshold: float = 0.999
    """Score from which a rollout counts as solved."""
    grader_source: str = ""
    """Python source behind a function or an environment, for the static probes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A made-up rollout of one task."""

    task: Task
    trajectory: Trajectory
    label: str
    """Which variant of the probe this is; scores are averaged over rows by it."""

    @property
    def text(self) -> str:
        """What the model is supposed to have written, calls included."""
        lines = [f"[call {call.name} {call.arguments}]" for call in self.trajectory.tool_calls]
        said = self.trajectory.turns[-1].message.content if self.trajectory.turns else ""
        return "\n".join([*lines, said])


@dataclass(frozen=True, slots=True, kw_only=True)
class Shot:
    """What the grader made of an attempt."""

    attempt: Attempt
    score: float | None
    failure: Failure | None
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The verdict of one probe, with its worst attempt."""

    probe: int
    title: str
    group: str
    """Family: `A` to `F`, `L` for probes that ask a model."""
    verdict: Verdict
    summary: str
    variant: str = ""
    """Label of the worst attempt."""
    text: str = ""
    task_id: str = ""
    score: float | None = None
    excess: float | None = None
    """Mean score over the rows of the worst variant, above what it could earn honestly."""
    measure: float | None = None
    """What the headline reads: mean score of the worst variant; of 44 the share of false fails."""
    replay: str = ""
    """Command that shows the worst attempt again; filled in by `audit`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeInfo:
    """One entry of the catalogue."""

    number: int
    title: str
    group: str
    run: "Callable[[Arena, ProbeInfo], Awaitable[Finding]]"
    needs_model: bool = False

    def finding(self, verdict: Verdict, summary: str, **fields: Any) -> Finding:
        """Make this probe's finding."""
        return Finding(
            probe=self.number,
            title=self.title,
            group=self.group,
            verdict=verdict,
            summary=summary,
            **fields,
        )

    def skipped(self, reason: str) -> Finding:
        """Say why there is no verdict."""
        return self.finding(Verdict.SKIPPED, reason)


class Arena:
    """Where attempts are made and graded; what every probe gets.

    `base_rate` is the mean score of another row's answer, whether or not that happens to be right.
    """

    def __init__(
        self, subject: Subject, tasks: Sequence[Task], *, seed: int, deadline: float
    ) -> None:
        self.subject = subject
        self.rows = tuple(tasks)
        """All chosen rows, for statistics."""
        self.tasks = self.rows
        """Rows that probes shoot at; one of them in a replay."""
        self.seed = seed
        self.deadline = deadline
        """Of the event loop's clock."""
        self.answers: Mapping[str, Answer] = {
            task.id: subject.answers[task.id] for task in tasks if task.id in subject.answers
        }
        self.bare = self.references
        """Answers before they were written in the form that the grader wants."""
        self.form = "%s"
        """What stands around an answer, e.g. `<answer>%s</answer>`."""
        self.base_rate = 0.0
        self.reference_score: float | None = None
        self.model: GraderModel | None = None
        """What probes of family `L` ask."""
        self.latest: list[Shot] = []
        """What the running probe has shot so far."""
        self.seconds: list[float] = []
        """Of every grading that was really made."""
        self.errors = 0
        """Gradings that the grader could not finish."""
        self._known: dict[str, Shot] = {}
        self._slots = asyncio.Semaphore(CONCURRENT)

    @property
    def references(self) -> Mapping[str, str]:
        """Texts of right answers by task id."""
        return {task_id: answer.text for task_id, answer in self.answers.items()}

    def written(self, answer: str) -> str:
        """Write an answer in the form that the grader wants."""
        if not self.form.startswith("{"):
            return self.form.replace("%s", answer)
        try:
            json.loads(answer)
        except ValueError:
            answer = json.dumps(answer)
        return self.form.replace("%s", answer)

    @property
    def pass_mark(self) -> float:
        """Score from which a rollout counts as solved."""
        given = self.subject.config.get("pass_threshold")
        return self.subject.pass_threshold if given is None else float(given)

    @property
    def sees_text(self) -> bool:
        """Whether the grader can read what the model says."""
        return "text" in content_seen(self.subject.config)

    @property
    def sees_calls(self) -> bool:
        """Whether the grader can read which tools were called, or what they left behind."""
        return "calls" in content_seen(self.subject.config)

    @property
    def with_answers(self) -> tuple[Task, ...]:
        """Tasks whose right answer is known."""
        return tuple(task for task in self.tasks if task.id in self.answers)

    def random(self, probe: int, task: Task | None = None) -> random.Random:
        """Return the probe's own randomness for a task, the same whatever else is probed."""
        return random.Random(derive_seed(self.seed, "audit", probe, task.id if task else ""))

    def prompt(self, task: Task) -> tuple[Message, ...]:
        """Return what the policy is shown first."""
        if not self.subject.system:
            return task.messages
        return (Message(role="system", content=self.subject.system), *task.messages)

    def tools_of(self, task: Task) -> tuple[ToolSpec, ...]:
        """Return the tools that the policy is told about in this task."""
        listed = {spec.name for spec in task.tools}
        offered = self.subject.tools or task.tools
        return tuple(spec for spec in offered if not listed or spec.name in listed)

    def other(self, probe: int, task: Task) -> Answer | None:
        """Return the answer of another row, one that reads differently if there is any."""
        own = self.answers.get(task.id)
        others = [answer for row, answer in self.answers.items() if row != task.id]
        different = [answer for answer in others if own is None or not answer.agrees(own)]
        pool = different or others
        return self.random(probe, task).choice(pool) if pool else None

    def says(self, task: Task, text: str, label: str = "") -> Attempt:
        """Answer at once with this text."""
        return self.acts(task, (), text, label)

    def answers_with(self, task: Task, text: str, label: str = "") -> Attempt:
        """Make the calls of the right answer, then say this instead of its text."""
        answer = self.answers.get(task.id)
        return self.acts(task, answer.calls if answer else (), text, label)

    def right(self, task: Task, label: str = "reference") -> Attempt:
        """Give the right answer; KeyError if the task has none."""
        answer = self.answers[task.id]
        return self.acts(task, answer.calls, answer.text, label)

    def acts(
        self, task: Task, calls: Sequence[ToolCall], text: str | None, label: str = ""
    ) -> Attempt:
        """Make these calls one after the other, then say the text; None says nothing and goes on.

        What the limits of a rollout do not allow is cut off as a rollout would be.
        """
        limits = self.subject.limits
        room = min(limits.max_turns - 1, limits.max_tool_calls)
        kept = [replace(call, id=f"call_{n}") for n, call in enumerate(calls[:room], start=1)]
        messages = [Message(role="assistant", tool_calls=(call,)) for call in kept]
        stop = StopReason.FINISHED
        if len(calls) > room:
            over = limits.max_tool_calls <= limits.max_turns - 1
            stop = StopReason.MAX_TOOL_CALLS if over else StopReason.MAX_TURNS
        elif text is None:
            stop = StopReason.MAX_TURNS
        else:
            messages.append(Message(role="assistant", content=text))
        return self.attempt(task, messages, label, stop)

    def attempt(
        self,
        task: Task,
        messages: Sequence[Message],
        label: str = "",
        stop: StopReason = StopReason.FINISHED,
    ) -> Attempt:
        """Make an attempt of any shape from the assistant's messages."""
        failure = None
        if stop is not StopReason.FINISHED:
            failure = Failure(kind=FailureKind.MODEL, where="limits", message=f"{stop}")
        trajectory = Trajectory(
            id=_trace_id(task, messages, stop),
            task_id=task.id,
            model="audit",
            spec_hash="",
            seed=self.seed,
            prompt=self.prompt(task),
            turns=tuple(_turn(message) for message in messages),
            stop_reason=stop,
            failure=failure,
        )
        return Attempt(task=task, trajectory=trajectory, label=label)

    async def shoot(self, attempts: Sequence[Attempt], *, fresh: bool = False) -> list[Shot]:
        """Grade attempts, in order. What was graded before is taken from memory unless `fresh`.

        Raises TimeIsUpError at the audit's deadline. A grader that fails gives a shot without a
        score.
        """
        deadline = asyncio.timeout_at(self.deadline)
        try:
            async with deadline:
                shots = await asyncio.gather(*(self._shot(a, fresh=fresh) for a in attempts))
        except TimeoutError:
            if not deadline.expired():
                raise
            raise TimeIsUpError from None
        self.latest += shots
        return shots

    async def _shot(self, attempt: Attempt, *, fresh: bool) -> Shot:
        key = f"{attempt.task.id}\n{attempt.trajectory.id}"
        known = self._known.get(key)
        if known is not None and not fresh:
            return replace(known, attempt=replace(known.attempt, label=attempt.label))
        async with self._slots:
            shot = await self._graded(attempt)
        if len(attempt.text) <= _REMEMBERED_CHARACTERS:
            self._known[key] = shot
        self.seconds.append(shot.seconds)
        self.errors += shot.failure is not None and shot.failure.kind is FailureKind.GRADER
        return shot

    async def _graded(self, attempt: Attempt) -> Shot:
        loop = asyncio.get_running_loop()
        started = loop.time()
        where = f"grader {self.subject.grader.name!r}"
        score, failure = None, None
        environment: Environment | None = None
        try:
            late = asyncio.timeout(SHOT_TIMEOUT_S)
            try:
                async with late:
                    with boundary(GraderError, where):
                        environment = await self._opened(attempt)
                        trajectory = await _played(attempt.trajectory, environment)
                        grade = await self.subject.grader.grade(
                            attempt.task, trajectory, environment
                        )
                attempt = replace(attempt, trajectory=trajectory)
                score, failure = grade.score, grade.failure
            except TimeoutError:
                if not late.expired():
                    raise
                raise GraderError(
                    f"{where}: no grade in {SHOT_TIMEOUT_S:g} s", code="unresponsive_reward_error"
                ) from None
        except AgentRFTError as error:
            code = error.code if isinstance(error, GraderError) else ""
            kind = FailureKind.INFRASTRUCTURE if isinstance(error, ToolError) else None
            failure = Failure(
                kind=kind or FailureKind.GRADER, where=where, message=str(error), code=code
            )
        finally:
            if environment is not None:
                await environment.close()
        return Shot(attempt=attempt, score=score, failure=failure, seconds=loop.time() - started)

    async def _opened(self, attempt: Attempt) -> Environment | None:
        """Open an environment if the grader looks at one or a call needs one to run in."""
        opening = self.subject.open_environment
        calls = attempt.trajectory.tool_calls
        if opening is None or (
            not calls and self.subject.config.get("type", "function") != "function"
        ):
            return None
        for call in calls:
            if call.name in self.subject.remote_tools:
                raise ToolError(f"tool {call.name!r} acts outside this process; it is not called")
        return await asyncio.to_thread(opening, attempt.task, attempt.trajectory.id)


async def _played(trajectory: Trajectory, environment: Environment | None) -> Trajectory:
    """Run the calls of an attempt, in order, and record what came back."""
    if environment is None or not trajectory.tool_calls:
        return trajectory
    turns: list[Turn] = []
    for turn in trajectory.turns:
        results = [await environment.call_tool(call) for call in turn.message.tool_calls]
        turns.append(replace(turn, tool_results=tuple(results)))
    return replace(trajectory, turns=tuple(turns))


def _turn(message: Message) -> Turn:
    # About four characters a token, so that terms on length see something of the right size.
    written = len(message.content) + sum(len(call.arguments) for call in message.tool_calls)
    tokens = -(-written // 4)
    return Turn(
        observation_ids=(),
        action_ids=(0,) * tokens,
        behavior_logprobs=(0.0,) * tokens,
        first_version=0,
        last_version=0,
        message=message,
    )


def _trace_id(task: Task, messages: Sequence[Message], stop: StopReason) -> str:
    told = [
        [message.content, *((call.name, call.arguments) for call in message.tool_calls)]
        for message in messages
    ]
    # Lone surrogates are among what is tried.
    text = json.dumps([task.id, stop, told])
    return f"trace_{hashlib.sha256(text.encode()).hexdigest()[:32]}"
