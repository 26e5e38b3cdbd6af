"""Recorded rollouts acted out again under another spec: same calls, same results, same answer.

Through the loop of all rollouts, so that what another spec would show of a result, say with its
guards or remark near its limits is in it. Nothing is sampled and no tool runs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from agentrft.core.errors import ToolError
from agentrft.core.grade import Grade
from agentrft.core.policy import Policy
from agentrft.core.protocols import Environment
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import StopReason, ToolResult, Trajectory
from agentrft.jobs.own_rollouts import actions
from agentrft.jobs.project import Project
from agentrft.rollout.dialogue import DialogueError, SpokenTurn, TurnRequest
from agentrft.rollout.episode import RolloutSetup, run_episode, trace_id
from agentrft.rollout.harness import Conversation


class Retelling:
    """Retells rollouts of one project under a spec."""

    def __init__(self, project: Project, spec: AgentSpec) -> None:
        self._project = project
        self._setup = RolloutSetup(
            policy=Policy(model=project.config.agent_model, version=0, spec=spec),
            speaker=self,
            open_environment=self._open,
            grader=_NoGrader(),
            wait=_at_once,
        )
        self._tellings: dict[str, _Telling] = {}

    async def retold(self, task: Task, trajectory: Trajectory) -> Conversation | None:
        """Return a rollout's conversation as the spec shows it; None if it would have gone otherwise.

        None also for one without an answer, or with a call that nobody could read.
        """
        unreadable = any(turn.parse_failures for turn in trajectory.turns)
        if trajectory.stop_reason is not StopReason.FINISHED or unreadable:
            return None
        offered = self._project.offered(task)
        answers = trajectory.messages[len(trajectory.prompt) :]
        session = self._setup.harness.session(task, offered)
        seen = self._setup.harness.conversation(task, offered, (*task.messages, *answers))
        own = seen.messages[len(session.prompt) :]
        telling = _Telling(
            offered=offered,
            lines=[message for message in own if message.role == "assistant"],
            results={result.call_id: result for result in trajectory.tool_results},
        )
        name = trace_id(self._setup, task, trajectory.seed)
        self._tellings[name] = telling
        try:
            acted = await run_episode(self._setup, task, seed=trajectory.seed)
        finally:
            del self._tellings[name]
        if _course(acted.trajectory) != _course(trajectory):
            return None
        return Conversation(
            messages=tuple(telling.heard), tools=telling.told, shown=session.answers_shown
        )

    def begin(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], trace_id: str
    ) -> "_Telling":
        """Open the conversation of one rollout."""
        telling = self._tellings[trace_id]
        telling.heard, telling.told = [*messages], tuple(tools)
        return telling

    def _open(self, task: Task, trace_id: str) -> Environment:
        return self._tellings[trace_id]


@dataclass
class _Telling:
    """One rollout: the model's lines, and the world that answers as it did."""

    offered: Sequence[ToolSpec]
    lines: list[Message]
    """What the model says, in its own names."""
    results: Mapping[str, ToolResult]
    """By call id."""
    heard: list[Message] = field(default_factory=list[Message])
    told: tuple[ToolSpec, ...] = ()
    prompt_tokens: int = 0
    """No limit on tokens binds here; what is too long is cut where it is rendered."""

    async def speak(self, request: TurnRequest) -> SpokenTurn:
        """Say the next line."""
        if not self.lines:
            raise DialogueError("retelling", "the recorded rollout ends here")
        self.heard.append(self.lines.pop(0))
        return SpokenTurn(message=self.heard[-1])

    def hear(self, said: Message, answers: Sequence[Message]) -> None:
        """Keep what the model is shown."""
        self.heard += answers

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Return the tools that the rollout was offered."""
        return tuple(self.offered)

    async def call_tool(self, call: ToolCall) -> ToolResult:
        """Answer as the tool did. Raises ToolError for a call that never reached it."""
        result = self.results.get(call.id)
        if result is None or result.guard:
            raise ToolError(f"the recorded rollout has no result of call {call.id!r}")
        return ToolResult(
            call_id=call.id, name=result.name, content=result.content, is_error=result.is_error
        )

    async def close(self) -> None:
        """Hold nothing."""


class _NoGrader:
    name = "retelling"

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        return Grade(score=0.0, grader=self.name)


async def _at_once(seconds: float) -> None:
    """Wait for nobody: no tool recovers here."""


def _course(trajectory: Trajectory) -> object:
    """Return what must not depend on the telling."""
    guards = [[result.guard for result in turn.tool_results] for turn in trajectory.turns]
    return trajectory.stop_reason, actions(trajectory), guards
