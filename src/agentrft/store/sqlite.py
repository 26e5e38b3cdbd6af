"""SQLite: write-ahead log, every commit synced; writers lock at BEGIN and wait up to 30 s."""

from pathlib import Path
from typing import Any

from sqlalchemy import Connection, create_engine, event

from agentrft.store.backend import POOL_OVERFLOW, Backend

BUSY_TIMEOUT_S = 30


def sqlite_backend(file: Path) -> Backend:
    """Return the backend of one file, made at the first transaction."""
    engine = create_engine(
        f"sqlite:///{file}",
        connect_args={"timeout": BUSY_TIMEOUT_S},
        max_overflow=POOL_OVERFLOW,
        hide_parameters=True,
    )

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, _record: object) -> None:  # pyright: ignore[reportUnusedFunction]
        # The driver must not open transactions by itself; `begin` below does.
        connection.isolation_level = None
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:  # pyright: ignore[reportUnusedFunction]
        immediate = connection.get_execution_options().get("immediate", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if immediate else "BEGIN")

    return Backend(
        engine=engine,
        name=str(file),
        reader=engine,
        writer=engine.execution_options(immediate=True),
        lock_schema=lambda _connection: None,
        advice=_advice,
    )


def _advice(reason: str) -> str:
    if "full" in reason:
        return f"{reason}; free disk space and resume, nothing half-written was kept"
    if "readonly" in reason or "unable to open" in reason:
        return f"{reason}; make the home folder writable or choose another with --home"
    if "locked" in reason:
        return f"{reason} for {BUSY_TIMEOUT_S} s by another process; stop it and try again"
    if "malformed" in reason or "not a database" in reason:
        return f"{reason}; restore a backup or move the file away to start a new home"
    return reason
