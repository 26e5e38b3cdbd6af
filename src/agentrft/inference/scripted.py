"""A sampler that replays tokens and a chat that replays answers, in milliseconds without a model."""

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence

from agentrft.core.errors import SamplerError
from agentrft.core.policy import Weights
from agentrft.core.protocols import Completion, SampleRequest
from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import FinishReason
from agentrft.inference.chat import CallDelta, ChatDelta, ChatEnd, ChatFinish, ChatRequest

Script = Sequence[Sequence[int]] | Callable[[SampleRequest], Sequence[int]]


class ScriptedSampler:
    """Answers the n-th request with the n-th entry of a list, or each with a function of it.

    Keeps every request in `requests`. Answers end at the first stop token and at `max_tokens`;
    `before` runs first, so that a test decides when an answer comes or that it fails.

    >>> import asyncio
    >>> sampler = ScriptedSampler([(5, 6, 2, 7)])
    >>> request = SampleRequest(prompt_ids=(1,), max_tokens=8, stop_token_ids=(2,))
    >>> asyncio.run(sampler.sample(request)).token_ids
    (5, 6, 2)
    """

    def __init__(
        self,
        script: Script,
        *,
        logprob: float = -0.5,
        before: Callable[[SampleRequest], Awaitable[None]] | None = None,
    ) -> None:
        self.requests: list[SampleRequest] = []
        self.version = 0
        self._script = script
        self._logprob = logprob
        self._before = before

    async def sample(self, request: SampleRequest) -> Completion:
        """Return the scripted answer; raises SamplerError when the script has no more."""
        number = len(self.requests)
        self.requests.append(request)
        first_version = self.version
        if self._before is not None:
            await self._before(request)
        if callable(self._script):
            answer = tuple(self._script(request))
        elif number < len(self._script):
            answer = tuple(self._script[number])
        else:
            raise SamplerError(f"the script has {len(self._script)} answers, one more was asked")
        kept = answer[: request.max_tokens]
        stops = (n for n, token in enumerate(kept, 1) if token in request.stop_token_ids)
        end = next(stops, None)
        # An answer that the script ends by itself counts as stopped.
        cut = end is None and len(answer) >= request.max_tokens
        token_ids = kept[:end]
        return Completion(
            token_ids=token_ids,
            logprobs=(self._logprob,) * len(token_ids),
            finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
            first_version=first_version,
            last_version=self.version,
        )

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the constant log-probability for every token after the first."""
        return [[self._logprob] * max(0, len(sequence) - 1) for sequence in sequences]

    async def load(self, weights: Weights) -> None:
        """Take over the version; tensors are not looked at."""
        self.version = weights.version


Answer = Sequence[ChatDelta | ChatEnd]


class ScriptedChat:
    """Answers the n-th request with the n-th list of pieces, or each with a function of it.

    Keeps every request in `requests`. A script of the function form may raise what a test wants.
    """

    def __init__(
        self, script: Sequence[Answer] | Callable[[ChatRequest], Answer], *, is_ready: bool = True
    ) -> None:
        self.requests: list[ChatRequest] = []
        self.is_ready = is_ready
        self._script = script

    async def stream(self, request: ChatRequest) -> AsyncGenerator[ChatDelta | ChatEnd, None]:
        """Replay the scripted pieces; raises SamplerError when the script has no more."""
        number = len(self.requests)
        self.requests.append(request)
        if callable(self._script):
            answer = self._script(request)
        elif number < len(self._script):
            answer = self._script[number]
        else:
            raise SamplerError(f"the script has {len(self._script)} answers, one more was asked")
        for piece in answer:
            yield piece

    async def ready(self) -> bool:
        """Return what the test says."""
        return self.is_ready


def scripted_answer(
    *pieces: str | ToolCall, finish_reason: ChatFinish | None = None, prompt_tokens: int = 7
) -> Answer:
    """Return the pieces of an answer out of texts and calls; each counts as one token."""
    texts = [piece for piece in pieces if isinstance(piece, str)]
    calls = [piece for piece in pieces if isinstance(piece, ToolCall)]
    numbers = {id(call): n for n, call in enumerate(calls)}
    deltas = [
        ChatDelta(text=piece)
        if isinstance(piece, str)
        else ChatDelta(
            call=CallDelta(
                index=numbers[id(piece)], id=piece.id, name=piece.name, arguments=piece.arguments
            )
        )
        for piece in pieces
    ]
    end = ChatEnd(
        message=Message(role="assistant", content="".join(texts), tool_calls=tuple(calls)),
        finish_reason=finish_reason or ("tool_calls" if calls else "stop"),
        prompt_tokens=prompt_tokens,
        completion_tokens=len(pieces),
    )
    return (*deltas, end)
