"""Answers to calls that change something, by Idempotency-Key: a repeated call gets the first answer."""

import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import ColumnElement, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from agentrft.store import schema
from agentrft.store.database import Database
from agentrft.store.errors import ConflictError

KEPT_S = 24 * 3600.0
ABANDONED_AFTER_S = 600.0
"""A call that began longer ago and never ended is taken for lost with its server."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredReply:
    """What the first call was answered."""

    status: int
    body: bytes


class Replies:
    """The answers of the last day; each key is one project's own."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def begin(self, project: str, key: str, request_digest: str) -> StoredReply | None:
        """Return the answer there is; None means that the caller holds the key and does the work.

        Raises ConflictError while another call holds the key, or if it came with another request.
        """
        table, now = schema.replies, self._clock()
        old = delete(table).where(table.c.created_at <= now - KEPT_S)
        begun = insert(table).values(
            project=project, key=key, request=request_digest, created_at=now
        )
        try:
            with self._database.writing() as connection:
                connection.execute(old)
                connection.execute(begun)
        except IntegrityError:
            return self._repeated(project, key, request_digest, now)
        return None

    def finish(self, project: str, key: str, status: int, body: bytes) -> None:
        """Keep the answer. The first answer stays, should two calls come to one."""
        table = schema.replies
        answer = update(table).where(_open(project, key)).values(status=status, body=body)
        with self._database.writing() as connection:
            connection.execute(answer)

    def abandon(self, project: str, key: str) -> None:
        """Let go of a key whose call came to nothing, so that it can be tried again."""
        with self._database.writing() as connection:
            connection.execute(delete(schema.replies).where(_open(project, key)))

    def _repeated(self, project: str, key: str, request: str, now: float) -> StoredReply | None:
        table = schema.replies
        mine = (table.c.project == project) & (table.c.key == key)
        with self._database.reading() as connection:
            row = connection.execute(select(table).where(mine)).first()
        if row is not None and row.request != request:
            raise ConflictError(
                "this Idempotency-Key was used with another request; use a new key per request"
            )
        if row is not None and row.status is not None:
            return StoredReply(status=row.status, body=row.body)
        if row is not None and row.created_at <= now - ABANDONED_AFTER_S:
            lost = _open(project, key) & (table.c.created_at == row.created_at)
            with self._database.writing() as connection:
                if connection.execute(update(table).where(lost).values(created_at=now)).rowcount:
                    return None
        raise ConflictError(
            "a call with this Idempotency-Key is under way; wait a moment and repeat it"
        )


def _open(project: str, key: str) -> ColumnElement[bool]:
    table = schema.replies
    return (table.c.project == project) & (table.c.key == key) & table.c.status.is_(None)
