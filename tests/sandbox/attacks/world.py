"""The outside of the box: a secret in many places, servers that listen, a process worth killing.

Everything an attack may touch is made for it and watched; nothing of the machine is.
"""

import ctypes
import os
import secrets
import selectors
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

VICTIM = """
import ctypes, os, signal, sys
secret = os.environ["AGENTRFT_CANARY"]
buffer = ctypes.create_string_buffer(secret.encode())
fd = os.open(sys.argv[1], os.O_RDONLY)
print(ctypes.addressof(buffer), fd, flush=True)
sys.stdin.read()
"""


class World:
    """Made once; `restore` puts right what an attack has spoiled."""

    def __init__(self) -> None:
        self.secret = f"canary-{secrets.token_hex(16)}"
        # Not below pytest's folders: those are closed to others, which would hide a missing layer.
        self.folder = Path(tempfile.mkdtemp(prefix="agentrft-world-"))
        self.folder.chmod(0o755)
        self.marker = ""
        self._victim: subprocess.Popen[bytes] | None = None
        self._servers = Servers(self.folder)
        self._inherited = socket.socketpair()
        os.environ["AGENTRFT_CANARY"] = self.secret
        self.restore()
        self._held = os.open(self.folder / "home" / "secret", os.O_RDONLY)
        for fd in (self._held, self._inherited[1].fileno()):
            os.set_inheritable(fd, True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.environ.pop("AGENTRFT_CANARY", None)
        self._stop_victim()
        self._servers.close()
        os.close(self._held)
        for end in self._inherited:
            end.close()
        shutil.rmtree(self.folder)

    def restore(self) -> None:
        """Fresh files, a living victim, nothing heard, a new marker."""
        self.marker = f"rft{secrets.token_hex(5)}"
        for name in ("home", "drop"):
            shutil.rmtree(self.folder / name, ignore_errors=True)
        home, drop = self.folder / "home", self.folder / "drop"
        home.mkdir(mode=0o755)
        drop.mkdir()
        drop.chmod(0o777)
        for path, mode in ((home / "secret", 0o600), (home / "shared", 0o644)):
            path.write_text(self.secret)
            path.chmod(mode)
        self._writable.write_text("untouched")
        self._writable.chmod(0o666)
        self._target.write_text("untouched")
        for path in (self._writable, self._target):
            os.utime(path, (1_000_000, 1_000_000))
        self._before = self._seen_files()
        self._servers.heard.clear()
        if not self.victim_runs():
            self._start_victim()

    @property
    def _writable(self) -> Path:
        return self.folder / "drop" / "writable"

    @property
    def _target(self) -> Path:
        return self.folder / "drop" / "target"

    def item(self) -> dict[str, Any]:
        """Where things are; the secret itself is not in it."""
        home, drop = self.folder / "home", self.folder / "drop"
        assert self._victim is not None
        return {
            "marker": self.marker,
            "secret_file": str(home / "secret"),
            "shared_file": str(home / "shared"),
            "writable_file": str(self._writable),
            "target_file": str(self._target),
            "writable_folder": str(drop),
            "handle": file_handle(home / "secret"),
            "free_port": free_port(),
            "victim": self._victim.pid,
            "victim_address": self._victim_address,
            "victim_fd": self._victim_fd,
            "secret_length": len(self.secret),
            "server": os.getpid(),
            "checkout": str(Path.cwd()),
            "site_packages": str(Path(os.__file__).parent / "site-packages"),
            "root_device": Path("/").stat().st_dev,
            **self._servers.addresses,
        }

    def heard_channels(self) -> set[str]:
        """Servers that were reached, and `inherited` for a socket that leaked into the box."""
        channels = set(self._servers.heard)
        self._inherited[0].setblocking(False)
        try:
            if self._inherited[0].recv(1 << 16):
                channels.add("inherited")
        except BlockingIOError:
            pass
        return channels

    def damage(self) -> str:
        """What is not as it was among the files."""
        after = self._seen_files()
        for path in sorted(self._before.keys() | after.keys()):
            if self._before.get(path) != after.get(path):
                return f"{path}: {self._before.get(path)} became {after.get(path)}"
        return ""

    def victim_runs(self) -> bool:
        """Whether it is alive and not stopped."""
        if self._victim is None or self._victim.poll() is not None:
            return False
        return _state(self._victim.pid) not in ("T", "t", "Z", "")

    def survivors(self) -> tuple[int, ...]:
        """Living processes that took the marker as their name."""
        found = list[int]()
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                named = (entry / "comm").read_text().strip() == self.marker
            except OSError:
                continue
            if named and _state(int(entry.name)) not in ("Z", "X", ""):
                found.append(int(entry.name))
        return tuple(found)

    def take_left_files(self) -> tuple[str, ...]:
        """Remove files named after the marker, wherever the box may have had its folders."""
        roots = [p for p in (tempfile.gettempdir(), "/var/tmp", "/dev/shm") if Path(p).is_dir()]
        pattern = ("-maxdepth", "4", "-name", f"*{self.marker}*", "-print", "-prune")
        command = ["find", *dict.fromkeys(roots), *pattern]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        if left := found.stdout.splitlines():
            subprocess.run(["rm", "-rf", *left], check=True)
        return tuple(left)

    def end_survivors(self) -> None:
        """Kill what took the marker as its name."""
        for pid in self.survivors():
            os.kill(pid, signal.SIGKILL)

    def _seen_files(self) -> dict[str, str]:
        seen = dict[str, str]()
        for path in self.folder.rglob("*"):
            facts = path.lstat()
            content = path.read_text() if stat.S_ISREG(facts.st_mode) else ""
            changed = int(facts.st_mtime) if path in (self._writable, self._target) else 0
            seen[str(path)] = f"{facts.st_mode:o} {facts.st_uid} {changed} {content}"
        return seen

    def _start_victim(self) -> None:
        self._stop_victim()
        secret_file = self.folder / "home" / "secret"
        self._victim = subprocess.Popen(
            [sys.executable, "-c", VICTIM, str(secret_file), self.secret],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._victim.stdout is not None
        address, fd = self._victim.stdout.readline().split()
        self._victim_address, self._victim_fd = int(address), int(fd)

    def _stop_victim(self) -> None:
        if self._victim is not None:
            self._victim.kill()
            self._victim.communicate()


class Servers:
    """One thread that listens on every kind of address, and calls one port that nobody should open."""

    def __init__(self, folder: Path) -> None:
        self.heard = list[str]()
        self.addresses: Mapping[str, Any] = {}
        self._selector = selectors.DefaultSelector()
        self._sockets = list[socket.socket]()
        self._open(folder)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop listening."""
        self._stopped.set()
        self._thread.join()
        self._selector.close()
        for server in self._sockets:
            server.close()

    def _open(self, folder: Path) -> None:
        abstract = f"agentrft-{secrets.token_hex(8)}"
        addresses = dict[str, Any](abstract=abstract)
        for name, family, kind, address in (
            ("tcp4", socket.AF_INET, socket.SOCK_STREAM, ("127.0.0.1", 0)),
            ("tcp6", socket.AF_INET6, socket.SOCK_STREAM, ("::1", 0)),
            ("udp4", socket.AF_INET, socket.SOCK_DGRAM, ("127.0.0.1", 0)),
            ("udp6", socket.AF_INET6, socket.SOCK_DGRAM, ("::1", 0)),
            ("unix_stream", socket.AF_UNIX, socket.SOCK_STREAM, str(folder / "stream.sock")),
            ("unix_datagram", socket.AF_UNIX, socket.SOCK_DGRAM, str(folder / "datagram.sock")),
            ("abstract_stream", socket.AF_UNIX, socket.SOCK_STREAM, f"\0{abstract}"),
            ("abstract_datagram", socket.AF_UNIX, socket.SOCK_DGRAM, f"\0{abstract}-datagram"),
        ):
            server = socket.socket(family, kind)
            server.setblocking(False)
            server.bind(address)
            if kind is socket.SOCK_STREAM:
                server.listen(64)
            bound = server.getsockname()
            if family is socket.AF_UNIX and isinstance(address, str) and address.startswith("/"):
                Path(address).chmod(0o777)
                addresses[name] = address
            elif family is not socket.AF_UNIX:
                addresses[name] = bound[1]
            self._selector.register(server, selectors.EVENT_READ, name)
            self._sockets.append(server)
        self.addresses = addresses

    def _listen(self) -> None:
        while not self._stopped.is_set():
            for key, _ in self._selector.select(timeout=0.05):
                server = key.fileobj
                assert isinstance(server, socket.socket)
                if server.type is socket.SOCK_STREAM:
                    server.accept()[0].close()
                else:
                    server.recv(1 << 16)
                self.heard.append(key.data)


class Caller:
    """Tries to reach a port and an abstract address that only code in a box would open."""

    def __init__(self, item: Mapping[str, Any]) -> None:
        self._port, self._abstract = item["free_port"], f"\0{item['marker']}"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._call, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()

    def _call(self) -> None:
        while not self._stopped.wait(0.02):
            for family, address in (
                (socket.AF_INET, ("127.0.0.1", self._port)),
                (socket.AF_UNIX, self._abstract),
            ):
                with socket.socket(family) as caller:
                    caller.connect_ex(address)


def file_handle(path: Path) -> str:
    """The kernel's name for a file, which `open_by_handle_at` opens without any path."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffer = ctypes.create_string_buffer((128).to_bytes(4, sys.byteorder), 256)
    mount = ctypes.c_int()
    if libc.name_to_handle_at(-100, os.fsencode(path), buffer, ctypes.byref(mount), 0):
        return ""
    return buffer.raw[: 8 + int.from_bytes(buffer.raw[:4], sys.byteorder)].hex()


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MemoryPeak:
    """Growth of this process's memory between two points: at the worst moment, or what stays."""

    def __init__(self) -> None:
        Path("/proc/self/clear_refs").write_text("5")
        self._start, self._own = _status_kib("VmRSS:"), _status_kib("RssAnon:")

    def grown_bytes(self) -> int:
        """Bytes above the start."""
        # The kernel takes pages of files back as it likes, which hides as much growth from the peak.
        peak = _status_kib("VmHWM:") - self._start
        return max(0, peak, _status_kib("RssAnon:") - self._own) << 10


def wait_until_gone(world: World, patience_s: float) -> tuple[int, ...]:
    """Processes with the world's marker that are still there after a while."""
    end = time.monotonic() + patience_s
    while (alive := world.survivors()) and time.monotonic() < end:
        time.sleep(0.05)
    return alive


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return ""


def _status_kib(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    return 0
