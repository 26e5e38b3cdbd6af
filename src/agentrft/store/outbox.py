"""Webhooks, and the announcements of ended jobs that are owed to them: at least once, same id."""

import base64
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, delete, insert, select, update

from agentrft.core.job import FineTuningJob
from agentrft.store import schema
from agentrft.store.database import Database
from agentrft.store.errors import NotFoundError
from agentrft.store.sql import write_project
from agentrft.store.vault import Vault

CLAIM_S = 120.0
"""How long a deliverer may take for one try before another one tries."""

_outbox = schema.outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Webhook:
    """Where a project wants to hear that a job ended."""

    id: str
    project: str
    url: str
    created_at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One announcement to one webhook, claimed for one try."""

    sequence: int
    event_id: str
    """The same at every try, so that a receiver can tell a repetition."""
    webhook_id: str
    url: str
    secret: str
    """Signing key, `whsec_...`."""
    body: bytes
    attempts: int
    """Tries so far, this one included."""


class Outbox:
    """Webhooks of all projects and what is owed to them."""

    def __init__(
        self, database: Database, vault: Vault, *, clock: Callable[[], float] = time.time
    ) -> None:
        self._database = database
        self._vault = vault
        self._clock = clock

    def add_webhook(self, project: str, url: str) -> tuple[Webhook, str]:
        """Register a webhook; its signing key is returned here and never shown again."""
        now = self._clock()
        webhook = Webhook(
            id=f"whk_{secrets.token_hex(12)}", project=project, url=url, created_at=now
        )
        secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
        sealed = self._vault.seal({"secret": secret})
        columns = {"id": webhook.id, "project": project, "url": url, "created_at": now}
        with self._database.writing() as connection:
            write_project(connection, project, now)
            connection.execute(insert(schema.webhooks).values(columns))
            connection.execute(insert(schema.secrets).values(owner=webhook.id, sealed=sealed))
        return webhook, secret

    def webhooks(self, project: str) -> tuple[Webhook, ...]:
        """Return a project's webhooks, oldest first."""
        table = schema.webhooks
        query = select(table).where(table.c.project == project)
        with self._database.reading() as connection:
            rows = connection.execute(query.order_by(table.c.created_at)).mappings().all()
        return tuple(Webhook(**row) for row in rows)

    def remove_webhook(self, project: str, webhook_id: str) -> None:
        """Forget a webhook and what is owed to it. Raises NotFoundError if it is not there."""
        table = schema.webhooks
        mine = (table.c.id == webhook_id) & (table.c.project == project)
        with self._database.writing() as connection:
            if not connection.execute(delete(table).where(mine)).rowcount:
                raise NotFoundError(f"no webhook {webhook_id!r}; list them to see their ids")
            keys = schema.secrets
            connection.execute(delete(keys).where(keys.c.owner == webhook_id))

    def due(self, limit: int = 20) -> tuple[Delivery, ...]:
        """Claim announcements whose time has come; nobody else gets them for `CLAIM_S`."""
        now = self._clock()
        query = (
            select(_outbox, schema.webhooks.c.url, schema.secrets.c.sealed)
            .join(schema.webhooks, schema.webhooks.c.id == _outbox.c.webhook_id)
            .join(schema.secrets, schema.secrets.c.owner == _outbox.c.webhook_id)
            .where(_outbox.c.due_at <= now)
            .order_by(_outbox.c.due_at, _outbox.c.sequence)
            .limit(limit)
            .with_for_update(of=_outbox, skip_locked=True)
        )
        with self._database.writing() as connection:
            rows = connection.execute(query).all()
            claimed = _outbox.c.sequence.in_([row.sequence for row in rows])
            if rows:
                connection.execute(
                    update(_outbox)
                    .where(claimed)
                    .values(due_at=now + CLAIM_S, attempts=_outbox.c.attempts + 1)
                )
        return tuple(
            Delivery(
                sequence=row.sequence,
                event_id=row.id,
                webhook_id=row.webhook_id,
                url=row.url,
                secret=self._vault.open(row.sealed)["secret"],
                body=row.body,
                attempts=row.attempts + 1,
            )
            for row in rows
        )

    def delivered(self, sequence: int) -> None:
        """Note that the receiver took it."""
        self._note(sequence, delivered_at=self._clock(), due_at=None, error=None)

    def failed(self, sequence: int, error: str, retry_in_s: float | None) -> None:
        """Note a failed try; without a time for the next, it was the last."""
        due_at = None if retry_in_s is None else self._clock() + retry_in_s
        self._note(sequence, due_at=due_at, error=error)

    def _note(self, sequence: int, **columns: float | str | None) -> None:
        # What one deliverer brought home, a slower one must not put back in line.
        open_one = (_outbox.c.sequence == sequence) & _outbox.c.delivered_at.is_(None)
        with self._database.writing() as connection:
            connection.execute(update(_outbox).where(open_one).values(columns))


def announce(connection: Connection, job: FineTuningJob, now: float) -> None:
    """Owe every webhook of the job's project the news that it ended, in the ending's transaction."""
    # A job ends once, so the id follows from the job and a second row would break a constraint.
    event_id = f"evt_{job.id.removeprefix('ftjob-')}"
    event = {
        "id": event_id,
        "object": "event",
        "type": f"fine_tuning.job.{job.status}",
        "created_at": int(now),
        "data": {"id": job.id},
    }
    table = schema.webhooks
    webhooks = connection.execute(select(table.c.id).where(table.c.project == job.project))
    for webhook_id in webhooks.scalars().all():
        row = {"id": event_id, "webhook_id": webhook_id, "due_at": now}
        connection.execute(insert(_outbox).values(row | {"body": json.dumps(event).encode()}))
