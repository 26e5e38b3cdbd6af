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

    def shown_by(self, spec: AgentSpec) -> frozenset[str]:
        """Return what a spec shows of them: ids of demonstrations, requests that a text quotes."""
        told = [spec.system]
        for view in spec.tools.values():
            told += (view.description, *view.argument_notes.values())
        text = "\n".join(" ".join(one.split()) for one in told)
        quoted = {one for one in self.requests if len(one) >= _QUOTED and one in text}
        return frozenset(quoted | {one.id for one in spec.shown.pool if self.holds(one)})


_QUOTED = 40
"""Characters from which a request found in a text is no accident."""


def withheld(tasks: Iterable[Task]) -> Withheld:
    """Return what must not be shown, given the tasks of dev and holdout."""
    of = list(tasks)
    requests = frozenset(request_of(task.messages) for task in of)
    return Withheld(ids=frozenset(task.id for task in of), requests=requests - {""})
