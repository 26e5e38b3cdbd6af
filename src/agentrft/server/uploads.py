"""A multipart upload, written to its place as it arrives: memory does not grow with the file."""

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Self

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from agentrft.server.errors import bad_request
from agentrft.store.files import Incoming

_BATCH_BYTES = 1 << 20
_MOST_FIELDS = 16
_LONGEST_FIELD = 4096


class Upload:
    """One form with one file. `receive` opens the file once its name is known."""

    def __init__(
        self, content_type: str, receive: Callable[[str], AbstractContextManager[Incoming]]
    ) -> None:
        kind, options = parse_options_header(content_type)
        boundary = options.get(b"boundary")
        if kind != b"multipart/form-data" or not boundary or len(boundary) > 200:
            raise bad_request(
                "Send the file as multipart/form-data with the fields 'file' and 'purpose'."
            )
        self.fields: dict[str, str] = {}
        self.file: Incoming | None = None
        self.filename = ""
        self._receive = receive
        self._stack = ExitStack()
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._field: str | None = None
        self._text = b""
        self._ended = False
        self._parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": self._header_name,
                "on_header_value": self._header_value,
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    async def read(self, request: Request) -> None:
        """Take in the whole body. Raises ApiError 400 for a form that is broken or incomplete."""
        batch: list[bytes] = []
        waiting = 0
        async for chunk in request.stream():
            batch.append(chunk)
            waiting += len(chunk)
            if waiting >= _BATCH_BYTES:
                await run_in_threadpool(self._feed, b"".join(batch))
                batch, waiting = [], 0
        await run_in_threadpool(self._feed, b"".join(batch))
        if not self._ended:
            raise bad_request("The form ends before its last boundary; send it again.")

    def _feed(self, data: bytes) -> None:
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise bad_request(f"The form cannot be read: {error}.") from error

    def _begin(self) -> None:
        self._disposition = self._header = self._value = self._text = b""
        self._field = None

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header = _grown(self._header, data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value = _grown(self._value, data[start:end])

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header = self._value = b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode(errors="replace")
        if not name or name in self.fields or len(self.fields) == _MOST_FIELDS:
            raise bad_request("Each field of the form needs a name of its own; send at most 16.")
        if name != "file":
            self._field = name
            return
        if b"filename" not in options:
            raise bad_request("Field 'file' must be a file with a file name.", "file")
        self.fields["file"] = ""
        self.filename = options[b"filename"].decode(errors="replace")
        self.file = self._stack.enter_context(self._receive(self.filename))

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._field is not None:
            self._text = _grown(self._text, data[start:end])
        elif self.file is not None:
            self.file.write(data[start:end])

    def _end(self) -> None:
        if self._field is not None:
            self.fields[self._field] = self._text.decode(errors="replace")

    def _finish(self) -> None:
        self._ended = True


def _grown(text: bytes, more: bytes) -> bytes:
    if len(text) + len(more) > _LONGEST_FIELD:
        raise bad_request(f"A field of the form is longer than {_LONGEST_FIELD} bytes.")
    return text + more
