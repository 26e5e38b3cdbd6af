"""One rollout: sample, run tools, repeat until an answer or a limit; then grade.

History is append-only: every prompt is the last one plus what was sampled plus new observation
tokens. Only `task.messages`, tools and spec reach the model; the row stays with environment and
grader.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import takewhile
from typing import Any, Protocol, TypeVar

from agentrft.core.call_thread import in_thread
from agentrft.core.errors import AgentRFTError, GraderError, ToolError, boundary
from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.policy import Policy
from agentrft.core.protocols import Environment, Grader, OpenEnvironment
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Message, Task, ToolCall
from agentrft.core.trajectory import (
    Failure,
    FailureKind,
    FinishReason,
    StopReason,
    ToolResult,
    Trajectory,
    Turn,
)
from agentrft.rollout.deadline import within
from agentrft.rollout.dialogue import Dialogue, DialogueError, Speaker, TurnRequest, begun
from agentrft.rollout.guards import Admission, seen
from agentrft.rollout.harness import Harness, Session, prompt_messages

T = TypeVar("T")

GRADER_TIMEOUT_S = 630.0
"""Wall clock of grading one rollout; beyond the 600 s of a grader by URL, which says more."""
CLOSE_TIMEOUT_S = 30.0
RETRY_WAIT_S = 0.5
"""Before a failed tool is called again; doubled each time."""

_log = logging.getLogger(__name__)


class User(Protocol):
    """Whom the agent talks with beyond the task's own messages."""

    def sees(self, turn: Turn) -> None:
        """Hear of a turn, once the results of its calls are known."""
        ...

    async def says(self) -> Message | None:
        """Answer the agent's answer; None ends the conversation."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSetup:
    """Everything that is the same for all rollouts of a step or an evaluation."""

    policy: Policy
    speaker: Speaker
    open_environment: OpenEnvironment
    grader: Grader
    gold_grader: Grader | None = None
    """Held out: its grade is recorded beside the grader's."""
    second_grader: Grader | None = None
    """The grader with another model behind it; recorded likewise."""
    user: User | None = None
    """Without one the first answer ends the rollout. Limits hold for each of a user's messages."""
    wait: Callable[[float], Awaitable[None]] = asyncio.sleep
    """Sleeps between retries, in seconds."""
    harness: Harness = field(init=False)
    """The policy's spec, made ready."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "harness", Harness(self.policy.spec))


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
            await close_environment(environment, episode.id)


class _FaultError(Exception):
    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@contextmanager
def _dialogue() -> Iterator[None]:
    try:
        yield
    except DialogueError as error:
        raise _FaultError(_infrastructure(error.where, str(error))) from error


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
        self.id = trace_id(setup, task, seed)
        self.prompt = prompt_messages(self.spec.system, task.messages)
        self.turns: list[Turn] = []
        self.told_to_answer: _Stop | None = None
        """Set for the model's last turn: what the rollout ends with if it calls a tool again."""
        self.tools_s = 0.0
        self.started_at = time.time()
        self._started = time.monotonic()
        self._asked_after = 0
        """Turns before the user's last message; limits count from there."""
        self._asked_s = 0.0
        self._asked_tools_s = 0.0

    def elapsed_s(self) -> float:
        return time.monotonic() - self._started

    def left_s(self) -> float:
        return self.limits.timeout_s - (self.elapsed_s() - self._asked_s - self._waited_s)

    @property
    def _waited_s(self) -> float:
        return sum(turn.waited_s for turn in self._since_asked)

    @property
    def _since_asked(self) -> Sequence[Turn]:
        return self.turns[self._asked_after :]

    @property
    def sampled_tokens(self) -> int:
        return sum(turn.sampled_tokens for turn in self._since_asked)

    async def open(self) -> Environment:
        """Make the environment, off the event loop."""
        where = f"environment of task {self.task.id!r}"
        opening = partial(self.setup.open_environment, self.task, self.id)
        late = ToolError(f"{where} was not ready in {self.limits.timeout_s:g} s")
        ready = asyncio.create_task(in_thread(opening, name=f"environment {self.id}"))
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
                    await close_environment(ready.result(), self.id)

    async def play(self, environment: Environment) -> _Stop:
        """Run the agent loop until it ends, and say why it ended."""
        session = self.setup.harness.session(self.task, environment.tool_specs())
        self.prompt = session.recorded_prompt
        what = f"task {self.task.id!r}"
        dialogue = begun(self.setup.speaker, session.prompt, session.tools, self.id, what)
        while True:
            budget_tokens, bound = self._budget(dialogue.prompt_tokens)
            if budget_tokens <= 0:
                return self._over(bound, dialogue.prompt_tokens)
            if self.left_s() <= 0:
                return self._out_of_time()
            said, turn = await self._speak(dialogue, session, budget_tokens)
            self.turns.append(turn)
            if stop := self._stop_after(turn, bound):
                if not await self._asked_again(dialogue, session, said, stop):
                    return stop
                continue
            in_time = await self._answer_calls(environment, session, turn)
            if self.setup.user is not None:
                self.setup.user.sees(self.turns[-1])
            if not in_time:
                return self._out_of_time()
            if self._turns_left <= 0:
                return self._over(StopReason.MAX_TURNS, len(self._since_asked))
            with _dialogue():
                dialogue.hear(said, session.answers(self.turns[-1].tool_results))

    async def _asked_again(
        self, dialogue: Dialogue, session: Session, said: Message, stop: _Stop
    ) -> bool:
        """Let the user answer an answer, and give the agent its limits anew; False: it is over."""
        user = self.setup.user
        if user is None:
            return False
        user.sees(self.turns[-1])
        if stop[0] is not StopReason.FINISHED or (message := await user.says()) is None:
            return False
        with _dialogue():
            dialogue.hear(said, (session.hears(message),))
        self._asked_after, self.told_to_answer = len(self.turns), None
        self._asked_s, self._asked_tools_s = self.elapsed_s(), self.tools_s
        return True

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

    def _cut(self, turn: Turn, bound: StopReason) -> _Stop:
        """Say by which limit the turn was cut."""
        limits = self.limits
        if bound is StopReason.CONTEXT_FULL:
            return self._over(bound, limits.max_context_tokens)
        if self.sampled_tokens < limits.max_tokens:
            used = f"{turn.sampled_tokens} used, {limits.max_turn_tokens} allowed"
            return bound, _models_own("limits", f"max_turn_tokens: {used}")
        return self._over(bound, self.sampled_tokens)

    def _out_of_time(self) -> _Stop:
        """Blame the model only if it wrote long; slow tools and a slow engine are faults."""
        sampling_s = sum(turn.sampling_s for turn in self._since_asked)
        tools_s = self.tools_s - self._asked_tools_s
        spent = (
            f"{self.limits.timeout_s:g} s are over: {sampling_s:.1f} s sampling "
            f"{self.sampled_tokens} tokens, {tools_s:.1f} s in tools; the engine's line took "
            f"{self._waited_s:.1f} s more"
        )
        if tools_s > sampling_s:
            return StopReason.DEADLINE, _infrastructure("tools", spent)
        if 2 * self.sampled_tokens < self.limits.max_tokens:
            return StopReason.DEADLINE, _infrastructure("sampler", spent)
        return StopReason.DEADLINE, _models_own("limits", spent)

    async def _speak(
        self, dialogue: Dialogue, session: Session, budget_tokens: int
    ) -> tuple[Message, Turn]:
        """Let the model write a turn; return its message as written, and the record of it."""
        started_s = self.elapsed_s()
        decoding = self.spec.decoding
        form = decoding.grammar
        if form == "call_first" and self.turns:
            form = "calls"
        request = TurnRequest(
            max_tokens=budget_tokens,
            temperature=self.temperature,
            top_p=decoding.top_p,
            seed=derive_seed(self.seed, "turn", len(self.turns)),
            left_s=self.left_s(),
            form=form,
        )
        with _dialogue():
            spoken = await dialogue.speak(request)
        said = self._with_unique_ids(spoken.message)
        turn = Turn(
            context=spoken.context,
            observation_ids=spoken.observation_ids,
            action_ids=spoken.action_ids,
            behavior_logprobs=spoken.behavior_logprobs,
            first_version=spoken.first_version,
            last_version=spoken.last_version,
            message=session.read(said),
            parse_failures=spoken.parse_failures,
            finish_reason=spoken.finish_reason,
            usage=spoken.usage,
            sampling_s=self.elapsed_s() - started_s - spoken.waited_s,
            waited_s=spoken.waited_s,
        )
        return said, turn

    @property
    def _calls(self) -> int:
        return sum(len(turn.message.tool_calls) for turn in self._since_asked)

    @property
    def _turns_left(self) -> int:
        return self.limits.max_turns - len(self._since_asked)

    def _stop_after(self, turn: Turn, bound: StopReason) -> _Stop | None:
        """Whether this turn ends the rollout before any tool runs."""
        if turn.finish_reason is FinishReason.DEADLINE:
            return self._out_of_time()
        if turn.finish_reason is FinishReason.LENGTH:
            return self._cut(turn, bound)
        if not turn.message.tool_calls and not turn.parse_failures:
            return StopReason.FINISHED, None
        if self.told_to_answer:
            return self.told_to_answer
        if self.limits.final_answer and self._turns_left <= 0:
            return self._over(StopReason.MAX_TURNS, len(self._since_asked))
        if self._calls > self.limits.max_tool_calls:
            return self._over(StopReason.MAX_TOOL_CALLS, self._calls)
        return None

    async def _answer_calls(self, environment: Environment, session: Session, turn: Turn) -> bool:
        """Run the calls of a turn concurrently and record results in call order; False if late."""
        started_s = self.elapsed_s()
        admitted = [session.admit(call) for call in turn.message.tool_calls]
        results: tuple[ToolResult, ...] = ()
        deadline = asyncio.timeout(self.left_s())
        try:
            async with deadline:
                ran = await in_order([self._call(environment, one) for one in admitted])
            results = tuple(
                session.shown(one.call, result) for one, result in zip(admitted, ran, strict=True)
            )
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
            run = tuple(admission.call for admission in admitted)
            self.turns[-1] = replace(
                turn,
                message=replace(turn.message, tool_calls=run),
                tool_results=self._with_remark((*results, *unreadable)),
                tools_s=tools_s,
            )
        return True

    async def _call(self, environment: Environment, admission: Admission) -> ToolResult:
        call, started_s = admission.call, self.elapsed_s()
        if admission.answer is not None:
            return replace(admission.answer, started_s=started_s)
        where = f"tool {call.name!r}"
        try:
            with boundary(ToolError, where):
                result = await self._run(environment, call, where)
        except AgentRFTError as error:
            raise _FaultError(_infrastructure(where, str(error))) from error
        return replace(
            result,
            repairs=admission.repairs,
            started_s=started_s,
            duration_s=self.elapsed_s() - started_s,
        )

    async def _run(self, environment: Environment, call: ToolCall, where: str) -> ToolResult:
        """Run a call, again if the tool fails; a server tells the attempts by trace and call id."""
        limit_s = self.limits.tool_timeout_s
        late = ToolError(f"{where} gave no result in {limit_s:g} s (limits.tool_timeout_s)")
        for attempt in range(self.limits.transient_retries):
            try:
                with boundary(ToolError, where):
                    async with within(limit_s, late):
                        return await environment.call_tool(call)
            except ToolError as error:
                if error is late:
                    raise  # It may still be running, and a second one would run beside it.
                _log.info("%s: attempt %d: %s", self.id, attempt + 1, error)
            await self.setup.wait(RETRY_WAIT_S * 2**attempt)
        async with within(limit_s, late):
            return await environment.call_tool(call)

    def _with_remark(self, results: tuple[ToolResult, ...]) -> tuple[ToolResult, ...]:
        """Put what the limits have to say under the last result of a turn."""
        if not results or self._turns_left <= 0:
            return results
        calls_left = self.limits.max_tool_calls - self._calls
        self.told_to_answer = self._last_turn(results, calls_left)
        if self.told_to_answer:
            remark = "(Answer now, with what you know: no more tool calls are run.)"
        elif self.limits.show_remaining:
            remark = f"({_count(calls_left, 'tool call')}, {_count(self._turns_left, 'turn')} left)"
        else:
            return results
        last = replace(results[-1], shown=f"{seen(results[-1])}\n{remark}")
        return (*results[:-1], last)

    def _last_turn(self, results: tuple[ToolResult, ...], calls_left: int) -> _Stop | None:
        """Say what the rollout ends with if the next turn is no answer; None if it may go on."""
        limits = self.limits
        before = (result for turn in self._since_asked for result in turn.tool_results)
        everything = [*before, *results]
        refused = sum(1 for _ in takewhile(lambda result: result.is_error, reversed(everything)))
        if 0 < limits.argument_errors <= refused:
            message = f"argument_errors: {refused} in a row, {limits.argument_errors} allowed"
            return StopReason.MAX_TOOL_CALLS, _models_own("limits", message)
        if limits.final_answer and calls_left <= 0:
            return self._over(StopReason.MAX_TOOL_CALLS, self._calls)
        if limits.final_answer and self._turns_left == 1:
            return self._over(StopReason.MAX_TURNS, limits.max_turns)
        return None

    def _with_unique_ids(self, message: Message) -> Message:
        """Models and parsers count calls per turn; servers and records need ids per rollout."""
        before = (*self.prompt, *(turn.message for turn in self.turns))
        seen = {call.id for earlier in before for call in earlier.tool_calls}
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
            spec_hash=self.setup.harness.spec_hash,
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


async def close_environment(environment: Environment, trace: str) -> None:
    """Close, and log what goes wrong: it costs a resource, not a rollout."""
    try:
        with boundary(ToolError, "closing the environment"):
            async with asyncio.timeout(CLOSE_TIMEOUT_S):
                await environment.close()
    except AgentRFTError as error:
        _log.warning("%s: %s", trace, error)


async def in_order(coroutines: Sequence[Coroutine[Any, Any, T]]) -> list[T]:
    """Run concurrently, return in order; when one raises, the rest are cancelled and awaited."""
    if len(coroutines) == 1:
        return [await coroutines[0]]  # a task for it would cost as much as many a tool
    tasks = [asyncio.create_task(coroutine) for coroutine in coroutines]
    try:
        return list(await asyncio.gather(*tasks))
    finally:
        for task in tasks:
            # Asked twice, a task would be torn out of its own cleaning up.
            if not task.cancelling():
                task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def trace_id(setup: RolloutSetup, task: Task, seed: int) -> str:
    """Return `trace_` and 32 hex digits: the same for the same policy, task and seed."""
    policy = setup.policy
    named = (policy.model, policy.version, setup.harness.spec_hash, task.id, seed)
    return "trace_" + "".join(f"{derive_seed('trace', half, *named):016x}" for half in (0, 1))


def recorded_ids(turns: Sequence[Turn]) -> tuple[int, ...]:
    """Tokens of one context as the engine saw them: observations and actions, in order."""
    return tuple(i for turn in turns for i in (*turn.observation_ids, *turn.action_ids))
