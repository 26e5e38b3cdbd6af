"""Why a rollout failed: the class of its first decisive error, by rules on the record alone."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum


class FailureClass(StrEnum):
    """What went wrong first, and decided the outcome."""

    MALFORMED_CALL = "malformed call"
    UNKNOWN_TOOL = "unknown tool"
    NO_CALL = "no call"
    """Answered without a tool that every success needed."""
    WRONG_TOOL = "wrong tool"
    WRONG_ARGUMENTS = "wrong arguments"
    MISREAD_OUTPUT = "misread output"
    EARLY_STOP = "early stop"
    TOO_MANY_CALLS = "too many calls"
    UNSAFE_WRITE = "unsafe write"
    WRONG_PLAN = "wrong plan"
    TRUNCATED = "truncated"
    """A limit on tokens or context cut it."""
    INFRASTRUCTURE = "infrastructure"
    """Also a grader that failed; no fault of the model."""


MECHANICAL = frozenset(
    {
        FailureClass.MALFORMED_CALL,
        FailureClass.UNKNOWN_TOOL,
        FailureClass.NO_CALL,
        FailureClass.WRONG_ARGUMENTS,
        FailureClass.TOO_MANY_CALLS,
        FailureClass.UNSAFE_WRITE,
        FailureClass.TRUNCATED,
    }
)
"""Classes that structure can treat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """One failed rollout."""

    failure_class: FailureClass
    turn: int | None
    """Where it happened; None if it is the rollout as a whole."""
    evidence: str
    """One line: what was seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Successes:
    """What the solved rollouts of a sample have in common, by task family."""

    tools: Mapping[str, frozenset[str]]
    """Family to tools that some success called; the key "" holds all families together."""
    needed: Mapping[str, frozenset[str]]
    """Family to tools that every success called."""
