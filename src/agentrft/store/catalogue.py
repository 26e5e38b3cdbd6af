"""Fine-tuned models and checkpoints that can be called, and which other projects may call them."""

import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from sqlalchemy import ColumnElement, Connection, RowMapping, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from agentrft.core.job import Lease
from agentrft.core.protocols import Page
from agentrft.store import schema
from agentrft.store.database import Database
from agentrft.store.errors import ConflictError, NotFoundError
from agentrft.store.leases import hold


@dataclass(frozen=True, slots=True, kw_only=True)
class CallableModel:
    """A model or a checkpoint of one, by the name under which it is called."""

    id: str
    project: str
    job_id: str
    base: str
    """What the adapter in `path` goes on top of."""
    path: str
    """Checkpoint folder."""
    step: int
    final: bool
    """Whether it is what the job came to, rather than a checkpoint on the way."""
    created_at: float
    """Unix time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Permission:
    """Leave for another project to call a model."""

    id: str
    created_at: float
    project_id: str


class ModelCatalogue:
    """What can be called in one home."""

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    def add(self, model: CallableModel, fence: Lease | None) -> None:
        """Enter a model; a job that adds it again, after a crash, replaces its own entry.

        Raises LeaseLostError if the lease is lost, NotFoundError if there is no such project,
        ConflictError if another job or project has a model of this id.
        """
        try:
            with self._database.writing() as connection:
                if fence is not None:
                    hold(connection, fence)
                _write_row(connection, model)
        except IntegrityError:
            raise NotFoundError(f"no project {model.project!r}; create it first") from None

    def get(self, project: str, model_id: str) -> CallableModel:
        """Return a model that the project owns or may call; raises NotFoundError otherwise."""
        query = select(schema.models).where(schema.models.c.id == model_id, _callable_by(project))
        with self._database.reading() as connection:
            row = connection.execute(query).mappings().first()
        if row is None:
            raise _no_model(model_id)
        return _model(row)

    def list(self, project: str) -> tuple[CallableModel, ...]:
        """Return every model that the project owns or may call, oldest first."""
        table = schema.models
        query = select(table).where(_callable_by(project)).order_by(table.c.sequence)
        with self._database.reading() as connection:
            return tuple(_model(row) for row in connection.execute(query).mappings())

    def of_job(self, job_id: str) -> tuple[CallableModel, ...]:
        """Return what a job has made so far, by step; the final model comes last."""
        table = schema.models
        query = select(table).where(table.c.job_id == job_id).order_by(table.c.step, table.c.final)
        with self._database.reading() as connection:
            return tuple(_model(row) for row in connection.execute(query).mappings())

    def delete(self, project: str, model_id: str) -> CallableModel:
        """Remove an entry with its permissions and return it; its folder stays.

        Raises NotFoundError if the project does not own such a model.
        """
        owned = _owned_by(project, model_id)
        with self._database.writing() as connection:
            row = connection.execute(select(schema.models).where(owned)).mappings().first()
            if row is None:
                raise _no_model(model_id)
            connection.execute(delete(schema.models).where(owned))
        return _model(row)

    def remove_checkpoint(self, job_id: str, step: int, fence: Lease | None) -> None:
        """Remove the checkpoint of a step, if it is there; the final model is never one.

        Raises LeaseLostError if the lease is lost.
        """
        table = schema.models
        checkpoint = (table.c.job_id == job_id) & (table.c.step == step) & table.c.final.is_(False)
        with self._database.writing() as connection:
            if fence is not None:
                hold(connection, fence)
            connection.execute(delete(table).where(checkpoint))

    def grant(self, project: str, model_id: str, projects: Sequence[str]) -> tuple[Permission, ...]:
        """Let other projects call a model; who may already keeps the permission there is.

        Raises NotFoundError if the project does not own such a model.
        """
        table = schema.permissions
        with self._database.writing() as connection:
            # Locking the model keeps two grants at once from both finding a permission missing.
            _lock(connection, project, model_id)
            query = select(table).where(table.c.model_id == model_id)
            rows = connection.execute(query).mappings().all()
            held = {row["project"]: _permission(row) for row in rows}
            for name in projects:
                if name in held:
                    continue
                held[name] = Permission(
                    id=f"cp_{secrets.token_hex(12)}", created_at=self._clock(), project_id=name
                )
                columns = {"id": held[name].id, "model_id": model_id, "project": name}
                connection.execute(
                    insert(table).values(columns | {"created_at": held[name].created_at})
                )
        return tuple(held[name] for name in dict.fromkeys(projects))

    def permissions(
        self,
        project: str,
        model_id: str,
        *,
        project_id: str | None = None,
        after: str | None = None,
        limit: int = 10,
        order: Literal["ascending", "descending"] = "descending",
    ) -> Page[Permission]:
        """Return who may call a model.

        Raises NotFoundError if the project does not own such a model, or for an unknown `after`.
        """
        table = schema.permissions
        ordered = table.c.sequence.asc() if order == "ascending" else table.c.sequence.desc()
        query = select(table).where(table.c.model_id == model_id).order_by(ordered)
        if project_id is not None:
            query = query.where(table.c.project == project_id)
        with self._database.reading() as connection:
            _check_owned(connection, project, model_id)
            last = 0
            if after is not None:
                named = (table.c.model_id == model_id) & (table.c.id == after)
                last = connection.execute(select(table.c.sequence).where(named)).scalar()
                if last is None:
                    raise _no_permission(after)
                up = order == "ascending"
                query = query.where(table.c.sequence > last if up else table.c.sequence < last)
            rows = connection.execute(query.limit(limit + 1)).mappings().all()
        shown = rows[:limit]
        return Page(
            items=tuple(_permission(row) for row in shown),
            last=shown[-1]["sequence"] if shown else last,
            has_more=len(rows) > limit,
        )

    def revoke(self, project: str, model_id: str, permission_id: str) -> None:
        """Take a permission back.

        Raises NotFoundError if the project does not own such a model or there is no such permission.
        """
        table = schema.permissions
        named = (table.c.model_id == model_id) & (table.c.id == permission_id)
        with self._database.writing() as connection:
            _check_owned(connection, project, model_id)
            if not connection.execute(delete(table).where(named)).rowcount:
                raise _no_permission(permission_id)


def _write_row(connection: Connection, model: CallableModel) -> None:
    table = schema.models
    columns = asdict(model)
    query = select(table.c.project, table.c.job_id).where(table.c.id == model.id)
    before = connection.execute(query).first()
    if before is None:
        connection.execute(insert(table).values(columns))
        return
    if (before.project, before.job_id) != (model.project, model.job_id):
        raise ConflictError(f"another job has a model named {model.id!r}; choose another suffix")
    del columns["created_at"]
    connection.execute(update(table).where(table.c.id == model.id).values(columns))


def _callable_by(project: str) -> ColumnElement[bool]:
    models, permissions = schema.models, schema.permissions
    permitted = select(permissions.c.model_id).where(permissions.c.project == project)
    return (models.c.project == project) | models.c.id.in_(permitted)


def _owned_by(project: str, model_id: str) -> ColumnElement[bool]:
    return (schema.models.c.project == project) & (schema.models.c.id == model_id)


def _check_owned(connection: Connection, project: str, model_id: str) -> None:
    query = select(schema.models.c.id).where(_owned_by(project, model_id))
    if connection.execute(query).first() is None:
        raise _no_model(model_id)


def _lock(connection: Connection, project: str, model_id: str) -> None:
    query = select(schema.models.c.id).where(_owned_by(project, model_id)).with_for_update()
    if connection.execute(query).first() is None:
        raise _no_model(model_id)


def _model(row: RowMapping) -> CallableModel:
    return CallableModel(
        id=row["id"],
        project=row["project"],
        job_id=row["job_id"],
        base=row["base"],
        path=row["path"],
        step=row["step"],
        final=row["final"],
        created_at=row["created_at"],
    )


def _permission(row: RowMapping) -> Permission:
    return Permission(id=row["id"], created_at=row["created_at"], project_id=row["project"])


def _no_model(model_id: str) -> NotFoundError:
    return NotFoundError(f"no model {model_id[:200]!r}; list models to see what can be called")


def _no_permission(permission_id: str) -> NotFoundError:
    return NotFoundError(
        f"no permission {permission_id[:80]!r} on this model; list them to see ids"
    )
