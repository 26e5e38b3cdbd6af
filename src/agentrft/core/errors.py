"""Errors a user can meet, and the boundary that says whose they are.

    AgentRFTError
    |- UserError            the input is wrong: what, which, what to do
    |  |- ConfigError       a config file or option
    |  |- DataError         a dataset file (file, line, field)
    |  `- ModelError        a model that is missing, broken or too big
    |- ToolError            a tool failed for a reason that is not the model's
    |- GraderError          a grader failed; the rollout is not graded
    |- SamplerError         the engine could not answer
    |- IdentityError        the sampler does not serve the trainer's weights
    |- PausedError          the run stops here until the user has looked at something
    `- StoreError           the home folder cannot be read or written
       `- LeaseLostError    another worker holds the job now; what this one writes is refused
Code of users may raise anything; `boundary` attributes it. Cancellation passes through untouched.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from agentrft.core.usage import TokenUsage


class AgentRFTError(Exception):
    """Base of every error this package raises on purpose."""


class UserError(AgentRFTError):
    """The input is wrong; the message says which part and what to do."""


class ConfigError(UserError):
    """A config file or option is wrong."""


class DataError(UserError):
    """A dataset file is wrong; the message names file, line and field."""


class ModelError(UserError):
    """A model is missing, broken or does not fit."""


class ToolError(AgentRFTError):
    """A tool failed for a reason that is not the model's; the rollout is dropped."""


class GraderError(AgentRFTError):
    """A grader failed; the rollout stays ungraded."""

    def __init__(
        self,
        message: str,
        *,
        code: str = "other_error",
        usage: Mapping[str, TokenUsage] | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        """Family of the fault, in the contract's words; metrics count by it."""
        self.usage: Mapping[str, TokenUsage] = usage or {}
        """What models took before it failed, as in a grade: they are paid for all the same."""


class SamplerError(AgentRFTError):
    """The engine could not answer."""


class IdentityError(AgentRFTError):
    """The sampler does not serve the weights the trainer published."""


class PausedError(AgentRFTError):
    """The run ended early for a reason that the user must look at; then it can be resumed."""


class StoreError(AgentRFTError):
    """The home folder cannot be read or written."""


class LeaseLostError(StoreError):
    """Another worker holds the job now, or it ended; nothing this one writes is kept."""


@contextmanager
def boundary(kind: type[AgentRFTError], where: str) -> Iterator[None]:
    """Re-raise anything foreign as `kind`, naming where; ours and cancellation pass through.

    >>> with boundary(GraderError, "grader 'refunds'"):
    ...     raise ZeroDivisionError("division by zero")
    Traceback (most recent call last):
    agentrft.core.errors.GraderError: grader 'refunds': ZeroDivisionError: division by zero
    """
    try:
        yield
    except AgentRFTError:
        raise
    except Exception as error:
        detail = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise kind(f"{where}: {detail}") from error
