"""A real server on a free port that answers with exactly the bytes it is given, well-formed or not."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Received:
    line: str
    headers: Mapping[str, str]
    """Names in lower case."""
    content: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.content)


async def at_once() -> None:
    pass


@dataclass(frozen=True)
class Raw:
    """What goes over the wire: pieces with a pause after each; `before` runs first."""

    pieces: tuple[bytes, ...]
    pause_s: float = 0.0
    before: Callable[[], Awaitable[object]] = at_once


def reply(
    body: str | bytes = "{}", status: int = 200, missing_bytes: int = 0, **headers: str
) -> Raw:
    content = body.encode() if isinstance(body, str) else body
    fields = {"content-length": str(len(content) + missing_bytes), "connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    return Raw((f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + content,))


HANGS = Raw((), before=lambda: asyncio.sleep(3600))
DRIPS = Raw((b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n", *[b" "] * 100_000), 0.002)


@dataclass
class RawServer:
    """Answers the n-th request with the n-th reply; the last one repeats."""

    replies: tuple[Raw, ...]
    port: int = 0
    requests: list[Received] = field(default_factory=list[Received])
    open_now: int = 0
    open_most: int = 0
    tasks: set["asyncio.Task[Any]"] = field(default_factory=set["asyncio.Task[Any]"])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.open_now += 1
        self.open_most = max(self.open_most, self.open_now)
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        with suppress(OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            await self.answer(reader, writer)
        self.tasks.discard(task)
        self.open_now -= 1
        writer.close()

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        line, *rest = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in rest)}
        content = await reader.readexactly(int(headers["content-length"]))
        self.requests.append(Received(line, headers, content))
        answer = self.replies[min(len(self.requests), len(self.replies)) - 1]
        await answer.before()
        for piece in answer.pieces:
            writer.write(piece)
            await writer.drain()
            await asyncio.sleep(answer.pause_s)


@asynccontextmanager
async def serving(*replies: Raw) -> AsyncIterator[RawServer]:
    raw = RawServer(replies or (reply(),))
    async with await asyncio.start_server(raw.handle, "127.0.0.1", 0) as server:
        raw.port = server.sockets[0].getsockname()[1]
        try:
            yield raw
        finally:  # also of a test that fails: the server would wait for those that hang
            for task in list(raw.tasks):
                task.cancel()
            await asyncio.gather(*raw.tasks)


class Waited:
    """Stands for the clock: pauses are written down and take no time."""

    def __init__(self) -> None:
        self.delays_s: list[float] = []
        self.now_s = 1000.0

    async def __call__(self, delay_s: float) -> None:
        self.delays_s.append(delay_s)
        self.now_s += delay_s
        await asyncio.sleep(0)  # others go on meanwhile: what is waited for may be one of them

    def clock(self) -> float:
        return self.now_s
