"""The six seams. Everything heavy or foreign stands behind one of them; each ships a fake."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from agentrft.core.grade import Grade
from agentrft.core.policy import Weights
from agentrft.core.run import Record, Run
from agentrft.core.sample import Sample
from agentrft.core.task import Task, ToolCall, ToolSpec
from agentrft.core.trajectory import FinishReason, ToolResult, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleRequest:
    """One model call: continue these tokens."""

    prompt_ids: tuple[int, ...]
    """The whole context; engines find what they already hold of it themselves."""
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int = 0
    """With the same weights, the same seed draws the same uniform numbers."""
    stop_token_ids: tuple[int, ...] = ()
    deadline_s: float | None = None
    """Seconds from now; what was sampled until then is returned."""
    patience_s: float = 0.0
    """Seconds in the engine's line, before it begins with this call, that do not count for that."""
    grammar: str = ""
    """Lark as llguidance reads it: tokens are drawn among those it allows, stop tokens only where it
    is complete. Empty forces nothing. Engines that can force none raise UserError; fakes ignore it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What the engine sampled. The stop token, if any, is the last of `token_ids`."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]
    """Of each token, under the distribution drawn from, in nats: after grammar, temperature and top-p,
    each renormalised. Under a grammar no trainer computes the same, so such rollouts are not trained
    on."""
    finish_reason: FinishReason
    first_version: int
    last_version: int
    cached_tokens: int = 0
    """Prompt tokens that were not computed again."""
    waited_s: float = 0.0
    """Seconds in line that did not count, `patience_s` at most."""


class Sampler(Protocol):
    """Tokens in, tokens out. Cancelling the awaiting task cancels the request."""

    async def sample(self, request: SampleRequest) -> Completion:
        """Draw a continuation. Raises SamplerError if the engine fails or the prompt does not fit."""
        ...

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities (temperature 1) of every token after the first, per sequence."""
        ...

    async def load(self, weights: Weights) -> None:
        """Serve these weights from the next token on; later completions carry their version."""
        ...


class Environment(Protocol):
    """The world of one rollout; a fresh instance each time."""

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        """Tools this rollout may use, canonical names."""
        ...

    async def call_tool(self, call: ToolCall) -> ToolResult:
        """Run one call. The model's mistakes become error results; ToolError drops the rollout."""
        ...

    async def close(self) -> None:
        """Free what the rollout held."""
        ...


class OpenEnvironment(Protocol):
    """Make the environment of one rollout."""

    def __call__(self, task: Task, trace_id: str) -> Environment:
        """`trace_id` is the trajectory's id; HTTP tools send it with every call."""
        ...


class Grader(Protocol):
    """Trajectory in, grade out."""

    @property
    def name(self) -> str:
        """As shown in reports."""
        ...

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Grade a finished rollout; raises GraderError if it cannot. `environment` is still open."""
        ...


class Trainer(Protocol):
    """Samples in, better weights out."""

    @property
    def cursor(self) -> Mapping[str, int]:
        """What `save` was given by the checkpoint that this trainer resumed; else empty."""
        ...

    def step(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        """Make one optimizer step and return its metrics; no samples change nothing."""
        ...

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        """Return what a step on these samples would measure, without making it."""
        ...

    def weights(self) -> Weights:
        """Return the current weights with canaries; the version counts steps taken."""
        ...

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities (temperature 1) of every token after the first, per sequence."""
        ...

    def save(self, folder: Path, cursor: Mapping[str, int]) -> None:
        """Write a complete checkpoint (weights, optimizer, RNG, data cursor) atomically."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """Code nobody trusts, with its input and its limits."""

    argv: tuple[str, ...]
    stdin: bytes = b""
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])
    timeout_s: float = 120.0
    memory_bytes: int = 2 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramResult:
    """How a program ended."""

    exit_code: int | None
    """None if it was killed at its deadline."""
    stdout: bytes
    stderr: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Function:
    """A Python function nobody trusts. Equal functions share a warm worker and nothing else."""

    source: str
    """A module; it is imported once per worker and must be done within `import_timeout_s`."""
    name: str = "grade"
    image_tag: str = ""
    """Package set; empty for the default one."""
    owner: str = ""
    """Who brought it: functions of different owners never share a worker."""
    timeout_s: float = 10.0
    """Wall clock and processor time of one call."""
    import_timeout_s: float = 30.0
    memory_bytes: int = 512 << 20
    disk_bytes: int = 64 << 20
    processes: int = 48


class FunctionFault(StrEnum):
    """Why a call gave no value."""

    RAISED = "raised"
    """An exception in the function or while its source was imported."""
    TIMEOUT = "timeout"
    RESOURCES = "resources"
    """Killed, or it died: memory, processes, a signal, `os._exit`."""
    RESULT = "result"
    """What came back is not one JSON value within the cap."""
    SANDBOX = "sandbox"
    """The sandbox itself failed; infrastructure's fault, and it may pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionResult:
    """What one call came to."""

    value: Any = None
    """JSON types; meaningless if there is a fault."""
    fault: FunctionFault | None = None
    detail: str = ""
    """What happened, for the function's author: exception type, message and the last line."""
    duration_s: float = 0.0


class Sandbox(Protocol):
    """Run code nobody trusts."""

    async def run(self, program: Program) -> ProgramResult:
        """Run to the end or the deadline; never raises for what the program does."""
        ...

    async def call(self, function: Function, arguments: Sequence[Any]) -> FunctionResult:
        """Call with JSON values in a fresh fork; never raises for what the function does."""
        ...


R = TypeVar("R", bound=Record)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """A slice of a list, such as a run's records in the order they were appended."""

    items: tuple[T, ...]
    last: int
    """Cursor: pass as `after` to get the next page."""
    has_more: bool


class Store(Protocol):
    """What survives a restart."""

    def put_run(self, run: Run) -> None:
        """Insert a run or replace the row of the same id."""
        ...

    def append(self, run_id: str, records: Sequence[Record]) -> None:
        """Append records in one transaction: all or none."""
        ...

    def read(self, run_id: str, kind: type[R], *, after: int = 0, limit: int = 100) -> Page[R]:
        """Read records of one kind in append order."""
        ...
