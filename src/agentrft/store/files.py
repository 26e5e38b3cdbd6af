"""Files by project: bytes once per content under the folder, a row per file.

A row is written after its content is safe on disk, and content goes after its last row. A crash in
between leaves bytes that nothing names; `sweep` removes them. File names are for display only.
"""

import hashlib
import os
import secrets
import time
import unicodedata
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from io import BufferedWriter
from pathlib import Path
from typing import Any, Self

from filelock import FileLock, Timeout
from sqlalchemy import ColumnElement, Connection, RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from agentrft.core.errors import StoreError
from agentrft.core.protocols import Page
from agentrft.store import schema
from agentrft.store.database import Database
from agentrft.store.errors import ConflictError, NotFoundError, TooLargeError

MAX_FILE_BYTES = 512 * 1024 * 1024
_LEFTOVER_S = 24 * 3600.0
_LOCK_TIMEOUT_S = 30.0
_NAME_LENGTH = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """One file of a project. Times are Unix seconds."""

    id: str
    project: str
    filename: str
    """For display; never part of a path."""
    purpose: str
    bytes: int
    sha256: str
    created_at: float
    expires_at: float | None = None
    """From then on the file is not found."""


class FileRegistry:
    """The files of one home."""

    def __init__(
        self, database: Database, folder: Path, *, clock: Callable[[], float] = time.time
    ) -> None:
        """Open the folder, made if missing, and remove what crashes and expiry left in it.

        Raises StoreError if the folder cannot be written.
        """
        self._database = database
        self._folder = folder
        self._incoming = folder / "incoming"
        self._clock = clock
        with _explained(folder):
            self._incoming.mkdir(parents=True, exist_ok=True)
        self.sweep()

    def receive(self, project: str, filename: str, purpose: str = "") -> "Incoming":
        """Open a file to write to; use it as a context manager, nothing stays uncommitted."""
        file = StoredFile(
            id=f"file-{secrets.token_hex(12)}",
            project=project,
            filename=_display_name(filename),
            purpose=purpose,
            bytes=0,
            sha256="",
            created_at=self._clock(),
        )
        draft = self._incoming / secrets.token_hex(16)
        with _explained(self._folder):
            stream = draft.open("xb")
        return Incoming(file, draft, stream, self._keep)

    def get(self, project: str, file_id: str) -> StoredFile:
        """Return a file. Raises NotFoundError if the project has none of this id."""
        with self._database.reading() as connection:
            row = connection.execute(select(schema.files).where(self._own(project, file_id)))
            found = row.mappings().first()
        if found is None:
            raise _no_file(file_id)
        return _file(found)

    def list(
        self,
        project: str,
        *,
        purpose: str | None = None,
        after: str | None = None,
        limit: int = 100,
        newest_first: bool = True,
    ) -> Page[StoredFile]:
        """Return the files that follow the file `after`.

        Raises NotFoundError if `after` is no file of the project.
        """
        table = schema.files
        order = table.c.sequence.desc() if newest_first else table.c.sequence.asc()
        query = select(table).where(table.c.project == project, self._alive()).order_by(order)
        if purpose is not None:
            query = query.where(table.c.purpose == purpose)
        with self._database.reading() as connection:
            last = 0
            if after is not None:
                mine = self._own(project, after)
                last = connection.execute(select(table.c.sequence).where(mine)).scalar()
                if last is None:
                    raise _no_file(after)
                behind = table.c.sequence < last if newest_first else table.c.sequence > last
                query = query.where(behind)
            rows = connection.execute(query.limit(limit + 1)).mappings().all()
        shown = rows[:limit]
        return Page(
            items=tuple(_file(row) for row in shown),
            last=shown[-1]["sequence"] if shown else last,
            has_more=len(rows) > limit,
        )

    def path(self, file: StoredFile) -> Path:
        """Return where the content is. Raises StoreError if somebody removed it."""
        path = self._content(file.sha256)
        if not path.is_file():
            raise StoreError(
                f"the content of file {file.id} is gone from {path}; restore it from a backup "
                "or upload the file again"
            )
        return path

    def delete(self, project: str, file_id: str) -> None:
        """Remove a file, and its content unless another file has the same.

        Raises NotFoundError if the project has none of this id.
        """
        if not self._remove(self._own(project, file_id)):
            raise _no_file(file_id)

    def sweep(self) -> None:
        """Remove expired files, and what crashes left behind more than a day ago."""
        table = schema.files
        expired = table.c.expires_at <= self._clock()
        with self._database.reading() as connection:
            some = connection.execute(select(table.c.id).where(expired).limit(1)).first()
        if some is not None:
            self._remove(expired)
        before = self._clock() - _LEFTOVER_S
        with _explained(self._folder):
            for leftover in _older(self._incoming.iterdir(), before):
                leftover.unlink(missing_ok=True)
            unnamed = {path.name for path in _older(self._folder.glob("??/*"), before)}
        if unnamed:
            with self._locked(), self._database.reading() as connection:
                self._drop(connection, unnamed)

    def _keep(self, file: StoredFile, draft: Path) -> StoredFile:
        """Put a finished draft in its place and write its row."""
        content = self._content(file.sha256)
        with self._locked():
            with _explained(self._folder):
                content.parent.mkdir(exist_ok=True)
                draft.replace(content)
                for folder in (content.parent, self._folder):
                    _sync(folder)
            unused = {file.sha256}
            try:
                with self._database.writing() as connection:
                    kept, unused = _write_row(connection, file)
            except IntegrityError:
                raise NotFoundError(f"no project {file.project!r}; create it first") from None
            finally:
                with self._database.reading() as connection:
                    self._drop(connection, unused)
        return kept

    def _remove(self, which: ColumnElement[bool]) -> int:
        table = schema.files
        with self._locked():
            with self._database.writing() as connection:
                contents = set(connection.execute(select(table.c.sha256).where(which)).scalars())
                removed = connection.execute(delete(table).where(which)).rowcount
            with self._database.reading() as connection:
                self._drop(connection, contents)
        return removed

    def _drop(self, connection: Connection, contents: set[str]) -> None:
        """Unlink contents that no row names; the lock must be held."""
        column = schema.files.c.sha256
        for sha256 in contents:
            if connection.execute(select(column).where(column == sha256).limit(1)).first() is None:
                with _explained(self._folder):
                    self._content(sha256).unlink(missing_ok=True)

    @contextmanager
    def _locked(self) -> Generator[None]:
        """Keep contents and rows together: no content goes while a row for it is being written."""
        lock = FileLock(self._folder / ".lock", timeout=_LOCK_TIMEOUT_S)
        try:
            with lock:
                yield
        except Timeout:
            raise StoreError(
                f"{self._folder} was locked for {_LOCK_TIMEOUT_S:.0f} s by another process; try again"
            ) from None

    def _content(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256

    def _own(self, project: str, file_id: str) -> ColumnElement[bool]:
        table = schema.files
        return (table.c.project == project) & (table.c.id == file_id) & self._alive()

    def _alive(self) -> ColumnElement[bool]:
        expires = schema.files.c.expires_at
        return expires.is_(None) | (expires > self._clock())


class Incoming:
    """A file being received, chunk by chunk."""

    def __init__(
        self,
        file: StoredFile,
        draft: Path,
        stream: BufferedWriter,
        keep: Callable[[StoredFile, Path], StoredFile],
    ) -> None:
        self._file = file
        self._draft = draft
        self._stream = stream
        self._keep = keep
        self._digest = hashlib.sha256()
        self.bytes = 0
        """Received so far."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(OSError):  # a full disk also fails what closing writes
            self._stream.close()
        self._draft.unlink(missing_ok=True)

    @property
    def sha256(self) -> str:
        """Digest of what was received so far, in hex."""
        return self._digest.hexdigest()

    def write(self, chunk: bytes) -> None:
        """Add bytes. Raises TooLargeError past the limit, StoreError if the disk takes no more."""
        self.bytes += len(chunk)
        if self.bytes > MAX_FILE_BYTES:
            raise TooLargeError(
                f"file {self._file.filename!r} is larger than {MAX_FILE_BYTES >> 20} MB; "
                "split it into several"
            )
        self._digest.update(chunk)
        with _explained(self._draft.parent):
            self._stream.write(chunk)

    def draft(self) -> Path:
        """Return where everything received so far can be read, to be checked before it counts."""
        with _explained(self._draft.parent):
            self._stream.flush()
        return self._draft

    def commit(
        self, *, purpose: str = "", file_id: str = "", expires_at: float | None = None
    ) -> StoredFile:
        """Make the file count; it survives any crash from here on.

        A purpose given here is taken instead of the first one. An id of the caller's own makes a
        repetition replace what the first try left. Raises NotFoundError if there is no such
        project, ConflictError if the id is another project's, StoreError if the disk takes no more.
        """
        with _explained(self._draft.parent):
            self._stream.flush()
            os.fsync(self._stream.fileno())
            self._stream.close()
        file = replace(
            self._file,
            id=file_id or self._file.id,
            purpose=purpose or self._file.purpose,
            bytes=self.bytes,
            sha256=self.sha256,
            expires_at=expires_at,
        )
        return self._keep(file, self._draft)


def _write_row(connection: Connection, file: StoredFile) -> tuple[StoredFile, set[str]]:
    """Insert a row or replace the one of the same id; return it and what it named before."""
    table = schema.files
    columns: dict[str, Any] = {
        "filename": file.filename,
        "purpose": file.purpose,
        "bytes": file.bytes,
        "sha256": file.sha256,
        "expires_at": file.expires_at,
    }
    named = table.c.id == file.id
    before = connection.execute(select(table).where(named)).mappings().first()
    if before is None:
        fixed = {"id": file.id, "project": file.project, "created_at": file.created_at}
        connection.execute(insert(table).values(columns | fixed))
        return file, set()
    if before["project"] != file.project:
        raise ConflictError(f"file id {file.id!r} is taken; leave the id out to get a free one")
    connection.execute(update(table).where(named).values(columns))
    after = connection.execute(select(table).where(named)).mappings().one()
    return _file(after), {before["sha256"]}


def _file(row: RowMapping) -> StoredFile:
    return StoredFile(
        id=row["id"],
        project=row["project"],
        filename=row["filename"],
        purpose=row["purpose"],
        bytes=row["bytes"],
        sha256=row["sha256"],
        created_at=row["created_at"],
        expires_at=row["expires_at"],
    )


def _display_name(name: str) -> str:
    """Return the last part of a path without what a terminal or a page could mistake for markup."""
    last = name.replace("\\", "/").rsplit("/", 1)[-1]
    plain = "".join(char for char in last if unicodedata.category(char)[0] != "C").strip()
    return plain[:_NAME_LENGTH] if plain.strip(".") else "file"


def _older(paths: Iterator[Path], before: float) -> Iterator[Path]:
    for path in paths:
        try:
            if path.stat().st_mtime < before:
                yield path
        except FileNotFoundError:  # another process sweeps too
            continue


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{folder} cannot be written ({error.strerror}); free disk space or make it writable, "
            "nothing half-written was kept"
        ) from error


def _no_file(file_id: str) -> NotFoundError:
    return NotFoundError(f"no file {file_id[:80]!r}; list files to see their ids, or upload it")
