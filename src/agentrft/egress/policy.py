"""Which addresses may be called. Names are resolved once, and the checked address is the one used.

Python's `is_private` and `is_global` are no such list: both let the v6 transition ranges through.
"""

import asyncio
import ipaddress
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx2

from agentrft.egress.errors import AddressRefusedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host name and port to addresses. Raises OSError if there is none."""


def _networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(part) for part in text.split())


_LOOPBACK = _networks("127.0.0.0/8 ::1/128")
_PRIVATE = _networks("10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 100.64.0.0/10 fc00::/7")
_NEVER = _networks(
    # Metadata of clouds that does not live on link-local addresses.
    "100.100.100.200/32 168.63.129.16/32 fd00:ec2::254/128 fd20:ce::254/128 "
    # Reach an IPv4 address in disguise, or a relay that does.
    "::/96 ::ffff:0:0/96 64:ff9b::/96 64:ff9b:1::/48 2001::/32 2002::/16 "
    # Reserved, though Python calls some of them global.
    "0.0.0.0/8 192.0.0.0/24 192.88.99.0/24 240.0.0.0/4 fec0::/10"
)
_ENDS_IN_A_NUMBER = re.compile(r"(.*\.)?(0x[0-9a-f]*|[0-9]+)\.?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A URL read once, so that who checks and who connects cannot disagree."""

    scheme: str
    host: str
    port: int
    path: bytes
    """With the query."""
    authority: str
    """As the `Host` header says it."""

    @property
    def shown(self) -> str:
        """The URL without its query, which may hold a secret."""
        return f"{self.scheme}://{self.authority}{self.path.partition(b'?')[0].decode()}"


async def system_resolve(host: str, port: int) -> Sequence[str]:
    """Ask the operating system."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return tuple(dict.fromkeys(str(address[0]) for *_, address in found))


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressPolicy:
    """Decides over every outgoing call. The default is for one user on their own machine.

    Private and loopback addresses may be called only if the URL writes them out or says
    `localhost`: a public name that resolves to them is an attack, or looks like one.
    """

    multi_project: bool = False
    """Projects do not trust each other: private and loopback need an entry in `allowed`."""
    allowed: frozenset[str] = frozenset()
    """`host:port` that the administrator vouches for; it may lead to private addresses."""
    own_ports: frozenset[int] = frozenset()
    """Where this server listens; no call may come back to it."""
    resolve: Resolve = system_resolve

    def target(self, url: str) -> Target:
        """Read a URL and check what can be checked without resolving. Raises AddressRefusedError."""
        if not url.isascii() or not url.isprintable() or "\\" in url or " " in url:
            raise AddressRefusedError("is not a URL; write printable ASCII without spaces")
        try:
            parsed = httpx2.URL(url)
        except httpx2.InvalidURL as error:
            raise AddressRefusedError("is not a URL") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise AddressRefusedError("must begin with http:// or https:// and name a host")
        if parsed.userinfo or "%" in parsed.host:
            raise AddressRefusedError(
                "has '@' or '%' before the path; send credentials in headers, write the host plainly"
            )
        port = {"http": 80, "https": 443}[parsed.scheme] if parsed.port is None else parsed.port
        if not 0 < port < 65536:
            raise AddressRefusedError(f"names port {port}; ports go from 1 to 65535")
        self._check_literal(parsed.host, port)
        return Target(
            scheme=parsed.scheme,
            host=parsed.host,
            port=port,
            path=parsed.raw_path,
            authority=parsed.netloc.decode(),
        )

    async def addresses(self, host: str, port: int) -> tuple[str, ...]:
        """Resolve and check every answer. Raises AddressRefusedError, or OSError without an answer."""
        literal = self._check_literal(host, port)
        if literal is not None:
            return (str(literal),)
        answers = [ipaddress.ip_address(text) for text in await self.resolve(host, port)]
        if not answers:
            raise OSError(f"the name {host!r} has no address")
        for answer in answers:
            self._check(answer, host, port)
        return tuple(str(answer) for answer in answers)

    def _check_literal(self, host: str, port: int) -> Address | None:
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            if _ENDS_IN_A_NUMBER.fullmatch(host):
                raise AddressRefusedError(
                    f"names {host!r}, an odd way to write an address; write it as four decimal numbers"
                ) from None
            return None
        if str(literal) != host:
            raise AddressRefusedError(f"names {host!r}; write the address as {literal}")
        self._check(literal, host, port)
        return literal

    def _check(self, address: Address, host: str, port: int) -> None:
        if port in self.own_ports and _is_here(address):
            raise AddressRefusedError("leads back to this server; a call may not")
        local = _within(address, _LOOPBACK)
        private = _within(address, _PRIVATE)
        never = _within(address, _NEVER) or address.is_multicast or address.is_link_local
        if never and not local:
            raise AddressRefusedError(f"leads to {address}, a range that is never called")
        entry = f"{f'[{host}]' if ':' in host else host}:{port}"
        if (address.is_global and not private) or entry in self.allowed:
            return
        if not local and not private:
            raise AddressRefusedError(f"leads to {address}, which is no public address")
        if self.multi_project:
            raise AddressRefusedError(
                f"leads to the private address {address}; an administrator can allow {entry!r}"
            )
        if host != str(address) and not (local and host == "localhost"):
            raise AddressRefusedError(
                f"leads to the private address {address} under another name; "
                f"write the address itself, or have an administrator allow {entry!r}"
            )


def _within(
    address: Address, networks: Sequence[ipaddress.IPv4Network | ipaddress.IPv6Network]
) -> bool:
    return any(address in network for network in networks)


def _is_here(address: Address) -> bool:
    """Whether this machine has the address: only then can a socket be bound to it."""
    if _within(address, _LOOPBACK):
        return True
    family = socket.AF_INET if address.version == 4 else socket.AF_INET6
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((str(address), 0))
        except OSError:
            return False
    return True
