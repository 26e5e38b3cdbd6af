"""A row, and a rollout that ended with a text."""

from agentrft.core.task import Message, Task, ToolCall
from agentrft.core.trajectory import StopReason, Trajectory, Turn

TASK = Task(id="task-1", messages=(), row={"reference": "Paris", "family": "x"})


def a_trajectory(text: str, *tool_calls: ToolCall) -> Trajectory:
    turn = Turn(
        observation_ids=(1,),
        action_ids=(2,),
        behavior_logprobs=(-0.1,),
        first_version=0,
        last_version=0,
        message=Message(role="assistant", content=text, tool_calls=tool_calls),
    )
    return Trajectory(
        id="trace_1",
        task_id="task-1",
        model="m",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=(turn,),
        stop_reason=StopReason.FINISHED,
    )
