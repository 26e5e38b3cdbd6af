"""PostgreSQL through psycopg 3: how it is reached, how long it waits, how its failures read.

Commits are as durable as the server's `synchronous_commit` makes them. No message holds a password.
"""

from functools import partial
from typing import Any

from sqlalchemy import Connection, create_engine, event, text
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from agentrft.core.errors import ConfigError
from agentrft.store.backend import POOL_OVERFLOW, Backend

CONNECT_TIMEOUT_S = 10
LOCK_TIMEOUT_S = 30
_SCHEMA_LOCK = 0x61727466
"""Any number that nobody else takes; this one spells `artf`."""

_SESSION = (
    f"SET lock_timeout = '{LOCK_TIMEOUT_S}s'",
    # A machine that vanished inside a transaction must not hold its rows for ever.
    "SET idle_in_transaction_session_timeout = '60s'",
)


def postgres_backend(url: str) -> Backend:
    """Return the backend of `postgresql://user:password@host:port/name`; nothing connects yet.

    Raises ConfigError for another kind of URL, or if psycopg is not installed.
    """
    parsed = _parsed(url)
    try:
        engine = create_engine(
            parsed,
            connect_args={"connect_timeout": CONNECT_TIMEOUT_S},
            # A server that was restarted costs the transactions under way, not the next ones.
            pool_pre_ping=True,
            max_overflow=POOL_OVERFLOW,
            hide_parameters=True,
        )
    except ModuleNotFoundError:
        raise ConfigError(
            "PostgreSQL needs psycopg, which is not installed; run: pip install 'agentrft[postgres]'"
        ) from None

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:  # pyright: ignore[reportUnusedFunction]
        for statement in _SESSION:
            connection.execute(statement)
        connection.commit()

    place = _place(parsed)
    return Backend(
        engine=engine,
        name=place,
        reader=engine.execution_options(isolation_level="REPEATABLE READ"),
        writer=engine,
        lock_schema=_lock_schema,
        advice=partial(_advice, place=place, password=parsed.password),
    )


def _parsed(url: str) -> URL:
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # The text may hold a password, so the message and its cause must not.
        parsed = None
    if parsed is None or parsed.drivername not in {"postgresql", "postgres", "postgresql+psycopg"}:
        raise ConfigError(
            "the database URL is not one of PostgreSQL; write postgresql://USER:PASSWORD@HOST/NAME, "
            "or leave it out to keep everything in the home folder"
        )
    return parsed.set(drivername="postgresql+psycopg")


def _place(url: URL) -> str:
    host = url.host or url.query.get("host") or "the local socket"
    port = f":{url.port}" if url.port else ""
    return f"PostgreSQL database {url.database or url.username!r} on {host}{port}"


def _lock_schema(connection: Connection) -> None:
    connection.execute(text(f"SELECT pg_advisory_xact_lock({_SCHEMA_LOCK})"))


def _advice(reason: str, *, place: str, password: str | None) -> str:
    reason = " ".join(reason.split())
    if password:
        reason = reason.replace(password, "***")
    if "password authentication failed" in reason or "no password supplied" in reason:
        return f"{reason}; correct user and password in the database URL"
    if "does not exist" in reason and "database" in reason:
        return f"{reason}; create it (createdb) or correct the name in the database URL"
    if "connection failed" in reason or "connection timeout" in reason:
        return f"cannot connect: {reason}; start the server or correct the database URL"
    if "terminating" in reason or "connection is lost" in reason or "closed" in reason:
        return (
            f"the connection was lost: {reason}; what was not yet confirmed was not kept, try again"
        )
    if "lock timeout" in reason:
        return f"{reason} after {LOCK_TIMEOUT_S} s; another process holds {place}, look at it"
    if "permission denied" in reason:
        return f"{reason}; grant it to the user of the database URL"
    if "No space left" in reason or "disk full" in reason:
        return f"{reason}; free disk space on the server and resume, nothing half-written was kept"
    return reason
