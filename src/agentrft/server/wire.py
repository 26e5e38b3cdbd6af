"""What every body of the API has in common."""

from collections.abc import Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from fastapi import Query
from pydantic import BaseModel, ConfigDict, Field

T = TypeVar("T")

Metadata = Annotated[
    dict[Annotated[str, Field(min_length=1, max_length=64)], Annotated[str, Field(max_length=512)]],
    Field(max_length=16),
]


class Body(BaseModel):
    """A body that comes in: unknown keys are errors, and a number is a number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class Reply(BaseModel):
    """A body that goes out."""

    model_config = ConfigDict(frozen=True)


class ListReply(Reply, Generic[T]):
    """A slice of a list; `after=<last_id>` gets the next one."""

    object: Literal["list"] = "list"
    data: Sequence[T]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False


class Deleted(Reply):
    """What is left of something deleted."""

    id: str
    object: str
    deleted: Literal[True] = True


def listed(items: Sequence[T], ids: Sequence[str], *, has_more: bool) -> dict[str, Any]:
    """Return the fields of a list reply."""
    return {
        "data": items,
        "first_id": ids[0] if ids else None,
        "last_id": ids[-1] if ids else None,
        "has_more": has_more,
    }


After = Annotated[
    str | None, Query(description="Id of the last entry of the slice before.", max_length=256)
]
Limit = Annotated[int, Query(ge=1, le=100, description="Most entries of this slice.")]
Order = Annotated[Literal["asc", "desc"], Query(description="By time of creation.")]
