"""A chat format whose tokens are characters, and builders for rollouts in it."""

import asyncio
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from agentrft.core.config import Limits
from agentrft.core.grade import GradedTrajectory
from agentrft.core.policy import Policy
from agentrft.core.protocols import Grader, OpenEnvironment, Sampler, SampleRequest
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ParseFailure, Trajectory
from agentrft.graders.environment import EnvironmentGrader
from agentrft.inference.scripted import Script, ScriptedSampler
from agentrft.rollout.dialogue import Renderer, TokenSpeaker
from agentrft.rollout.environment import Environment
from agentrft.rollout.episode import RolloutSetup, run_episode
from agentrft.rollout.tools import ToolRefusal, tool

START, END = 0x110000, 0x110001
CALL = re.compile(r"<call>(.*?)</call>", re.DOTALL)


def encode(text: str) -> tuple[int, ...]:
    return tuple(ord(character) for character in text)


def decode(ids: Iterable[int]) -> str:
    return "".join({START: "<|s|>", END: "<|e|>"}.get(i) or chr(i) for i in ids)


@dataclass(frozen=True)
class Read:
    message: Message
    parse_failures: tuple[ParseFailure, ...] = ()


class ByteChat:
    """Start and end are tokens that no text can spell."""

    stop_token_ids = (END,)

    def start(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[int, ...]:
        told = json.dumps([[t.name, t.description, t.parameters] for t in tools])
        return (*encode(told), *self._messages(messages))

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> tuple[int, ...] | None:
        closed = bool(completion_ids) and completion_ids[-1] == END
        return (*(() if closed else (END,)), *self._messages(messages))

    def parse(
        self,
        completion_ids: Sequence[int],
        tools: Sequence[ToolSpec],
        prompt_ids: Sequence[int] = (),
    ) -> Read:
        text = decode(i for i in completion_ids if i != END)
        calls: list[ToolCall] = []
        failures: list[ParseFailure] = []
        for number, match in enumerate(CALL.finditer(text)):
            try:
                call = json.loads(match[1])
                arguments = json.dumps(call["arguments"])
                calls.append(ToolCall(id=f"call_{number}", name=call["name"], arguments=arguments))
            except (ValueError, KeyError, TypeError):
                failures.append(ParseFailure(raw=match[1], reason="write <call>{JSON}</call>"))
        content = CALL.sub("", text)
        message = Message(role="assistant", content=content, tool_calls=tuple(calls))
        return Read(message, tuple(failures))

    def call_grammar(self, tools: Sequence[ToolSpec], *, first_turn_must_call: bool) -> str:
        return ""

    def _messages(self, messages: Sequence[Message]) -> tuple[int, ...]:
        ids: list[int] = []
        for message in messages:
            calls = "".join(f"<call>{c.name} {c.arguments}</call>" for c in message.tool_calls)
            ids += [START, *encode(f"{message.role}\n{message.content}{calls}"), END]
        return (*ids, START, *encode("assistant\n"))


def says(text: str) -> tuple[int, ...]:
    return (*encode(text), END)


def calls(*pairs: tuple[str, Mapping[str, Any]]) -> tuple[int, ...]:
    written = [json.dumps({"name": name, "arguments": arguments}) for name, arguments in pairs]
    return says("".join(f"<call>{text}</call>" for text in written))


def a_task(text: str = "hello", **row: Any) -> Task:
    return Task(id="task-1", messages=(Message(role="user", content=text),), row=row)


def a_policy(spec: AgentSpec | None = None, /, **limits: Any) -> Policy:
    roomy: dict[str, Any] = {"max_context_tokens": 100_000, **limits}
    return Policy(model="test", version=0, spec=spec or AgentSpec(limits=Limits(**roomy)))


def a_setup(
    sampler: Script | Sampler,
    open_environment: OpenEnvironment,
    *,
    policy: Policy | None = None,
    renderer: Renderer | None = None,
    grader: Grader | None = None,
) -> RolloutSetup:
    return RolloutSetup(
        policy=policy or a_policy(),
        speaker=TokenSpeaker(
            ScriptedSampler(sampler)
            if callable(sampler) or isinstance(sampler, Sequence)
            else sampler,
            renderer or ByteChat(),
        ),
        open_environment=open_environment,
        grader=grader or EnvironmentGrader(),
    )


class Desk(Environment):
    """Records what it was asked."""

    def __init__(self, task: Task) -> None:
        self.asked: list[str] = []

    @tool
    def get_order(self, order_id: str) -> dict[str, str]:
        """Look an order up. order_id: as printed, e.g. W1."""
        self.asked.append(order_id)
        return {"order": order_id, "status": "shipped"}

    @tool
    def refund(self, cents: int) -> str:
        """Pay back."""
        if cents > 100:
            raise ToolRefusal("at most 100 cents")
        return "paid"

    @tool
    def broken(self) -> str:
        """Fail."""
        raise ZeroDivisionError("no luck")

    def grade(self, trajectory: Trajectory) -> object:
        return {"score": float("shipped" in trajectory.output_text), "asked": len(self.asked)}


def play(setup: RolloutSetup, task: Task | None = None, seed: int = 7) -> GradedTrajectory:
    return asyncio.run(run_episode(setup, task or a_task(), seed=seed))


def requests(setup: RolloutSetup) -> list[SampleRequest]:
    assert isinstance(setup.speaker, TokenSpeaker)
    assert isinstance(setup.speaker.sampler, ScriptedSampler)
    return setup.speaker.sampler.requests
