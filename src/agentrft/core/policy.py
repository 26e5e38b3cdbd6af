"""Who acts: the agent's spec and the weights that serve it."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from agentrft.core.config import Decoding, Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentSpec:
    """Everything a rollout depends on besides weights; hashed, applied at the boundary."""

    system: str = ""
    """System text put before the task's own messages; empty leaves them alone."""
    tool_notes: Mapping[str, str] = field(default_factory=dict[str, str])
    """Tool name to the description the model sees instead of the tool's own."""
    limits: Limits = field(default_factory=Limits)
    decoding: Decoding = field(default_factory=Decoding)

    @property
    def hash(self) -> str:
        """16 hex digits over every field."""
        text = json.dumps(asdict(self), sort_keys=True, ensure_ascii=False)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """A published set of weights together with the spec it acts under."""

    model: str
    version: int
    """Counter of published weights; 0 is the untouched start."""
    spec: AgentSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Canary:
    """A fixed sequence with the trainer's log-probability of each token after the first.

    The sampler must reproduce them, or it does not serve these weights.
    """

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """New weights on their way from a trainer to a sampler, with their proof of identity."""

    version: int
    tensors: Mapping[str, Any]
    """Parameter name (as in the model's checkpoint) to tensor; only those that may have changed."""
    canaries: tuple[Canary, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights on disk, complete: the record is written after the folder is in place."""

    run_id: str
    step: int
    path: str
    policy_version: int
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
