"""What baseline rollouts and demonstrations show, in the form that proposers read."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrft.core.grade import GradedTrajectory
from agentrft.core.task import Demonstration, Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult, Turn
from agentrft.measure.diagnosis import FailureClass, arguments_of, failure_mix
from agentrft.optimize.leaks import request_of
from agentrft.optimize.problem import Known
from agentrft.optimize.trials import passed

OWN_FAILURES = tuple(c for c in FailureClass if c is not FailureClass.INFRASTRUCTURE)
"""The classes that are the agent's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A call that a tool answered."""

    tool: str
    arguments: Mapping[str, Any]
    output: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Solution:
    """A conversation that does what was asked: a solved rollout, or a demonstration."""

    family: str
    request: str
    steps: tuple[Step, ...]
    said: tuple[str, ...]
    """Texts of the assistant."""

    @property
    def tools(self) -> frozenset[str]:
        """Tools that were called."""
        return frozenset(step.tool for step in self.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """The baseline's rollouts of feedback tasks by outcome; infrastructure faults are left out."""

    solved: tuple[tuple[Task, GradedTrajectory], ...]
    failed: tuple[tuple[Task, GradedTrajectory], ...]
    solutions: tuple[Solution, ...]
    """One per solved rollout, then one per demonstration of the user."""


def evidence(known: Known) -> Evidence:
    """Sort what is known."""
    threshold = known.problem.pass_threshold
    judged = [(task, graded, passed(graded, threshold)) for task, graded in known.rollouts]
    solved = tuple((task, graded) for task, graded, verdict in judged if verdict)
    own = (rollout_solution(task, graded) for task, graded in solved)
    shown = (demonstrated(one) for one in known.problem.demonstrations)
    return Evidence(
        solved=solved,
        failed=tuple((task, graded) for task, graded, verdict in judged if verdict is False),
        solutions=(*own, *shown),
    )


def failures_by_class(known: Known) -> dict[FailureClass, int]:
    """Return how many of the baseline's rollouts of feedback tasks failed in which way."""
    problem = known.problem
    mix = failure_mix(known.rollouts, problem.tools, pass_threshold=problem.pass_threshold)
    return {FailureClass(entry.failure_class): entry.rollouts for entry in mix}


def rollout_solution(task: Task, graded: GradedTrajectory) -> Solution:
    """Read a solved rollout; calls that a tool or a guard refused are left out."""
    messages = graded.trajectory.messages
    return Solution(
        family=task.family,
        request=request_of(messages),
        steps=made_steps(graded),
        said=_said(messages),
    )


def made_steps(graded: GradedTrajectory) -> tuple[Step, ...]:
    """Return the calls of a rollout that tools answered."""
    return tuple(
        Step(tool=call.name, arguments=arguments_of(call), output=result.content)
        for turn in graded.trajectory.turns
        for call, result in answered(turn)
    )


def answered(turn: Turn) -> Iterator[tuple[ToolCall, ToolResult]]:
    """Pair a turn's calls with what their tools answered; refused ones are left out."""
    results = {result.call_id: result for result in turn.tool_results}
    for call in turn.message.tool_calls:
        result = results.get(call.id)
        if result and not result.guard and not result.is_error:
            yield call, result


def demonstrated(demonstration: Demonstration) -> Solution:
    """Read a demonstration."""
    return Solution(
        family=demonstration.family,
        request=request_of(demonstration.messages),
        steps=tuple(_demonstrated_steps(demonstration.messages)),
        said=_said(demonstration.messages),
    )


def parameters_of(tool: ToolSpec) -> Mapping[str, Mapping[str, Any]]:
    """Return a tool's parameters with the schemas of their values."""
    return tool.parameters.get("properties", {})


def _demonstrated_steps(messages: Sequence[Message]) -> Iterator[Step]:
    calls: dict[str, ToolCall] = {}
    for message in messages:
        calls.update((call.id, call) for call in message.tool_calls)
        # Ids may repeat between turns; the last call of an id is the one that is answered.
        if message.role == "tool" and (call := calls.get(message.tool_call_id or "")):
            yield Step(tool=call.name, arguments=arguments_of(call), output=message.content)


def _said(messages: Sequence[Message]) -> tuple[str, ...]:
    return tuple(m.content for m in messages if m.role == "assistant" and m.content)
