"""What would carry a task of dev or holdout into a prompt: its id, or its request."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from agentrft.core.spec import AgentSpec
from agentrft.core.task import Demonstration, Message, Task


def request_of(messages: Sequence[Message]) -> str:
    """Return what was asked: the text before the first answer, without system text or spacing."""
    asked: list[str] = []
    for message in messages:
        if message.role == "assistant":
            break
        if message.role not in {"system", "developer"}:
            asked.append(message.content)
    return " ".join("\n".join(asked).split())


@dataclass(frozen=True, slots=True)
class Withheld:
    """Tasks that no prompt may show."""

    ids: frozenset[str]
    requests: frozenset[str]

    def holds(self, shown: Demonstration) -> bool:
        """Whether a demonstration is of one of them."""
        return shown.id in self.ids or request_of(shown.messages) in self.requests

    def shown_by(self, spec: AgentSpec) -> bool:
        """Whether a spec shows one of them, or quotes the request of one."""
        if any(self.holds(demonstration) for demonstration in spec.shown.pool):
            return True
        text = " ".join(spec.system.split())
        return any(len(request) >= _QUOTED and request in text for request in self.requests)


_QUOTED = 40
"""Characters from which a request found in a system text is no accident."""


def withheld(tasks: Iterable[Task]) -> Withheld:
    """Return what must not be shown, given the tasks of dev and holdout."""
    of = list(tasks)
    requests = frozenset(request_of(task.messages) for task in of)
    return Withheld(ids=frozenset(task.id for task in of), requests=requests - {""})
