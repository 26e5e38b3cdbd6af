"""Limits on all processes of one worker together, in whichever form of cgroups the machine has."""

import contextlib
import os
import signal
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PREFIX = "agentrft-"
CORE_PERIOD_US = 100_000
EMPTIED_WITHIN_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CgroupRoot:
    """Where groups can be made: one folder in version 2, one for each controller in version 1."""

    version: int
    folders: tuple[tuple[str, Path], ...]
    """By controller."""

    def __str__(self) -> str:
        return f"version {self.version}: {', '.join(name for name, _ in self.folders)}"


class Cgroup:
    """The group of one worker; close it when its processes should be gone."""

    def __init__(self, root: CgroupRoot, name: str, *, memory_bytes: int, processes: int) -> None:
        """Raises OSError if the group cannot be made."""
        self._version = root.version
        self._folders = {kind: folder / f"{PREFIX}{name}" for kind, folder in root.folders}
        core = CORE_PERIOD_US
        limits = {
            1: {
                "memory": {"memory.limit_in_bytes": memory_bytes},
                "pids": {"pids.max": processes},
                "cpu": {"cpu.cfs_period_us": core, "cpu.cfs_quota_us": core},
            },
            2: {
                "memory": {"memory.max": memory_bytes},
                "pids": {"pids.max": processes},
                "cpu": {"cpu.max": f"{core} {core}"},
            },
        }[root.version]
        swap = {1: ("memory.memsw.limit_in_bytes", memory_bytes), 2: ("memory.swap.max", 0)}
        try:
            for kind, folder in self._folders.items():
                folder.mkdir(exist_ok=True)
                for file, value in limits[kind].items():
                    (folder / file).write_text(str(value))
            file, value = swap[root.version]
            if (self._folders["memory"] / file).exists():
                (self._folders["memory"] / file).write_text(str(value))
        except OSError:
            self.close()
            raise

    def add(self, process: int) -> None:
        """Put a process in; what it forks from now on follows."""
        for folder in set(self._folders.values()):
            (folder / "cgroup.procs").write_text(str(process))

    def processes(self) -> int:
        """Return how many tasks there are inside."""
        return int((self._folders["pids"] / "pids.current").read_text())

    def ran_out_of_memory(self) -> bool:
        """Whether anything inside was killed for memory."""
        file = "memory.oom_control" if self._version == 1 else "memory.events"
        lines = (self._folders["memory"] / file).read_text().splitlines()
        return any(line.startswith("oom_kill ") and line.split()[1] != "0" for line in lines)

    def close(self) -> None:
        """Kill what is still inside and remove the group."""
        deadline = time.monotonic() + EMPTIED_WITHIN_S
        for folder in set(self._folders.values()):
            while folder.exists() and not _removed(folder) and time.monotonic() < deadline:
                _kill_all(folder)
                time.sleep(0.002)


def _removed(folder: Path) -> bool:
    with contextlib.suppress(OSError):
        folder.rmdir()
        return True
    return False


def _kill_all(folder: Path) -> None:
    for process in (folder / "cgroup.procs").read_text().split():
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(int(process), signal.SIGKILL)


@cache
def find_root() -> CgroupRoot:
    """Return where this process may make groups for memory and pids; raises OSError if nowhere."""
    mounts = _mounts()
    own = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    first = [
        (name, mounts[name] / path.lstrip("/"))
        for _, names, path in own
        for name in names.split(",")
        if name in {"memory", "pids", "cpu"} and name in mounts
    ]
    if {"memory", "pids"} <= dict(first).keys():
        return _tried(CgroupRoot(version=1, folders=_writable(first)))
    for _, names, path in own:
        if names == "" and "" in mounts:
            return _second(mounts[""], mounts[""] / path.lstrip("/"))
    raise OSError("no cgroup file system is mounted; mount cgroup2 at /sys/fs/cgroup")


def _mounts() -> dict[str, Path]:
    """Return mount points by controller of version 1; the empty name is version 2."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, after = line.split(" - ", 1)
        point, (kind, _, options) = before.split()[4], after.split()[:3]
        if kind == "cgroup2":
            found[""] = Path(point)
        elif kind == "cgroup":
            found.update((name, Path(point)) for name in options.split(","))
    return found


def _writable(folders: list[tuple[str, Path]]) -> tuple[tuple[str, Path], ...]:
    """Leave out the processor's controller where only that is closed to us."""
    return tuple((n, f) for n, f in folders if n != "cpu" or os.access(f, os.W_OK))


def _second(top: Path, own: Path) -> CgroupRoot:
    """Find the nearest enclosing group of version 2 that hands memory and pids to its children."""
    reason = f"{own} gives its children no memory and pids controllers"
    for folder in (own, *own.parents):
        if folder != top and top not in folder.parents:
            break
        control = folder / "cgroup.subtree_control"
        if not os.access(folder, os.W_OK) or not control.exists():
            continue
        with contextlib.suppress(OSError):  # EBUSY: the group has processes of its own
            control.write_text("+memory +pids +cpu")
        given = control.read_text().split()
        if {"memory", "pids"} <= set(given):
            kinds = [name for name in ("memory", "pids", "cpu") if name in given]
            return _tried(CgroupRoot(version=2, folders=tuple((n, folder) for n in kinds)))
    raise OSError(f"{reason}; start the program with `systemd-run --user --scope -p Delegate=yes`")


def _tried(root: CgroupRoot) -> CgroupRoot:
    """Make a group and move a process of our own in and out; raises OSError if that fails."""
    remove_stale(root)
    group = Cgroup(root, f"{os.getpid()}-probe", memory_bytes=64 << 20, processes=8)
    child = os.posix_spawn("/bin/sleep", ["sleep", "10"], {})
    try:
        group.add(child)
        if group.processes() != 1:
            raise OSError("a process put into a group is not counted there")
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        group.close()
    return root


def remove_stale(root: CgroupRoot) -> None:
    """Remove groups of processes of ours that were killed before they could."""
    for folder in {folder for _, folder in root.folders}:
        for group in folder.glob(f"{PREFIX}*-*"):
            owner = group.name.removeprefix(PREFIX).split("-")[0]
            if owner.isdigit() and not Path(f"/proc/{owner}").exists():
                _removed(group)
