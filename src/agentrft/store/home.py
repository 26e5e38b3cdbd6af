"""One home folder: the database, files, secrets, cached models, and a folder per run."""

import base64
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from agentrft.core.errors import StoreError, UserError
from agentrft.core.job import Lease
from agentrft.store.access import Access
from agentrft.store.catalogue import ModelCatalogue
from agentrft.store.database import Database
from agentrft.store.files import FileRegistry
from agentrft.store.key_file import make_key_file, read_key_file
from agentrft.store.outbox import Outbox
from agentrft.store.queue import JobQueue
from agentrft.store.replies import Replies
from agentrft.store.sql import SqlStore
from agentrft.store.vault import Vault


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """An open home folder; close it when done."""

    path: Path
    store: SqlStore
    queue: JobQueue
    outbox: Outbox
    files: FileRegistry
    catalogue: ModelCatalogue
    access: Access
    replies: Replies
    vault: Vault
    database: Database

    @staticmethod
    def open(path: Path, database_url: str = "", *, vault_key: str = "") -> "Home":
        """Create or open a home folder and bring its database up to date.

        The database is a file in the folder, or the PostgreSQL database of a URL. Secrets are
        sealed with `vault_key`, or with a key file in the folder.
        Raises StoreError if the folder cannot be written, the database cannot be reached or is of
        a newer version; ConfigError for a wrong URL.
        """
        path = path.expanduser().resolve()
        try:
            for folder in (path, path / "models", path / "runs"):
                folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"home folder {path} cannot be made ({error.strerror}); "
                "choose a writable one with --home or AGENTRFT_HOME"
            ) from error
        database = Database(database_url or path / "agentrft.db")
        vault = Vault(path / "vault.key", vault_key)
        return Home(
            path=path,
            store=SqlStore(database),
            queue=JobQueue(database, vault),
            outbox=Outbox(database, vault),
            files=FileRegistry(database, path / "files"),
            catalogue=ModelCatalogue(database),
            access=Access(database),
            replies=Replies(database),
            vault=vault,
            database=database,
        )

    def fenced(self, lease: Lease) -> "Home":
        """Return this home with a store that refuses every write once the lease is lost."""
        return replace(self, store=SqlStore(self.database, lease))

    @property
    def models(self) -> Path:
        """Cache of converted models."""
        return self.path / "models"

    @property
    def images(self) -> Path:
        """Package sets of sandboxed code."""
        return self.path / "images"

    def signing_key(self) -> str:
        """Return the `whsec_...` that calls of endpoint graders are signed with; first use makes it.

        Raises StoreError if its file cannot be made, or others may read it.
        """
        file = self.path / "signing.key"
        if not file.exists():
            make_key_file(file, f"whsec_{base64.b64encode(secrets.token_bytes(32)).decode()}")
        return read_key_file(file)

    def run_folder(self, run_id: str) -> Path:
        """Return a run's folder, made if missing."""
        return _made(self.path / "runs" / run_id)

    @contextmanager
    def at_work(self, run_id: str) -> Iterator[None]:
        """Keep other processes from carrying out the same run; the lock ends with the process.

        Raises UserError if one is at it.
        """
        lock = FileLock(self.run_folder(run_id) / "at-work.lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise UserError(
                f"another process is carrying out run {run_id}; stop it first, or let it end"
            ) from None
        try:
            yield
        finally:
            lock.release()

    def checkpoints(self, run_id: str) -> Path:
        """Return the folder that holds a run's checkpoints, made if missing."""
        return _made(self.run_folder(run_id) / "checkpoints")

    def report(self, run_id: str) -> Path:
        """Return the folder of a run's report, made if missing."""
        return _made(self.run_folder(run_id) / "report")

    def close(self) -> None:
        """Close the database."""
        self.database.close()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder
