"""Models open for chat: one engine each, weights proven, those used least recently closed."""

import asyncio
import json
import logging
import secrets
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from agentrft.core.config import EngineConfig
from agentrft.core.errors import SamplerError, UserError
from agentrft.core.policy import Canary
from agentrft.core.protocols import Completion, SampleRequest
from agentrft.core.task import ToolSpec
from agentrft.core.trajectory import FinishReason
from agentrft.inference.assembly import TurnAssembler
from agentrft.inference.chat import (
    ChatBusyError,
    ChatDelta,
    ChatEnd,
    ChatRequest,
    TokenLogprob,
    ToolName,
)
from agentrft.inference.embedded.checkpoint import read_checkpoint
from agentrft.inference.embedded.engine import EmbeddedEngine, SampledToken
from agentrft.inference.models import check_memory, resolve
from agentrft.inference.renderer import ChatRenderer, load_renderer
from agentrft.inference.turn_grammar import schema_grammar

IDENTITY_BOUND = 0.05
"""Largest mean absolute difference from the trainer's canary logprobs, in nats."""
_LIKELY = -1.0
"""Canary tokens above this log-probability are compared; rounding moves the others far more."""
_MAX_CONTEXT_TOKENS = 16_384
"""All rows of an engine's cache are as long as the longest, so length costs everybody memory."""
_ANSWER_S = 600.0
"""An answer that takes longer ends as if it had reached its length."""
_PATIENCE_S = 60.0
"""How long a request waits for another model's engine to become idle."""
_NAME_TOKENS = 24
"""Enough for the name of a tool."""
_LEAST_LOGPROB = -9999.0
"""Stands for minus infinity, which JSON cannot write."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A model that answers. All requests of it share one engine and its batch."""

    engine: EmbeddedEngine
    renderer: ChatRenderer
    context_tokens: int

    async def answer(self, request: ChatRequest) -> AsyncGenerator[ChatDelta | ChatEnd, None]:
        """Answer piece by piece. Raises UserError for what the model cannot do."""
        tools = () if request.tool_choice == "none" else request.tools
        renderer, grammar = self.renderer, ""
        if request.schema is not None:
            if tools:
                raise UserError(
                    "an answer forced into a JSON schema cannot call tools; leave one of them out, or "
                    "say tool_choice 'none'"
                )
            renderer = renderer.as_text()
            grammar = schema_grammar(request.schema)
        prompt_ids = renderer.start(request.messages, tools)
        forced_ids = await self.forced(request, tools, prompt_ids)
        one_call = isinstance(request.tool_choice, ToolName) or not request.parallel_tool_calls
        assembler = TurnAssembler(
            renderer,
            prompt_ids,
            tools,
            forced_ids=forced_ids,
            stop=request.stop,
            most_calls=0 if not tools else 1 if one_call else None,
            call_id=f"call_{secrets.token_hex(8)}_",
        )
        sample = replace(self._sample(request, (*prompt_ids, *forced_ids)), grammar=grammar)
        sampled_tokens = cached_tokens = 0
        reason = FinishReason.STOP
        stream = self.engine.stream(sample, top_logprobs=request.top_logprobs)
        async with aclosing(stream) as drawn:
            async for piece in drawn:
                if isinstance(piece, Completion):
                    reason = piece.finish_reason
                    break
                sampled_tokens += 1
                cached_tokens = piece.cached_tokens
                for delta in assembler.push(piece.token_id, self._logprob(piece)):
                    yield delta
                if assembler.done:
                    break
        deltas, message, finish_reason = assembler.finish(reason)
        for delta in deltas:
            yield delta
        yield ChatEnd(
            message=message,
            finish_reason=finish_reason,
            prompt_tokens=len(sample.prompt_ids),
            completion_tokens=sampled_tokens,
            cached_tokens=cached_tokens,
        )

    async def forced(
        self, request: ChatRequest, tools: Sequence[ToolSpec], prompt_ids: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Return the beginning of the call that must be made, if one must."""
        match request.tool_choice:
            case "auto" | "none":
                return ()
            case "required":
                candidates = list(tools)
            case ToolName(name=name):
                candidates = [tool for tool in tools if tool.name == name]
        if not candidates:
            wanted = request.tool_choice
            wanted = f"tool {wanted.name!r}" if isinstance(wanted, ToolName) else "any tool"
            raise UserError(f"tool_choice asks for {wanted}, and 'tools' has none; add it there")
        if len(candidates) == 1:
            return self.renderer.call_opening(candidates[0])
        return await self._choose(request, candidates, prompt_ids)

    async def _choose(
        self, request: ChatRequest, tools: Sequence[ToolSpec], prompt_ids: tuple[int, ...]
    ) -> tuple[int, ...]:
        """Return the opening of the tool whose name the model writes; if of none, of the likeliest."""
        begun = (*prompt_ids, *self.renderer.call_opening(None))
        written = await self.engine.sample(
            replace(self._sample(request, begun), max_tokens=_NAME_TOKENS)
        )
        text = self.renderer.decode(written.token_ids).lstrip()
        openings = [self.renderer.call_opening(tool) for tool in tools]
        for tool, opening in zip(tools, openings, strict=True):
            if text.startswith(json.dumps(tool.name, ensure_ascii=False)):
                return opening
        scored = await self.engine.score([(*prompt_ids, *opening) for opening in openings])
        sums = [sum(row[len(prompt_ids) - 1 :]) for row in scored]
        return openings[sums.index(max(sums))]

    def _sample(self, request: ChatRequest, prompt_ids: tuple[int, ...]) -> SampleRequest:
        room = self.context_tokens - len(prompt_ids)
        if room < 1:
            raise UserError(
                f"the messages and tools take {len(prompt_ids)} tokens and this model's context "
                f"holds {self.context_tokens}; shorten them"
            )
        return SampleRequest(
            prompt_ids=prompt_ids,
            max_tokens=room if request.max_tokens is None else min(room, request.max_tokens),
            temperature=request.temperature,
            top_p=request.top_p,
            seed=secrets.randbits(48) if request.seed is None else request.seed,
            stop_token_ids=self.renderer.stop_token_ids,
            deadline_s=_ANSWER_S,
        )

    def _logprob(self, sampled: SampledToken) -> TokenLogprob | None:
        if sampled.likely is None:
            return None
        raw = self.renderer.token_bytes(sampled.token_id)
        return TokenLogprob(
            token=raw.decode(errors="replace"),
            bytes=raw,
            logprob=max(sampled.likely.logprob, _LEAST_LOGPROB),
            top=tuple(
                (
                    self.renderer.token_bytes(token_id).decode(errors="replace"),
                    max(logprob, _LEAST_LOGPROB),
                )
                for token_id, logprob in sampled.likely.top
            ),
        )


async def open_model(
    base: str, adapter: str | None, *, models: Path, config: EngineConfig
) -> ServedModel:
    """Open a base model, or a checkpoint of it, and prove that it is what is served.

    Raises ModelError for a base model that is missing or too big, SamplerError for a checkpoint
    that is damaged or whose logprobs the engine does not reproduce.
    """
    files = await asyncio.to_thread(resolve, base, cache=models)
    check_memory(files, "float32" if config.dtype == "float32" else "bfloat16")
    context_tokens = min(files.context_length or _MAX_CONTEXT_TOKENS, _MAX_CONTEXT_TOKENS)
    engine = await asyncio.to_thread(
        EmbeddedEngine, files.folder, config, max_context_tokens=context_tokens
    )
    try:
        if adapter is not None:
            weights = await asyncio.to_thread(read_checkpoint, Path(adapter), files.folder)
            await engine.load(weights)
            await _prove(engine, weights.canaries, adapter, context_tokens)
        renderer = await asyncio.to_thread(load_renderer, files.folder)
    except BaseException:
        await asyncio.to_thread(engine.close)
        raise
    return ServedModel(engine=engine, renderer=renderer, context_tokens=context_tokens)


async def _prove(
    engine: EmbeddedEngine, canaries: Sequence[Canary], checkpoint: str, context_tokens: int
) -> None:
    """Compare the engine's canary logprobs with those the trainer stored. Raises SamplerError."""
    canaries = [canary for canary in canaries if len(canary.token_ids) <= context_tokens]
    if not canaries:
        _log.warning("checkpoint %s carries no canaries; it is served without proof", checkpoint)
        return
    scored = await engine.score([canary.token_ids for canary in canaries])
    pairs = [
        (served, trained)
        for row, canary in zip(scored, canaries, strict=True)
        for served, trained in zip(row, canary.logprobs, strict=True)
    ]
    likely = [pair for pair in pairs if pair[1] > _LIKELY] or pairs
    difference = sum(abs(served - trained) for served, trained in likely) / len(likely)
    if not difference <= IDENTITY_BOUND:
        raise SamplerError(
            f"checkpoint {checkpoint} is not served: the engine's logprobs differ from the trainer's "
            f"by {difference:.4f} nats on average, at most {IDENTITY_BOUND} is allowed"
        )


@dataclass(slots=True)
class _Place:
    opening: asyncio.Task[ServedModel]
    users: int = 0


class ServedModels:
    """Opens models as they are asked for and keeps `max_loaded` of them."""

    def __init__(self, models: Path, config: EngineConfig, *, max_loaded: int) -> None:
        self._models, self._config, self._max_loaded = models, config, max_loaded
        self._most_users = 4 * config.max_sequences
        """Of one model at a time; a quarter of them is computed, the others wait."""
        self._places: OrderedDict[tuple[str, ...], _Place] = OrderedDict()
        self._admission = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def use(self, base: str, adapter: str | None) -> AsyncIterator[ServedModel]:
        """Hold a model open. Raises ChatBusyError if too many do, and what opening it raises."""
        key = (base, adapter or "", _stamp(adapter))
        place = self._places.get(key) or await self._admit(key, base, adapter)
        if place.users >= self._most_users:
            raise ChatBusyError(
                f"{place.users} requests of this model are under way; try again in a moment"
            )
        place.users += 1
        self._places.move_to_end(key)
        try:
            yield await asyncio.shield(place.opening)
        finally:
            place.users -= 1
            self._freed.set()

    async def close(self) -> None:
        """Close every engine; whoever still waits gets a SamplerError."""
        while self._places:
            await self._close(next(iter(self._places)))

    async def _admit(self, key: tuple[str, ...], base: str, adapter: str | None) -> _Place:
        async with self._admission:
            if key in self._places:
                return self._places[key]
            try:
                async with asyncio.timeout(_PATIENCE_S):
                    await self._make_room()
            except TimeoutError as error:
                raise ChatBusyError(
                    f"{self._max_loaded} other models are in use and no more are kept loaded; "
                    "try again in a moment"
                ) from error
            opening = asyncio.create_task(
                open_model(base, adapter, models=self._models, config=self._config)
            )
            opening.add_done_callback(lambda task: self._forget_failed(key, task))
            self._places[key] = _Place(opening)
            return self._places[key]

    async def _make_room(self) -> None:
        """Close what was used longest ago, once nobody uses it."""
        while len(self._places) >= self._max_loaded:
            self._freed.clear()
            idle = [k for k, place in self._places.items() if not place.users]
            if idle:
                await self._close(idle[0])
            else:
                await self._freed.wait()

    async def _close(self, key: tuple[str, ...]) -> None:
        place = self._places.pop(key)
        try:
            model = await place.opening
        except (SamplerError, UserError):
            return  # it never opened
        await asyncio.to_thread(model.engine.close)

    def _forget_failed(self, key: tuple[str, ...], task: asyncio.Task[ServedModel]) -> None:
        if task.cancelled() or task.exception() is not None:
            self._places.pop(key, None)
            self._freed.set()


def _stamp(adapter: str | None) -> str:
    """Tell a checkpoint folder from one that was written later in the same place."""
    if adapter is None:
        return ""
    try:
        return str((Path(adapter) / "manifest.json").stat().st_mtime_ns)
    except OSError as error:
        raise SamplerError(f"the checkpoint {adapter} is not there any more: {error}") from error
