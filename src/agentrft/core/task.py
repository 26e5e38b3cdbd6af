"""What the agent is asked: messages, tools and the task that holds them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "developer", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """One tool as the model is told about it."""

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments, an object schema."""
    read_only: bool = False
    """Calling it changes nothing; False where nobody said so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One call as the model wrote it."""

    id: str
    name: str
    arguments: str
    """JSON text, exactly as the model wrote it; parsed only where the tool runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat message in canonical (boundary-free) form."""

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    """On `tool` messages: which call this answers."""
    name: str | None = None
    """On `tool` messages: the tool that answered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One dataset row: the prompt, the tools it may use and everything the grader may know.

    `row` never reaches the policy: only `messages` and `tools` are rendered.
    """

    id: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    row: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The whole dataset row; `task["key"]` reads it."""
    family: str = ""
    """Which kind of request this is; intervals are clustered and tables split by it."""

    def __getitem__(self, key: str) -> Any:
        try:
            return self.row[key]
        except KeyError:
            known = ", ".join(sorted(self.row)) or "none"
            raise KeyError(f"task {self.id!r} has no field {key!r}; its fields: {known}") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """A conversation to imitate, tool results included; the last message is the assistant's."""

    id: str
    messages: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    family: str = ""
    imitated: tuple[bool, ...] = ()
    """Whether to imitate each of the assistant's messages, in order; empty means all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preference:
    """Two ways to go on from one conversation, of which the first is better.

    Each way is assistant messages with the tool results between them; it ends with the assistant's.
    """

    id: str
    messages: tuple[Message, ...]
    """What both begin with; never ends with the assistant."""
    preferred: tuple[Message, ...]
    rejected: tuple[Message, ...]
    tools: tuple[ToolSpec, ...] = ()
    family: str = ""

    @property
    def ways(self) -> tuple[Demonstration, Demonstration]:
        """Both as whole conversations, the better one first; what they begin with is not imitated."""
        before = sum(message.role == "assistant" for message in self.messages)
        preferred, rejected = (
            Demonstration(
                id=self.id,
                messages=(*self.messages, *way),
                tools=self.tools,
                family=self.family,
                imitated=(False,) * before
                + (True,) * sum(message.role == "assistant" for message in way),
            )
            for way in (self.preferred, self.rejected)
        )
        return preferred, rejected


def content_id(row: Mapping[str, Any]) -> str:
    """Return an id that is the same in every run for a row that gives none: 16 hex digits."""
    text = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
