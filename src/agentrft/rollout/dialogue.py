"""Who writes the assistant's turns: one conversation with a model, messages in, turns out.

Two siblings: tokens of our own engines (here), and an OpenAI-compatible endpoint
(`endpoint_dialogue.py`). The loop in `episode.py` is the same for both.
"""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from agentrft.core.config import CallForm
from agentrft.core.errors import AgentRFTError, SamplerError, UserError, boundary
from agentrft.core.protocols import Sampler, SampleRequest
from agentrft.core.task import Message, ToolSpec
from agentrft.core.trajectory import FinishReason, ParseFailure
from agentrft.core.usage import TokenUsage

SAMPLER_GRACE_S = 30.0
"""How long past its deadline an engine may take to hand over what it sampled."""
LINE_S = 900.0
"""How long a turn may stand in an engine's line. That is no time of the rollout's, or how many others
there are would decide which ones are cut; after it the engine is too slow for all of them."""


class DialogueError(SamplerError):
    """The conversation cannot go on, and it is not the model's doing."""

    def __init__(self, where: str, message: str) -> None:
        super().__init__(message)
        self.where = where
        """The part that failed, e.g. `sampler` or `renderer`."""


@contextmanager
def part(where: str, *passing: type[AgentRFTError]) -> Iterator[None]:
    """Turn what is raised into a DialogueError of this part; cancellation and `passing` pass."""
    try:
        with boundary(SamplerError, where):
            yield
    except passing:
        raise
    except AgentRFTError as error:
        raise DialogueError(where, str(error)) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnRequest:
    """One turn wanted."""

    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    left_s: float
    """Wall clock that the rollout has left."""
    form: CallForm = "off"
    """`call_first` is asked for in a first turn that must be a call, `calls` in all others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SpokenTurn:
    """One turn of the model, in the names that the model uses."""

    message: Message
    parse_failures: tuple[ParseFailure, ...] = ()
    finish_reason: FinishReason = FinishReason.STOP
    context: int = 0
    observation_ids: tuple[int, ...] = ()
    action_ids: tuple[int, ...] = ()
    behavior_logprobs: tuple[float, ...] = ()
    first_version: int = 0
    last_version: int = 0
    usage: TokenUsage | None = None
    """Where no tokens are known."""
    waited_s: float = 0.0
    """In the engine's line."""


class Dialogue(Protocol):
    """One rollout's conversation; what was said stays said."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the next prompt; those of the last one where only the server can count."""
        ...

    async def speak(self, request: TurnRequest) -> SpokenTurn:
        """Let the model write its next turn. Raises DialogueError if it cannot."""
        ...

    def hear(self, said: Message, answers: Sequence[Message]) -> None:
        """Go on after a turn: `said` is its message with the call ids that `answers` refer to.

        Raises DialogueError if these cannot follow.
        """
        ...


class Speaker(Protocol):
    """A model that can hold conversations."""

    def begin(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], trace_id: str
    ) -> Dialogue:
        """Open the conversation of one rollout. Raises UserError if it cannot be expressed."""
        ...


class Parsed(Protocol):
    """What a renderer read from one completion."""

    @property
    def message(self) -> Message:
        """The assistant message, readable calls included."""
        ...

    @property
    def parse_failures(self) -> tuple[ParseFailure, ...]:
        """Calls that could not be read."""
        ...


class Renderer(Protocol):
    """Messages to tokens and back, append-only."""

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a turn."""
        ...

    def start(self, messages: Sequence[Message], tools: Sequence[ToolSpec]) -> tuple[int, ...]:
        """Return prompt ids that end where the assistant begins."""
        ...

    def extend(
        self,
        prompt_ids: Sequence[int],
        completion_ids: Sequence[int],
        messages: Sequence[Message],
        tools: Sequence[ToolSpec],
    ) -> tuple[int, ...] | None:
        """Return only the ids that follow prompt and completion; None if that is impossible."""
        ...

    def parse(
        self,
        completion_ids: Sequence[int],
        tools: Sequence[ToolSpec],
        prompt_ids: Sequence[int] = (),
    ) -> Parsed:
        """Read one completion; never raises for what the model wrote."""
        ...

    def call_grammar(self, tools: Sequence[ToolSpec], *, first_turn_must_call: bool) -> str:
        """Return the grammar of a turn: text, or calls of these tools that `parse` can read.

        Raises UserError for a format or a schema that cannot be forced.
        """
        ...


@dataclass(frozen=True, slots=True)
class TokenSpeaker:
    """A sampler behind a renderer: every token is recorded, so that rollouts can be trained on."""

    sampler: Sampler
    renderer: Renderer

    def begin(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec], trace_id: str
    ) -> "TokenDialogue":
        """Render the prompt. Raises UserError for what the chat format cannot express."""
        return TokenDialogue(self, tuple(messages), tuple(tools))


class TokenDialogue:
    """History is append-only: every prompt is the last one, what was sampled, and new tokens."""

    def __init__(
        self, speaker: TokenSpeaker, messages: tuple[Message, ...], tools: tuple[ToolSpec, ...]
    ) -> None:
        self._sampler, self._renderer = speaker.sampler, speaker.renderer
        self._messages, self._tools = messages, tools
        self._context = 0
        self._recorded: tuple[int, ...] = ()
        """Tokens of this context as the engine saw them."""
        self._opening: tuple[int, ...] = ()
        """The first observation of this context, once it was sampled from."""
        self._prompt_ids = tuple(self._renderer.start(messages, tools))
        self._observation_ids = self._prompt_ids
        self._completion_ids: tuple[int, ...] = ()
        self._grammars: dict[CallForm, str] = {"off": ""}

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the next prompt."""
        return len(self._prompt_ids)

    async def speak(self, request: TurnRequest) -> SpokenTurn:
        """Sample a turn. Raises DialogueError if the engine fails or history was rendered again.

        Raises UserError before anything is sampled if renderer or engine cannot force the form.
        """
        self._check_append_only()
        left_s = max(request.left_s, 0.0)
        sample = SampleRequest(
            prompt_ids=self._prompt_ids,
            max_tokens=request.max_tokens,
            temperature=request.temperature,
            top_p=request.top_p,
            seed=request.seed,
            stop_token_ids=self._renderer.stop_token_ids,
            deadline_s=left_s,
            patience_s=LINE_S,
            grammar=self._grammar(request.form),
        )
        with part("sampler", UserError):
            async with asyncio.timeout(left_s + LINE_S + SAMPLER_GRACE_S):
                completion = await self._sampler.sample(sample)
            if completion.finish_reason is FinishReason.CANCELLED:
                raise SamplerError("the engine cancelled the request")
        with part("renderer"):
            parsed = self._renderer.parse(completion.token_ids, self._tools, self._prompt_ids)
        self._opening = self._opening or self._observation_ids
        self._recorded = (*self._prompt_ids, *completion.token_ids)
        self._completion_ids = completion.token_ids
        return SpokenTurn(
            message=parsed.message,
            parse_failures=parsed.parse_failures,
            finish_reason=completion.finish_reason,
            context=self._context,
            observation_ids=self._observation_ids,
            action_ids=completion.token_ids,
            behavior_logprobs=completion.logprobs,
            first_version=completion.first_version,
            last_version=completion.last_version,
            waited_s=completion.waited_s,
        )

    def hear(self, said: Message, answers: Sequence[Message]) -> None:
        """Append what follows; a family that rewrites its history starts a new context."""
        self._messages = (*self._messages, said, *answers)
        with part("renderer"):
            extension = self._renderer.extend(
                self._prompt_ids, self._completion_ids, answers, self._tools
            )
            if extension is None:
                self._context += 1
                self._recorded, self._opening = (), ()
                self._prompt_ids = tuple(self._renderer.start(self._messages, self._tools))
                self._observation_ids = self._prompt_ids
            else:
                self._observation_ids = tuple(extension)
                self._prompt_ids = (*self._recorded, *self._observation_ids)

    def _grammar(self, form: CallForm) -> str:
        if form not in self._grammars:
            self._grammars[form] = self._renderer.call_grammar(
                self._tools, first_turn_must_call=form == "call_first"
            )
        return self._grammars[form]

    def _check_append_only(self) -> None:
        """Refuse a history that was rendered again instead of only what is new."""
        opening = self._opening
        if opening and self._observation_ids[: len(opening)] == opening:
            message = "the renderer gave the history again instead of only the new tokens"
            raise DialogueError("renderer", message)


def begun(
    speaker: Speaker,
    messages: Sequence[Message],
    tools: Sequence[ToolSpec],
    trace_id: str,
    what: str,
) -> Dialogue:
    """Open a conversation; whatever the format cannot express is a UserError that names `what`."""
    with boundary(UserError, f"{what} cannot be rendered"):
        return speaker.begin(messages, tools, trace_id)
