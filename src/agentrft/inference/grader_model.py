"""Models asked to grade: what is asked, what comes back, and a fake. Loads no torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from agentrft.core.task import Message
from agentrft.core.usage import TokenUsage


@dataclass(frozen=True, slots=True, kw_only=True)
class GradingRequest:
    """One question to a grader model."""

    messages: tuple[Message, ...]
    schema: Mapping[str, Any] | None = None
    """JSON schema that the answer must fit; the model is forced into it where it can be."""
    max_tokens: int | None = None
    temperature: float | None = None
    """None leaves it to the model; reasoning models take none."""
    top_p: float | None = None
    seed: int | None = None
    reasoning_effort: str | None = None
    key: str = ""
    """Idempotency key: the same for the same question of the same rollout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradingReply:
    """What the model answered, whole or cut."""

    text: str
    finish_reason: Literal["stop", "length", "refusal"]
    refusal: str = ""
    """The model's words, if it refused."""
    usage: TokenUsage = field(default_factory=TokenUsage)


class GraderModel(Protocol):
    """A chat model that answers grading questions."""

    async def ask(self, request: GradingRequest) -> GradingReply:
        """Answer. Raises GraderError (`model_grader_server_error`) when retries did not help."""
        ...


class Embedder(Protocol):
    """A model that turns texts into vectors."""

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector per text. Raises GraderError (`model_grader_server_error`)."""
        ...


@dataclass
class ScriptedGraderModel:
    """Replays `replies` in order, the last one for ever, and records the questions."""

    replies: Sequence[GradingReply]
    requests: list[GradingRequest] = field(default_factory=list[GradingRequest])

    async def ask(self, request: GradingRequest) -> GradingReply:
        """Record the question and give the next reply."""
        self.requests.append(request)
        return self.replies[min(len(self.requests), len(self.replies)) - 1]
