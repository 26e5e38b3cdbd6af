"""Checkpoints of a job, and which other projects may call a model."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from fastapi import Depends
from pydantic import Field

from agentrft.core.run import Event
from agentrft.server.auth import require
from agentrft.server.context import Here
from agentrft.server.errors import not_found
from agentrft.server.routing import router
from agentrft.server.wire import After, Body, Deleted, Limit, ListReply, Reply, listed
from agentrft.store.access import Identity, Role
from agentrft.store.catalogue import CallableModel, Permission
from agentrft.store.overview import Overview

routes = router("fine-tuning")
Reader = Annotated[Identity, Depends(require(Role.READ))]
Admin = Annotated[Identity, Depends(require(Role.ADMIN))]
_PERMISSIONS = "/fine_tuning/checkpoints/{model:path}/permissions"


class CheckpointReply(Reply):
    """One model that a job left behind."""

    object: Literal["fine_tuning.job.checkpoint"] = "fine_tuning.job.checkpoint"
    id: str
    created_at: int
    fine_tuned_model_checkpoint: str
    fine_tuning_job_id: str
    step_number: int
    metrics: Mapping[str, float]


class PermissionsBody(Body):
    """Who may call the model from now on."""

    project_ids: Annotated[
        list[Annotated[str, Field(min_length=1, max_length=64)]],
        Field(min_length=1, max_length=100),
    ]


class PermissionReply(Reply):
    """One project that may call a model."""

    object: Literal["checkpoint.permission"] = "checkpoint.permission"
    id: str
    created_at: int
    project_id: str


@routes.get("/fine_tuning/jobs/{job_id}/checkpoints")
def list_checkpoints(
    job_id: str, server: Here, caller: Reader, after: After = None, limit: Limit = 10
) -> ListReply[CheckpointReply]:
    """List the models that a job keeps, the latest step first."""
    home = server.home
    home.queue.get(job_id, caller.project)
    kept = sorted(
        (model for model in home.catalogue.of_job(job_id) if not model.final),
        key=lambda model: -model.step,
    )
    reported = Overview(home.database).metrics_of_steps(job_id, [model.step for model in kept])
    replies = [_checkpoint(model, reported.get(model.step)) for model in kept]
    if after is not None:
        known = [reply.id for reply in replies]
        if after not in known:
            raise not_found(f"No checkpoint {after!r} in this job.", "after")
        replies = replies[known.index(after) + 1 :]
    shown = replies[:limit]
    more = len(replies) > limit
    ids = [reply.id for reply in shown]
    return ListReply[CheckpointReply](**listed(shown, ids, has_more=more))


@routes.post(_PERMISSIONS)
def create_permissions(
    model: str, body: PermissionsBody, server: Here, caller: Admin
) -> ListReply[PermissionReply]:
    """Let other projects call a model of this one."""
    granted = server.home.catalogue.grant(caller.project, model, body.project_ids)
    return _permissions(granted, has_more=False)


@routes.get(_PERMISSIONS)
def list_permissions(
    model: str,
    server: Here,
    caller: Admin,
    project_id: str | None = None,
    after: After = None,
    limit: Limit = 10,
    order: Literal["ascending", "descending"] = "descending",
) -> ListReply[PermissionReply]:
    """List which projects may call a model of this one."""
    found = server.home.catalogue.permissions(
        caller.project,
        model,
        project_id=project_id,
        after=after,
        limit=limit,
        order=order,
    )
    return _permissions(found.items, has_more=found.has_more)


@routes.delete(_PERMISSIONS + "/{permission_id}")
def delete_permission(model: str, permission_id: str, server: Here, caller: Admin) -> Deleted:
    """Take a permission back."""
    server.home.catalogue.revoke(caller.project, model, permission_id)
    return Deleted(id=permission_id, object="checkpoint.permission")


def _checkpoint(model: CallableModel, reported: Event | None) -> CheckpointReply:
    numbers = {} if reported is None else reported.data
    return CheckpointReply(
        id="ftckpt_" + hashlib.sha256(model.id.encode()).hexdigest()[:24],
        created_at=int(model.created_at),
        fine_tuned_model_checkpoint=model.id,
        fine_tuning_job_id=model.job_id,
        step_number=model.step,
        metrics={name: value for name, value in numbers.items() if isinstance(value, int | float)},
    )


def _permissions(found: Sequence[Permission], *, has_more: bool) -> ListReply[PermissionReply]:
    replies = [
        PermissionReply(id=one.id, created_at=int(one.created_at), project_id=one.project_id)
        for one in found
    ]
    return ListReply[PermissionReply](
        **listed(replies, [reply.id for reply in replies], has_more=has_more)
    )
