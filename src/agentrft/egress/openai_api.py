"""Endpoints that speak OpenAI's API: their address and key, requests, and what replies say.

Knows JSON and HTTP, and neither conversations nor grades: who asks gives a reply its meaning.
"""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar, cast
from urllib.parse import urlsplit

from agentrft.core.config import AgentEndpoint, GraderModel
from agentrft.core.errors import ConfigError
from agentrft.core.usage import TokenUsage
from agentrft.egress.client import MAX_BODY_BYTES, Endpoint, EndpointReply, Wait
from agentrft.egress.errors import (
    AddressRefusedError,
    EndpointError,
    HeaderRefusedError,
    TryAgain,
)
from agentrft.egress.limits import Clock
from agentrft.egress.policy import EgressPolicy

ApiConfig = AgentEndpoint | GraderModel
UNKNOWN_FORM = (400, 404, 415, 422)
"""Statuses with which servers turn down a parameter they do not know."""
_SHOWN = 300

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TurnedDown:
    """The server understood the request and will not answer it so."""

    status: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatReply:
    """The first choice of a chat completion."""

    message: Mapping[str, object]
    """As the server wrote it."""
    text: str
    refusal: str
    """Why there is no real answer; empty if there is one."""
    finish_reason: str
    usage: TokenUsage
    """0 where the server does not count."""


def api_endpoint(
    where: str,
    path: str,
    config: ApiConfig,
    policy: EgressPolicy,
    *,
    wait: Wait = asyncio.sleep,
    clock: Clock = time.monotonic,
) -> Endpoint:
    """Return the endpoint at `path` below the config's base URL, which is called only later.

    `where` is the config's own path. Raises ConfigError, which never shows a key.
    """
    headers: dict[str, str] = {}
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
            clock=clock,
        )
    except AddressRefusedError as error:
        raise ConfigError(f"{where}.base_url {error}") from error
    except HeaderRefusedError:
        raise ConfigError(
            f"{where}.api_key_file holds no key: one line of printable ASCII"
        ) from None


async def post(
    endpoint: Endpoint,
    fields: Mapping[str, object],
    read: Callable[[EndpointReply], T],
    *,
    key: str,
) -> T:
    """Send the fields that are not None. Raises EndpointError when nothing helps.

    A server that echoes the key does not get it into what is read.
    """
    given = {name: value for name, value in fields.items() if value is not None}
    body = json.dumps(given, ensure_ascii=False).encode(errors="replace")

    def redacted(reply: EndpointReply) -> T:
        if reply.body is None:
            return read(reply)
        return read(replace(reply, body=endpoint.redact(reply.text).encode()))

    return await endpoint.call(body, redacted, key=key)


def parsed(endpoint: Endpoint, reply: EndpointReply) -> object:
    """Return the JSON of a good reply. Raises TryAgain or EndpointError for any other."""
    if reply.body is None:
        raise TryAgain(f"the reply is too large (over {MAX_BODY_BYTES} bytes)")
    if reply.status != 200:
        raise EndpointError(f"{endpoint.where} answered {shown(reply)}")
    return reply.parsed()


def shown(reply: EndpointReply) -> str:
    """Return a reply's status and the beginning of its text."""
    return f"HTTP {reply.status}: {reply.text[:_SHOWN]}"


def chat_reply(value: object) -> ChatReply:
    """Read a chat completion. Raises TryAgain if it has no message."""
    choice = at(value, "choices", 0)
    message = at(choice, "message")
    if not isinstance(message, dict):
        error = at(value, "error", "message")
        said = f": {error}" if isinstance(error, str) and len(error) <= _SHOWN else ""
        raise TryAgain(f"the reply has no message{said}")
    finish_reason = at(choice, "finish_reason")
    refusal = at(message, "refusal")
    if finish_reason == "content_filter" and not refusal:
        refusal = "its content filter stopped it"
    return ChatReply(
        message=cast(dict[str, object], message),
        text=_text(at(message, "content")),
        refusal=str(refusal) if refusal else "",
        finish_reason=finish_reason if isinstance(finish_reason, str) else "stop",
        usage=TokenUsage(
            prompt_tokens=_count(value, "usage", "prompt_tokens"),
            completion_tokens=_count(value, "usage", "completion_tokens"),
            cached_tokens=_count(value, "usage", "prompt_tokens_details", "cached_tokens"),
        ),
    )


def at(value: object, *steps: str | int) -> object:
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


def listed(value: object) -> list[object]:
    """Return foreign JSON if it is a list, else an empty one."""
    return cast(list[object], value) if isinstance(value, list) else []


def _text(content: object) -> str:
    """Return content that is a text, or the texts of content in parts."""
    if isinstance(content, str):
        return content
    texts = [at(part, "text") for part in listed(content)]
    return "".join(text for text in texts if isinstance(text, str))


def _count(value: object, *steps: str) -> int:
    found = at(value, *steps)
    return found if isinstance(found, int) and not isinstance(found, bool) and found > 0 else 0


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
