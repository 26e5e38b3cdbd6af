import asyncio
import datetime as dt
import gzip
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from raw_server import DRIPS, HANGS, Raw, RawServer, Waited, reply, serving

from agentrft.egress.client import MAX_BODY_BYTES, Endpoint, EndpointReply, idempotency_key
from agentrft.egress.errors import (
    AddressRefusedError,
    EndpointError,
    HeaderRefusedError,
    NotSentError,
    TryAgain,
)
from agentrft.egress.policy import EgressPolicy

SECRET = "Bearer abcdef-secret"


def an_endpoint(url: str, waited: Waited | None = None, **fields: Any) -> Endpoint:
    waited = waited or Waited()
    given: dict[str, Any] = {"headers": {"X-Key": SECRET}, "policy": EgressPolicy()}
    return Endpoint("tool 'x'", url, wait=waited, clock=waited.clock, **{**given, **fields})


def as_it_is(reply: EndpointReply) -> EndpointReply:
    return reply


def post(
    *replies: Raw,
    read: Callable[[EndpointReply], EndpointReply] = as_it_is,
    waited: Waited | None = None,
    body: bytes = b'{"q": 1}',
    **fields: Any,
) -> tuple[EndpointReply | EndpointError, RawServer]:
    """Call once; return what came of it and the server that saw it."""

    async def scenario() -> tuple[EndpointReply | EndpointError, RawServer]:
        async with serving(*replies) as server:
            endpoint = an_endpoint(f"{server.url}/x?key=hunter22", waited, **fields)
            try:
                return await endpoint.call(body, read, key="trace_1:call_1"), server
            except EndpointError as error:
                return error, server

    return asyncio.run(scenario())


def test_a_call_carries_the_headers_it_was_given_and_a_key_of_its_own() -> None:
    given, server = post(reply('{"a": 1}', X_More="yes"))
    assert isinstance(given, EndpointReply)
    assert (given.status, given.parsed(), given.headers["x-more"]) == (200, {"a": 1}, "yes")
    (request,) = server.requests
    assert request.line == "POST /x?key=hunter22 HTTP/1.1"
    assert request.body == {"q": 1}
    assert request.headers["x-key"] == SECRET
    assert request.headers["idempotency-key"] == "trace_1:call_1"
    assert request.headers["accept-encoding"] == "identity"
    assert request.headers["host"] == f"127.0.0.1:{server.port}"


def test_a_header_of_the_user_wins() -> None:
    _, server = post(headers={"content-type": "application/x", "Idempotency-KEY": "mine"})
    (request,) = server.requests
    assert (request.headers["content-type"], request.headers["idempotency-key"]) == (
        "application/x",
        "mine",
    )


@pytest.mark.parametrize(
    "fault",
    [
        reply(status=500),
        reply(status=429),
        reply('{"a": 1', missing_bytes=5),
        Raw((b"garbage that is no HTTP\r\n\r\n",)),
        Raw(()),
        reply(gzip.compress(b"{}")[:-9], content_encoding="gzip"),
        reply(b"not packed", content_encoding="gzip"),
        reply(b"?", content_encoding="br"),
    ],
    ids=["500", "429", "cut", "garbage", "hangs up", "cut gzip", "no gzip", "unasked encoding"],
)
def test_a_fault_that_may_pass_is_tried_again_with_the_same_key(fault: Raw) -> None:
    waited = Waited()
    given, server = post(fault, fault, fault, reply(), waited=waited)
    assert isinstance(given, EndpointReply)
    assert len(server.requests) == 4
    assert len({request.headers["idempotency-key"] for request in server.requests}) == 1
    assert all(0 <= delay <= 0.5 * 2**n for n, delay in enumerate(waited.delays_s))


def test_the_last_fault_is_told_without_query_or_headers() -> None:
    given, server = post(reply(status=503))
    assert str(given) == f"tool 'x' at {server.url}/x failed 4 times: HTTP 503"
    assert len(server.requests) == 4


def test_retry_after_is_obeyed_within_reason() -> None:
    waited = Waited()
    soon, late = reply(status=429, retry_after="7"), reply(status=503, retry_after="86400")
    post(soon, late, reply(), waited=waited)
    assert waited.delays_s == [7.0, 60.0]


def test_a_reader_may_ask_for_another_attempt_and_secrets_are_cut_from_its_reason() -> None:
    def refuse(reply: EndpointReply) -> EndpointReply:
        raise TryAgain(f"got {reply.text}")

    given, server = post(reply(f"you sent {SECRET}, the token is abcdef-secret"), read=refuse)
    assert len(server.requests) == 4
    assert str(given).endswith("got you sent [redacted], the token is [redacted]")


def test_a_redirect_is_an_error_and_not_followed() -> None:
    given, server = post(reply(status=307, location="http://127.0.0.1:1/"))
    assert "redirects (HTTP 307); give its final URL" in str(given)
    assert len(server.requests) == 1


@pytest.mark.parametrize("endless", [HANGS, DRIPS], ids=["hangs", "drips"])
def test_the_deadline_is_one_for_the_whole_call(endless: Raw) -> None:
    given, _ = post(endless, timeout_s=0.2)
    assert str(given).endswith("gave no result in 0.2 s")


def test_a_reply_is_read_up_to_the_cap_packed_or_not() -> None:
    huge = b"0" * (200 * MAX_BODY_BYTES)
    plain = reply(huge[: MAX_BODY_BYTES + 1])
    packed = reply(gzip.compress(huge), content_encoding="gzip")
    for answer in (plain, packed):
        given, _ = post(answer)
        assert isinstance(given, EndpointReply)
        assert given.body is None
    small, _ = post(reply(gzip.compress(b'{"a": 1}'), content_encoding="gzip"))
    assert isinstance(small, EndpointReply)
    assert small.parsed() == {"a": 1}


def test_a_request_over_the_cap_is_not_sent() -> None:
    given, server = post(body=b"0" * (MAX_BODY_BYTES + 1))
    assert isinstance(given, NotSentError)
    assert server.requests == []


def test_a_rate_limit_spreads_the_calls() -> None:
    waited = Waited()

    async def scenario() -> None:
        async with serving() as server:
            endpoint = an_endpoint(server.url, waited, rate_limit=4.0)
            for _ in range(3):
                await endpoint.call(b"{}", as_it_is, key="k")

    asyncio.run(scenario())
    assert waited.delays_s == [0.25, 0.25]


def test_calls_of_one_endpoint_wait_for_each_other_beyond_its_limit() -> None:
    slow = Raw(reply().pieces, before=lambda: asyncio.sleep(0.01))

    async def scenario() -> RawServer:
        async with serving(slow) as server:
            endpoint = an_endpoint(server.url, max_concurrent=2)
            calls = [endpoint.call(b"{}", as_it_is, key="k") for _ in range(8)]
            await asyncio.gather(*calls)
            return server

    server = asyncio.run(scenario())
    assert len(server.requests) == 8
    assert server.open_most == 2


def test_a_call_takes_its_turn_of_the_rate_when_it_starts_not_while_it_waits_in_line() -> None:
    waited = Waited()

    async def take_long() -> None:
        waited.now_s += 100.0

    async def scenario() -> None:
        async with serving(Raw(reply().pieces, before=take_long)) as server:
            endpoint = an_endpoint(server.url, waited, rate_limit=4.0, max_concurrent=1)
            await asyncio.gather(*(endpoint.call(b"{}", as_it_is, key="k") for _ in range(3)))

    asyncio.run(scenario())
    assert waited.delays_s == []


def test_an_endpoint_that_keeps_failing_is_left_alone_and_probed_later() -> None:
    async def scenario() -> None:
        waited = Waited()
        faults = [reply(status=500)] * 20
        async with serving(*faults, reply()) as server:
            endpoint = an_endpoint(server.url, waited)
            errors = [str(await failed(endpoint)) for _ in range(6)]
            assert "left alone for" in errors[-1]
            assert len(server.requests) == 20
            waited.now_s += 30.0
            for _ in range(3):
                assert (await endpoint.call(b"{}", as_it_is, key="k")).status == 200

    async def failed(endpoint: Endpoint) -> EndpointError:
        with pytest.raises(EndpointError) as caught:
            await endpoint.call(b"{}", as_it_is, key="k")
        return caught.value

    asyncio.run(scenario())


@pytest.mark.parametrize("name", ["Host", "content-length", "Transfer-Encoding", "Connection"])
def test_headers_that_frame_the_request_are_not_the_users(name: str) -> None:
    with pytest.raises(HeaderRefusedError, match="set by the sender"):
        an_endpoint("http://127.0.0.1:1/", headers={name: "1"})


@pytest.mark.parametrize("value", ["hunter22\r\nX: y", " hunter22", "hunter22\t", "hünter22"])
def test_a_header_that_cannot_be_sent_is_refused_without_its_value(value: str) -> None:
    with pytest.raises(HeaderRefusedError, match="header 'X-Key' must be printable") as caught:
        an_endpoint("http://127.0.0.1:1/", headers={"X-Key": value})
    assert "nter22" not in str(caught.value)


@pytest.mark.parametrize(
    "environment", [{"HTTP_PROXY": "http://127.0.0.1:1"}, {"ALL_PROXY": "http://127.0.0.1:1"}]
)
def test_proxies_of_the_environment_are_not_asked(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given, _ = post()
    assert isinstance(given, EndpointReply)


def named(*answers: str) -> tuple[list[str], Callable[[str, int], Any]]:
    asked: list[str] = []
    left = list(answers)

    async def resolve(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return (left.pop(0) if len(left) > 1 else left[0],)

    return asked, resolve


def test_the_checked_address_is_called_under_the_name() -> None:
    asked, resolve = named("127.0.0.1", "169.254.169.254")

    async def scenario() -> None:
        async with serving() as server:
            name = f"tools.example:{server.port}"
            policy = EgressPolicy(resolve=resolve, allowed=frozenset({name}))
            endpoint = an_endpoint(f"http://{name}/x", policy=policy)
            await endpoint.call(b"{}", as_it_is, key="k")
            assert server.requests[0].headers["host"] == name
            assert asked == ["tools.example"]
            # The name has moved: the next connection must not follow it.
            with pytest.raises(AddressRefusedError, match="at http://.* leads to 169.254.169.254"):
                await endpoint.call(b"{}", as_it_is, key="k")
            assert len(server.requests) == 1

    asyncio.run(scenario())


def test_a_public_name_that_leads_to_this_machine_reaches_nobody() -> None:
    _, resolve = named("127.0.0.1")

    async def scenario() -> None:
        async with serving() as server:
            policy = EgressPolicy(resolve=resolve)
            endpoint = an_endpoint(f"http://evil.example:{server.port}/", policy=policy)
            with pytest.raises(AddressRefusedError, match="under another name"):
                await endpoint.call(b"{}", as_it_is, key="k")
            assert server.requests == []

    asyncio.run(scenario())


def test_a_name_that_nobody_knows_is_a_fault_that_may_pass() -> None:
    async def unknown(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    async def scenario() -> None:
        endpoint = an_endpoint("http://gone.example/", policy=EgressPolicy(resolve=unknown))
        with pytest.raises(EndpointError, match="failed 4 times: ConnectError: the name 'gone"):
            await endpoint.call(b"{}", as_it_is, key="k")

    asyncio.run(scenario())


def a_certificate(folder: Path, name: str) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = dt.datetime.now(dt.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(
        pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "both.pem").write_bytes(private + certificate.public_bytes(pem))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "both.pem")
    return context


def greet(listener: socket.socket, context: ssl.SSLContext, times: int) -> None:
    for _ in range(times):
        connection, _ = listener.accept()
        with connection, suppress(OSError):
            context.wrap_socket(connection, server_side=True).close()


def test_tls_is_asked_for_by_name_and_a_stranger_is_not_trusted(tmp_path: Path) -> None:
    asked: list[str | None] = []
    context = a_certificate(tmp_path, "tools.example")
    context.sni_callback = lambda socket, name, context: asked.append(name)
    _, resolve = named("127.0.0.1")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=greet, args=(listener, context, 4))
        thread.start()
        name = f"tools.example:{listener.getsockname()[1]}"
        policy = EgressPolicy(resolve=resolve, allowed=frozenset({name}))
        with pytest.raises(EndpointError, match="certificate verify failed"):
            asyncio.run(
                an_endpoint(f"https://{name}/", policy=policy).call(b"{}", as_it_is, key="k")
            )
        thread.join()
    assert asked == ["tools.example"] * 4


def test_a_key_that_a_model_could_abuse_is_hashed() -> None:
    assert idempotency_key("trace_1", "call_2") == "trace_1:call_2"
    for part in ("a\r\nb", "x" * 1000, "ü", "\ud800"):
        assert len(idempotency_key("trace_1", part)) == 64
