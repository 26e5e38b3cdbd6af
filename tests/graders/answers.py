"""A row, a rollout that ended with a text, and a model that embeds texts."""

from collections.abc import Sequence
from dataclasses import dataclass

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


@dataclass
class Letters:
    """Embeds a text as how often each of three letters is in it."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        return [[float(text.count(letter)) for letter in "abc"] for text in texts]
