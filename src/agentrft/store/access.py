"""Who may do what: projects, and tokens that speak for them. Keeps digests, never a token."""

import hashlib
import re
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum

from sqlalchemy import RowMapping, func, insert, select, update
from sqlalchemy.exc import IntegrityError

from agentrft.core.errors import StoreError
from agentrft.store import schema
from agentrft.store.database import Database
from agentrft.store.errors import ConflictError, NotFoundError

_PREFIX = "art-"
_USE_NOTED_EVERY_S = 60.0
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}")


class Role(StrEnum):
    """What a token may do; a later role may do everything an earlier one may."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    @property
    def rank(self) -> int:
        """Higher may do more."""
        return list(Role).index(self)

    def __lt__(self, other: str) -> bool:
        return self.rank < Role(other).rank

    def __le__(self, other: str) -> bool:
        return self.rank <= Role(other).rank

    def __gt__(self, other: str) -> bool:
        return self.rank > Role(other).rank

    def __ge__(self, other: str) -> bool:
        return self.rank >= Role(other).rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who is asking."""

    token_id: str
    project: str
    role: Role
    name: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenInfo:
    """A token without the token. Times are Unix seconds."""

    id: str
    project: str
    role: Role
    name: str
    created_at: float
    last_used_at: float | None = None
    """To the minute."""
    expires_at: float | None = None
    revoked_at: float | None = None


class Access:
    """Projects and tokens of one home."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def create_project(self, name: str = "") -> str:
        """Make a project unless it is there, and return its name; without one, `proj_` and random.

        Raises ConflictError for a name that is not 1 to 64 letters, digits, `_` or `-`.
        """
        name = name or f"proj_{secrets.token_hex(12)}"
        if not _PROJECT.fullmatch(name):
            raise ConflictError(
                f"project {name[:80]!r}: a name has 1 to 64 letters, digits, '_' or '-', "
                "and begins with a letter or digit"
            )
        row = insert(schema.projects).values(name=name, created_at=self._clock())
        with suppress(IntegrityError), self._database.writing() as connection:
            connection.execute(row)
        return name

    def projects(self) -> tuple[str, ...]:
        """Return the names of all projects, oldest first."""
        table = schema.projects
        query = select(table.c.name).order_by(table.c.created_at, table.c.name)
        with self._database.reading() as connection:
            return tuple(connection.execute(query).scalars())

    def create_token(
        self, project: str, role: Role, name: str, expires_at: float | None = None
    ) -> tuple[TokenInfo, str]:
        """Make a token; its text is returned here and nowhere else.

        Raises NotFoundError if there is no such project.
        """
        info = TokenInfo(
            id=f"tok_{secrets.token_hex(12)}",
            project=project,
            role=role,
            name=name,
            created_at=self._clock(),
            expires_at=expires_at,
        )
        token = _PREFIX + secrets.token_urlsafe(32)
        row = insert(schema.tokens).values(
            id=info.id,
            project=info.project,
            role=info.role.value,
            name=info.name,
            digest=_digest(token),
            created_at=info.created_at,
            expires_at=info.expires_at,
        )
        try:
            with self._database.writing() as connection:
                connection.execute(row)
        except IntegrityError:
            raise NotFoundError(f"no project {project!r}; create it first") from None
        return info, token

    def tokens(self, project: str | None = None) -> tuple[TokenInfo, ...]:
        """Return the tokens of one project or of all, oldest first, revoked ones too."""
        table = schema.tokens
        query = select(table).order_by(table.c.created_at, table.c.id)
        if project is not None:
            query = query.where(table.c.project == project)
        with self._database.reading() as connection:
            return tuple(_info(row) for row in connection.execute(query).mappings())

    def revoke(self, token_id: str, project: str | None = None) -> None:
        """End a token for good; a second time changes nothing.

        Raises NotFoundError if there is none of this id, or it is of another than the project given.
        """
        table = schema.tokens
        named = table.c.id == token_id
        if project is not None:
            named &= table.c.project == project
        ended = func.coalesce(table.c.revoked_at, self._clock())
        with self._database.writing() as connection:
            found = connection.execute(update(table).where(named).values(revoked_at=ended)).rowcount
        if not found:
            raise NotFoundError(f"no token {token_id!r}; list tokens to see their ids")

    def identify(self, token: str) -> Identity | None:
        """Return who a token speaks for; None for unknown, revoked and expired ones alike.

        The lookup is by digest, so its time tells nothing about how near a guess came.
        """
        table, now = schema.tokens, self._clock()
        query = select(table).where(table.c.digest == _digest(token))
        with self._database.reading() as connection:
            row = connection.execute(query).first()
        if row is None or row.revoked_at is not None:
            return None
        if row.expires_at is not None and row.expires_at <= now:
            return None
        if row.last_used_at is None or row.last_used_at <= now - _USE_NOTED_EVERY_S:
            self._note_use(row.id, now)
        return Identity(token_id=row.id, project=row.project, role=Role(row.role), name=row.name)

    def is_empty(self) -> bool:
        """Whether no token was ever made."""
        with self._database.reading() as connection:
            return connection.execute(select(schema.tokens.c.id).limit(1)).first() is None

    def _note_use(self, token_id: str, now: float) -> None:
        table = schema.tokens
        note = update(table).where(table.c.id == token_id).values(last_used_at=now)
        # A full disk must not keep anybody from looking.
        with suppress(StoreError), self._database.writing() as connection:
            connection.execute(note)


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode(errors="replace")).hexdigest()


def _info(row: RowMapping) -> TokenInfo:
    return TokenInfo(
        id=row["id"],
        project=row["project"],
        role=Role(row["role"]),
        name=row["name"],
        created_at=row["created_at"],
        last_used_at=row["last_used_at"],
        expires_at=row["expires_at"],
        revoked_at=row["revoked_at"],
    )
