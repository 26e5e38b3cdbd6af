"""The record of one rollout. Turns store only the tokens they add; nothing is ever re-tokenised."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum

from agentrft.core.task import Message, ToolCall
from agentrft.core.usage import TokenUsage


class FinishReason(StrEnum):
    """Why one model call ended."""

    STOP = "stop"
    LENGTH = "length"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"


class StopReason(StrEnum):
    """Why a rollout ended."""

    FINISHED = "finished"
    """The model answered without calling a tool."""
    MAX_TURNS = "max_turns"
    MAX_TOOL_CALLS = "max_tool_calls"
    MAX_TOKENS = "max_tokens"
    CONTEXT_FULL = "context_full"
    DEADLINE = "deadline"
    FAILED = "failed"
    """An infrastructure failure; see `Trajectory.failure`. Such a rollout is dropped, never scored."""


class FailureKind(StrEnum):
    """Who is at fault; decides whether a rollout may count."""

    MODEL = "model"
    INFRASTRUCTURE = "infrastructure"
    GRADER = "grader"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One attributed failure, written once where it was caught."""

    kind: FailureKind
    where: str
    """The tool, grader or part that failed, e.g. `tool 'get_order'`."""
    message: str
    code: str = ""
    """Error family of the fine-tuning contract, e.g. `invalid_variable_error`; empty if it has none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParseFailure:
    """A tool call that the model wrote but nobody could read."""

    raw: str
    """The text as written."""
    reason: str
    """What is wrong and what to write instead; shown to the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolResult:
    """What one tool call came back with."""

    call_id: str
    name: str
    content: str
    """The text as the tool gave it."""
    shown: str | None = None
    """What the model saw instead of `content`; None if that is what it saw."""
    guard: str = ""
    """The guard that answered in the tool's place, e.g. `block_duplicates`; empty if the tool ran."""
    repairs: tuple[str, ...] = ()
    """Guards that changed the call before it ran."""
    is_error: bool = False
    """The tool refused or the arguments were wrong; the model may recover."""
    refusal: int | None = None
    """HTTP status, if a tool by URL refused the call without an answer of its own for the model."""
    started_s: float = 0.0
    """Seconds since the rollout began."""
    duration_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One model call: the tokens fed in since the last one, and the tokens sampled.

    `action_ids` and `behavior_logprobs` have equal lengths. Observation tokens carry no credit.
    """

    context: int = 0
    """Append-only stretch this turn belongs to; a rewritten history starts a new one."""
    observation_ids: tuple[int, ...]
    action_ids: tuple[int, ...]
    behavior_logprobs: tuple[float, ...]
    """Log-probability of each action token under the distribution it was drawn from, in nats."""
    first_version: int
    last_version: int
    """Policy versions that sampled the first and last token; they differ if weights changed."""
    message: Message
    """In canonical names, its calls as they were run; the tokens say what the model wrote."""
    tool_results: tuple[ToolResult, ...] = ()
    parse_failures: tuple[ParseFailure, ...] = ()
    finish_reason: FinishReason = FinishReason.STOP
    usage: TokenUsage | None = None
    """As counted by the endpoint that answered; None where the tokens themselves are recorded."""
    sampling_s: float = 0.0
    tools_s: float = 0.0
    waited_s: float = 0.0
    """In the engine's line, before it sampled."""

    def __post_init__(self) -> None:
        if len(self.action_ids) != len(self.behavior_logprobs):
            raise ValueError(
                f"turn has {len(self.action_ids)} action tokens but "
                f"{len(self.behavior_logprobs)} behaviour logprobs; they must match one to one"
            )

    @property
    def sampled_tokens(self) -> int:
        """Tokens the model wrote."""
        return self.usage.completion_tokens if self.usage else len(self.action_ids)

    @property
    def observed_tokens(self) -> int:
        """Tokens fed in; an endpoint counts the whole prompt of every call."""
        return self.usage.prompt_tokens if self.usage else len(self.observation_ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """One rollout from prompt to stop.

    Concatenating a context's turns gives exactly the tokens the engine saw.
    """

    id: str
    """`trace_` plus 32 hex digits; sent with every tool and grader call of this rollout."""
    task_id: str
    model: str
    spec_hash: str
    seed: int
    prompt: tuple[Message, ...]
    """System text and task messages; demonstrations of the spec are in the tokens only."""
    turns: tuple[Turn, ...]
    stop_reason: StopReason
    failure: Failure | None = None
    started_at: float = 0.0
    """Unix time."""
    duration_s: float = 0.0
    schema: int = 1

    @property
    def messages(self) -> tuple[Message, ...]:
        """The conversation: prompt, then each turn's message and its tool results."""
        return (*self.prompt, *self._answers())

    def _answers(self) -> Iterator[Message]:
        for turn in self.turns:
            yield turn.message
            for result in turn.tool_results:
                yield Message(
                    role="tool",
                    content=result.content,
                    tool_call_id=result.call_id,
                    name=result.name,
                )

    @property
    def tool_calls(self) -> tuple[ToolCall, ...]:
        """Every readable call of the rollout, in the order the model wrote them."""
        return tuple(call for turn in self.turns for call in turn.message.tool_calls)

    @property
    def made_calls(self) -> tuple[ToolCall, ...]:
        """Those of `tool_calls` that no guard answered in a tool's place: what graders go by.

        Calls of tools that do not exist are among them.
        """
        held = {r.call_id for r in self.tool_results if r.guard and r.guard != "names"}
        return tuple(call for call in self.tool_calls if call.id not in held)

    @property
    def tool_results(self) -> tuple[ToolResult, ...]:
        """Every result, in call order."""
        return tuple(result for turn in self.turns for result in turn.tool_results)

    @property
    def output_text(self) -> str:
        """Text of the final answer; empty unless the rollout finished with one."""
        if self.stop_reason is not StopReason.FINISHED or not self.turns:
            return ""
        return self.turns[-1].message.content

    @property
    def sampled_tokens(self) -> int:
        """Tokens the model wrote."""
        return sum(turn.sampled_tokens for turn in self.turns)

    @property
    def observed_tokens(self) -> int:
        """Tokens fed in: prompt, tool results and scaffolding."""
        return sum(turn.observed_tokens for turn in self.turns)

    @property
    def versions(self) -> tuple[int, int]:
        """Lowest and highest policy version that sampled here; (0, 0) without turns."""
        if not self.turns:
            return 0, 0
        return (
            min(turn.first_version for turn in self.turns),
            max(turn.last_version for turn in self.turns),
        )

    def contexts(self) -> Mapping[int, tuple[Turn, ...]]:
        """Turns by context, in order."""
        grouped: dict[int, tuple[Turn, ...]] = {}
        for turn in self.turns:
            grouped[turn.context] = (*grouped.get(turn.context, ()), turn)
        return grouped
