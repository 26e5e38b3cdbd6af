"""How the server is set up. Defaults suit one user on one machine."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from agentrft.core.config import AuditConfig
from agentrft.graders.backends import Backends
from agentrft.inference.models import known_models

HOSTED_NAMES = (
    "gpt-5",
    "gpt-5-2025-08-07",
    "o4-mini",
    "o4-mini-2025-04-16",
    "gpt-4o-2024-08-06",
    "gpt-4o-mini-2024-07-18",
    "gpt-4.1-2025-04-14",
    "gpt-4.1-mini-2025-04-14",
    "gpt-4.1-nano-2025-04-14",
    "gpt-3.5-turbo",
)
"""Base models of hosted jobs; here they stand for the server's default model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerSettings:
    """What an operator may choose."""

    host: str = "127.0.0.1"
    """Address it is bound to."""
    port: int = 8000
    allowed_hosts: tuple[str, ...] = ()
    """Names in the Host header to answer to, beside loopback and `host`."""
    allowed_origins: tuple[str, ...] = ()
    """Web origins that may call, beside the server's own, e.g. `https://desk.example`."""
    default_model: str = "smollm2-135m"
    """Registry name, hub id or folder; what names of hosted models stand for."""
    aliases: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Name to registry name, hub id or folder. What is not named here cannot be reached by name."""
    organization: str = "agentrft"
    """Shown as owner of models and as `organization_id`."""
    backends: Backends = field(default_factory=Backends)
    """What graders reach; its policy says where tools, graders and webhooks may be."""
    audit: AuditConfig = field(default_factory=AuditConfig)
    """How graders are attacked when somebody asks for it."""
    requests_per_minute: int = 30_000
    """For each token; a full minute may be spent at once."""
    json_bytes: int = 8 << 20
    """Longest JSON body."""
    threads: int = 16
    """Calls of the store at the same time."""
    heartbeat_s: float = 15.0
    """Longest silence on an event stream."""
    silence_s: float = 3.0
    """Longest silence of a worker that counts as alive; workers give a sign every 2 s."""
    poll_s: float = 0.5
    """How often followed jobs are looked at for new events."""
    deliver_webhooks: bool = True
    """Whether this process drives the outbox."""

    @property
    def bases(self) -> tuple[str, ...]:
        """Base models that may be trained and called, the default first."""
        known = (model.name for model in known_models())
        return tuple(dict.fromkeys((self.default_model, *known, *self.aliases.values())))

    def base_of(self, name: str) -> str | None:
        """Return the base model a name means, or None if it means none."""
        if name in self.aliases:
            return self.aliases[name]
        if name in self.bases:
            return name
        return self.default_model if name in HOSTED_NAMES else None
