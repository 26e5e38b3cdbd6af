"""An `AgentSpec` applied at the boundary: what the model is shown, and what its calls mean.

Between the loop and the model stand model-facing names; everything else is canonical. One `Harness`
per spec, one `Session` per rollout.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import is_

from agentrft.core.errors import ConfigError, UserError
from agentrft.core.spec import AgentSpec, Rendering, ToolView
from agentrft.core.task import Demonstration, Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult
from agentrft.rollout.demonstrations import DemonstrationPool, in_prompt, opening, request
from agentrft.rollout.guards import Admission, GuardState, coerced, seen
from agentrft.rollout.naming import Names
from agentrft.rollout.nearest import Nearest
from agentrft.rollout.rendering import IdShortener, cut, formed
from agentrft.rollout.tools import error_result, unknown_tool


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """A recorded conversation as the model would see it."""

    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...]
    shown: int
    """Assistant messages of the demonstrations at its beginning, which are no part of the record."""


class Harness:
    """A spec, ready for many rollouts. Raises ConfigError for a spec that no rollout can have."""

    def __init__(self, spec: AgentSpec) -> None:
        self.spec = spec
        self.spec_hash = spec.hash
        self.pool = DemonstrationPool(spec.shown)
        self._names = Names((), {})

    def session(self, task: Task, offered: Sequence[ToolSpec]) -> "Session":
        """Begin a rollout of this task. Raises UserError if task or spec name unknown tools."""
        return Session(self, task, offered)

    def names(self, tools: Sequence[ToolSpec]) -> Names:
        """Return what the model calls these tools, the same object as for the rollout before.

        Raises ConfigError if the spec gives two of them one name.
        """
        known = [form.canonical for form in self._names.forms.values()]
        # By identity: comparing schemas would not tell 1 from True.
        if len(known) != len(tools) or not all(map(is_, known, tools)):
            self._names = Names(tools, self.spec.tools)
        return self._names

    def conversation(
        self, task: Task, offered: Sequence[ToolSpec], messages: Sequence[Message]
    ) -> Conversation:
        """Return a recorded conversation of this task as the model would see it.

        `messages` begin with the task's own. For training on canonical conversations.
        """
        session = self.session(task, offered)
        rest = (session.to_model(message) for message in messages[len(task.messages) :])
        return Conversation(
            messages=(*session.prompt, *rest), tools=session.tools, shown=session.answers_shown
        )

    def demonstration(self, row: Demonstration, offered: Sequence[ToolSpec]) -> Conversation:
        """Return a demonstration as the model would see it, other ones before it as the spec says."""
        asked = tuple(opening(row.messages))
        task = Task(id=row.id, messages=asked, tools=row.tools, family=row.family)
        return self.conversation(task, offered, row.messages)


class Session:
    """One rollout at the boundary. Attributes are model-facing unless they say otherwise."""

    def __init__(self, harness: Harness, task: Task, offered: Sequence[ToolSpec]) -> None:
        self._spec = spec = harness.spec
        _check_tools_known(spec, task, offered)
        exposed = visible_tools(offered, task, spec.tools)
        self.canonical_tools = _retrieved(exposed, spec, request(task.messages))
        """Tools of this rollout under their own names."""
        self._names = harness.names(self.canonical_tools)
        self.tools = self._names.shown
        self.recorded_prompt = prompt_messages(spec.system, task.messages)
        """System text and task messages, canonical and without demonstrations."""
        self._ids = IdShortener()
        for message in self.recorded_prompt:
            self._ids.seen(message.content)
        shown = harness.pool.chosen(task, self._names.forms)
        told = tuple(self._told(shown))
        head = _system_messages(self.recorded_prompt)
        own = (self.to_model(message) for message in self.recorded_prompt[head:])
        self.prompt = (*self.recorded_prompt[:head], *told, *own)
        self.answers_shown = sum(message.role == "assistant" for message in told)
        """Assistant messages of demonstrations in the prompt."""
        self._guards = GuardState(spec.guards, self.canonical_tools, self._written)
        self._said: dict[str, ToolCall] = {}
        """This turn's calls by id, as the model wrote them."""

    def read(self, said: Message) -> Message:
        """Return the model's message in canonical names; calls of unknown tools stay as written."""
        ids = self._ids
        calls = [replace(call, arguments=ids.restore(call.arguments)) for call in said.tool_calls]
        self._said = {call.id: call for call in calls}
        canonical = tuple(self._names.to_canonical(call) for call in calls)
        return replace(said, content=ids.restore(said.content), tool_calls=canonical)

    def to_model(self, message: Message) -> Message:
        """Return a canonical message as the model would have written or seen it."""
        return self._as_seen(message, self._ids)

    def admit(self, call: ToolCall) -> Admission:
        """Decide about a call of the message read last; called in the order of the calls."""
        guards, repairs = self._spec.guards, list[str]()
        written = self._said[call.id]
        if guards.nearest_names and (mended := self._names.nearest(written)) != written:
            written, call = mended, self._names.to_canonical(mended)
            repairs.append("nearest_names")
        form = self._names.by_shown.get(written.name)
        if form is None:
            # Not even under a canonical name: the model was not told of it.
            answer = unknown_tool(written, self._names.by_shown)
            return Admission(call=call, answer=replace(answer, guard="names"))
        if unknown := form.hidden(written.arguments):
            told = f"{form.shown.name} has no argument {unknown!r}; expected {form.call_form}"
            answer = replace(error_result(call, told), guard="names")
            return Admission(call=call, repairs=tuple(repairs), answer=answer)
        if guards.coerce:
            arguments = coerced(call.arguments, form.canonical.parameters)
            if arguments != call.arguments:
                call = replace(call, arguments=arguments)
                repairs.append("coerce")
        return self._guards.admit(call, tuple(repairs))

    def shown(self, call: ToolCall, result: ToolResult) -> ToolResult:
        """Return the result with what the model is shown of it; `call` is the one that ran.

        Called in the order of the calls, once all of a turn have finished.
        """
        if not result.guard:
            text = self._rendered(result.content, call.name, self._ids, is_error=result.is_error)
            result = replace(result, shown=None if text == result.content else text)
        return self._guards.finished(call, result)

    def answers(self, results: Sequence[ToolResult]) -> tuple[Message, ...]:
        """Return the messages that follow a turn."""
        return tuple(
            Message(
                role="tool",
                content=seen(result),
                tool_call_id=result.call_id,
                name=self._names.shown_name(result.name) or None,
            )
            for result in results
        )

    def hears(self, message: Message) -> Message:
        """Return a further message of the user as the model sees it."""
        self._ids.seen(message.content)
        return self.to_model(message)

    def _told(self, demonstrations: Sequence[Demonstration]) -> Iterator[Message]:
        for number, demonstration in enumerate(demonstrations):
            ids = IdShortener()  # each one is a conversation of its own
            for message in in_prompt(demonstration, number):
                yield self._as_seen(message, ids)

    def _as_seen(self, message: Message, ids: IdShortener) -> Message:
        match message.role:
            case "assistant":
                calls = tuple(self._written(call, ids) for call in message.tool_calls)
                return replace(message, content=ids.known(message.content), tool_calls=calls)
            case "tool":
                tool = message.name or ""
                is_error = message.content.startswith("Error:")
                text = self._rendered(message.content, tool, ids, is_error=is_error)
                return replace(message, content=text, name=self._names.shown_name(tool) or None)
            case _:
                return message

    def _written(self, call: ToolCall, ids: IdShortener | None = None) -> ToolCall:
        written = self._names.to_model(call)
        return replace(written, arguments=(ids or self._ids).known(written.arguments))

    def _rendered(self, text: str, tool: str, ids: IdShortener, *, is_error: bool) -> str:
        """Return what the model sees of a tool's text."""
        rendering = self._rendering(tool)
        form = self._names.forms.get(tool)
        text = self._names.told(text, tool) if is_error else formed(text, rendering)
        text = ids.shorten(text) if rendering.shorten_ids else text
        if not is_error:
            return cut(text, rendering)
        return f"{text}\nExpected: {form.call_form}" if rendering.error_hints and form else text

    def _rendering(self, tool: str) -> Rendering:
        return self._spec.tools.get(tool, ToolView()).rendering or self._spec.rendering


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
    """Return the tools a task may be told about: those the row lists (all, if none) and views show.

    Names are canonical. Raises UserError if the row names a tool that does not exist.
    """
    names = [spec.name for spec in offered]
    listed = [spec.name for spec in task.tools] or names
    for name in listed:
        if name not in names:
            known = ", ".join(names) or "none"
            raise UserError(f"task {task.id!r} lists tool {name!r}; the project's tools: {known}")
    return tuple(
        spec for spec in offered if spec.name in listed and views.get(spec.name, ToolView()).exposed
    )


def _check_tools_known(spec: AgentSpec, task: Task, offered: Sequence[ToolSpec]) -> None:
    """Refuse a spec that names no tool of the project; a row with a list may offer only a part."""
    if task.tools:
        return
    known = [tool.name for tool in offered]
    guards = spec.guards
    ordered = [name for rule in guards.preconditions for name in (rule.tool, *rule.after)]
    named = (*spec.tools, *spec.exposure.always, *guards.check_first, *guards.confirm, *ordered)
    for name in named:
        if name not in known:
            listed = ", ".join(known) or "none"
            raise ConfigError(f"the spec names a tool {name!r}; the project's tools: {listed}")


def _retrieved(tools: tuple[ToolSpec, ...], spec: AgentSpec, asked: str) -> tuple[ToolSpec, ...]:
    """Return the tools nearest to a request, in their own order."""
    exposure = spec.exposure
    if exposure.mode == "all":
        return tools
    shown = [form.shown for form in Names(tools, spec.tools).forms.values()]
    order = Nearest([f"{tool.name} {tool.description}" for tool in shown]).order(asked)
    kept = [tool.name for tool in tools if tool.name in exposure.always]
    nearest = [tools[place].name for place in order if tools[place].name not in kept]
    kept += nearest[: max(0, exposure.most - len(kept))]
    return tuple(tool for tool in tools if tool.name in kept)


def _system_messages(prompt: Sequence[Message]) -> int:
    """Return how many messages of system text a prompt begins with."""
    return next(
        (n for n, one in enumerate(prompt) if one.role not in ("system", "developer")), len(prompt)
    )
