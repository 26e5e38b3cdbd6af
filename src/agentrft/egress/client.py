"""POST to an endpoint that somebody registered: caps, a total deadline, retries, nothing followed.

The HTTP layer is used without a client around it, so there are no redirects, no proxies from the
environment, no cookies and no unpacking beyond the cap to switch off.
"""

import asyncio
import hashlib
import json
import random
import re
import time
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from ssl import SSLContext
from typing import TypeVar, cast
from weakref import WeakKeyDictionary

import httpcore2

from agentrft.egress.errors import (
    AddressRefusedError,
    EndpointError,
    HeaderRefusedError,
    NotSentError,
    TryAgain,
)
from agentrft.egress.limits import Breaker, Clock, Pace
from agentrft.egress.policy import EgressPolicy, Target
from agentrft.egress.signing import signature_headers

MAX_BODY_BYTES = 1 << 20
"""Of a request and of a reply, unpacked."""
CALL_TIMEOUT_S = 600.0
"""One call, retries and waiting included."""
CONNECT_TIMEOUT_S = 5.0
"""Resolving the name included."""
RETRIES = 3
FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0
"""Also the most that `Retry-After` may ask for."""
MAX_CONCURRENT = 128
"""Calls of one endpoint at a time; more wait in line."""

_SET_BY_US = frozenset(
    "host content-length transfer-encoding connection upgrade expect te trailer "
    "webhook-id webhook-timestamp webhook-signature".split()
)
_NO_SECRETS = frozenset("content-type accept accept-language user-agent".split())

T = TypeVar("T")
Wait = Callable[[float], Awaitable[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointReply:
    """What came back, whatever the status."""

    status: int
    headers: Mapping[str, str]
    """Names in lower case."""
    body: bytes | None
    """None if it is larger than a reply may be."""

    @property
    def text(self) -> str:
        """The body as text; bytes that are none become U+FFFD."""
        return (self.body or b"").decode(errors="replace")

    def parsed(self) -> object:
        """Return the body's JSON. Raises TryAgain if it is cut off or none: that may pass."""
        try:
            return json.loads(self.text)
        except (ValueError, RecursionError):
            raise TryAgain("the body is not complete JSON") from None


class Endpoint:
    """One URL with its headers and its limits; calls of the same rollout and of others share it.

    Raises AddressRefusedError and HeaderRefusedError when made, so that a job can be refused early.
    """

    def __init__(
        self,
        name: str,
        url: str,
        *,
        headers: Mapping[str, str],
        policy: EgressPolicy,
        rate_limit: float | None = None,
        timeout_s: float = CALL_TIMEOUT_S,
        max_concurrent: int = MAX_CONCURRENT,
        signing_key: str = "",
        wait: Wait = asyncio.sleep,
        clock: Clock = time.monotonic,
    ) -> None:
        self.target = policy.target(url)
        check_headers(headers)
        self.where = f"{name} at {self.target.shown}"
        self.policy = policy
        self._headers = headers
        self._timeout_s = timeout_s
        self._max_concurrent = max_concurrent
        self._signing_key = signing_key
        self._wait = wait
        self._pace = Pace(rate_limit, clock) if rate_limit else None
        self._breaker = Breaker(clock)
        self._slots: WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Semaphore] = (
            WeakKeyDictionary()
        )

    async def call(self, body: bytes, read: Callable[[EndpointReply], T], *, key: str) -> T:
        """POST until `read` makes sense of a reply. Raises EndpointError when nothing helps.

        `read` raises TryAgain for a reply that another attempt may better. `key` lets the server
        recognise an attempt as one it has seen.
        """
        if len(body) > MAX_BODY_BYTES:
            raise NotSentError(
                f"{self.where}: the request has {len(body)} bytes; at most {MAX_BODY_BYTES} are sent"
            )
        deadline = asyncio.timeout(self._timeout_s)
        try:
            async with deadline:
                return await self._attempts(body, read, key)
        except TimeoutError:
            if not deadline.expired():
                raise
            raise EndpointError(f"{self.where} gave no result in {self._timeout_s:g} s") from None

    def redact(self, text: str) -> str:
        """Take out header values that a server echoes: models and records must not hold them."""
        for name, value in self._headers.items():
            if name.lower() in _NO_SECRETS:
                continue
            for secret in (value, value.rsplit(" ", 1)[-1]):
                if len(secret) >= 6:
                    text = text.replace(secret, "[redacted]")
        return text

    async def _attempts(self, body: bytes, read: Callable[[EndpointReply], T], key: str) -> T:
        for retry in range(RETRIES):
            try:
                return await self._attempt(body, read, key)
            except TryAgain as failure:
                await self._wait(_delay_s(retry, failure.retry_after_s))
        try:
            return await self._attempt(body, read, key)
        except TryAgain as failure:
            reason = self.redact(str(failure))
            raise EndpointError(f"{self.where} failed {RETRIES + 1} times: {reason}") from None

    async def _attempt(self, body: bytes, read: Callable[[EndpointReply], T], key: str) -> T:
        slots = self._slots.setdefault(
            asyncio.get_running_loop(), asyncio.Semaphore(self._max_concurrent)
        )
        headers = _with_defaults(self._headers, {"Idempotency-Key": key})
        async with slots:
            # Not before: calls that wait in line with their pause behind them would start all at once.
            if self._pace is not None and (pause_s := self._pace.reserve()) > 0:
                await self._wait(pause_s)
            if self._signing_key:
                headers |= signature_headers(self._signing_key, key, body, timestamp=time.time())
            with self._breaker.watch(self.where):
                try:
                    reply = await post_once(self.target, body, headers, self.policy)
                except AddressRefusedError as error:
                    raise AddressRefusedError(f"{self.where} {error}") from None
                if reply.status == 429 or reply.status >= 500:
                    raise TryAgain(f"HTTP {reply.status}", _retry_after_s(reply.headers))
                if 300 <= reply.status < 400:
                    raise EndpointError(
                        f"{self.where} redirects (HTTP {reply.status}); give its final URL"
                    )
                return read(reply)


async def post_once(
    target: Target, body: bytes, headers: Mapping[str, str], policy: EgressPolicy
) -> EndpointReply:
    """Send one request without a deadline of its own. Raises TryAgain, AddressRefusedError.

    `policy` checks the address again, for a name may lead somewhere else by now.
    """
    sent = _with_defaults(
        headers,
        {
            "Host": target.authority,
            "Content-Type": "application/json",
            "Accept-Encoding": "identity",
        },
    )
    url = httpcore2.URL(
        scheme=target.scheme.encode(),
        host=target.host.encode(),
        port=target.port,
        target=target.path,
    )
    try:
        async with (
            connections(policy) as pool,
            pool.stream(
                "POST",
                url,
                headers=list(sent.items()),
                content=body,
                extensions={"timeout": {"connect": CONNECT_TIMEOUT_S}},
            ) as response,
        ):
            received = {
                name.decode("latin-1").lower(): value.decode("latin-1")
                for name, value in response.headers
            }
            content = await _read(response, received.get("content-encoding", "identity"))
    except (
        httpcore2.NetworkError,
        httpcore2.ProtocolError,
        httpcore2.TimeoutException,
        zlib.error,
    ) as error:
        raise TryAgain(f"{type(error).__name__}: {error}") from error
    return EndpointReply(status=response.status, headers=received, body=content)


def check_headers(headers: Mapping[str, str]) -> None:
    """Raise HeaderRefusedError for what could only fail later, without repeating a secret value."""
    for name, value in headers.items():
        if name.lower() in _SET_BY_US:
            raise HeaderRefusedError(f"header {name!r} is set by the sender; leave it out")
        if not re.fullmatch(r"[\w!#$%&'*+.^`|~-]+", name, re.ASCII) or not re.fullmatch(
            r"([\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?)?", value
        ):
            raise HeaderRefusedError(
                f"header {name!r} must be printable ASCII, without line breaks or spaces around it"
            )


def idempotency_key(trace_id: str, part: str) -> str:
    """Return what stays the same over the attempts of one call; models write ids of calls."""
    key = f"{trace_id}:{part}"
    if re.fullmatch(r"[\w:.-]{1,200}", key, re.ASCII):
        return key
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()


@dataclass
class _Shared:
    pool: httpcore2.AsyncConnectionPool
    borrowers: int = 0


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, dict[EgressPolicy, _Shared]] = (
    WeakKeyDictionary()
)


@asynccontextmanager
async def connections(policy: EgressPolicy) -> AsyncIterator[httpcore2.AsyncConnectionPool]:
    """Lend the connections of this event loop; the last borrower closes them.

    Hold them over several calls to keep the connections between the calls.
    """
    pools = _shared.setdefault(asyncio.get_running_loop(), {})
    if policy not in pools:
        pools[policy] = _Shared(
            httpcore2.AsyncConnectionPool(
                ssl_context=_certificates(),
                max_connections=256,
                max_keepalive_connections=64,
                keepalive_expiry=30.0,
                network_backend=_CheckedBackend(policy),
            )
        )
    shared = pools[policy]
    shared.borrowers += 1
    try:
        yield shared.pool
    finally:
        shared.borrowers -= 1
        if shared.borrowers == 0:
            del pools[policy]
            await shared.pool.aclose()


@cache
def _certificates() -> SSLContext:
    return httpcore2.default_ssl_context()


class _CheckedBackend(httpcore2.AsyncNetworkBackend):
    """Connects to addresses that the policy checked; host name and TLS name stay as they are."""

    def __init__(self, policy: EgressPolicy) -> None:
        self._policy = policy
        # Typed as the stand-in that it is without anyio, which comes with the client.
        self._network = cast(httpcore2.AsyncNetworkBackend, httpcore2.AnyIOBackend())

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - the seam's own signature
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        try:
            async with asyncio.timeout(timeout):
                addresses = await self._policy.addresses(host, port)
        except TimeoutError:
            raise httpcore2.ConnectTimeout(f"the name {host!r} was not resolved") from None
        except OSError as error:
            raise httpcore2.ConnectError(f"the name {host!r} cannot be resolved: {error}") from None
        *others, last = addresses
        for address in others:
            try:
                return await self._network.connect_tcp(address, port, timeout)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                continue
        return await self._network.connect_tcp(last, port, timeout)

    async def sleep(self, seconds: float) -> None:
        await self._network.sleep(seconds)


def _with_defaults(headers: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    given = {name.lower() for name in headers}
    return {**{n: v for n, v in defaults.items() if n.lower() not in given}, **headers}


async def _read(response: httpcore2.Response, encoding: str) -> bytes | None:
    """Return the body, None if it is larger than a reply may be once unpacked."""
    unpacker = None
    if encoding == "gzip":  # some servers pack without being asked
        unpacker = zlib.decompressobj(wbits=31)
    elif encoding not in ("", "identity"):
        raise TryAgain(f"the body has the encoding {encoding[:40]!r}, which was not asked for")
    received = bytearray()
    async for chunk in response.aiter_stream():
        room = MAX_BODY_BYTES + 1 - len(received)
        received += chunk if unpacker is None else unpacker.decompress(chunk, room)
        if len(received) > MAX_BODY_BYTES:
            return None
    if unpacker is not None and not unpacker.eof:
        raise TryAgain("the packed body is cut off")
    return bytes(received)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Return the seconds a server asks to wait; it may give seconds or a date."""
    value = headers.get("retry-after", "").strip()
    if value.isdecimal():
        return float(value)
    try:
        return max((parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds(), 0.0)
    except (TypeError, ValueError):
        return None


def _delay_s(retry: int, retry_after_s: float | None) -> float:
    """Exponential backoff with full jitter; never sooner than the server asks, within reason."""
    jittered_s = random.uniform(0.0, FIRST_DELAY_S * 2**retry)
    return min(max(jittered_s, retry_after_s or 0.0), LONGEST_DELAY_S)
