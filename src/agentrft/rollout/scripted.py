"""An environment of canned results, for tests and dry runs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentrft.core.errors import AgentRFTError
from agentrft.core.task import Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult, Trajectory
from agentrft.rollout.tools import error_result, unknown_tool

Reply = str | ToolResult | AgentRFTError
"""Text, a whole result (its ids are filled in), or an error to raise."""


@dataclass
class ScriptedEnvironment:
    """Answers each tool with its replies in turn, the last one for ever; records calls."""

    replies: Mapping[str, Sequence[Reply]]
    score: float = 0.0
    calls: list[ToolCall] = field(default_factory=list[ToolCall])
    trace_ids: list[str] = field(default_factory=list[str])
    """Of the rollouts that opened it."""
    closed: int = 0
    """How often it was closed."""

    def __call__(self, task: Task, trace_id: str) -> "ScriptedEnvironment":
        """Act as its own opener: every rollout shares this instance and its record."""
        self.trace_ids.append(trace_id)
        return self

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Tools with replies; each takes anything."""
        parameters = {"type": "object", "properties": {}}
        return tuple(
            ToolSpec(name=name, description=f"Canned {name}.", parameters=parameters)
            for name in self.replies
        )

    async def call_tool(self, call: ToolCall) -> ToolResult:
        """Answer with the next reply of this tool, or raise it."""
        if call.name not in self.replies:
            return unknown_tool(call, self.replies)
        earlier = sum(1 for past in self.calls if past.name == call.name)
        self.calls.append(call)
        replies = self.replies[call.name]
        match replies[min(earlier, len(replies) - 1)]:
            case ToolResult(is_error=True, content=content):
                return error_result(call, content)
            case ToolResult(content=content) | str(content):
                return ToolResult(call_id=call.id, name=call.name, content=content)
            case AgentRFTError() as error:
                raise error

    async def run_grade(self, trajectory: Trajectory) -> object:
        """Give the scripted score."""
        return self.score

    async def close(self) -> None:
        """Count the closing."""
        self.closed += 1
