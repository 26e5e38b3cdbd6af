"""What `Database` needs to know of the engine under it; one module per engine provides it."""

from collections.abc import Callable
from dataclasses import dataclass

from sqlalchemy import Connection, Engine

POOL_OVERFLOW = 35
"""Connections beyond the pool's five: one for each of the 40 threads that a server answers from."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """An engine with its ways to begin, and words for its failures."""

    engine: Engine
    name: str
    """For messages; never holds a password."""
    reader: Engine
    """Begins a consistent snapshot."""
    writer: Engine
    """Begins a transaction that may write."""
    lock_schema: Callable[[Connection], None]
    """Keep other processes from migrating until the transaction ends."""
    advice: Callable[[str], str]
    """Say what to do about what the engine reports."""
