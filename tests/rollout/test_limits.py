"""What limits tell the model, and what they do when it goes on all the same."""

from byte_chat import Desk, a_policy, a_setup, calls, decode, play, says

from agentrft.core.config import Limits
from agentrft.core.errors import ToolError
from agentrft.core.grade import Outcome
from agentrft.core.spec import AgentSpec
from agentrft.core.trajectory import StopReason, Trajectory
from agentrft.rollout.environment import python_environment
from agentrft.rollout.episode import RETRY_WAIT_S, RolloutSetup
from agentrft.rollout.scripted import ScriptedEnvironment

PAY = calls(("refund", {"cents": 5}))
REFUSED = calls(("refund", {"cents": 500}))
ANSWER = "(Answer now, with what you know: no more tool calls are run.)"


def rolled_out(limits: Limits, *turns: tuple[int, ...]) -> tuple[Trajectory, list[str]]:
    """Play the turns; return the record and the last line the model saw before each next turn."""
    policy = a_policy(AgentSpec(limits=limits))
    trajectory = play(a_setup(list(turns), python_environment(Desk), policy=policy)).trajectory
    texts = [decode(turn.observation_ids) for turn in trajectory.turns[1:]]
    return trajectory, [text.split("<|e|>")[-2].splitlines()[-1] for text in texts]


def test_what_is_left_stands_under_the_last_result_of_a_turn() -> None:
    both = calls(("refund", {"cents": 5}), ("refund", {"cents": 6}))
    limits = Limits(show_remaining=True, max_turns=4, max_tool_calls=4)
    trajectory, saw = rolled_out(limits, PAY, both, says("<call>{</call>"), says("done"))
    assert saw == [
        "(3 tool calls, 3 turns left)",
        "(1 tool call, 2 turns left)",
        "(1 tool call, 1 turn left)",
    ]
    first, second, third, _ = trajectory.tool_results
    assert first.shown == "paid\n(3 tool calls, 3 turns left)"
    assert (second.shown, third.shown) == (None, "paid\n(1 tool call, 2 turns left)")
    assert {first.content, second.content, third.content} == {"paid"}


def test_before_its_last_turn_the_model_is_told_and_then_its_calls_are_not_run() -> None:
    limits = Limits(final_answer=True, max_turns=2)
    trajectory, saw = rolled_out(limits, PAY, PAY, says("never"))
    assert saw == [ANSWER]
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert len(trajectory.turns) == 2
    assert len(trajectory.tool_results) == 1
    trajectory, saw = rolled_out(limits, PAY, says("done"))
    assert (saw, trajectory.output_text) == ([ANSWER], "done")


def test_the_only_turn_is_the_last_one() -> None:
    trajectory, _ = rolled_out(Limits(final_answer=True, max_turns=1), PAY)
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert trajectory.tool_results == ()


def test_when_no_calls_are_left_the_model_is_told_too() -> None:
    limits = Limits(final_answer=True, max_tool_calls=1)
    trajectory, saw = rolled_out(limits, PAY, says("<call>{</call>"), says("never"))
    assert saw == [ANSWER]
    assert trajectory.stop_reason is StopReason.MAX_TOOL_CALLS


def test_without_the_limit_the_last_calls_run() -> None:
    trajectory, _ = rolled_out(Limits(max_turns=2), PAY, PAY)
    assert trajectory.stop_reason is StopReason.MAX_TURNS
    assert len(trajectory.tool_results) == 2


def test_calls_turned_down_in_a_row_end_in_a_last_turn() -> None:
    limits = Limits(argument_errors=2)
    trajectory, saw = rolled_out(limits, REFUSED, PAY, REFUSED, REFUSED, PAY, says("never"))
    assert saw == ["Error: at most 100 cents", "paid", "Error: at most 100 cents", ANSWER]
    assert trajectory.stop_reason is StopReason.MAX_TOOL_CALLS
    assert trajectory.failure is not None
    assert trajectory.failure.message == "argument_errors: 2 in a row, 2 allowed"
    assert len(trajectory.tool_results) == 4


def retrying(
    retries: int, *replies: str | ToolError, limits: Limits | None = None
) -> tuple[RolloutSetup, ScriptedEnvironment, list[float]]:
    waits: list[float] = []

    async def wait(seconds: float) -> None:
        waits.append(seconds)

    environment = ScriptedEnvironment({"get": replies})
    policy = a_policy(AgentSpec(limits=limits or Limits(transient_retries=retries)))
    base = a_setup([calls(("get", {})), says("done")], environment, policy=policy)
    setup = RolloutSetup(
        policy=policy,
        speaker=base.speaker,
        open_environment=environment,
        grader=base.grader,
        wait=wait,
    )
    return setup, environment, waits


def test_a_tool_that_fails_is_called_again_as_the_same_call_with_growing_waits() -> None:
    setup, environment, waits = retrying(3, ToolError("down"), ToolError("down"), "up")
    graded = play(setup)
    assert graded.outcome is Outcome.SCORED
    assert [result.content for result in graded.trajectory.tool_results] == ["up"]
    assert len(environment.calls) == 3
    assert len({call.id for call in environment.calls}) == 1
    assert len(environment.trace_ids) == 1
    assert waits == [RETRY_WAIT_S, 2 * RETRY_WAIT_S]


def test_retries_end_and_drop_the_rollout() -> None:
    setup, environment, waits = retrying(1, ToolError("down"))
    graded = play(setup)
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    assert graded.trajectory.failure is not None
    assert graded.trajectory.failure.message == "down"
    assert (len(environment.calls), waits) == (2, [RETRY_WAIT_S])


def test_the_models_mistakes_are_not_tried_again() -> None:
    limits = Limits(transient_retries=3)
    trajectory, _ = rolled_out(limits, REFUSED, says("done"))
    assert [result.is_error for result in trajectory.tool_results] == [True]
