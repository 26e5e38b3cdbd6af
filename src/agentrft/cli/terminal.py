"""What every command shares: its home folder, its console, its options, how it is stopped."""

import asyncio
import os
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from agentrft.store.home import Home

INTERRUPTED = 130
"""Exit code of a run that was asked to stop, as shells use it for Ctrl-C."""

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Home folder (else AGENTRFT_HOME, else your user data folder)."),
]


def console() -> "Console":
    """Return a console on standard output."""
    from rich.console import Console

    return Console(soft_wrap=False)


def open_home(path: Path | None) -> "Home":
    """Open the home folder that option, environment or platform names."""
    import platformdirs

    from agentrft.store.home import Home

    named = os.environ.get("AGENTRFT_HOME")
    chosen = path or (Path(named) if named else platformdirs.user_data_path("agentrft"))
    return Home.open(chosen.expanduser(), database_url=os.environ.get("AGENTRFT_DATABASE_URL", ""))


def print_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print aligned columns, never cut: ids are there to be copied."""
    lines = [headings, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def shown_time(unix_time: float) -> str:
    """Return a time as people here write it."""
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(unix_time))


def ask_to_stop(stop: asyncio.Event) -> None:
    """Ask once; the second time ends the process at once."""
    if stop.is_set():
        os._exit(INTERRUPTED)
    print("stopping after the current step; press Ctrl-C again to end at once", file=sys.stderr)
    stop.set()
