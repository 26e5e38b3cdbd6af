"""Rollouts as they are written, and trials that answer with them."""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Demonstration, Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import (
    FinishReason,
    ParseFailure,
    StopReason,
    ToolResult,
    Trajectory,
    Turn,
)
from agentrft.optimize.problem import Known, Problem, Proposer, TaskSplits
from agentrft.optimize.trials import BudgetSpentError, Question, Spent, TrialRequest
from agentrft.optimize.variants import Knob, Level

Made = tuple[str, Mapping[str, Any], str]
"""Tool, arguments and output; an output that begins with `!` is an error."""


def tool(name: str, told: str = "", *, read_only: bool = False, **properties: Any) -> ToolSpec:
    shapes = {
        n: shape if isinstance(shape, dict) else {"type": shape} for n, shape in properties.items()
    }
    return ToolSpec(
        name=name,
        description=told,
        parameters={"type": "object", "properties": shapes},
        read_only=read_only,
    )


GET = tool("get_order", "Look up an order.", order_id="string")
CANCEL = tool("cancel_order", "Cancel an order.", order_id="string")
REFUND = tool("refund", "Pay back.", order_id="string", amount="number")
HAND_OVER = tool("hand_over", "Give it to a colleague.", reason="string")
TOOLS = (GET, CANCEL, REFUND, HAND_OVER)


def task(number: int, request: str = "", family: str = "cancel", split: str = "feedback") -> Task:
    return Task(
        id=f"{split}-{number}",
        messages=(Message(role="user", content=request or f"Please cancel W{number:05}."),),
        family=family,
    )


def tasks(count: int, split: str = "feedback", start: int = 0) -> tuple[Task, ...]:
    return tuple(task(start + n, split=split) for n in range(count))


def rollout(
    of: Task,
    *steps: Made | str,
    answer: str = "Done.",
    score: float | None = 1.0,
    stop: StopReason = StopReason.FINISHED,
    finish: FinishReason = FinishReason.STOP,
    spec: AgentSpec | None = None,
    explanation: str = "",
) -> GradedTrajectory:
    """One call per turn; a text among the steps is a call that nobody could read."""
    turns = [_turn(number, step) for number, step in enumerate(steps)]
    if stop is StopReason.FINISHED:
        turns.append(_said(Message(role="assistant", content=answer), finish=finish))
    trajectory = Trajectory(
        id=f"trace_{of.id}",
        task_id=of.id,
        model="planted",
        spec_hash=spec.hash if spec else "",
        seed=0,
        prompt=of.messages,
        turns=tuple(turns),
        stop_reason=stop,
    )
    return GradedTrajectory(
        trajectory=trajectory, grade=Grade(score=score, explanation=explanation)
    )


def _turn(number: int, step: Made | str) -> Turn:
    if isinstance(step, str):
        failure = ParseFailure(raw=step, reason="no JSON")
        return _said(Message(role="assistant"), parse_failures=(failure,))
    name, arguments, output = step
    call = ToolCall(id=f"call_{number}", name=name, arguments=json.dumps(arguments))
    result = ToolResult(
        call_id=call.id, name=name, content=output.lstrip("!"), is_error=output.startswith("!")
    )
    return _said(Message(role="assistant", tool_calls=(call,)), tool_results=(result,))


def _said(message: Message, *, finish: FinishReason = FinishReason.STOP, **parts: Any) -> Turn:
    return Turn(
        observation_ids=(1,),
        action_ids=(2,),
        behavior_logprobs=(0.0,),
        first_version=0,
        last_version=0,
        message=message,
        finish_reason=finish,
        **parts,
    )


def cancelled(of: Task, **rest: Any) -> GradedTrajectory:
    """A rollout that looks an order up and cancels it."""
    order = {"order_id": of.messages[-1].content.split()[-1].rstrip(".")}
    return rollout(
        of, ("get_order", order, "status=pending"), ("cancel_order", order, "ok"), **rest
    )


def shown(number: int, family: str = "cancel", request: str = "Cancel it.") -> Demonstration:
    call = ToolCall(id="c", name="cancel_order", arguments='{"order_id": "W1"}')
    return Demonstration(
        id=f"shown-{number}",
        family=family,
        messages=(
            Message(role="user", content=request),
            Message(role="assistant", tool_calls=(call,)),
            Message(role="tool", content="ok", tool_call_id="c"),
            Message(role="assistant", content="Done."),
        ),
    )


def nothing(request: TrialRequest) -> GradedTrajectory:
    return rollout(request.task, score=0.0, answer="No.", spec=request.spec)


def silent(question: Question) -> Sequence[str]:
    return [""] * question.samples


@dataclass
class FakeTrials:
    """Answers every request by a rule, keeps what was rolled out, and counts it."""

    rule: Callable[[TrialRequest], GradedTrajectory] = nothing
    says: Callable[[Question], Sequence[str]] = silent
    budget: int = 100_000
    kept: dict[tuple[str, str, str, int], GradedTrajectory] = field(default_factory=dict[Any, Any])
    requests: list[TrialRequest] = field(default_factory=list[TrialRequest])
    hashes: dict[int, tuple[AgentSpec, str]] = field(default_factory=dict[int, Any])
    """By identity; holds the specs, so that none takes another's place."""

    async def roll_out(self, requests: Sequence[TrialRequest]) -> list[GradedTrajectory]:
        await asyncio.sleep(0)
        if len(self.kept) + self.missing(requests) > self.budget:
            raise BudgetSpentError("the budget is spent")
        self.requests += requests
        for request in requests:
            self.kept.setdefault(self.key(request), self.rule(request))
        return [self.kept[self.key(request)] for request in requests]

    def missing(self, requests: Sequence[TrialRequest]) -> int:
        return len({self.key(request) for request in requests} - self.kept.keys())

    def key(self, request: TrialRequest) -> tuple[str, str, str, int]:
        spec = request.spec
        if id(spec) not in self.hashes:
            self.hashes[id(spec)] = (spec, spec.hash)
        return self.hashes[id(spec)][1], request.split, request.task.id, request.sample

    async def ask(self, question: Question) -> list[str]:
        await asyncio.sleep(0)
        return list(self.says(question))

    def decided(self, number: int, *, holds: bool) -> bool:
        return holds

    @property
    def spent(self) -> Spent:
        return Spent(rollouts=len(self.kept))


@dataclass
class Situation:
    """What a proposer is told; every part has a default."""

    rollouts: Sequence[tuple[Task, GradedTrajectory]] = ()
    baseline: AgentSpec = field(default_factory=AgentSpec)
    tools: tuple[ToolSpec, ...] = TOOLS
    demonstrations: tuple[Demonstration, ...] = ()
    dev: tuple[Task, ...] = field(default_factory=lambda: tasks(20, "dev", 500))
    holdout: tuple[Task, ...] = field(default_factory=lambda: tasks(20, "holdout", 900))
    endpoint: bool = False
    trials: FakeTrials = field(default_factory=FakeTrials)
    lines: list[str] = field(default_factory=list[str])

    @property
    def known(self) -> Known:
        feedback = {of.id: of for of, _ in self.rollouts}
        problem = Problem(
            baseline=self.baseline,
            splits=TaskSplits(
                feedback=tuple(feedback.values()), dev=self.dev, holdout=self.holdout
            ),
            tools=self.tools,
            pass_threshold=0.5,
            demonstrations=self.demonstrations,
            endpoint=self.endpoint,
        )
        return Known(
            problem=problem,
            rollouts=tuple(self.rollouts),
            trials=self.trials,
            seed=7,
            told=self.lines.append,
        )

    def knobs(self, proposer: Proposer) -> dict[str, Knob]:
        return {knob.name: knob for knob in asyncio.run(proposer.knobs(self.known))}


def levels(knob: Knob) -> dict[str, Level]:
    return {level.name: level for level in knob.levels}
