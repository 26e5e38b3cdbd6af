"""How a process is confined here: what it sees, under which user, behind which layers."""

import itertools
import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from agentrft.sandbox.cgroups import CgroupRoot

SYSTEM = (
    "/usr",
    "/lib",
    "/lib32",
    "/lib64",
    "/bin",
    "/sbin",
    "/etc/ld.so.cache",
    "/etc/alternatives",
)
"""Readable inside, beside the interpreter and its packages; no home, no /proc, no /sys."""
DEVICES = ("/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom")
HERE = str(Path(__file__).parent)
FOLDER = "/tmp"  # noqa: S108 - inside a namespace of its own
GUEST = 1000
"""User inside a user namespace."""
FIRST_UID = 1 << 30
SLOTS = 256


class Level(StrEnum):
    """How strongly a sandbox holds."""

    L2 = "L2"
    """Namespaces (bubblewrap), system call filter, and what else the machine offers."""
    L1 = "L1"
    """Landlock, system call filter and limits; no namespaces."""
    L0 = "L0"
    """Limits only. Contains mistakes, and no attack."""


class Namespaces(StrEnum):
    """How bubblewrap gets its namespaces."""

    AS_ROOT = "as root"
    """Made by root; the worker then becomes a user of its own."""
    OF_USER = "of a user namespace"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The layers to put on."""

    level: Level
    bubblewrap: Path | None = None
    namespaces: Namespaces | None = None
    landlock: int = 0
    """Version; 0 for none."""
    seccomp: bytes = b""
    own_uid: bool = False
    cgroups: CgroupRoot | None = None


def interpreter() -> Path:
    """Return the interpreter itself, not a virtual environment's link to it."""
    return Path(sys.executable).resolve()


@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """Where the folders of a worker are, as seen from inside."""

    folder: str
    """The one folder it may write to."""
    packages: tuple[str, ...]
    code: str
    """Of this room."""

    @property
    def readable(self) -> tuple[str, ...]:
        """Every path that may be read."""
        return (*SYSTEM, *DEVICES, sys.base_prefix, *self.packages, self.code)


def boxed_view(packages: tuple[str, ...]) -> View:
    """Return the view inside namespaces: packages stand elsewhere, their own place may be a home."""
    places = tuple(f"/packages/{number}" for number in range(len(packages)))
    return View(folder=FOLDER, packages=places, code="/agentrft")


def passable(paths: tuple[str, ...]) -> bool:
    """Whether any user can reach these paths; an interpreter in a closed home is not."""
    folders = {folder for path in paths for folder in Path(path).parents}
    return all(folder.stat().st_mode & 0o001 for folder in folders if folder.exists())


def environment(view: View) -> dict[str, str]:
    """Return all of a worker's environment: one thread, and nothing of ours."""
    one_thread = ("OMP", "OPENBLAS", "MKL", "NUMEXPR", "VECLIB_MAXIMUM")
    return {
        "PATH": f"{interpreter().parent}:/usr/bin:/bin",
        "HOME": view.folder,
        "TMPDIR": view.folder,
        "LANG": "C.UTF-8",
        "PYTHONPATH": ":".join(view.packages),
        "NLTK_DATA": ":".join(f"{folder}/nltk_data" for folder in view.packages),
        "PYTHONHASHSEED": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUTF8": "1",
        **{f"{library}_NUM_THREADS": "1" for library in one_thread},
    }


def command(view: View, control: int) -> list[str]:
    """Return the command that starts the part inside."""
    code = "import sys; sys.path.insert(0, sys.argv[1]); import inside; inside.main()"
    return [str(interpreter()), "-I", "-S", "-B", "-c", code, view.code, str(control)]


def boxed(plan: Plan, packages: tuple[str, ...], disk_bytes: int, control: int) -> list[str]:
    """Return the command that starts the part inside in namespaces of its own."""
    view = boxed_view(packages)
    if plan.namespaces == Namespaces.AS_ROOT:
        rights = ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        rights = ["--unshare-user", "--disable-userns", "--cap-drop", "ALL"]
        rights += ["--uid", str(GUEST), "--gid", str(GUEST)]
    return [
        str(plan.bubblewrap),
        *("--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts"),
        "--unshare-cgroup-try",
        *rights,
        "--die-with-parent",
        "--as-pid-1",  # the guard: no signal from inside reaches it, and all end with it
        "--new-session",
        *("--hostname", "sandbox"),
        *("--size", str(disk_bytes), "--perms", "1777", "--tmpfs", FOLDER),
        *_mounts({HERE: view.code, **dict(zip(packages, view.packages, strict=True))}),
        *("--symlink", FOLDER, "/dev/shm"),  # noqa: S108 - emptied with the folder after each call
        *("--remount-ro", "/"),
        *("--chdir", FOLDER),
        *(word for item in environment(view).items() for word in ("--setenv", *item)),
        "--",
        *command(view, control),
    ]


def _mounts(places: Mapping[str, str]) -> Iterator[str]:
    """Yield options that put each path to its place, and the system's to where it is."""
    links = [path for path in SYSTEM if Path(path).is_symlink()]
    same = [path for path in (*SYSTEM, sys.base_prefix) if path not in links]
    places = {path: path for path in same if not path.startswith("/usr/")} | dict(places)
    # bubblewrap makes missing parents for its own user only, and the worker becomes another.
    parents = {folder for path in (*places.values(), *DEVICES) for folder in Path(path).parents}
    for folder in sorted(parents - {Path("/")}):
        yield from ("--perms", "0755", "--dir", str(folder))
    for path in links:
        yield from ("--symlink", str(Path(path).readlink()), path)
    for path, place in places.items():
        yield from ("--ro-bind-try", path, place)
    for path in DEVICES:
        yield from ("--dev-bind", path, path)


_slots_in_use: set[int] = set()
_slots_lock = threading.Lock()


@contextmanager
def slot() -> Iterator[int]:
    """Reserve a number that no other worker of this process has."""
    with _slots_lock:
        number = next(n for n in itertools.count() if n not in _slots_in_use)
        _slots_in_use.add(number)
    try:
        yield number
    finally:
        _slots_in_use.discard(number)


def uid_of(number: int) -> int:
    """Return a user id that no other worker of any process here has: they are never in a file.

    Limits on processes count by user, so two workers must not share one.
    """
    return FIRST_UID + os.getpid() * SLOTS + number % SLOTS
