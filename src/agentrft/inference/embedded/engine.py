"""The embedded sampler: requests join and leave a running batch between steps.

One worker thread owns network and cache; coroutines only post to its inbox and await a reply, so
tools run while it computes and a rollout that waits for a tool holds nothing but an evictable row.
Set OMP_WAIT_POLICY=passive and GOMP_SPINCOUNT=20000 before torch is imported, as the command line
does: threads then wait awake for a millisecond, then asleep. GNU OpenMP lets nobody wait awake while
the teams of a process have more threads than there are cores, so others should compute on one each.
"""

import asyncio
import queue
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import aclosing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import torch

from agentrft.core.allocator import share_arenas
from agentrft.core.config import EngineConfig
from agentrft.core.errors import SamplerError, boundary
from agentrft.core.policy import Weights
from agentrft.core.protocols import Completion, SampleRequest
from agentrft.core.trajectory import FinishReason
from agentrft.inference.embedded.backend import Backend, FusedBackend
from agentrft.inference.embedded.cache import Chunk, Row
from agentrft.inference.embedded.device import choose_threads
from agentrft.inference.embedded.drafts import Drafts, Seen, contexts
from agentrft.inference.embedded.grammar import Grammar, Grammars, where_allowed
from agentrft.inference.embedded.pace import Pace
from agentrft.inference.embedded.sampling import Likely, draw, likely_where_asked, uniform
from agentrft.inference.embedded.shape import FAMILIES, read_config
from agentrft.inference.tokenizer import ChatTokenizer

T = TypeVar("T")

_PREFILL_TOKENS = 1024
"""Prompt tokens computed in a step when nobody decodes."""
_PREFILL_TOKENS_BESIDE_DECODING = 256
_WORTH_WAITING_TOKENS = 32
"""A request waits for a prefix that another is computing if that saves at least this much."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineStats:
    """What the engine has done since it was opened."""

    prefilled_tokens: int = 0
    """Prompt tokens computed."""
    cached_tokens: int = 0
    """Prompt tokens found computed."""
    sampled_tokens: int = 0
    decode_steps: int = 0
    """Forward passes that sampled at least one token."""
    drafted_tokens: int = 0
    """Guesses computed along; those accepted saved a step of their sequence each."""
    accepted_tokens: int = 0
    busy_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledToken:
    """One token of a stream."""

    token_id: int
    logprob: float
    """Under the distribution drawn from, as in `Completion`."""
    likely: Likely | None
    """None unless asked for."""
    cached_tokens: int
    """Prompt tokens that were not computed again."""


class _Reply(Generic[T]):
    """A future of whichever event loop asked, settled from the worker thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[T] = self._loop.create_future()
        self.abandoned = False

    async def wait(self) -> T:
        try:
            return await self._future
        finally:
            self.abandoned = True

    def give(self, value: T) -> None:
        self._settle(lambda: self._future.set_result(value))

    def fail(self, error: Exception) -> None:
        self._settle(lambda: self._future.set_exception(error))

    def _settle(self, settle: Callable[[], None]) -> None:
        def unless_done() -> None:
            if not self._future.done():
                settle()

        try:
            self._loop.call_soon_threadsafe(unless_done)
        except RuntimeError:
            # The loop that asked is closed: nobody waits any more.
            return


class _Feed(_Reply[Completion]):
    """A reply whose tokens come first, one by one."""

    def __init__(self) -> None:
        super().__init__()
        self._tokens: asyncio.Queue[SampledToken | None] = asyncio.Queue()
        self._future.add_done_callback(lambda _: self._tokens.put_nowait(None))

    def hear(self, token: SampledToken) -> None:
        self._settle(lambda: self._tokens.put_nowait(token))

    async def pieces(self) -> AsyncGenerator[SampledToken | Completion, None]:
        try:
            while (token := await self._tokens.get()) is not None:
                yield token
            yield await self._future
        finally:
            self.abandoned = True
            self._future.cancel()


@dataclass(slots=True, eq=False)
class _Call:
    """One request on its way through the engine."""

    request: SampleRequest
    reply: _Reply[Completion]
    ids: list[int]
    """Prompt and what was sampled so far."""
    deadline: float
    """On the monotonic clock, with all its patience until the engine begins with it."""
    arrived: float
    waited_s: float = -1.0
    """Below 0 until the engine begins."""
    logprobs: list[float] = field(default_factory=list[float])
    seen: Seen = field(default_factory=Seen)
    """What followed what in `ids`, for guessing."""
    feed: _Feed | None = None
    """The reply again, if it wants every token."""
    top_logprobs: int | None = None
    grammar: Grammar | None = None
    row: Row | None = None
    cached_tokens: int = -1
    first_version: int = -1

    @property
    def sampled(self) -> int:
        return len(self.logprobs)

    def begin(self) -> None:
        """End its patience; what is left of that adds nothing to the time it may compute."""
        if self.waited_s < 0:
            patience_s = self.request.patience_s
            self.waited_s = min(time.monotonic() - self.arrived, patience_s)
            self.deadline -= patience_s - self.waited_s


@dataclass(frozen=True, slots=True)
class _Drawn:
    """What was drawn after a chunk: one token more than guesses, as if those before were right."""

    chunk: Chunk
    tokens: list[int]
    logprobs: list[float]
    likely: list[Likely | None]


@dataclass(slots=True)
class _Load:
    weights: Weights
    reply: _Reply[None]


@dataclass(slots=True)
class _Score:
    sequences: list[list[int]]
    reply: _Reply[list[list[float]]]


class EmbeddedEngine:
    """A `Sampler` over a Hugging Face folder; raises ModelError if it cannot serve the model."""

    def __init__(self, folder: Path, config: EngineConfig, *, max_context_tokens: int) -> None:
        share_arenas()
        self._max_context_tokens = max_context_tokens
        self._max_sequences = config.max_sequences
        threads = choose_threads(config.threads)
        self._pace = Pace(threads)
        self._lanes = ThreadPoolExecutor(threads, thread_name_prefix="embedded-lane")
        # A team stays until the thread that led it ends, so this one must not be the caller.
        with ThreadPoolExecutor(1) as opener:
            opened = opener.submit(open_backend, folder, config, max_context_tokens)
        self._backend = opened.result()
        self._grammars = Grammars(lambda: ChatTokenizer(folder).as_json(), self._backend.vocabulary)
        self._book = self._backend.book
        self._drafts = Drafts()
        self._version = 0
        self._waiting: deque[_Call] = deque()
        self._running: list[_Call] = []
        self._inbox: queue.SimpleQueue[_Call | _Load | _Score | None] = queue.SimpleQueue()
        self._closed = False
        self._gate = threading.Lock()
        self._prefilled = self._cached = self._sampled = self._steps = 0
        self._busy_s = 0.0
        self._thread = threading.Thread(target=self._work, name="embedded-engine", daemon=True)
        self._thread.start()

    @property
    def stats(self) -> EngineStats:
        """A snapshot."""
        return EngineStats(
            prefilled_tokens=self._prefilled,
            cached_tokens=self._cached,
            sampled_tokens=self._sampled,
            decode_steps=self._steps,
            drafted_tokens=self._drafts.drafted,
            accepted_tokens=self._drafts.accepted,
            busy_s=self._busy_s,
        )

    async def sample(self, request: SampleRequest) -> Completion:
        """Draw a continuation; at the end of the context it finishes with `LENGTH`.

        Raises SamplerError for a prompt that does not fit and for a failure of the engine, UserError
        for a grammar that cannot be forced.
        """
        reply = _Reply[Completion]()
        self._post(await self._call(request, reply))
        return await reply.wait()

    @property
    def vocabulary(self) -> int:
        """Token ids are below this."""
        return self._backend.vocabulary

    async def stream(
        self,
        request: SampleRequest,
        *,
        top_logprobs: int | None = None,
    ) -> AsyncGenerator[SampledToken | Completion, None]:
        """Draw as `sample` does and give out every token at once; the last item is the completion.

        With `top_logprobs`, tokens carry the model's own logprobs, of no grammar, and that many
        alternatives. Closing the iterator cancels the request.
        """
        feed = _Feed()
        call = await self._call(request, feed)
        call.feed, call.top_logprobs = feed, top_logprobs
        self._post(call)
        async with aclosing(feed.pieces()) as pieces:
            async for piece in pieces:
                yield piece

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities (temperature 1) of every token after the first, in nats."""
        for sequence in sequences:
            self._check_ids(sequence)
        reply = _Reply[list[list[float]]]()
        self._post(_Score([list(s) for s in sequences], reply))
        return await reply.wait()

    async def load(self, weights: Weights) -> None:
        """Swap weights between two steps; requests under way go on under the new ones.

        Their contexts are computed again, so every later token is the new policy's own. Raises
        SamplerError for an unknown name or a wrong shape, and then nothing has changed.
        """
        reply = _Reply[None]()
        self._post(_Load(weights, reply))
        await reply.wait()

    def close(self) -> None:
        """Fail whoever waits with SamplerError and join the thread; closing twice is free."""
        with self._gate:
            self._closed = True
            self._inbox.put(None)
        self._thread.join()
        self._lanes.shutdown()

    async def _call(self, request: SampleRequest, reply: _Reply[Completion]) -> _Call:
        self._check(request)
        seconds = float("inf") if request.deadline_s is None else request.deadline_s
        arrived = time.monotonic()
        grammar = None
        if request.grammar:
            stops = request.stop_token_ids
            grammar = await asyncio.to_thread(self._grammars.begin, request.grammar, stops)
        return _Call(
            request=request,
            reply=reply,
            ids=list(request.prompt_ids),
            deadline=arrived + seconds + request.patience_s,
            arrived=arrived,
            grammar=grammar,
        )

    def _check(self, request: SampleRequest) -> None:
        self._check_ids(request.prompt_ids)
        if len(request.prompt_ids) >= self._max_context_tokens:
            raise SamplerError(
                f"the prompt has {len(request.prompt_ids)} tokens and the context holds "
                f"{self._max_context_tokens}; there is no room for an answer"
            )
        if request.max_tokens < 1:
            raise SamplerError(f"max_tokens is {request.max_tokens}; it must be at least 1")
        if request.temperature < 0 or not 0 < request.top_p <= 1:
            raise SamplerError(
                f"temperature {request.temperature} must be at least 0 and top_p "
                f"{request.top_p} in (0, 1]"
            )
        if request.grammar and not request.stop_token_ids:
            raise SamplerError("a grammar ends with a stop token; the request names none")

    def _check_ids(self, ids: Sequence[int]) -> None:
        # One bad id would fail the whole batch it joins.
        if not ids:
            raise SamplerError("a token sequence is empty; it needs at least one token")
        if len(ids) > self._max_context_tokens:
            raise SamplerError(
                f"a sequence has {len(ids)} tokens and the context holds {self._max_context_tokens}"
            )
        if min(ids) < 0 or max(ids) >= self._backend.vocabulary:
            raise SamplerError(
                f"token ids span {min(ids)} to {max(ids)}; the vocabulary has "
                f"{self._backend.vocabulary}"
            )

    def _post(self, item: _Call | _Load | _Score) -> None:
        with self._gate:
            if self._closed:
                raise SamplerError("the engine is closed")
            self._inbox.put(item)

    # Everything below runs in the worker thread.

    def _work(self) -> None:
        with torch.inference_mode():
            while self._receive():
                started = time.monotonic()
                try:
                    with boundary(SamplerError, "the embedded engine failed"):
                        self._step()
                except SamplerError as error:
                    self._fail_all(error)
                self._busy_s += time.monotonic() - started
        self._fail_all(SamplerError("the engine was closed"))

    def _receive(self) -> bool:
        """Take everything posted; sleep if there is nothing to do. False once closed."""
        idle = not (self._waiting or self._running)
        while idle or not self._inbox.empty():
            item = self._inbox.get()
            idle = False
            match item:
                case None:
                    return False
                case _Call():
                    self._waiting.append(item)
                case _Load():
                    self._answer(item.reply, lambda item=item: self._load(item.weights))
                case _Score():
                    self._answer(item.reply, lambda item=item: self._backend.score(item.sequences))
        return True

    def _answer(self, reply: _Reply[T], compute: Callable[[], T]) -> None:
        started = time.monotonic()
        try:
            with boundary(SamplerError, "the embedded engine failed"):
                reply.give(compute())
        except SamplerError as error:
            reply.fail(error)
        self._busy_s += time.monotonic() - started

    def _fail_all(self, error: SamplerError) -> None:
        for call in (*self._waiting, *self._running):
            call.reply.fail(error)
        self._waiting.clear()
        self._running.clear()
        # Whatever the failed step wrote is not to be trusted.
        self._book.clear()

    def _load(self, weights: Weights) -> None:
        self._backend.load(weights.tensors)
        self._version = weights.version
        for call in self._running:
            call.row = None
        self._waiting.extendleft(reversed(self._running))
        self._running.clear()
        self._book.clear()
        self._drafts.forget()

    def _step(self) -> None:
        self._sweep()
        self._admit()
        chunks = self._plan()
        if not chunks:
            return
        calls = {call.row.index: call for call in self._running if call.row is not None}
        way, began = self._pace.way, time.perf_counter()
        part, *others = self._backend.share(chunks, way.lanes)
        lanes = [self._lanes.submit(self._compute, each, calls, way.threads) for each in others]
        try:
            drawn = self._compute(part, calls, way.threads)
        finally:
            wait(lanes)  # a failure is raised only when nobody writes to the cache any more
        drawn += [one for lane in lanes for one in lane.result()]
        self._pace.took(time.perf_counter() - began, sum(chunk.tokens for chunk in chunks))
        for chunk in chunks:
            chunk.row.computed = chunk.stop - chunk.drafts
        accepted = 0
        for one in drawn:
            accepted += self._accept(calls[one.chunk.row.index], one)
        self._drafts.count(sum(one.chunk.drafts for one in drawn), accepted)
        self._steps += bool(drawn)

    def _compute(
        self, chunks: list[Chunk], calls: Mapping[int, _Call], threads: int
    ) -> list[_Drawn]:
        """Run a part of a step; return what it drew after chunks that ended."""
        torch.set_num_threads(threads)
        with torch.inference_mode():
            ended, logits_SV = self._backend.compute(chunks)
            if not ended:
                return []
            ready = [(calls[c.row.index], i) for c in ended for i in range(c.drafts + 1)]
            forms = [(calls[c.row.index].grammar, c.guesses) for c in ended]
            tokens, logprobs = draw(
                where_allowed(logits_SV, forms),
                temperatures=[call.request.temperature for call, _ in ready],
                top_ps=[call.request.top_p for call, _ in ready],
                uniforms=[uniform(call.request.seed, call.sampled + i) for call, i in ready],
            )
            asked = likely_where_asked(logits_SV, tokens, [call.top_logprobs for call, _ in ready])
        drawn: list[_Drawn] = []
        first = 0
        for chunk in ended:
            part = slice(first, first + chunk.drafts + 1)
            drawn.append(_Drawn(chunk, tokens[part], logprobs[part], asked[part]))
            first = part.stop
        return drawn

    def _sweep(self) -> None:
        """Drop calls nobody awaits and finish those out of time."""
        now = time.monotonic()
        for call in [*self._running, *self._waiting]:
            if call.reply.abandoned:
                self._leave(call)
            elif now >= call.deadline:
                self._finish(call, FinishReason.DEADLINE)

    def _admit(self) -> None:
        """Give waiting calls a row, first come first served.

        A call whose prefix another one is just computing stays in line until it can be copied.
        """
        deferred: list[_Call] = []
        while self._waiting and len(self._running) < self._max_sequences and self._book.has_room:
            call = self._waiting.popleft()
            ids = np.array(call.ids, np.int64)
            match = self._book.match(ids)
            if match.promised - match.ready >= _WORTH_WAITING_TOKENS:
                deferred.append(call)
                continue
            call.row = self._book.take(ids, match)
            if call.cached_tokens < 0:
                call.cached_tokens = match.ready
                self._cached += match.ready
                call.seen = contexts(call.ids)
            self._running.append(call)
        self._waiting.extendleft(reversed(deferred))

    def _plan(self) -> list[Chunk]:
        """Choose the tokens of this step: all that decode, and prompts up to a budget."""
        chunks: list[Chunk] = []
        decoding = [
            call
            for call in self._running
            if call.row is not None and call.row.length - call.row.computed == 1
        ]
        guesses = self._guess(decoding)
        for call, guess in zip(decoding, guesses, strict=True):
            row = call.row
            assert row is not None
            call.begin()
            stop = row.length + len(guess)
            row.ids[row.length : stop] = guess
            chunks.append(Chunk(row, row.computed, stop, drafts=len(guess), decodes=True))
        budget = _PREFILL_TOKENS_BESIDE_DECODING if decoding else _PREFILL_TOKENS
        for call in self._running:
            row = call.row
            if row is not None and row.length - row.computed > 1 and budget:
                call.begin()
                tokens = min(row.length - row.computed, budget)
                chunks.append(Chunk(row, row.computed, row.computed + tokens))
                budget -= tokens
                self._prefilled += tokens
        self._book.reserve(chunks)
        return chunks

    def _guess(self, calls: list[_Call]) -> list[list[int]]:
        if not self._backend.rewinds:
            return [[] for _ in calls]
        return self._drafts.propose([(call.ids, call.seen) for call in calls])

    def _accept(self, call: _Call, drawn: _Drawn) -> int:
        """Take drawn tokens up to the first that its guess missed; return how many it hit."""
        chunk, row = drawn.chunk, drawn.chunk.row
        guesses = chunk.guesses
        for i, (token, logprob) in enumerate(zip(drawn.tokens, drawn.logprobs, strict=True)):
            if i and guesses[i - 1] != drawn.tokens[i - 1]:
                return i - 1
            # What was computed for a guess is the token's own if the guess was right.
            row.computed = chunk.stop - chunk.drafts + i
            if call.feed is not None:
                call.feed.hear(
                    SampledToken(
                        token_id=token,
                        logprob=logprob,
                        likely=drawn.likely[i],
                        cached_tokens=call.cached_tokens,
                    )
                )
            self._append(call, row, token, logprob)
            if call.row is None:
                return i
        return chunk.drafts

    def _append(self, call: _Call, row: Row, token: int, logprob: float) -> None:
        if call.first_version < 0:
            call.first_version = self._version
        if call.grammar is not None:
            call.grammar.take(token)
            if reason := call.grammar.failed:
                self._leave(call)
                call.reply.fail(SamplerError(f"the answer's grammar is too much: {reason}"))
                return
        call.ids.append(token)
        call.logprobs.append(logprob)
        self._sampled += 1
        self._drafts.learn(call.ids)
        if token in call.request.stop_token_ids:
            self._finish(call, FinishReason.STOP)
        elif call.sampled == call.request.max_tokens or len(call.ids) == self._max_context_tokens:
            self._finish(call, FinishReason.LENGTH)
        else:
            row.ids[row.length] = token
            row.length += 1

    def _finish(self, call: _Call, reason: FinishReason) -> None:
        self._leave(call)
        call.reply.give(
            Completion(
                token_ids=tuple(call.ids[len(call.request.prompt_ids) :]),
                logprobs=tuple(call.logprobs),
                finish_reason=reason,
                first_version=self._version if call.first_version < 0 else call.first_version,
                last_version=self._version,
                cached_tokens=max(call.cached_tokens, 0),
                waited_s=call.request.patience_s if call.waited_s < 0 else call.waited_s,
            )
        )

    def _leave(self, call: _Call) -> None:
        if call.row is None:
            self._waiting.remove(call)
        else:
            self._running.remove(call)
            self._book.release(call.row)
            call.row = None


def open_backend(folder: Path, config: EngineConfig, max_context_tokens: int) -> Backend:
    """Open the fast network where it knows the architecture, else transformers' own."""
    if read_config(folder).get("model_type") in FAMILIES:
        return FusedBackend(folder, config, max_context_tokens)
    from agentrft.inference.embedded.generic import TransformersBackend

    return TransformersBackend(folder, config, max_context_tokens)
