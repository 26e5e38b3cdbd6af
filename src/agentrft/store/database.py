"""The database of a home: its transactions, its migrations, and how its failures read.

A file of SQLite, or PostgreSQL by URL; above this module nobody needs to know which.
"""

from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from sqlalchemy import Connection, Table, exc, inspect, text
from sqlalchemy.dialects import postgresql, sqlite

from agentrft.core.errors import StoreError, UserError
from agentrft.store.postgres import postgres_backend
from agentrft.store.schema import HEAD
from agentrft.store.sqlite import sqlite_backend

_MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """One database of the newest schema; `reading` and `writing` are its transactions."""

    def __init__(self, place: Path | str) -> None:
        """Open an SQLite file, made if missing, or the PostgreSQL database of a URL.

        Raises ConfigError for a URL that is wrong.
        """
        self._backend = (
            sqlite_backend(place) if isinstance(place, Path) else postgres_backend(place)
        )
        self.name = self._backend.name
        """For messages."""
        self.engine = self._backend.engine
        """Raw access, for watching statements; use the transactions below for work."""
        with ExitStack() as unless_open:
            unless_open.callback(self.close)
            self._migrate()
            unless_open.pop_all()

    @contextmanager
    def reading(self) -> Generator[Connection]:
        """Open a consistent snapshot."""
        with self._translated(), self._backend.reader.connect() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Generator[Connection]:
        """Open a write transaction; it commits at the end of the block or leaves nothing."""
        with self._translated(), self._backend.writer.begin() as connection:
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
        except exc.DataError as error:
            # Text with NUL, which PostgreSQL cannot hold: nothing of that name exists or can.
            raise UserError(f"a value cannot be stored: {error.orig}") from error
        except exc.DBAPIError as error:
            advice = self._backend.advice(str(error.orig))
            raise StoreError(f"{self.name}: {advice}") from error

    def _migrate(self) -> None:
        with self.reading() as connection:
            if _revision(connection) == HEAD:
                return
        with self.writing() as connection:
            self._backend.lock_schema(connection)
            # Somebody else may have migrated while this process waited for the lock.
            if _revision(connection) != HEAD:
                _upgrade(connection, self.name)


def upsert(connection: Connection, table: Table) -> sqlite.Insert | postgresql.Insert:
    """Return an INSERT that knows ON CONFLICT, in the words of this connection's database."""
    return (postgresql if connection.dialect.name == "postgresql" else sqlite).insert(table)


def _revision(connection: Connection) -> str | None:
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _upgrade(connection: Connection, name: str) -> None:
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
            f"{name} was written by a newer agentrft (schema {_revision(connection)}, this one "
            f"knows up to {HEAD}); upgrade agentrft or use another home folder"
        ) from error
