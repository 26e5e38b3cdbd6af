"""Who acts: the agent's spec and the weights that serve it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from agentrft.core.spec import AgentSpec


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
    write_adapter: Callable[[Path], None] | None = None
    """Writes the adapter behind the tensors to a folder in PEFT's format; None if all weights train."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """Weights on disk, complete: the record is written after the folder is in place."""

    run_id: str
    step: int
    path: str
    policy_version: int
    metrics: Mapping[str, float] = field(default_factory=dict[str, float])
    spec_hash: str = ""
    """The spec under which it was trained; empty for checkpoints older than the record of it."""
