"""Files of a project: datasets come in, results of jobs go out."""

import hashlib
import json
import re
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Annotated, Literal, get_args

from fastapi import Depends, Query, Request
from fastapi.responses import FileResponse, JSONResponse, Response
from starlette.concurrency import run_in_threadpool

from agentrft.core.errors import DataError
from agentrft.server.auth import require
from agentrft.server.context import Here, Server
from agentrft.server.errors import bad_request
from agentrft.server.routing import checked_key, repeat_seed, replayed, router
from agentrft.server.uploads import Upload
from agentrft.server.wire import After, Deleted, ListReply, Order, Reply, listed
from agentrft.store.access import Identity, Role
from agentrft.store.files import Incoming, StoredFile
from agentrft.store.jsonl import check_upload

routes = router("files")
Reader = Annotated[Identity, Depends(require(Role.READ))]
Submitter = Annotated[Identity, Depends(require(Role.SUBMIT))]

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")
_SHORTEST_S, _LONGEST_S = 3600, 30 * 24 * 3600
_FORM = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"type": "string", "enum": list(get_args(Purpose))},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": _SHORTEST_S,
            "maximum": _LONGEST_S,
        },
    },
}


class FileReply(Reply):
    """One file."""

    object: Literal["file"] = "file"
    id: str
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None


@routes.post(
    "/files",
    response_model=FileReply,
    openapi_extra={"requestBody": {"content": {"multipart/form-data": {"schema": _FORM}}}},
)
async def create_file(request: Request, server: Here, caller: Submitter) -> Response:
    """Upload a file of up to 512 MB; datasets are checked line by line."""
    key = request.headers.get("idempotency-key")

    def receive(filename: str) -> AbstractContextManager[Incoming]:
        return server.home.files.receive(caller.project, filename, purpose="")

    with Upload(request.headers.get("content-type", ""), receive) as upload:
        await upload.read(request)
        if key is None:
            stored = await run_in_threadpool(_keep, upload, "")
            return JSONResponse(_reply(stored).model_dump(mode="json"))
        return await run_in_threadpool(_keep_once, server, caller, upload, checked_key(key))


@routes.get("/files")
def list_files(
    server: Here,
    caller: Reader,
    purpose: Annotated[str | None, Query(max_length=64)] = None,
    after: After = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Order = "desc",
) -> ListReply[FileReply]:
    """List the files of this project."""
    found = server.home.files.list(
        caller.project, purpose=purpose, after=after, limit=limit, newest_first=order == "desc"
    )
    replies = [_reply(file) for file in found.items]
    return ListReply[FileReply](
        **listed(replies, [reply.id for reply in replies], has_more=found.has_more)
    )


@routes.get("/files/{file_id}")
def retrieve_file(file_id: str, server: Here, caller: Reader) -> FileReply:
    """Return what is known of a file."""
    return _reply(server.home.files.get(caller.project, file_id))


@routes.get("/files/{file_id}/content", response_class=FileResponse)
def retrieve_content(file_id: str, server: Here, caller: Reader) -> FileResponse:
    """Return a file's bytes."""
    file = server.home.files.get(caller.project, file_id)
    return FileResponse(
        server.home.files.path(file),
        filename=file.filename,
        media_type="application/octet-stream",
    )


@routes.delete("/files/{file_id}")
def delete_file(file_id: str, server: Here, caller: Submitter) -> Deleted:
    """Remove a file; jobs that began with it keep what they read."""
    server.home.files.delete(caller.project, file_id)
    return Deleted(id=file_id, object="file")


def _keep_once(server: Server, caller: Identity, upload: Upload, key: str) -> Response:
    """Keep a file unless this very upload was answered before."""
    replies = server.home.replies
    content = upload.file.sha256 if upload.file else ""
    request = json.dumps([upload.filename, content, sorted(upload.fields.items())])
    digest = hashlib.sha256(request.encode()).hexdigest()
    stored = replies.begin(caller.project, key, digest)
    if stored is not None:
        return replayed(stored.status, stored.body)
    body: bytes | None = None
    try:
        file = _keep(upload, f"file-{repeat_seed(caller.project, key, digest)[:24]}")
        body = _reply(file).model_dump_json().encode()
        replies.finish(caller.project, key, 200, body)
    finally:
        if body is None:
            replies.abandon(caller.project, key)
    return Response(body, media_type="application/json")


def _keep(upload: Upload, file_id: str) -> StoredFile:
    """Check a received file and make it count. Raises ApiError 400 for what is wrong with it."""
    unknown = upload.fields.keys() - {"file", *_FIELDS}
    if unknown:
        name = min(unknown)
        raise bad_request(f"Unknown parameter: {name[:80]!r}.", name[:80], "unknown_parameter")
    purpose = upload.fields.get("purpose", "")
    if upload.file is None or not purpose:
        missing = "purpose" if upload.file else "file"
        raise bad_request(
            f"Missing required parameter: '{missing}'.", missing, "missing_required_parameter"
        )
    if purpose not in get_args(Purpose):
        raise bad_request(
            f"{purpose!r} is not one of: {', '.join(get_args(Purpose))}.",
            "purpose",
            "invalid_value",
        )
    expires_at = _expiry(upload.fields)
    if purpose == "fine-tune":
        if not upload.filename.lower().endswith(".jsonl"):
            raise bad_request(
                f"File {upload.filename[:80]!r} must be JSON Lines and end in '.jsonl' to be used "
                "for fine-tuning.",
                "file",
                "invalid_file_format",
            )
        try:
            check_upload(upload.file.draft())
        except DataError as error:
            raise bad_request(str(error), "file", "invalid_file_format") from None
    return upload.file.commit(purpose=purpose, file_id=file_id, expires_at=expires_at)


def _expiry(fields: Mapping[str, str]) -> float | None:
    anchor, seconds = (fields.get(name) for name in _FIELDS[1:])
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise bad_request("The anchor must be 'created_at'.", "expires_after.anchor")
    if seconds is None or not re.fullmatch(r"[0-9]{1,9}", seconds):
        raise bad_request("The seconds must be an integer.", "expires_after.seconds")
    if not _SHORTEST_S <= int(seconds) <= _LONGEST_S:
        raise bad_request(
            f"The seconds must lie between {_SHORTEST_S} and {_LONGEST_S}.", "expires_after.seconds"
        )
    return time.time() + int(seconds)


def _reply(file: StoredFile) -> FileReply:
    return FileReply(
        id=file.id,
        bytes=file.bytes,
        created_at=int(file.created_at),
        expires_at=None if file.expires_at is None else int(file.expires_at),
        filename=file.filename,
        purpose=file.purpose,
    )
