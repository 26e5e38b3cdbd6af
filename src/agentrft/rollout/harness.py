"""An `AgentSpec` applied at the boundary: what the model is shown, and what its calls mean.

Between the loop and the model stand model-facing names; everything else is canonical. One `Harness`
per spec, one `Session` per rollout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from agentrft.core.errors import UserError
from agentrft.core.spec import AgentSpec, ToolView
from agentrft.core.task import Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult
from agentrft.rollout.tools import unknown_tool


class Harness:
    """A spec, ready for many rollouts."""

    def __init__(self, spec: AgentSpec) -> None:
        self.spec = spec
        self.spec_hash = spec.hash

    def session(self, task: Task, offered: Sequence[ToolSpec]) -> "Session":
        """Begin a rollout of this task. Raises UserError if task or spec name unknown tools."""
        return Session(self, task, offered)

    def conversation(
        self, task: Task, offered: Sequence[ToolSpec], messages: Sequence[Message]
    ) -> tuple[tuple[Message, ...], tuple[ToolSpec, ...]]:
        """Return a recorded conversation of this task, and its tools, as the model would see them.

        `messages` begin with the task's own. For training on canonical conversations.
        """
        session = self.session(task, offered)
        rest = messages[len(task.messages) :]
        return (*session.prompt, *(session.to_model(message) for message in rest)), session.tools


@dataclass(frozen=True, slots=True, kw_only=True)
class Admission:
    """What becomes of one call."""

    call: ToolCall
    """Canonical, as it is to be run."""
    repairs: tuple[str, ...] = ()
    answer: ToolResult | None = None
    """If set, the call is not run and this is its result."""


class Session:
    """One rollout at the boundary. Attributes are model-facing unless they say otherwise."""

    def __init__(self, harness: Harness, task: Task, offered: Sequence[ToolSpec]) -> None:
        spec = harness.spec
        self.canonical_tools = visible_tools(offered, task, spec.tools)
        """Tools of this rollout under their own names."""
        self.recorded_prompt = prompt_messages(spec.system, task.messages)
        """System text and task messages, canonical and without demonstrations."""
        self.tools = self.canonical_tools
        self.prompt = self.recorded_prompt

    def read(self, said: Message) -> Message:
        """Return the model's message in canonical names; calls of unknown tools stay as written."""
        return said

    def to_model(self, message: Message) -> Message:
        """Return a canonical message as the model would have written or seen it."""
        return message

    def admit(self, call: ToolCall) -> Admission:
        """Decide about a canonical call before it runs; called in the order of the calls."""
        names = [spec.name for spec in self.canonical_tools]
        if call.name not in names:
            return Admission(call=call, answer=unknown_tool(call, names))
        return Admission(call=call)

    def shown(self, call: ToolCall, result: ToolResult) -> ToolResult:
        """Return the result with what the model is shown of it; `call` is the one that ran."""
        return result

    def answers(
        self, results: Sequence[ToolResult], *, turns_left: int, calls_left: int
    ) -> tuple[Message, ...]:
        """Return the messages that follow a turn, remarks of the harness included."""
        return tuple(
            Message(
                role="tool",
                content=result.content if result.shown is None else result.shown,
                tool_call_id=result.call_id,
                name=result.name or None,
            )
            for result in results
        )


def prompt_messages(system: str, messages: Sequence[Message]) -> tuple[Message, ...]:
    """Put the spec's system text first; a system message of the task itself is joined to it."""
    if not system:
        return tuple(messages)
    if messages and messages[0].role == "system":
        joined = f"{system}\n\n{messages[0].content}"
        return (replace(messages[0], content=joined), *messages[1:])
    return (Message(role="system", content=system), *messages)


def visible_tools(
    offered: Sequence[ToolSpec], task: Task, views: Mapping[str, ToolView]
) -> tuple[ToolSpec, ...]:
    """Tools the model is told about: those the row lists (all, if none), as the views describe them.

    Names are canonical. Raises UserError if the row or the views name a tool that does not exist.
    """
    names = [spec.name for spec in offered]
    listed = [spec.name for spec in task.tools] or names
    known = ", ".join(names) or "none"
    for name in listed:
        if name not in names:
            raise UserError(f"task {task.id!r} lists tool {name!r}; the project's tools: {known}")
    for name in views:
        if name not in names:
            raise UserError(f"the spec names a tool {name!r}; the project's tools: {known}")
    return tuple(
        replace(spec, description=view.description or spec.description)
        for spec in offered
        if spec.name in listed and (view := views.get(spec.name, ToolView())).exposed
    )
