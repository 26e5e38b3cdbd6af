import asyncio
import socket
from collections.abc import Sequence

import pytest

from agentrft.egress.errors import AddressRefusedError
from agentrft.egress.policy import EgressPolicy, system_resolve

PUBLIC = "93.184.215.14"
NAMES = {
    "tools.example": (PUBLIC,),
    "six.example": ("2606:2800:21f:cb07:6820:80da:af6b:8b2c",),
    "localhost": ("::1", "127.0.0.1"),
    "rebound.example": ("127.0.0.1",),
    "mixed.example": (PUBLIC, "10.0.0.5"),
    "lan.example": ("192.168.1.20",),
    "mapped.example": ("::ffff:127.0.0.1",),
    "nat64.example": ("64:ff9b::7f00:1",),
    "metadata.google.internal": ("169.254.169.254",),
    "x.localhost": ("127.0.0.1",),
    "zero.example": ("0.0.0.0",),
    "linklocal.example": ("fe80::1%2",),
}


async def resolve(host: str, port: int) -> Sequence[str]:
    if host not in NAMES:
        raise socket.gaierror(f"no such name {host}")
    return NAMES[host]


def refusal(url: str, policy: EgressPolicy | None = None) -> str:
    """Why a URL may not be called, empty if it may."""
    policy = policy or EgressPolicy(resolve=resolve)
    try:
        target = policy.target(url)
        asyncio.run(policy.addresses(target.host, target.port))
    except AddressRefusedError as error:
        return str(error)
    return ""


PUBLIC_URLS = [
    "https://tools.example/search",
    "http://tools.example:8080/x?key=1",
    "https://six.example/",
    f"http://{PUBLIC}/",
    "http://1.1.1.1:53/",
    "https://[2606:4700:4700::1111]/",
    "HTTPS://TOOLS.EXAMPLE/",
]
NAMED_URLS = [
    "http://localhost:8000/search",
    "http://LOCALHOST/",
    "http://127.0.0.1:9/",
    "http://127.8.9.10/",
    "http://[::1]:8000/",
    "http://10.1.2.3/",
    "http://172.16.0.1/",
    "http://192.168.1.20:8000/",
    "http://100.64.0.7/",
    "http://[fd12:3456::1]/",
]
REFUSED_URLS = [
    # odd spellings of loopback
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0X7F.1/",
    "http://0177.0.0.1/",
    "http://127.1/",
    "http://127.0.1/",
    "http://0/",
    "http://127.0.0.1./",
    "http://127.000.000.001/",
    "http://127.0.0.0x1/",
    "http://①②⑦.⓪.⓪.①/",
    "http://127。0。0。1/",
    "http://ｌｏｃａｌｈｏｓｔ/",
    "http://%31%32%37.0.0.1/",
    "http://[::0001]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::127.0.0.1]/",
    # ranges that are never called
    "http://169.254.169.254/latest/meta-data/",
    "http://169.254.1.1/",
    "http://[fe80::1]/",
    "http://[fe80::1%25eth0]/",
    "http://[fd00:ec2::254]/latest/",
    "http://100.100.100.200/",
    "http://168.63.129.16/",
    "http://192.0.0.192/",
    "http://192.0.0.8/",
    "http://224.0.0.1/",
    "http://[ff02::1]/",
    "http://0.0.0.0/",
    "http://0.1.2.3/",
    "http://[::]/",
    "http://255.255.255.255/",
    "http://240.0.0.1/",
    "http://198.18.0.1/",
    "http://192.0.2.1/",
    "http://[64:ff9b::a00:1]/",
    "http://[64:ff9b:1::1]/",
    "http://[2002:7f00:1::]/",
    "http://[2001:0:1::1]/",
    "http://[fec0::1]/",
    "http://[2001:db8::1]/",
    # names that lead where they should not
    "http://rebound.example/",
    "http://mixed.example/",
    "http://lan.example/",
    "http://mapped.example/",
    "http://nat64.example/",
    "http://metadata.google.internal/computeMetadata/v1/",
    "http://x.localhost/",
    "http://zero.example/",
    "http://linklocal.example/",
    # what only looks like another host
    "http://tools.example@127.0.0.1/",
    "http://user:secret@tools.example/",
    "http://tools.example\\@127.0.0.1/",
    "http://tools.example:0/",
    "http://tools.example:99999/",
    "http://tools.example /",
    "http://tools.example\n/",
    # other schemes
    "ftp://tools.example/",
    "file:///etc/passwd",
    "gopher://tools.example/",
    "//tools.example/",
    "tools.example/",
    "",
]


@pytest.mark.parametrize("url", [*PUBLIC_URLS, *NAMED_URLS])
def test_public_hosts_and_local_ones_that_are_written_out_may_be_called(url: str) -> None:
    assert refusal(url) == ""


@pytest.mark.parametrize("url", REFUSED_URLS)
def test_everything_else_is_refused(url: str) -> None:
    assert refusal(url) != ""
    shared = EgressPolicy(multi_project=True, resolve=resolve)
    assert refusal(url, shared) != ""


@pytest.mark.parametrize("url", NAMED_URLS)
def test_among_projects_that_share_a_server_nothing_private_may_be_called(url: str) -> None:
    shared = EgressPolicy(multi_project=True, resolve=resolve)
    assert "an administrator can allow" in refusal(url, shared)
    for public in PUBLIC_URLS:
        assert refusal(public, shared) == ""


def test_the_administrator_vouches_for_host_and_port() -> None:
    allowed = frozenset({"lan.example:8000", "localhost:8000", "[fd12:3456::1]:80"})
    for multi_project in (False, True):
        policy = EgressPolicy(multi_project=multi_project, allowed=allowed, resolve=resolve)
        assert refusal("http://lan.example:8000/", policy) == ""
        assert refusal("http://localhost:8000/", policy) == ""
        assert refusal("http://[fd12:3456::1]/", policy) == ""
        assert "lan.example:8001" in refusal("http://lan.example:8001/", policy)


@pytest.mark.parametrize("url", ["http://169.254.169.254/", "http://metadata.google.internal/"])
def test_nobody_can_vouch_for_metadata(url: str) -> None:
    allowed = frozenset({"169.254.169.254:80", "metadata.google.internal:80"})
    assert "never called" in refusal(url, EgressPolicy(allowed=allowed, resolve=resolve))


def test_no_call_comes_back_to_the_server_itself() -> None:
    policy = EgressPolicy(
        own_ports=frozenset({8321}), allowed=frozenset({"localhost:8321"}), resolve=resolve
    )
    for host in ("127.0.0.1", "127.0.0.2", "[::1]", "localhost", "rebound.example"):
        assert "leads back to this server" in refusal(f"http://{host}:8321/", policy)
    assert refusal("http://127.0.0.1:8322/", policy) == ""
    assert refusal(f"http://{PUBLIC}:8321/", policy) == ""


def test_localhost_counts_only_where_it_is_this_machine() -> None:
    async def elsewhere(host: str, port: int) -> Sequence[str]:
        return ("192.168.1.1",)

    assert "under another name" in refusal("http://localhost/", EgressPolicy(resolve=elsewhere))


def test_a_name_is_resolved_once_and_every_answer_is_judged_anew() -> None:
    answers = iter([(PUBLIC,), ("127.0.0.1",)])
    asked: list[str] = []

    async def rebinding(host: str, port: int) -> Sequence[str]:
        asked.append(host)
        return next(answers)

    policy = EgressPolicy(resolve=rebinding)
    assert asyncio.run(policy.addresses("flips.example", 80)) == (PUBLIC,)
    assert asked == ["flips.example"]
    with pytest.raises(AddressRefusedError, match="127.0.0.1 under another name"):
        asyncio.run(policy.addresses("flips.example", 80))


def test_a_name_without_an_address_is_no_refusal() -> None:
    async def nothing(host: str, port: int) -> Sequence[str]:
        return ()

    with pytest.raises(OSError, match="has no address"):
        asyncio.run(EgressPolicy(resolve=nothing).addresses("tools.example", 80))


def test_the_operating_system_knows_localhost() -> None:
    assert set(asyncio.run(system_resolve("localhost", 80))) <= {"127.0.0.1", "::1"}
