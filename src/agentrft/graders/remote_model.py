"""Grader models and embeddings at any endpoint that speaks OpenAI's API, and the table of them all."""

import asyncio
import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from agentrft.core.config import GraderModel as GraderModelConfig
from agentrft.core.errors import ConfigError, GraderError
from agentrft.egress.client import Endpoint, EndpointReply, Wait
from agentrft.egress.errors import EndpointError, TryAgain
from agentrft.egress.openai_api import (
    UNKNOWN_FORM,
    TurnedDown,
    api_endpoint,
    at,
    chat_reply,
    listed,
    parsed,
    post,
    shown,
)
from agentrft.egress.policy import EgressPolicy
from agentrft.inference.grader_model import GraderModel, GradingReply, GradingRequest
from agentrft.inference.own_model import OwnGraderModel, OwnModels

T = TypeVar("T")


def grader_models(
    configs: Mapping[str, GraderModelConfig], *, policy: EgressPolicy, own: OwnModels | None = None
) -> dict[str, GraderModel]:
    """Return the configured models by name; nothing is called yet. Raises ConfigError."""
    models: dict[str, GraderModel] = {}
    for name, config in configs.items():
        if config.base_url:
            models[name] = RemoteGraderModel(name, config, policy=policy)
        elif own is None:
            raise ConfigError(
                f"grader_models.{name}.base_url is empty, which means the embedded engine, and there "
                "is none here; give the address of an OpenAI-compatible server"
            )
        else:
            models[name] = OwnGraderModel(
                config.model or name,
                own,
                max_concurrent=config.max_concurrent,
                timeout_s=config.timeout_s,
            )
    return models


class RemoteGraderModel:
    """A `GraderModel` behind `chat/completions`, with structured output where the server has it."""

    def __init__(
        self,
        name: str,
        config: GraderModelConfig,
        *,
        policy: EgressPolicy,
        wait: Wait = asyncio.sleep,
    ) -> None:
        self._model = config.model or name
        where = f"grader_models.{name}"
        self._endpoint = api_endpoint(where, "chat/completions", config, policy, wait=wait)
        self._forces_form = True
        """False once the server has turned `response_format` down and answered without it."""

    async def ask(self, request: GradingRequest) -> GradingReply:
        """Answer. Raises GraderError (`model_grader_server_error`) when retries did not help."""
        if request.schema is not None and self._forces_form:
            answer = await self._post(request, request.schema, request.key)
            if isinstance(answer, GradingReply):
                return answer
        answer = await self._post(request, None, f"{request.key}-plain")
        if isinstance(answer, TurnedDown):
            raise _server_error(f"{self._endpoint.where} answered {answer.reason}")
        if request.schema is not None:
            self._forces_form = False
        return answer

    async def _post(
        self, request: GradingRequest, schema: Mapping[str, Any] | None, key: str
    ) -> GradingReply | TurnedDown:
        fields: dict[str, Any] = {
            "model": self._model,
            "messages": [{"role": m.role, "content": m.content} for m in request.messages],
            "max_completion_tokens": request.max_tokens,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "seed": request.seed,
            "reasoning_effort": request.reasoning_effort,
        }
        if schema is not None:
            form = {"name": "grading", "strict": True, "schema": schema}
            fields["response_format"] = {"type": "json_schema", "json_schema": form}
        return await _call(self._endpoint, fields, self._read, key)

    def _read(self, reply: EndpointReply) -> GradingReply | TurnedDown:
        if reply.status in UNKNOWN_FORM:
            return TurnedDown(reply.status, shown(reply))
        answer = chat_reply(parsed(self._endpoint, reply))
        ended = "length" if answer.finish_reason == "length" else "stop"
        return GradingReply(
            text=answer.text,
            finish_reason="refusal" if answer.refusal else ended,
            refusal=answer.refusal,
            usage=answer.usage,
        )


class RemoteEmbedder:
    """An `Embedder` behind `embeddings`."""

    def __init__(
        self,
        config: GraderModelConfig,
        *,
        policy: EgressPolicy,
        path: str = "embedding_model",
        wait: Wait = asyncio.sleep,
    ) -> None:
        if not config.base_url or not config.model:
            raise ConfigError(
                f"{path} needs base_url and model; the embedded engine makes no embeddings"
            )
        self._model = config.model
        self._endpoint = api_endpoint(path, "embeddings", config, policy, wait=wait)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector per text. Raises GraderError (`model_grader_server_error`)."""

        def read(reply: EndpointReply) -> list[list[float]]:
            entries = listed(at(parsed(self._endpoint, reply), "data"))
            vectors = {at(entry, "index"): _vector(at(entry, "embedding")) for entry in entries}
            if vectors.keys() != set(range(len(texts))):
                raise TryAgain(f"the reply has not one embedding for each of {len(texts)} texts")
            return [vectors[index] for index in range(len(texts))]

        fields = {"model": self._model, "input": list(texts)}
        # The same texts have the same vectors, whoever asks.
        key = hashlib.sha256("\0".join(texts).encode(errors="replace")).hexdigest()
        return await _call(self._endpoint, fields, read, key)


async def _call(
    endpoint: Endpoint,
    fields: Mapping[str, Any],
    read: Callable[[EndpointReply], T],
    key: str,
) -> T:
    try:
        return await post(endpoint, fields, read, key=key)
    except EndpointError as error:
        raise _server_error(str(error)) from error


def _server_error(message: str) -> GraderError:
    return GraderError(message, code="model_grader_server_error")


def _vector(value: object) -> list[float]:
    numbers = listed(value)
    vector = [
        float(number)
        for number in numbers
        if isinstance(number, int | float) and math.isfinite(number)
    ]
    if not vector or len(vector) < len(numbers):
        raise TryAgain("an embedding is not a list of finite numbers")
    return vector
