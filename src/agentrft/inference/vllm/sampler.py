"""A `Sampler` over a vLLM server: token ids in and out, an adapter for each version of the weights.

Requests under way keep the version they began with. Text is never exchanged. A seed draws other
numbers than in the embedded engine.
"""

import asyncio
import json
import math
import shutil
import time
from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

from agentrft.core.errors import ConfigError, SamplerError, UserError, boundary
from agentrft.core.policy import Weights
from agentrft.core.protocols import Completion, SampleRequest
from agentrft.core.trajectory import FinishReason
from agentrft.inference.vllm.server import VllmServer

_LEAST_TEMPERATURE = 0.01
"""vLLM draws at this where less is asked, but for 0."""
_TOKENS_A_PIECE = 8
"""Of a stream. One by one costs vLLM more than drawing them from a small model."""
_SILENCE_S = 600.0
"""Longest wait for scores or an adapter."""
_NOT_FINITE = -9999.0
"""What vLLM writes for a log-probability that is no number."""
_SEEDS = 2**63


@dataclass(slots=True, eq=False)
class _Model:
    """What a request names: the base model, or an adapter on it."""

    name: str = ""
    version: int = 0
    folder: Path | None = None
    """Of an adapter; vLLM may read it again as long as somebody uses it."""
    users: int = 0


@dataclass(slots=True)
class _Heard:
    """What has come of a completion so far."""

    began: float
    """On the monotonic clock."""
    waited_s: float
    """All its patience until the first token."""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[float] = field(default_factory=list[float])
    finish_reason: str = ""
    cached_tokens: int = 0

    def take(self, piece: Mapping[str, Any]) -> None:
        """Add what a piece of the stream says."""
        if error := piece.get("error"):
            raise SamplerError(f"vLLM failed: {error['message']}")
        for choice in piece["choices"]:
            self.token_ids += choice["token_ids"]
            logprobs = (choice.get("logprobs") or {}).get("token_logprobs", ())
            self.logprobs += [math.nan if one is None else one for one in logprobs]
            self.finish_reason = choice.get("finish_reason") or self.finish_reason
        details = (piece.get("usage") or {}).get("prompt_tokens_details") or {}
        self.cached_tokens = details.get("cached_tokens") or self.cached_tokens

    def check(self, stop_token_ids: Sequence[int]) -> None:
        """Raise SamplerError for what no server that is set up as it must be answers."""
        if len(self.token_ids) != len(self.logprobs):
            raise SamplerError(
                f"vLLM sent {len(self.token_ids)} tokens with {len(self.logprobs)} logprobs"
            )
        if not all(one > _NOT_FINITE for one in self.logprobs):
            raise SamplerError(
                "the model's logits are not finite; its weights are broken or diverged"
            )
        if self.finish_reason == "stop" and self.token_ids[-1] not in stop_token_ids:
            raise SamplerError(
                f"vLLM stopped at token {self.token_ids[-1]}, which ends nothing here; start it with "
                "--generation-config=vllm"
            )
        if self.finish_reason not in ("stop", "length", "deadline"):
            raise SamplerError(f"vLLM ended a request early: {self.finish_reason or 'no reason'}")


class VllmSampler:
    """A `Sampler` of the weights that `load` was given last; the base model's before.

    vLLM keys its prefix cache by an adapter's name and path, and no two loads share either.
    """

    def __init__(self, server: VllmServer, *, max_context_tokens: int, vocabulary: int) -> None:
        """`vocabulary`: token ids are below this."""
        self._server = server
        self._max_context_tokens = max_context_tokens
        self._vocabulary = vocabulary
        self._model = _Model()
        self._retired: list[_Model] = []
        self._loads = 0
        self._is_open = False
        self._opening = asyncio.Lock()

    async def sample(self, request: SampleRequest) -> Completion:
        """Draw a continuation; at the end of the context it finishes with `LENGTH`.

        Time until the first token counts as time in line: vLLM does not tell them apart. Raises
        SamplerError for what the server refuses and for its failures, UserError for a grammar.
        """
        self._check(request)
        heard, model = _Heard(began=time.monotonic(), waited_s=request.patience_s), self._model
        seconds = None if request.deadline_s is None else request.deadline_s + request.patience_s
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await self._open()
                with self._using() as model:
                    await self._hear(request, model, heard, limit)
        except TimeoutError:
            if not limit.expired():
                raise
            heard.finish_reason = "deadline"
        heard.check(request.stop_token_ids)
        return Completion(
            token_ids=tuple(heard.token_ids),
            logprobs=tuple(heard.logprobs),
            finish_reason=FinishReason(heard.finish_reason),
            first_version=model.version,
            last_version=model.version,
            cached_tokens=heard.cached_tokens,
            waited_s=heard.waited_s,
        )

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return log-probabilities (temperature 1) of every token after the first, in nats."""
        if not sequences:
            return []
        for sequence in sequences:
            self._check_ids(sequence)
        await self._open()
        with self._using() as model:
            reply = await self._post(
                "/v1/completions",
                {
                    "model": model.name,
                    "prompt": [list(ids) for ids in sequences],
                    "max_tokens": 1,
                    "temperature": 0,
                    # Of the tokens themselves and no likelier ones. vLLM reads no prefix cache then.
                    "prompt_logprobs": 0,
                },
            )
        with boundary(SamplerError, "vLLM's scores cannot be read"):
            return [
                [row[str(token)]["logprob"] for token, row in zip(ids[1:], rows[1:], strict=True)]
                for ids, rows in zip(
                    sequences,
                    (choice["prompt_logprobs"] for choice in reply.json()["choices"]),
                    strict=True,
                )
            ]

    async def load(self, weights: Weights) -> None:
        """Serve these weights to every later request; those under way keep what they began with.

        Raises ConfigError for weights that are no adapter, SamplerError if vLLM does not take it, and
        then nothing has changed.
        """
        if weights.write_adapter is None:
            raise all_weights_refused()
        await self._open()
        self._loads += 1
        name = f"{self._server.folder.name}-{self._loads}"
        folder = self._server.folder / name
        folder.mkdir()
        await asyncio.to_thread(weights.write_adapter, folder)
        await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        self._retired.append(self._model)
        self._model = _Model(name, weights.version, folder)
        for model in [one for one in self._retired if not one.users]:
            self._retired.remove(model)
            if model.folder is not None:
                await self._post("/v1/unload_lora_adapter", {"lora_name": model.name})
                shutil.rmtree(model.folder, ignore_errors=True)

    def close(self) -> None:
        """Leave the server as it was found, or end it with all that is under way."""
        if not self._server.owned:
            for model in (*self._retired, self._model):
                if model.folder is not None:
                    self._server.tell("/v1/unload_lora_adapter", {"lora_name": model.name})
        self._server.close()

    def _check(self, request: SampleRequest) -> None:
        if request.grammar:
            raise UserError(
                "vLLM is not asked to force a grammar; set decoding.grammar to 'off', or remove "
                "[engine.vllm]"
            )
        if 0 < request.temperature < _LEAST_TEMPERATURE:
            raise UserError(
                f"vLLM draws at no temperature between 0 and {_LEAST_TEMPERATURE}, and "
                f"{request.temperature} was asked; take 0 or more than that"
            )
        if len(request.prompt_ids) >= self._max_context_tokens:
            raise SamplerError(
                f"the prompt has {len(request.prompt_ids)} tokens and the context holds "
                f"{self._max_context_tokens}; there is no room for an answer"
            )
        self._check_ids(request.prompt_ids)

    def _check_ids(self, ids: Sequence[int]) -> None:
        # Without a tokenizer vLLM does not look, and its engine ends at an id too large.
        if not ids or min(ids) < 0 or max(ids) >= self._vocabulary:
            raise SamplerError(
                f"a sequence of {len(ids)} tokens is empty or has an id outside the vocabulary of "
                f"{self._vocabulary}"
            )

    async def _open(self) -> None:
        """Wait for the server and see once that it says what a sampler must know."""
        if self._is_open:
            return
        async with self._opening:
            if not self._is_open:
                await self._server.ready()
                await self._meet()
                self._is_open = True

    async def _meet(self) -> None:
        async with self._asking(_SILENCE_S) as client:
            reply = await client.get("/v1/models")
        self._accept(reply)
        with boundary(SamplerError, "vLLM's list of models cannot be read"):
            base = next(card for card in reply.json()["data"] if not card.get("parent"))
            name, holds = str(base["id"]), int(base["max_model_len"])
        if holds < self._max_context_tokens:
            raise ConfigError(
                f"the vLLM server holds {holds} tokens and a rollout may take "
                f"{self._max_context_tokens}; start it with --max-model-len="
                f"{self._max_context_tokens} or lower limits.max_context_tokens"
            )
        # Only under the distribution drawn from is a token certain because it alone is allowed.
        probe = {"temperature": 1.0, "max_tokens": 1, "allowed_token_ids": [0]}
        reply = await self._post("/v1/completions", _body(name, (0,), probe))
        with boundary(
            ConfigError, "the vLLM server sends no token ids with logprobs, take a newer"
        ):
            choice = reply.json()["choices"][0]
            token_ids, (logprob,) = choice["token_ids"], choice["logprobs"]["token_logprobs"]
        if token_ids != [0] or abs(logprob) > 1e-4:
            raise ConfigError(
                "the vLLM server reports logprobs of another distribution than it draws from; start it "
                "with --logprobs-mode=processed_logprobs"
            )
        self._model.name = name

    async def _hear(
        self, request: SampleRequest, model: _Model, heard: _Heard, limit: asyncio.Timeout
    ) -> None:
        """Take a stream to its end. Left early it is closed, and vLLM aborts the request."""
        room = self._max_context_tokens - len(request.prompt_ids)
        asked = {
            "max_tokens": min(request.max_tokens, room),
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed % _SEEDS,
            "stop_token_ids": request.stop_token_ids,
            "stream": True,
            "stream_options": {"include_usage": True},
            "stream_interval": _TOKENS_A_PIECE,
        }
        body = _body(model.name, request.prompt_ids, asked)
        async with (
            self._asking(None) as client,
            client.stream("POST", "/v1/completions", json=body) as reply,
        ):
            if reply.status_code != 200:
                await reply.aread()
            self._accept(reply)
            async for line in reply.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                was_silent = not heard.token_ids
                with boundary(SamplerError, "vLLM's answer cannot be read"):
                    heard.take(json.loads(line.removeprefix("data: ")))
                if was_silent and heard.token_ids:
                    heard.waited_s = min(time.monotonic() - heard.began, request.patience_s)
                    if (when := limit.when()) is not None:
                        limit.reschedule(when - request.patience_s + heard.waited_s)

    @contextmanager
    def _using(self) -> Iterator[_Model]:
        model = self._model
        model.users += 1
        try:
            yield model
        finally:
            model.users -= 1

    async def _post(self, path: str, body: Mapping[str, Any]) -> httpx2.Response:
        async with self._asking(_SILENCE_S) as client:
            reply = await client.post(path, json=body)
        self._accept(reply)
        return reply

    def _accept(self, reply: httpx2.Response) -> None:
        if reply.status_code == 200:
            return
        message = f"vLLM refused {reply.url.path} ({reply.status_code}): {reply.text[:600]}"
        if not self._server.owned:
            message += "; docs/vllm.md says what it must be started with"
        elif reply.status_code >= 500:
            message += self._server.last_words()
        raise SamplerError(message)

    @asynccontextmanager
    async def _asking(self, silence_s: float | None) -> AsyncGenerator[httpx2.AsyncClient, None]:
        try:
            async with self._server.client(silence_s) as client:
                yield client
        except httpx2.HTTPError as error:
            raise SamplerError(
                f"the vLLM server does not answer ({type(error).__name__}){self._server.obituary()}"
            ) from error


def all_weights_refused() -> ConfigError:
    """Return what is said where vLLM is to serve weights that are no adapter."""
    return ConfigError(
        "vLLM takes new weights as adapters only, and all weights train; set trainer.adapter.kind to "
        "'lora', or remove [engine.vllm]"
    )


def _body(model: str, prompt_ids: Sequence[int], asked: Mapping[str, Any]) -> dict[str, Any]:
    """Return a request with nothing left to the server's or the model folder's own settings."""
    return {
        "model": model,
        "prompt": list(prompt_ids),
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "repetition_penalty": 1.0,
        "ignore_eos": True,
        # Of the token drawn and no others.
        "logprobs": 0,
        "return_token_ids": True,
        # Without a tokenizer there is no other name for them.
        "return_tokens_as_token_ids": True,
        **asked,
    }
