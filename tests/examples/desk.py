"""Rollouts of the support desk by script: which calls, turn by turn, and what is said at the end."""

# pyright: reportMissingImports=false
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tools import SupportDesk

from agentrft.core.grade import Grade
from agentrft.core.protocols import Grader, OpenEnvironment
from agentrft.core.task import Message, Task, ToolCall
from agentrft.core.trajectory import StopReason, ToolResult, Trajectory, Turn
from agentrft.graders.environment import EnvironmentGrader
from agentrft.rollout.environment import python_environment

FOLDER = Path(__file__).parents[2] / "examples" / "support_desk"
Row = Mapping[str, Any]
_NUMBERS = itertools.count()
Turns = Sequence[Sequence[tuple[str, Mapping[str, Any]]]]


def read(name: str) -> list[dict[str, Any]]:
    """Return the rows of one of the project's files."""
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text().splitlines()]


async def played(
    row: Row,
    turns: Turns,
    text: str,
    stop: StopReason = StopReason.FINISHED,
    open_environment: OpenEnvironment | None = None,
    grader: Grader | None = None,
) -> Grade:
    """Grade a rollout that makes these calls, turn by turn, and then says `text`."""
    task = Task(id=row["id"], messages=(), row=row)
    trace_id = f"trace_{next(_NUMBERS)}"
    environment = (open_environment or python_environment(SupportDesk))(task, trace_id)
    made: list[Turn] = []
    for number, calls in enumerate(turns):
        tool_calls = tuple(
            ToolCall(id=f"call_{number}{index}", name=name, arguments=json.dumps(arguments))
            for index, (name, arguments) in enumerate(calls)
        )
        results = [await environment.call_tool(call) for call in tool_calls]
        made.append(turn(Message(role="assistant", tool_calls=tool_calls), tuple(results)))
    made.append(turn(Message(role="assistant", content=text)))
    trajectory = Trajectory(
        id=trace_id,
        task_id=task.id,
        model="scripted",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=tuple(made),
        stop_reason=stop,
    )
    grade = await (grader or EnvironmentGrader()).grade(task, trajectory, environment)
    await environment.close()
    return grade


def turn(message: Message, results: tuple[ToolResult, ...] = ()) -> Turn:
    return Turn(
        observation_ids=(),
        action_ids=(),
        behavior_logprobs=(),
        first_version=0,
        last_version=0,
        message=message,
        tool_results=results,
    )
