"""Live event streams: one reader per followed job, however many follow it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

from starlette.concurrency import run_in_threadpool

from agentrft.core.run import Event
from agentrft.store.home import Home

Line = tuple[int, bytes]
"""Sequence of an event, and what is sent for it."""
_STILL_HERE = b": still here\n\n"
_KEPT = 1000
"""Events that a reader holds for those who are behind; older ones are read from the store."""


@dataclass
class _Channel:
    """What the reader of one job has seen; it holds every event after `floor` up to `read_to`."""

    floor: int
    read_to: int
    lines: list[Line] = field(default_factory=list[Line])
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    ended: bool = False
    followers: int = 0
    reader: asyncio.Task[None] | None = None

    def publish(self, lines: tuple[Line, ...], *, ended: bool) -> None:
        self.lines.extend(lines)
        self.read_to = lines[-1][0] if lines else self.read_to
        self.ended = ended
        if len(self.lines) > _KEPT:
            self.floor = self.lines[-_KEPT - 1][0]
            del self.lines[:-_KEPT]
        self.wake()

    def wake(self) -> None:
        self.changed.set()
        self.changed = asyncio.Event()


class Followers:
    """The channels of one server process. `encode` makes an event into what is sent for it."""

    def __init__(self, home: Home, poll_s: float, encode: Callable[[int, Event], bytes]) -> None:
        self._home = home
        self._poll_s = poll_s
        self._encode = encode
        self._channels: dict[str, _Channel] = {}

    async def follow(self, job_id: str, after: int, heartbeat_s: float) -> AsyncIterator[bytes]:
        """Yield new events in order, and a comment when none came for `heartbeat_s`.

        Ends when the job has ended and its last event is out.
        """
        channel = self._join(job_id, after)
        try:
            while True:
                changed = channel.changed
                lines = await self._lines(job_id, channel, after)
                if lines:
                    after = lines[-1][0]
                    yield b"".join(text for _, text in lines)
                elif channel.ended:
                    return
                elif not await self._news(channel, changed, heartbeat_s):
                    yield _STILL_HERE
        finally:
            await self._leave(job_id, channel)

    async def _lines(self, job_id: str, channel: _Channel, after: int) -> tuple[Line, ...]:
        if after >= channel.read_to:
            return ()
        if after < channel.floor:
            return (await self._page(job_id, after))[0]
        return tuple(line for line in channel.lines if line[0] > after)

    async def _news(self, channel: _Channel, changed: asyncio.Event, within_s: float) -> bool:
        assert channel.reader is not None
        if channel.reader.done():
            channel.reader.result()
        try:
            async with asyncio.timeout(within_s):
                return await changed.wait()
        except TimeoutError:
            return False

    def _join(self, job_id: str, after: int) -> _Channel:
        channel = self._channels.get(job_id)
        if channel is None:
            channel = self._channels[job_id] = _Channel(floor=after, read_to=after)
            channel.reader = asyncio.create_task(self._read(job_id, channel))
        channel.followers += 1
        return channel

    async def _leave(self, job_id: str, channel: _Channel) -> None:
        channel.followers -= 1
        if channel.followers == 0 and channel.reader is not None:
            del self._channels[job_id]
            channel.reader.cancel()
            await asyncio.wait({channel.reader})

    async def _read(self, job_id: str, channel: _Channel) -> None:
        try:
            # Whoever came first may wait for an event far away, or one that never was; others do not.
            newest = await run_in_threadpool(self._home.store.events, job_id, limit=1)
            last = newest.items[0][0] if newest.items else 0
            channel.floor = channel.read_to = min(channel.read_to, last)
            while not channel.ended:
                # The status first: whatever ended the job wrote its last event before.
                state = await run_in_threadpool(self._home.queue.get, job_id)
                lines, has_more = await self._page(job_id, channel.read_to)
                ended = state.job.status.is_final and not has_more
                if lines or ended:
                    channel.publish(lines, ended=ended)
                if not has_more and not ended:
                    await asyncio.sleep(self._poll_s)
        finally:
            channel.wake()

    async def _page(self, job_id: str, after: int) -> tuple[tuple[Line, ...], bool]:
        page = await run_in_threadpool(self._home.store.events_since, job_id, after, _KEPT)
        return tuple((at, self._encode(at, event)) for at, event in page.items), page.has_more
