"""A total deadline that says what it was for."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from agentrft.core.errors import AgentRFTError


@asynccontextmanager
async def within(limit_s: float, late: AgentRFTError) -> AsyncIterator[None]:
    """Cancel the body after `limit_s` and raise `late`; a TimeoutError of its own passes through."""
    deadline = asyncio.timeout(limit_s)
    try:
        async with deadline:
            yield
    except TimeoutError:
        if deadline.expired():
            raise late from None
        raise
