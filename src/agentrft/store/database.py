"""The SQLite file: how it is opened, locked, migrated, and how its failures read.

Write-ahead log, every commit synced, writers take their lock at BEGIN and wait up to 30 s.
"""

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, Engine, create_engine, event, exc, inspect, text

from agentrft.core.errors import StoreError
from agentrft.store.schema import HEAD

BUSY_TIMEOUT_S = 30
_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """One SQLite file of the newest schema; `reading` and `writing` are its transactions."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.engine = _engine(file)
        """Raw access, for watching statements; use the transactions below for work."""
        self._migrate()

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """Open a consistent snapshot."""
        with self._translated(), self.engine.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """Open a write transaction; it commits at the end of the block or leaves nothing."""
        writer = self.engine.execution_options(immediate=True)
        with self._translated(), writer.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()

    @contextmanager
    def _translated(self) -> Generator[None]:
        try:
            yield
        except exc.IntegrityError:
            raise
        except exc.DatabaseError as error:
            raise StoreError(f"{self.file}: {_advice(str(error.orig))}") from error

    def _migrate(self) -> None:
        with self.reading() as connection:
            if _revision(connection) == HEAD:
                return
        with self.writing() as connection:
            # Somebody else may have migrated while this process waited for the lock.
            if _revision(connection) != HEAD:
                _upgrade(connection, self.file)


def _engine(file: Path) -> Engine:
    engine = create_engine(f"sqlite:///{file}", connect_args={"timeout": BUSY_TIMEOUT_S})

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

    return engine


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection, file: Path) -> None:
    # Alembic takes a tenth of a second to import and is needed once per upgrade.
    from alembic import command
    from alembic.config import Config
    from alembic.util.exc import CommandError

    config = Config()
    config.set_main_option("script_location", str(_MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise StoreError(
            f"{file} was written by a newer agentrft (schema {_revision(connection)}, this one "
            f"knows up to {HEAD}); upgrade agentrft or use another home folder"
        ) from error


def _advice(reason: str) -> str:
    """Say what to do about what SQLite reports."""
    if "full" in reason:
        return f"{reason}; free disk space and resume, nothing half-written was kept"
    if "readonly" in reason or "unable to open" in reason:
        return f"{reason}; make the home folder writable or choose another with --home"
    if "locked" in reason:
        return f"{reason} for {BUSY_TIMEOUT_S} s by another process; stop it and try again"
    if "malformed" in reason or "not a database" in reason:
        return f"{reason}; restore a backup or move the file away to start a new home"
    return reason
