"""One rollout: sample, run tools, repeat until an answer or a limit; then grade.

History is append-only: every prompt is the last one plus what was sampled plus new observation
tokens. Only `task.messages` and tools are rendered; the row stays with environment and grader.
"""

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeVar

from agentrft.core.call_thread import in_thread
from agentrft.core.errors import (
    AgentRFTError,
    GraderError,
    SamplerError,
    ToolError,
    UserError,
    boundary,
)
from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.policy import Policy
from agentrft.core.protocols import (
    Completion,
    Environment,
    Grader,
    OpenEnvironment,
    Sampler,
    SampleRequest,
)
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import (
    Failure,
    FailureKind,
    FinishReason,
    ParseFailure,
    StopReason,
    ToolResult,
    Trajectory,
    Turn,
)
from agentrft.rollout.deadline import within
from agentrft.rollout.tools import unknown_tool

T = TypeVar("T")

GRADER_TIMEOUT_S = 630.0
"""Wall clock of grading one rollout; beyond the 600 s of a grader by URL, which says more."""
CLOSE_TIMEOUT_S = 30.0
SAMPLER_GRACE_S = 30.0
"""How long past its deadline an engine may take to hand over what it sampled."""

_log = logging.getLogger(__name__)


class Parsed(Protocol):
    """What a renderer read from one completion."""

    @property
    def message(self) -> Message:
        """The assistant message, readable calls included."""
        ...

    @property
    def parse_failures(self) -> tuple[ParseFailure, ...]:
        """Calls that could not be read."""
        ...


class Renderer(Protocol):
    """Messages to tokens and back, append-only."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn."""
        ...

    def start(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[int, ...]:
        """Return prompt ids that end where the assistant begins."""
        ...

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> tuple[int, ...] | None:
        """Return only the ids that follow prompt and completion; None if that is impossible."""
        ...

    def parse(
        self,
        completion_ids: Sequence[int],
        tools: Sequence[ToolSpec],
        prompt_ids: Sequence[int] = (),
    ) -> Parsed:
        """Read one completion; never raises for what the model wrote."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSetup:
    """Everything that is the same for all rollouts of a step or an evaluation."""

    policy: Policy
    sampler: Sampler
    renderer: Renderer
    open_environment: OpenEnvironment
    grader: Grader
    gold_grader: Grader | None = None
    """Held out: its grade is recorded beside the grader's."""
    second_grader: Grader | None = None
    """The grader with another model behind it; recorded likewise."""


async def run_episode(
    setup: RolloutSetup, task: Task, *, seed: int, temperature: float | None = None
) -> GradedTrajectory:
    """Open a fresh environment, let the policy act, grade while it is open, close it.

    Faults of tools, engine and grader come back as failures without a score. UserError (a wrong
    project) and cancellation pass through. `temperature` None takes the spec's own.
    """
    episode = _Episode(setup, task, seed, temperature)
    environment: Environment | None = None
    try:
        try:
            environment = await episode.open()
            stop_reason, failure = await episode.play(environment)
        except _FaultError as fault:
            stop_reason, failure = StopReason.FAILED, fault.failure
        trajectory = episode.trajectory(stop_reason, failure)
        graded = (task, trajectory, environment)
        gold, second = setup.gold_grader, setup.second_grader
        return GradedTrajectory(
            trajectory=trajectory,
            grade=await grade_rollout(setup.grader, *graded),
            gold=await grade_rollout(gold, *graded) if gold else None,
            second=await grade_rollout(second, *graded) if second else None,
        )
    finally:
        if environment is not None:
            await _close(environment, episode.id)


class _FaultError(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@contextmanager
def _attributed(kind: type[AgentRFTError], where: str) -> Iterator[None]:
    try:
        with boundary(kind, where):
            yield
    except AgentRFTError as error:
        raise _FaultError(_infrastructure(where, str(error))) from error


def _infrastructure(where: str, message: str) -> Failure:
    return Failure(kind=FailureKind.INFRASTRUCTURE, where=where, message=message)


def _models_own(where: str, message: str) -> Failure:
    return Failure(kind=FailureKind.MODEL, where=where, message=message)


_Stop = tuple[StopReason, Failure | None]


class _Episode:
    """One rollout as it unfolds."""

    def __init__(
        self, setup: RolloutSetup, task: Task, seed: int, temperature: float | None
    ) -> None:
        self.setup = setup
        self.task = task
        self.seed = seed
        self.spec = setup.policy.spec
        self.limits = self.spec.limits
        self.temperature = self.spec.decoding.temperature if temperature is None else temperature
        self.id = trace_id(setup.policy, task, seed)
        self.prompt = prompt_messages(self.spec.system, task.messages)
        self.turns: list[Turn] = []
        self.specs: tuple[ToolSpec, ...] = ()
        self.tools_s = 0.0
        self.started_at = time.time()
        self._started = time.monotonic()

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def left_s(self) -> float:
        return self.limits.timeout_s - self.elapsed_s()

    @property
    def sampled_tokens(self) -> int:
        return sum(len(turn.action_ids) for turn in self.turns)

    async def open(self) -> Environment:
        """Make the environment, off the event loop."""
        where = f"environment of task {self.task.id!r}"
        opening = partial(self.setup.open_environment, self.task, self.id)
        late = ToolError(f"{where} was not ready in {self.limits.timeout_s:g} s")
        ready = asyncio.create_task(in_thread(opening, name=f"open {self.id}"))
        claimed = False
        try:
            with boundary(ToolError, where):
                async with within(self.left_s(), late):
                    environment = await asyncio.shield(ready)
        except ToolError as error:
            raise _FaultError(_infrastructure(where, str(error))) from error
        else:
            claimed = True
            return environment
        finally:
            if not claimed:
                # Cancelled or late while it was being made: it is not left open behind our back.
                await asyncio.wait([ready], timeout=CLOSE_TIMEOUT_S)
                if ready.done() and not ready.cancelled() and ready.exception() is None:
                    await _close(ready.result(), self.id)

    async def play(self, environment: Environment) -> _Stop:
        """Run the agent loop until it ends, and say why it ended."""
        renderer = self.setup.renderer
        self.specs = visible_tools(environment.tool_specs(), self.task, self.spec.tool_notes)
        with boundary(UserError, f"task {self.task.id!r} cannot be rendered"):
            prompt_ids = observation_ids = tuple(renderer.start(self.prompt, self.specs))
        context = 0
        while True:
            budget_tokens, bound = self._budget(len(prompt_ids))
            if budget_tokens <= 0:
                return self._over(bound, len(prompt_ids))
            if self.left_s() <= 0:
                return self._out_of_time()
            self._check_append_only(context, observation_ids, prompt_ids)
            sampling_started_s = self.elapsed_s()
            completion = await self._sample(prompt_ids, budget_tokens)
            with _attributed(SamplerError, "renderer"):
                parsed = renderer.parse(completion.token_ids, self.specs, prompt_ids)
            turn = Turn(
                context=context,
                observation_ids=observation_ids,
                action_ids=completion.token_ids,
                behavior_logprobs=completion.logprobs,
                first_version=completion.first_version,
                last_version=completion.last_version,
                message=self._with_unique_ids(parsed.message),
                parse_failures=parsed.parse_failures,
                finish_reason=completion.finish_reason,
                sampling_s=self.elapsed_s() - sampling_started_s,
            )
            self.turns.append(turn)
            if stop := self._stop_after(turn, bound):
                return stop
            if not await self._answer_calls(environment, turn):
                return self._out_of_time()
            if len(self.turns) >= self.limits.max_turns:
                return self._over(StopReason.MAX_TURNS, len(self.turns))
            answers = tuple(_as_message(result) for result in self.turns[-1].tool_results)
            with _attributed(SamplerError, "renderer"):
                extension = renderer.extend(prompt_ids, completion.token_ids, answers, self.specs)
                if extension is None:
                    # This family rewrites its history: a new context, rendered whole.
                    context += 1
                    messages = self.trajectory(StopReason.FINISHED, None).messages
                    prompt_ids = observation_ids = tuple(renderer.start(messages, self.specs))
                else:
                    observation_ids = tuple(extension)
                    prompt_ids = (*prompt_ids, *completion.token_ids, *observation_ids)

    def _budget(self, prompt_tokens: int) -> tuple[int, StopReason]:
        """How many tokens the next turn may sample, and which limit it is that binds."""
        limits = self.limits
        tokens_left = min(limits.max_turn_tokens, limits.max_tokens - self.sampled_tokens)
        context_left = limits.max_context_tokens - prompt_tokens
        if context_left < tokens_left:
            return context_left, StopReason.CONTEXT_FULL
        return tokens_left, StopReason.MAX_TOKENS

    def _over(self, reason: StopReason, used: int) -> _Stop:
        limit = {
            StopReason.MAX_TURNS: self.limits.max_turns,
            StopReason.MAX_TOOL_CALLS: self.limits.max_tool_calls,
            StopReason.MAX_TOKENS: self.limits.max_tokens,
            StopReason.CONTEXT_FULL: self.limits.max_context_tokens,
        }[reason]
        if not self.turns:
            # The model has done nothing yet, so it is not the model's fault.
            message = f"the prompt of task {self.task.id!r} has {used} tokens, {reason} is {limit}"
            return reason, _infrastructure("limits", message)
        return reason, _models_own("limits", f"{reason}: {used} used, {limit} allowed")

    def _out_of_time(self) -> _Stop:
        """Blame the model only if it wrote long; slow tools and a slow engine are faults."""
        sampling_s = sum(turn.sampling_s for turn in self.turns)
        spent = (
            f"{self.limits.timeout_s:g} s are over: {sampling_s:.1f} s sampling "
            f"{self.sampled_tokens} tokens, {self.tools_s:.1f} s in tools"
        )
        if self.tools_s > sampling_s:
            return StopReason.DEADLINE, _infrastructure("tools", spent)
        if 2 * self.sampled_tokens < self.limits.max_tokens:
            return StopReason.DEADLINE, _infrastructure("sampler", spent)
        return StopReason.DEADLINE, _models_own("limits", spent)

    async def _sample(self, prompt_ids: tuple[int, ...], max_tokens: int) -> Completion:
        left_s = max(self.left_s(), 0.0)
        request = SampleRequest(
            prompt_ids=prompt_ids,
            max_tokens=max_tokens,
            temperature=self.temperature,
            top_p=self.spec.decoding.top_p,
            seed=derive_seed(self.seed, "turn", len(self.turns)),
            stop_token_ids=self.setup.renderer.stop_token_ids,
            deadline_s=left_s,
        )
        with _attributed(SamplerError, "sampler"):
            async with asyncio.timeout(left_s + SAMPLER_GRACE_S):
                completion = await self.setup.sampler.sample(request)
            if completion.finish_reason is FinishReason.CANCELLED:
                raise SamplerError("the engine cancelled the request")
        return completion

    def _check_append_only(
        self, context: int, observation_ids: tuple[int, ...], prompt_ids: tuple[int, ...]
    ) -> None:
        """Refuse a prompt that is not the record plus new tokens, or a history rendered again."""
        stretch = [turn for turn in self.turns if turn.context == context]
        recorded = (*recorded_ids(stretch), *observation_ids)
        rendered_again = bool(stretch) and _starts_with(observation_ids, stretch[0].observation_ids)
        if recorded != prompt_ids or rendered_again:
            message = "the renderer gave the history again instead of only the new tokens"
            raise _FaultError(_infrastructure("renderer", message))

    def _stop_after(self, turn: Turn, bound: StopReason) -> _Stop | None:
        """Whether this turn ends the rollout before any tool runs."""
        if turn.finish_reason is FinishReason.DEADLINE:
            return self._out_of_time()
        if turn.finish_reason is FinishReason.LENGTH:
            used = self.sampled_tokens
            if bound is StopReason.CONTEXT_FULL:
                used = self.limits.max_context_tokens
            return self._over(bound, used)
        if not turn.message.tool_calls and not turn.parse_failures:
            return StopReason.FINISHED, None
        calls = sum(len(t.message.tool_calls) for t in self.turns)
        if calls > self.limits.max_tool_calls:
            return self._over(StopReason.MAX_TOOL_CALLS, calls)
        return None

    async def _answer_calls(self, environment: Environment, turn: Turn) -> bool:
        """Run the calls of a turn concurrently and record results in call order; False if late."""
        started_s = self.elapsed_s()
        results: tuple[ToolResult, ...] = ()
        deadline = asyncio.timeout(self.left_s())
        try:
            async with deadline:
                calls = [self._call(environment, call) for call in turn.message.tool_calls]
                results = tuple(await in_order(calls))
        except TimeoutError:
            if not deadline.expired():
                raise
            return False
        finally:
            tools_s = self.elapsed_s() - started_s
            self.tools_s += tools_s
            unreadable = tuple(
                ToolResult(
                    call_id=f"unreadable_{len(self.turns)}_{n}",
                    name="",
                    content=f"Error: {failure.reason}",
                    is_error=True,
                    started_s=started_s,
                )
                for n, failure in enumerate(turn.parse_failures)
            )
            self.turns[-1] = replace(turn, tool_results=(*results, *unreadable), tools_s=tools_s)
        return True

    async def _call(self, environment: Environment, call: ToolCall) -> ToolResult:
        names = [spec.name for spec in self.specs]
        started_s = self.elapsed_s()
        if call.name not in names:
            return replace(unknown_tool(call, names), started_s=started_s)
        limit_s = self.limits.tool_timeout_s
        where = f"tool {call.name!r}"
        late = ToolError(f"{where} gave no result in {limit_s:g} s (limits.tool_timeout_s)")
        with _attributed(ToolError, where):
            async with within(limit_s, late):
                result = await environment.call_tool(call)
        return replace(result, started_s=started_s, duration_s=self.elapsed_s() - started_s)

    def _with_unique_ids(self, message: Message) -> Message:
        """Models and parsers count calls per turn; servers and records need ids per rollout."""
        seen = {call.id for turn in self.turns for call in turn.message.tool_calls}
        calls: list[ToolCall] = []
        for number, call in enumerate(message.tool_calls):
            fresh = call.id
            if not fresh or fresh in seen:
                fresh = f"call_{derive_seed(self.id, len(self.turns), number):016x}"
            seen.add(fresh)
            calls.append(replace(call, id=fresh))
        return replace(message, tool_calls=tuple(calls))

    def trajectory(self, stop_reason: StopReason, failure: Failure | None) -> Trajectory:
        """Return the record so far."""
        return Trajectory(
            id=self.id,
            task_id=self.task.id,
            model=self.setup.policy.model,
            spec_hash=self.spec.hash,
            seed=self.seed,
            prompt=self.prompt,
            turns=tuple(self.turns),
            stop_reason=stop_reason,
            failure=failure,
            started_at=self.started_at,
            duration_s=self.elapsed_s(),
        )


async def grade_rollout(
    grader: Grader, task: Task, trajectory: Trajectory, environment: Environment | None
) -> Grade:
    """Grade within `GRADER_TIMEOUT_S`; faults come back as a failure without a score."""
    failure = trajectory.failure
    if failure is not None and failure.kind is not FailureKind.MODEL:
        return Grade(score=None, failure=failure, grader=grader.name)
    where = f"grader {grader.name!r}"
    started = time.monotonic()
    try:
        with boundary(GraderError, where):
            async with asyncio.timeout(GRADER_TIMEOUT_S):
                grade = await grader.grade(task, trajectory, environment)
        return replace(grade, duration_s=time.monotonic() - started)
    except GraderError as error:
        failure = Failure(kind=FailureKind.GRADER, where=where, message=str(error), code=error.code)
        return Grade(score=None, failure=failure, grader=grader.name, usage=error.usage)


async def _close(environment: Environment, trace: str) -> None:
    """Close, and log what goes wrong: it costs a resource, not a rollout."""
    try:
        with boundary(ToolError, "closing the environment"):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await environment.close()
    except AgentRFTError as error:
        _log.warning("%s: %s", trace, error)


async def in_order(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run concurrently, return in order; when one raises, the rest are cancelled and awaited."""
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def prompt_messages(system: str, messages: Sequence[Message]) -> tuple[Message, ...]:
    """Put the spec's system text first; a system message of the task itself is joined to it."""
    if not system:
        return tuple(messages)
    if messages and messages[0].role == "system":
        joined = f"{system}\n\n{messages[0].content}"
        return (replace(messages[0], content=joined), *messages[1:])
    return (Message(role="system", content=system), *messages)


def trace_id(policy: Policy, task: Task, seed: int) -> str:
    """Return `trace_` and 32 hex digits: the same for the same policy, task and seed."""
    named = (policy.model, policy.version, policy.spec.hash, task.id, seed)
    return "trace_" + "".join(f"{derive_seed('trace', half, *named):016x}" for half in (0, 1))


def visible_tools(
    offered: Sequence[ToolSpec], task: Task, notes: Mapping[str, str]
) -> tuple[ToolSpec, ...]:
    """Tools the model is told about: those the row lists (all, if none), with the spec's notes."""
    names = [spec.name for spec in offered]
    listed = [spec.name for spec in task.tools] or names
    known = ", ".join(names) or "none"
    for name in listed:
        if name not in names:
            raise UserError(f"task {task.id!r} lists tool {name!r}; the project's tools: {known}")
    for name in notes:
        if name not in names:
            raise UserError(f"a tool note names {name!r}; the project's tools: {known}")
    return tuple(
        replace(spec, description=notes.get(spec.name, spec.description))
        for spec in offered
        if spec.name in listed
    )


def recorded_ids(turns: Sequence[Turn]) -> tuple[int, ...]:
    """Tokens of one context as the engine saw them: observations and actions, in order."""
    return tuple(i for turn in turns for i in (*turn.observation_ids, *turn.action_ids))


def _starts_with(ids: tuple[int, ...], prefix: tuple[int, ...]) -> bool:
    return len(ids) >= len(prefix) and ids[: len(prefix)] == prefix


def _as_message(result: ToolResult) -> Message:
    return Message(
        role="tool", content=result.content, tool_call_id=result.call_id, name=result.name or None
    )
