"""One home folder: the database, cached models, and a folder per run."""

from dataclasses import dataclass
from pathlib import Path

from agentrft.core.errors import StoreError
from agentrft.store.database import Database
from agentrft.store.sql import SqlStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Home:
    """An open home folder; close it when done."""

    path: Path
    store: SqlStore
    database: Database

    @staticmethod
    def open(path: Path) -> "Home":
        """Create or open a home folder and bring its database up to date.

        Raises StoreError if the folder cannot be written or the database is of a newer version.
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
        database = Database(path / "agentrft.db")
        return Home(path=path, store=SqlStore(database), database=database)

    @property
    def models(self) -> Path:
        """Cache of converted models."""
        return self.path / "models"

    def run_folder(self, run_id: str) -> Path:
        """Return a run's folder, made if missing."""
        return _made(self.path / "runs" / run_id)

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
