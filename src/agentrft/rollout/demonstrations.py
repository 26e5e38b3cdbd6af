"""Which demonstrations a task is shown, and a demonstration as messages of a prompt."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from agentrft.core.errors import ConfigError
from agentrft.core.spec import Shown
from agentrft.core.task import Demonstration, Message, Task
from agentrft.rollout.nearest import Nearest

MOST = 8


class DemonstrationPool:
    """The pool of a spec, ready for many tasks. Raises ConfigError for a count out of range."""

    def __init__(self, shown: Shown) -> None:
        if not 0 <= shown.count <= MOST:
            raise ConfigError(f"the spec shows {shown.count} demonstrations; 0 to {MOST} can be")
        self._shown = shown
        self._nearest = Nearest([request(one.messages) for one in shown.pool])

    def chosen(self, task: Task, callable_tools: Collection[str]) -> tuple[Demonstration, ...]:
        """Return what this task is shown, in order: never itself, never a call it cannot make."""
        shown = self._shown
        if not shown.count:
            return ()
        fitting = [one.id != task.id and _called(one) <= set(callable_tools) for one in shown.pool]
        if shown.selection == "nearest":
            order = self._nearest.order(request(task.messages))
            best = [shown.pool[place] for place in order if fitting[place]][: shown.count]
            return tuple(reversed(best))  # the nearest stands right before the request
        pool = [one for one, fits in zip(shown.pool, fitting, strict=True) if fits]
        if shown.selection == "covering":
            pool = list(_covering(pool))
        return tuple(pool[: shown.count])


def request(messages: Sequence[Message]) -> str:
    """Return what the user asks for, up to the first answer."""
    return "\n".join(message.content for message in opening(messages) if message.role == "user")


def opening(messages: Sequence[Message]) -> Sequence[Message]:
    """Return what stands before the assistant's first message."""
    roles = [message.role for message in messages]
    return messages[: roles.index("assistant")] if "assistant" in roles else messages


def in_prompt(demonstration: Demonstration, number: int) -> Iterator[Message]:
    """Return a demonstration without system text, with call ids that no other message has."""
    ids: dict[str | None, str] = {}
    for message in demonstration.messages:
        if message.role in ("system", "developer"):
            continue
        for call in message.tool_calls:
            ids[call.id] = f"call_shown_{number}_{len(ids)}"
        yield replace(
            message,
            tool_calls=tuple(replace(call, id=ids[call.id]) for call in message.tool_calls),
            tool_call_id=ids.get(message.tool_call_id, message.tool_call_id),
        )


def _called(demonstration: Demonstration) -> set[str]:
    return {call.name for message in demonstration.messages for call in message.tool_calls}


def _covering(pool: Sequence[Demonstration]) -> Iterator[Demonstration]:
    families: set[str] = set()
    for one in pool:
        if not one.family or one.family not in families:
            families.add(one.family)
            yield one
