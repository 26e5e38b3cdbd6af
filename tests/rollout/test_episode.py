import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from byte_chat import (
    END,
    ByteChat,
    Desk,
    a_policy,
    a_setup,
    a_task,
    calls,
    decode,
    encode,
    play,
    requests,
    says,
)
from hypothesis import given
from hypothesis import strategies as st

from agentrft.core.errors import ToolError, UserError
from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.protocols import Completion, SampleRequest
from agentrft.core.protocols import Environment as AnyEnvironment
from agentrft.core.task import Message, Task, ToolSpec
from agentrft.core.trajectory import (
    FailureKind,
    FinishReason,
    StopReason,
    ToolResult,
    Trajectory,
)
from agentrft.graders.fixed import FixedGrader
from agentrft.inference.scripted import ScriptedSampler
from agentrft.rollout.environment import Environment, python_environment
from agentrft.rollout.episode import recorded_ids, run_episode
from agentrft.rollout.scripted import ScriptedEnvironment
from agentrft.rollout.tools import tool


def test_a_rollout_looks_up_answers_and_is_graded_by_its_environment() -> None:
    script = [calls(("get_order", {"order_id": "W1"})), says("It is shipped.")]
    graded = play(a_setup(script, python_environment(Desk)))

    assert graded.outcome is Outcome.SCORED
    assert graded.grade.score == 1.0
    assert graded.grade.parts == {"asked": 1.0}
    trajectory = graded.trajectory
    assert trajectory.stop_reason is StopReason.FINISHED
    assert trajectory.output_text == "It is shipped."
    assert [m.role for m in trajectory.messages] == ["user", "assistant", "tool", "assistant"]
    (result,) = trajectory.tool_results
    assert result.content == '{"order": "W1", "status": "shipped"}'
    assert trajectory.turns[0].behavior_logprobs == (-0.5,) * len(script[0])


def test_a_turn_records_only_the_tokens_it_adds() -> None:
    script = [calls(("refund", {"cents": 5})), says("done")]
    setup = a_setup(script, python_environment(Desk))
    first, second = play(setup).trajectory.turns
    assert decode(second.observation_ids) == "<|s|>tool\npaid<|e|><|s|>assistant\n"
    assert requests(setup)[1].prompt_ids == (
        *first.observation_ids,
        *first.action_ids,
        *second.observation_ids,
    )


texts = st.one_of(
    st.text(max_size=12),
    st.sampled_from(
        ["", "<|im_start|>system", "<|e|>", "</call>", "<call>", "\u2028 \U0001f600 \x00"]
    ),
)
turns = st.one_of(
    st.lists(
        st.tuples(st.sampled_from(["get", "got", "unknown"]), texts), min_size=1, max_size=3
    ).map(lambda pairs: calls(*((name, {"x": text}) for name, text in pairs))),
    texts.map(lambda text: says(f"<call>{{{text}</call>")),
    texts.map(lambda text: encode(f"<call>{text}")),
)


@given(st.lists(turns, max_size=4), texts, texts, texts)
def test_concatenated_turns_are_exactly_what_the_sampler_saw(
    script: list[tuple[int, ...]], user: str, got: str, refused: str
) -> None:
    refusal = ToolResult(call_id="", name="", content=refused, is_error=True)
    environment = ScriptedEnvironment({"get": [got], "got": [refusal, got]}, score=1.0)
    setup = a_setup([*script, says("bye")], environment)
    trajectory = play(setup, a_task(user)).trajectory
    assert trajectory.turns
    assert len(requests(setup)) == len(trajectory.turns)
    for number, request in enumerate(requests(setup)):
        before = recorded_ids(trajectory.turns[:number])
        assert request.prompt_ids == (*before, *trajectory.turns[number].observation_ids)
    control = [i for turn in trajectory.turns[1:] for i in turn.observation_ids if i > 0x10FFFF]
    answers = sum(len(turn.tool_results) for turn in trajectory.turns[:-1])
    cut = sum(turn.action_ids[-1:] != (END,) for turn in trajectory.turns[:-1])
    expected = 2 * answers + cut + len(trajectory.turns) - 1
    assert len(control) == expected, "text must never become a control token"


class RendersAgain(ByteChat):
    """Planted bug: gives the whole conversation where only new tokens belong."""

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> tuple[int, ...]:
        said = Message(role="assistant", content=decode(completion_ids[:-1]))
        user = Message(role="user", content="hello")
        return self.start((user, said, *messages), tools)


def test_a_renderer_that_gives_the_history_again_is_refused() -> None:
    script = [calls(("refund", {"cents": 5})), says("done")]
    graded = play(a_setup(script, python_environment(Desk), renderer=RendersAgain()))
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    assert graded.trajectory.failure is not None
    assert "history again" in graded.trajectory.failure.message


class Refuses(ByteChat):
    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> None:
        raise UserError("these messages cannot follow")


def test_a_renderer_that_fails_in_the_middle_costs_one_rollout() -> None:
    script = [calls(("refund", {"cents": 5})), says("done")]
    graded = play(a_setup(script, python_environment(Desk), renderer=Refuses()))
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    assert graded.trajectory.failure is not None
    assert graded.trajectory.failure.where == "renderer"
    assert len(graded.trajectory.turns) == 1


class CannotExtend(ByteChat):
    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> None:
        return None


def test_a_family_that_cannot_append_starts_a_new_context() -> None:
    script = [calls(("refund", {"cents": 5})), says("done")]
    setup = a_setup(script, python_environment(Desk), renderer=CannotExtend())
    trajectory = play(setup).trajectory
    assert [turn.context for turn in trajectory.turns] == [0, 1]
    assert requests(setup)[1].prompt_ids == trajectory.turns[1].observation_ids
    assert "paid" in decode(requests(setup)[1].prompt_ids)


def test_parallel_calls_run_together_and_are_appended_in_call_order() -> None:
    class Waits(Environment):
        def __init__(self, task: Task) -> None:
            self.second_done = asyncio.Event()

        @tool
        async def first(self) -> str:
            """End after the second."""
            await self.second_done.wait()
            return "one"

        @tool
        async def second(self) -> str:
            """End before the first."""
            self.second_done.set()
            return "two"

        def grade(self, trajectory: Trajectory) -> float:
            return 1.0

    script = [calls(("first", {}), ("second", {})), says("done")]
    trajectory = play(a_setup(script, python_environment(Waits))).trajectory
    assert [(r.call_id, r.content) for r in trajectory.tool_results] == [
        ("call_0", "one"),
        ("call_1", "two"),
    ]


def test_sync_tools_share_the_thread_of_init_and_grade() -> None:
    class Threads(Environment):
        def __init__(self, task: Task) -> None:
            self.seen = {threading.get_ident()}

        @tool
        def note(self) -> str:
            """Note the thread."""
            self.seen.add(threading.get_ident())
            return "noted"

        def grade(self, trajectory: Trajectory) -> float:
            self.seen.add(threading.get_ident())
            return float(len(self.seen) == 1 and threading.get_ident() != main)

    main = threading.get_ident()
    script = [calls(("note", {}), ("note", {})), says("done")]
    assert play(a_setup(script, python_environment(Threads))).grade.score == 1.0


def test_call_ids_are_unique_over_a_rollout_and_answered_by_their_results() -> None:
    script = [calls(("refund", {"cents": 5})), calls(("refund", {"cents": 6})), says("done")]
    trajectory = play(a_setup(script, python_environment(Desk))).trajectory
    ids = [call.id for call in trajectory.tool_calls]
    assert len(set(ids)) == 2
    assert [result.call_id for result in trajectory.tool_results] == ids


def test_a_malformed_call_is_answered_and_the_rollout_goes_on() -> None:
    script = [says("<call>{not json</call>"), calls(("refund", {"cents": 5})), says("done")]
    setup = a_setup(script, python_environment(Desk))
    trajectory = play(setup).trajectory
    assert trajectory.stop_reason is StopReason.FINISHED
    assert trajectory.turns[0].parse_failures[0].raw == "{not json"
    assert "Error: write <call>{JSON}</call>" in decode(requests(setup)[1].prompt_ids)
    assert trajectory.messages[2].content == "Error: write <call>{JSON}</call>"


@pytest.mark.parametrize(
    ("name", "arguments", "shown"),
    [
        ("get_ordr", {}, "did you mean 'get_order'?"),
        ("get_order", {}, "argument 'order_id' is missing; expected {order_id: string}"),
        ("get_order", {"order_id": "W1", "x": 1}, "get_order has no argument 'x'"),
        ("refund", {"cents": "many"}, "argument 'cents'"),
        ("refund", {"cents": 500}, "Error: at most 100 cents"),
    ],
)
def test_the_models_mistakes_are_shown_to_it(
    name: str, arguments: dict[str, object], shown: str
) -> None:
    setup = a_setup([calls((name, arguments)), says("sorry")], python_environment(Desk))
    graded = play(setup)
    (result,) = graded.trajectory.tool_results
    assert result.is_error
    assert shown in result.content
    assert shown in decode(requests(setup)[1].prompt_ids)
    assert graded.outcome is Outcome.SCORED


def test_a_tool_that_raises_drops_the_rollout_and_is_named() -> None:
    graded = play(a_setup([calls(("broken", {}))], python_environment(Desk)))
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    assert graded.grade.score is None
    assert graded.trajectory.stop_reason is StopReason.FAILED
    failure = graded.trajectory.failure
    assert failure is not None
    assert failure.where == "tool 'broken'"
    assert failure.message == "tool 'broken': ZeroDivisionError: no luck"


@pytest.mark.parametrize("name", ["hang_sync", "hang_async"])
def test_a_tool_that_hangs_is_named_with_its_limit(name: str) -> None:
    release = threading.Event()

    class Hangs(Environment):
        @tool
        def hang_sync(self) -> str:
            """Hang."""
            release.wait()
            return "never"

        @tool
        async def hang_async(self) -> str:
            """Hang."""
            await asyncio.Event().wait()
            return "never"

        def teardown(self) -> None:
            release.set()

    policy = a_policy(tool_timeout_s=0.05)
    graded = play(a_setup([calls((name, {}))], python_environment(Hangs), policy=policy))
    release.set()
    assert graded.trajectory.failure is not None
    assert graded.trajectory.failure.message == (
        f"tool '{name}' gave no result in 0.05 s (limits.tool_timeout_s)"
    )


def chatter(request: SampleRequest) -> tuple[int, ...]:
    return calls(("refund", {"cents": 1}), ("refund", {"cents": 2}))


@pytest.mark.parametrize(
    ("limits", "reason"),
    [
        ({"max_turns": 3}, StopReason.MAX_TURNS),
        ({"max_tool_calls": 5}, StopReason.MAX_TOOL_CALLS),
        ({"max_tokens": 200}, StopReason.MAX_TOKENS),
        ({"max_turn_tokens": 50}, StopReason.MAX_TOKENS),
        ({"max_context_tokens": 1200}, StopReason.CONTEXT_FULL),
    ],
)
def test_each_limit_stops_a_rollout_that_is_still_graded(
    limits: dict[str, Any], reason: StopReason
) -> None:
    roomy: dict[str, Any] = {"max_turns": 100, "max_tool_calls": 100, "max_tokens": 10_000}
    policy = a_policy(**{**roomy, **limits})
    setup = a_setup(chatter, python_environment(Desk), policy=policy)
    graded = play(setup)
    assert graded.trajectory.stop_reason is reason
    assert graded.outcome is Outcome.MODEL_FAULT
    assert graded.grade.score == 0.0
    assert graded.trajectory.output_text == ""
    allowed = policy.spec.limits
    assert len(graded.trajectory.turns) <= allowed.max_turns
    assert graded.trajectory.sampled_tokens <= allowed.max_tokens
    assert len(graded.trajectory.tool_results) <= allowed.max_tool_calls
    assert len(recorded_ids(graded.trajectory.turns)) <= allowed.max_context_tokens


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"max_turn_tokens": 50}, "max_turn_tokens: 50 used, 50 allowed"),
        ({"max_tokens": 50}, "max_tokens: 50 used, 50 allowed"),
        ({"max_context_tokens": 1200}, "context_full: 1200 used, 1200 allowed"),
    ],
)
def test_the_limit_that_cut_a_turn_is_named(limits: dict[str, Any], told: str) -> None:
    policy = a_policy(**limits)
    failure = play(a_setup(chatter, python_environment(Desk), policy=policy)).trajectory.failure
    assert failure is not None
    assert failure.message == told


def test_the_last_allowed_tool_call_still_leaves_room_for_an_answer() -> None:
    script = [calls(("refund", {"cents": 1})), says("shipped")]
    policy = a_policy(max_tool_calls=1, max_turns=2)
    graded = play(a_setup(script, python_environment(Desk), policy=policy))
    assert graded.trajectory.stop_reason is StopReason.FINISHED


def test_a_prompt_that_does_not_fit_is_not_the_models_fault() -> None:
    policy = a_policy(max_context_tokens=10)
    graded = play(a_setup([says("hi")], python_environment(Desk), policy=policy))
    assert graded.trajectory.stop_reason is StopReason.CONTEXT_FULL
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    assert graded.trajectory.failure is not None
    assert "context_full is 10" in graded.trajectory.failure.message


def test_a_failing_engine_drops_the_rollout() -> None:
    graded = play(a_setup([], python_environment(Desk)))
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    assert graded.trajectory.failure is not None
    assert graded.trajectory.failure.where == "sampler"


class Cut:
    """An engine that was stopped by its deadline after so many tokens."""

    def __init__(self, tokens: int, reason: FinishReason = FinishReason.DEADLINE) -> None:
        self.completion = Completion(
            token_ids=encode("x" * tokens),
            logprobs=(-0.5,) * tokens,
            finish_reason=reason,
            first_version=0,
            last_version=0,
        )

    async def sample(self, request: SampleRequest) -> Completion:
        return self.completion

    async def score(self, sequences: object) -> list[list[float]]:
        raise NotImplementedError

    async def load(self, weights: object) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("tokens", "outcome"), [(900, Outcome.MODEL_FAULT), (3, Outcome.INFRASTRUCTURE_FAULT)]
)
def test_out_of_time_is_the_models_fault_only_if_it_wrote_long(
    tokens: int, outcome: Outcome
) -> None:
    graded = play(a_setup(Cut(tokens), python_environment(Desk)))
    assert graded.trajectory.stop_reason is StopReason.DEADLINE
    assert graded.outcome is outcome


class Busy(ScriptedSampler):
    """An engine before which each turn stood in line for a thousand seconds."""

    async def sample(self, request: SampleRequest) -> Completion:
        return replace(await super().sample(request), waited_s=1000.0)


def test_time_in_the_engines_line_is_not_the_rollouts() -> None:
    sampler = Busy([calls(("get_order", {"order_id": "W1"})), encode("done")])
    graded = play(a_setup(sampler, python_environment(Desk), policy=a_policy(timeout_s=60.0)))
    assert len(graded.trajectory.turns) == 2
    assert graded.trajectory.turns[0].waited_s == 1000.0
    assert [(r.deadline_s or 0.0) > 900.0 for r in sampler.requests] == [False, True]
    assert all(r.patience_s > 0.0 for r in sampler.requests)


def test_a_slow_tool_that_uses_the_time_up_is_infrastructure() -> None:
    class Slow(Environment):
        @tool
        async def slow(self) -> str:
            """Take long."""
            await asyncio.Event().wait()
            return "never"

    policy = a_policy(timeout_s=0.5)
    graded = play(a_setup([calls(("slow", {}))], python_environment(Slow), policy=policy))
    assert graded.trajectory.stop_reason is StopReason.DEADLINE
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    assert graded.trajectory.failure is not None
    assert graded.trajectory.failure.where == "tools"


def test_an_engine_that_cancels_a_request_drops_the_rollout() -> None:
    sampler = Cut(2, FinishReason.CANCELLED)
    graded = play(a_setup(sampler, python_environment(Desk)))
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT


def test_a_grader_that_raises_leaves_the_rollout_ungraded() -> None:
    def broken(task: Task, trajectory: Trajectory) -> float:
        raise KeyError("reference")

    graded = play(a_setup([says("hi")], python_environment(Desk), grader=FixedGrader(broken)))
    assert graded.grade.score is None
    assert graded.grade.failure is not None
    assert graded.grade.failure.kind is FailureKind.GRADER
    assert graded.grade.failure.where == "grader 'fixed'"
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT


def test_an_environment_that_cannot_be_made_drops_the_rollout() -> None:
    class Needs(Environment):
        def __init__(self, task: Task) -> None:
            self.shop = task["shop"]

    graded = play(a_setup([says("hi")], python_environment(Needs)))
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    assert graded.trajectory.failure is not None
    assert "'shop'" in graded.trajectory.failure.message


def test_the_environment_is_closed_whatever_happens() -> None:
    def closed(script: list[tuple[int, ...]], environment: ScriptedEnvironment) -> int:
        play(a_setup(script, environment))
        return environment.closed

    assert closed([says("hi")], ScriptedEnvironment({})) == 1
    assert closed([], ScriptedEnvironment({})) == 1
    failing = ScriptedEnvironment({"get": [ToolError("down")]})
    assert closed([calls(("get", {}))], failing) == 1


def test_cancelling_a_rollout_passes_through_and_closes_its_environment() -> None:
    environment = ScriptedEnvironment({})

    async def scenario() -> None:
        sampling = asyncio.Event()

        async def hang(request: SampleRequest) -> None:
            sampling.set()
            await asyncio.Event().wait()

        sampler = ScriptedSampler([says("hi")], before=hang)
        task = asyncio.create_task(run_episode(a_setup(sampler, environment), a_task(), seed=1))
        await sampling.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(scenario())
    assert environment.closed == 1


def test_an_environment_that_is_made_too_late_is_closed_as_well() -> None:
    environment = ScriptedEnvironment({})
    ready = threading.Event()

    def slow(task: Task, trace_id: str) -> AnyEnvironment:
        ready.wait(30)
        return environment(task, trace_id)

    async def scenario() -> GradedTrajectory:
        policy = a_policy(timeout_s=0.05)
        rollout = asyncio.create_task(
            run_episode(a_setup([says("hi")], slow, policy=policy), a_task(), seed=1)
        )
        await asyncio.wait([rollout], timeout=0.1)
        ready.set()
        return await rollout

    graded = asyncio.run(scenario())
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    assert graded.trajectory.failure is not None
    assert "was not ready in 0.05 s" in graded.trajectory.failure.message
    assert environment.closed == 1


def test_a_close_that_fails_is_logged_and_costs_no_grade(caplog: pytest.LogCaptureFixture) -> None:
    class Stuck(Desk):
        def teardown(self) -> None:
            raise OSError("disk gone")

    graded = play(a_setup([says("shipped")], python_environment(Stuck)))
    assert graded.grade.score == 1.0
    assert "disk gone" in caplog.text


def test_timings_are_relative_to_the_start_of_the_rollout() -> None:
    script = [calls(("refund", {"cents": 1}), ("refund", {"cents": 2})), says("done")]
    trajectory = play(a_setup(script, python_environment(Desk))).trajectory
    assert trajectory.started_at > 1e9
    for result in trajectory.tool_results:
        assert 0.0 <= result.started_s <= result.started_s + result.duration_s
        assert result.started_s + result.duration_s <= trajectory.duration_s
    assert trajectory.turns[0].tools_s >= max(r.duration_s for r in trajectory.tool_results)
