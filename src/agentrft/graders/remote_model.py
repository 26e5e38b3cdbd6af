"""Grader models and embeddings at any endpoint that speaks OpenAI's API, and the table of them all."""

import asyncio
import hashlib
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

from agentrft.core.config import GraderModel as GraderModelConfig
from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.usage import TokenUsage
from agentrft.egress.client import MAX_BODY_BYTES, Endpoint, EndpointReply, Wait
from agentrft.egress.errors import (
    AddressRefusedError,
    EndpointError,
    HeaderRefusedError,
    TryAgain,
)
from agentrft.egress.policy import EgressPolicy
from agentrft.inference.grader_model import GraderModel, GradingReply, GradingRequest
from agentrft.inference.own_model import OwnGraderModel, OwnModels

_UNKNOWN_FORM = (400, 404, 415, 422)
"""Statuses with which servers turn down a parameter they do not know."""
_SHOWN = 300

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
        self._endpoint = _endpoint(where, "chat/completions", config, policy, wait)
        self._forces_form = True
        """False once the server has turned `response_format` down and answered without it."""

    async def ask(self, request: GradingRequest) -> GradingReply:
        """Answer. Raises GraderError (`model_grader_server_error`) when retries did not help."""
        if request.schema is not None and self._forces_form:
            answer = await self._post(request, request.schema, request.key)
            if isinstance(answer, GradingReply):
                return answer
        answer = await self._post(request, None, f"{request.key}-plain")
        if isinstance(answer, _TurnedDown):
            raise _server_error(f"{self._endpoint.where} answered {answer.reason}")
        if request.schema is not None:
            self._forces_form = False
        return answer

    async def _post(
        self, request: GradingRequest, schema: Mapping[str, Any] | None, key: str
    ) -> "GradingReply | _TurnedDown":
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

    def _read(self, reply: EndpointReply) -> "GradingReply | _TurnedDown":
        if reply.status in _UNKNOWN_FORM:
            return _TurnedDown(_shown(self._endpoint, reply))
        value = _parsed(self._endpoint, reply)
        choice = _at(value, "choices", 0)
        if not isinstance(_at(choice, "message"), dict):
            raise TryAgain("the reply has no message")
        content = _at(choice, "message", "content")
        refusal = _at(choice, "message", "refusal")
        usage = TokenUsage(
            prompt_tokens=_count(value, "usage", "prompt_tokens"),
            completion_tokens=_count(value, "usage", "completion_tokens"),
            cached_tokens=_count(value, "usage", "prompt_tokens_details", "cached_tokens"),
        )
        text = content if isinstance(content, str) else ""
        match _at(choice, "finish_reason"):
            case "content_filter":
                words = str(refusal or "its content filter stopped it")
                return GradingReply(text=text, finish_reason="refusal", refusal=words, usage=usage)
            case _ if refusal:
                return GradingReply(
                    text=text, finish_reason="refusal", refusal=str(refusal), usage=usage
                )
            case "length":
                return GradingReply(text=text, finish_reason="length", usage=usage)
            case _:
                return GradingReply(text=text, finish_reason="stop", usage=usage)


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
        self._endpoint = _endpoint(path, "embeddings", config, policy, wait)

    async def embed(self, texts: Sequence[str]) -> list[list[float]]:
        """Return one vector per text. Raises GraderError (`model_grader_server_error`)."""

        def read(reply: EndpointReply) -> list[list[float]]:
            entries = _at(_parsed(self._endpoint, reply), "data")
            vectors = {
                _at(entry, "index"): _vector(_at(entry, "embedding"))
                for entry in (cast(list[object], entries) if isinstance(entries, list) else [])
            }
            if vectors.keys() != set(range(len(texts))):
                raise TryAgain(f"the reply has not one embedding for each of {len(texts)} texts")
            return [vectors[index] for index in range(len(texts))]

        fields = {"model": self._model, "input": list(texts)}
        # The same texts have the same vectors, whoever asks.
        key = hashlib.sha256("\0".join(texts).encode(errors="replace")).hexdigest()
        return await _call(self._endpoint, fields, read, key)


@dataclass(frozen=True, slots=True)
class _TurnedDown:
    """The server understood the request and will not answer it so."""

    reason: str


def _endpoint(
    where: str, path: str, config: GraderModelConfig, policy: EgressPolicy, wait: Wait
) -> Endpoint:
    headers = {}
    if config.api_key_file:
        headers["Authorization"] = f"Bearer {_key(config.api_key_file, where)}"
    url = f"{config.base_url.rstrip('/')}/{path}"
    try:
        return Endpoint(
            where,
            url,
            headers=headers,
            policy=_vouched(policy, url),
            rate_limit=config.rate_limit,
            timeout_s=config.timeout_s,
            max_concurrent=config.max_concurrent,
            wait=wait,
        )
    except AddressRefusedError as error:
        raise ConfigError(f"{where}.base_url {error}") from error
    except HeaderRefusedError:
        raise ConfigError(
            f"{where}.api_key_file holds no key: one line of printable ASCII"
        ) from None


def _key(file: str, where: str) -> str:
    try:
        return Path(file).expanduser().read_text(encoding="utf-8").strip()
    except OSError as error:
        raise ConfigError(f"{where}.api_key_file {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{where}.api_key_file {file}: not a text file") from None


def _vouched(policy: EgressPolicy, url: str) -> EgressPolicy:
    """Allow a private address: whoever owns this machine has written it into the config."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        port = parts.port or {"https": 443}.get(parts.scheme, 80)
    except ValueError:
        return policy  # the address itself is refused in a moment, with the reason
    entry = f"{f'[{host}]' if ':' in host else host}:{port}"
    return replace(policy, allowed=policy.allowed | {entry})


async def _call(
    endpoint: Endpoint,
    fields: Mapping[str, Any],
    read: Callable[[EndpointReply], T],
    key: str,
) -> T:
    given = {name: value for name, value in fields.items() if value is not None}
    body = json.dumps(given, ensure_ascii=False).encode(errors="replace")
    try:
        return await endpoint.call(body, read, key=key)
    except EndpointError as error:
        raise _server_error(str(error)) from error


def _server_error(message: str) -> GraderError:
    return GraderError(message, code="model_grader_server_error")


def _parsed(endpoint: Endpoint, reply: EndpointReply) -> object:
    if reply.body is None:
        raise TryAgain(f"the reply is too large (over {MAX_BODY_BYTES} bytes)")
    if reply.status != 200:
        raise EndpointError(f"{endpoint.where} answered {_shown(endpoint, reply)}")
    return reply.parsed()


def _shown(endpoint: Endpoint, reply: EndpointReply) -> str:
    # Secrets first: a cut could leave half of one that nobody recognises.
    return f"HTTP {reply.status}: {endpoint.redact(reply.text)[:_SHOWN]}"


def _at(value: object, *steps: str | int) -> object:
    """Return what lies at a path of foreign JSON, None if there is no such path."""
    for step in steps:
        match step, value:
            case str(), dict():
                value = cast(dict[str, object], value).get(step)
            case int(), list() if step < len(cast(list[object], value)):
                value = cast(list[object], value)[step]
            case _:
                return None
    return value


def _count(value: object, *steps: str) -> int:
    found = _at(value, *steps)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


def _vector(value: object) -> list[float]:
    numbers = cast(list[object], value) if isinstance(value, list) else []
    vector = [
        float(number)
        for number in numbers
        if isinstance(number, int | float) and math.isfinite(number)
    ]
    if not vector or len(vector) < len(numbers):
        raise TryAgain("an embedding is not a list of finite numbers")
    return vector
