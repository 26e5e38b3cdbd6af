"""A PostgreSQL server of our own: Debian's binaries, a folder under /tmp, a unix socket, no TCP."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

WITHOUT = "AGENTRFT_TESTS_WITHOUT_POSTGRES"
MISSING = (
    "PostgreSQL is not installed, and the store must work on it too; install it "
    f"(Debian: apt install postgresql), or set {WITHOUT}=1 to leave these tests out"
)
LOCKED = "locked"
"""A role that needs a password, unlike the owner."""


class PostgresMissingError(Exception):
    """No binaries of PostgreSQL on this machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PrivatePostgres:
    """A running server."""

    folder: Path
    bin: Path

    def url(self, database: str = "postgres", user: str = "owner") -> str:
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def create(self, database: str) -> str:
        """Make an empty database and return its URL."""
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')  # pyright: ignore[reportArgumentType, reportCallIssue]
        return self.url(database)

    def crash(self) -> None:
        """End every server process at once, wherever it is, and start again."""
        self.stop()
        self.start()

    def start(self) -> None:
        # What these tests kill are processes; without a power loss nothing needs to reach the disk.
        options = f"-c listen_addresses= -k {self.folder} -c max_connections=200 -c fsync=off"
        log = str(self.folder / "log")
        _run(self.bin / "pg_ctl", "start", "-w", "-D", self.data, "-l", log, "-o", options)

    def stop(self) -> None:
        _run(self.bin / "pg_ctl", "stop", "-w", "-D", self.data, "-m", "immediate")

    @property
    def data(self) -> Path:
        return self.folder / "data"


@contextmanager
def private_postgres() -> Iterator[PrivatePostgres]:
    """Make, start and finally remove a server. Raises PostgresMissingError."""
    # The socket's path may have about 100 characters, which pytest's folders exceed.
    folder = Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp"))
    try:
        server = PrivatePostgres(folder=folder, bin=_binaries())
        user = _server_user()
        if user is not None:
            shutil.chown(folder, user)
        _run(server.bin / "initdb", "-D", server.data, "-U", "owner", "-A", "trust", "--no-sync")
        access = server.data / "pg_hba.conf"
        rules = f"local all {LOCKED} scram-sha-256\n{access.read_text()}"
        access.write_text(rules)
        server.start()
        try:
            yield server
        finally:
            server.stop()
    finally:
        shutil.rmtree(folder)


def _binaries() -> Path:
    found = shutil.which("initdb")
    if found is not None:
        return Path(found).resolve().parent
    installed = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not installed:
        raise PostgresMissingError(MISSING)
    return installed[-1].parent


def _server_user() -> str | None:
    """Whom to start programs as: PostgreSQL refuses to run as root, and only root can choose."""
    if os.geteuid() != 0:
        return None
    accounts = {account.pw_name for account in pwd.getpwall()}
    return "postgres" if "postgres" in accounts else "nobody"


def _run(program: Path, *arguments: str | Path) -> None:
    user = _server_user()
    done = subprocess.run(
        [program, *arguments],
        user=user,
        extra_groups=None if user is None else [],
        cwd="/tmp",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"{program.name} failed: {done.stdout}")
