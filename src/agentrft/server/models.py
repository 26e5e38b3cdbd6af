"""What can be called: base models for everybody, fine-tuned ones for their project and its guests."""

from typing import Annotated, Literal

from fastapi import Depends

from agentrft.server.auth import require
from agentrft.server.context import Here, Server
from agentrft.server.errors import ApiError, not_found
from agentrft.server.routing import router
from agentrft.server.wire import Deleted, ListReply, Reply, listed
from agentrft.store.access import Identity, Role
from agentrft.store.catalogue import CallableModel
from agentrft.store.errors import NotFoundError

routes = router("models")
Reader = Annotated[Identity, Depends(require(Role.READ))]


class ModelReply(Reply):
    """One model."""

    object: Literal["model"] = "model"
    id: str
    created: int
    owned_by: str
    shutdown_date: str | None = None
    """Always null: weights on your own disk are not shut down."""


@routes.get("/models")
def list_models(server: Here, caller: Reader) -> ListReply[ModelReply]:
    """List the models that this token may call."""
    found = [_base(server, name) for name in server.settings.bases]
    found += [_tuned(model) for model in server.home.catalogue.list(caller.project)]
    return ListReply[ModelReply](**listed(found, [one.id for one in found], has_more=False))


@routes.get("/models/{model:path}")
def retrieve_model(model: str, server: Here, caller: Reader) -> ModelReply:
    """Return one model."""
    if (base := server.settings.base_of(model)) is not None:
        return _base(server, base)
    return _tuned(_find(server, caller, model))


@routes.delete("/models/{model:path}")
def delete_model(
    model: str, server: Here, caller: Annotated[Identity, Depends(require(Role.SUBMIT))]
) -> Deleted:
    """Remove a fine-tuned model of this project."""
    if server.settings.base_of(model) is not None:
        raise ApiError(
            403,
            f"{model!r} is a base model of this server and cannot be deleted by its users.",
            param="model",
        )
    found = _find(server, caller, model)
    if found.project != caller.project:
        raise ApiError(403, f"{model!r} belongs to another project.", param="model")
    server.home.catalogue.delete(caller.project, model)
    return Deleted(id=model, object="model")


def _find(server: Server, caller: Identity, model: str) -> CallableModel:
    try:
        return server.home.catalogue.get(caller.project, model)
    except NotFoundError:
        raise not_found(
            f"The model {model[:200]!r} does not exist or you do not have access to it.",
            "model",
            "model_not_found",
        ) from None


def _base(server: Server, name: str) -> ModelReply:
    return ModelReply(id=name, created=0, owned_by=server.settings.organization)


def _tuned(model: CallableModel) -> ModelReply:
    return ModelReply(id=model.id, created=int(model.created_at), owned_by=model.project)
