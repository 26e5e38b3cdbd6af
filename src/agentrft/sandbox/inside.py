"""The part that runs inside: takes every limit upon itself, then runs what nobody trusts.

Standard library only: the package is not there inside. Four processes, each forked by the one before:
the *guard* (kills what is left when its parent dies), the *importer* (imports the source once and
ends, and its threads with it), the *stem* (one thread, no file), and one *call* after the other.
Nothing here is believed outside: the parent reads every answer from a pipe of its own.
"""

import base64
import contextlib
import ctypes
import gc
import json
import linecache
import os
import resource
import shutil
import signal
import socket
import struct
import sys
import types
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

HEADER = struct.Struct(">c16sI")
"""Kind, nonce and length of a message to the worker; a pipe for the answer comes with it."""
ANSWER = struct.Struct(">16sI")
"""Nonce and length of an answer; JSON follows."""
SWEPT = struct.Struct(">i?")
"""Exit status of the call, and whether its files are gone."""
START, CALL, SWEEP = b"B", b"C", b"S"
ANSWER_BYTES = 64 << 10
DETAIL_CHARACTERS = 2000
SOURCE_NAME = "grader.py"
ADDRESS_SPACE_SLACK_BYTES = 1 << 30
"""Mapped libraries and reserved arenas, beyond what a function may really use."""

LIBC = ctypes.CDLL(None, use_errno=True)
PR_SET_PDEATHSIG, PR_SET_KEEPCAPS, PR_SET_SECCOMP = 1, 8, 22
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 36, 38, 47


class Refused(Exception):
    """A layer that should hold cannot be put on."""


# --- messages -----------------------------------------------------------------------------------


def receive(commands: socket.socket) -> tuple[bytes, bytes, bytes, int]:
    """Return kind, nonce, payload and descriptor of the next message; ends when there is no more."""
    header, descriptors, _, _ = socket.recv_fds(commands, HEADER.size, 1)
    if len(header) < HEADER.size:
        os._exit(0)
    kind, nonce, length = HEADER.unpack(header)
    payload = bytearray()
    while len(payload) < length:
        part = commands.recv(min(length - len(payload), 1 << 20))
        if not part:
            os._exit(0)
        payload += part
    return kind, nonce, bytes(payload), descriptors[0] if descriptors else -1


def answer(descriptor: int, nonce: bytes, **fields: Any) -> None:
    """Write one answer; too large or no JSON becomes a fault of its own."""
    try:
        text = json.dumps(fields, allow_nan=False, default=plain).encode()
    except (TypeError, ValueError, RecursionError) as error:
        text = fault("result", f"the value is not JSON: {error}")
    if len(text) > ANSWER_BYTES:
        text = fault("result", f"the value has more than {ANSWER_BYTES} bytes as JSON")
    frame = memoryview(ANSWER.pack(nonce, len(text)) + text)
    while frame:
        frame = frame[os.write(descriptor, frame) :]


def fault(kind: str, detail: str) -> bytes:
    """Return the answer that says why there is no value."""
    return json.dumps({"fault": kind, "detail": detail[:DETAIL_CHARACTERS]}).encode()


def plain(value: Any) -> Any:
    """Return the Python number in a numpy scalar."""
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        return value.item()
    raise TypeError(f"{type(value).__name__} is no JSON type")


# --- limits -------------------------------------------------------------------------------------


def confine(settings: dict[str, Any]) -> None:
    """Put on every layer that the settings name; raises Refused with the layer that fails."""
    prctl(PR_SET_NO_NEW_PRIVS, 1)
    layers: list[tuple[str, Callable[[], None]]] = [
        ("own uid", lambda: become(settings["uid"], keep_reading=settings["keep_reading"])),
        ("rlimits", lambda: limit(settings)),
        ("landlock", lambda: fence(settings["landlock"], settings["read"], settings["write"])),
        ("seccomp", lambda: filter_syscalls(base64.b64decode(settings["seccomp"]))),
    ]
    for name, put_on in layers:
        try:
            put_on()
        except (OSError, ValueError) as error:
            raise Refused(f"{name}: {error}") from error


def prctl(option: int, *arguments: int) -> None:
    """Call prctl; raises OSError."""
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    if LIBC.prctl(ctypes.c_int(option), *words) != 0:
        raise _os_error("prctl")


def become(uid: int | None, *, keep_reading: bool) -> None:
    """Change to a user of our own; `keep_reading` keeps the one capability to pass closed folders.

    It is for an interpreter in a home, and harmless behind Landlock, which still names every file.
    """
    if uid is None:
        return
    if keep_reading:
        prctl(PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)
    if keep_reading:
        only = 1 << 2  # CAP_DAC_READ_SEARCH
        version = struct.pack("=Ii", 0x20080522, 0)
        words = struct.pack("=6I", only, only, only, 0, 0, 0)
        if LIBC.capset(version, words) != 0:
            raise _os_error("capset")
        prctl(PR_CAP_AMBIENT, 2, 2)


def limit(settings: dict[str, Any]) -> None:
    """Set the limits that every process inside inherits and none can raise."""
    memory, processes = settings["memory_bytes"], settings["processes"]
    limits = {
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NOFILE: 512,
        resource.RLIMIT_FSIZE: settings["disk_bytes"],
        resource.RLIMIT_MEMLOCK: 64 << 10,
        resource.RLIMIT_MSGQUEUE: 0,
        resource.RLIMIT_SIGPENDING: 512,
        resource.RLIMIT_STACK: 8 << 20,
        resource.RLIMIT_NICE: 0,
        resource.RLIMIT_RTPRIO: 0,
        resource.RLIMIT_CPU: settings["cpu_s"],
        resource.RLIMIT_DATA: memory,
        resource.RLIMIT_AS: memory + ADDRESS_SPACE_SLACK_BYTES,
    }
    if processes:
        limits[resource.RLIMIT_NPROC] = processes
    for kind, wanted in limits.items():
        _, hard = resource.getrlimit(kind)
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(kind, (most, most))


def filter_syscalls(program: bytes) -> None:
    """Load a compiled seccomp filter; empty for none."""
    if not program:
        return
    code = ctypes.create_string_buffer(program, len(program))

    class FilterProgram(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))

    packed = FilterProgram(len(program) // 8, ctypes.addressof(code))
    prctl(PR_SET_SECCOMP, 2, ctypes.addressof(packed))


def _os_error(call: str) -> OSError:
    number = ctypes.get_errno()
    return OSError(number, f"{call}: {os.strerror(number)}")


# --- Landlock, by its three system calls (numbers are the same on every architecture) ------------

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_READ = 1 << 0 | 1 << 2 | 1 << 3
"""Execute, read a file, list a folder."""
_WRITE_FILE, _MOVE, _TRUNCATE, _DEVICE = 1 << 1, 1 << 13, 1 << 14, 1 << 15
_WRITE = _READ | _WRITE_FILE | 0b1_0111_1011 << 4 | _TRUNCATE | _MOVE
"""And write, truncate, move, make and remove files, folders, links, fifos, sockets; no devices."""
_ON_FILES = 1 << 0 | _WRITE_FILE | 1 << 2 | _TRUNCATE | _DEVICE
_FILE_RIGHTS_BY_ABI = {1: 13, 2: 14, 3: 15, 4: 15}
"""How many of the file rights a version knows; later ones know 16."""
SCOPES_ABI = 6
"""From here on signals and abstract sockets of others are out of reach."""


def landlock_version() -> int:
    """Return the kernel's Landlock version; 0 if it has none."""
    return max(0, LIBC.syscall(_CREATE_RULESET, None, 0, 1))


def fence(version: int, read: Sequence[str], write: Sequence[str]) -> None:
    """Leave only these files in reach, no TCP, and no signal to anybody outside; 0 does nothing."""
    if version == 0:
        return
    handled = (1 << _FILE_RIGHTS_BY_ABI.get(version, 16)) - 1
    ruleset = _ruleset(handled, 0b11 if version >= 4 else 0, 0b11 if version >= SCOPES_ABI else 0)
    for rights, paths in ((_READ, read), (_WRITE, write)):
        for path in paths:
            _allow(ruleset, path, rights & handled)
    _restrict(ruleset)


def scope(version: int, folder: str) -> None:
    """Put whatever came before out of reach of signals from here on."""
    if version >= SCOPES_ABI:
        # Every further ruleset forbids moves between folders, unless it says otherwise.
        ruleset = _ruleset(_MOVE, 0, 0b11)
        _allow(ruleset, folder, _MOVE)
        _restrict(ruleset)


def _ruleset(files: int, net: int, scoped: int) -> int:
    attributes = struct.pack("=QQQ", files, net, scoped)
    size = 24 if scoped else 16 if net else 8  # an older kernel knows less of the structure
    ruleset = LIBC.syscall(_CREATE_RULESET, attributes, size, 0)
    if ruleset < 0:
        raise _os_error("landlock_create_ruleset")
    return ruleset


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        target = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    if not Path(path).is_dir():
        rights &= _ON_FILES
    rule = struct.pack("=Qi", rights, target)
    failed = LIBC.syscall(_ADD_RULE, ruleset, 1, rule, 0) != 0
    os.close(target)
    if failed:
        raise _os_error(f"landlock_add_rule {path}")


def _restrict(ruleset: int) -> None:
    failed = LIBC.syscall(_RESTRICT_SELF, ruleset, 0) != 0
    os.close(ruleset)
    if failed:
        raise _os_error("landlock_restrict_self")


# --- the four processes -------------------------------------------------------------------------


def main() -> None:
    """Greet, be told what to be, and become it."""
    commands = socket.socket(fileno=int(sys.argv[2]))
    commands.sendall(b"h")
    _, nonce, payload, pipe = receive(commands)
    settings = json.loads(payload)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD})
    boxed = settings["parent"] == 0
    try:
        if not boxed:
            _confine_guard(settings)
        importer = os.fork()
        if importer == 0:
            # In a box the guard is process 1: out of reach, and with it all others end.
            confine(settings) if boxed else scope(settings["landlock"], settings["folder"])
    except (Refused, OSError) as error:
        answer(pipe, nonce, fault="sandbox", detail=str(error))
        os._exit(1)
    if importer == 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGCHLD})
        os.setsid()
        os.umask(0o077)
        os.chdir(settings["folder"])
        if "argv" in settings:
            _execute(settings)
        _silence()
        _import(commands, pipe, nonce, settings)
    os.close(pipe)
    _guard(commands, importer, settings)


def _confine_guard(settings: dict[str, Any]) -> None:
    """Confine the guard with all it guards, and have it end with the parent."""
    confine(settings)
    prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != settings["parent"]:
        os._exit(0)
    if settings["alone"]:
        with contextlib.suppress(PermissionError):
            os.kill(settings["parent"], 0)
            raise Refused("landlock: signals to processes outside are not stopped")
    prctl(PR_SET_CHILD_SUBREAPER, 1)


def _guard(commands: socket.socket, importer: int, settings: dict[str, Any]) -> NoReturn:
    """Wait until the parent or everything inside is gone, and leave nothing behind."""
    program = "argv" in settings
    if not program:
        commands.close()
    status = 0
    while signal.sigwait({signal.SIGTERM, signal.SIGCHLD}) == signal.SIGCHLD:
        reaped = _reap(wait=False)
        status = reaped.get(importer, status)
        if reaped.pop(-1, 0) or (program and importer in reaped):
            break
    if settings["parent"]:
        kill_everybody(settings, importer)
        _reap(wait=True)
    if program:
        commands.sendall(SWEPT.pack(status, True))
    os._exit(0)


def kill_everybody(settings: dict[str, Any], group: int) -> None:
    """Kill all that runs inside but this process; without a fence only the group of `group`."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if settings["alone"]:
            os.kill(-1, signal.SIGKILL)
        else:
            os.killpg(group, signal.SIGKILL)


def _reap(*, wait: bool) -> dict[int, int]:
    """Collect ended children: status by process; -1 stands for "no child is left"."""
    ended: dict[int, int] = {}
    while True:
        try:
            process, status = os.waitpid(-1, 0 if wait else os.WNOHANG)
        except ChildProcessError:
            return {**ended, -1: 1}
        if process == 0:
            return ended
        ended[process] = status


def _silence() -> None:
    """Send what is printed nowhere: output is no channel for results."""
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def _execute(settings: dict[str, Any]) -> NoReturn:
    for name, content in settings["files"].items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(base64.b64decode(content))
    os.closerange(3, 1 << 10)
    try:
        os.execvp(settings["argv"][0], settings["argv"])  # noqa: S606 - it has been confined
    except OSError as error:
        os.write(2, f"{settings['argv'][0]}: {error.strerror}\n".encode())
    os._exit(127)


def _import(commands: socket.socket, pipe: int, nonce: bytes, settings: dict[str, Any]) -> NoReturn:
    sys.path[:] = [*sys.path[1:], *settings["packages"]]
    sys.argv[:] = [SOURCE_NAME]
    for name in ("inside", "__main__"):
        sys.modules.pop(name, None)
    source, name = settings["source"], settings["name"]
    module = types.ModuleType("grader")
    sys.modules["grader"] = sys.modules["__main__"] = module
    linecache.cache[SOURCE_NAME] = (len(source), None, source.splitlines(True), SOURCE_NAME)
    try:
        exec(compile(source, SOURCE_NAME, "exec"), module.__dict__)  # noqa: S102 - what this is for
        function = module.__dict__.get(name)
        if not callable(function):
            raise NameError(f"the source defines no function {name!r}")  # noqa: TRY301 - told like an import that fails
    except BaseException as error:  # whatever it is, it is the function's
        answer(pipe, nonce, **described(error, "while it was imported"))
        os._exit(0)
    importer = os.getpid()
    if os.fork():
        os._exit(0)  # and every thread that the import started
    _stem(commands, pipe, nonce, settings, function, importer)


def _stem(
    commands: socket.socket,
    pipe: int,
    nonce: bytes,
    settings: dict[str, Any],
    function: Callable[..., Any],
    importer: int,
) -> NoReturn:
    """Fork a call when told, sweep when told."""
    os.setsid()
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    kill_everybody(settings, importer)
    gc.collect()
    gc.freeze()
    _, clean = _reap(wait=True), _empty(settings["folder"])
    commands.sendall(SWEPT.pack(0, clean))
    answer(pipe, nonce, value=None)
    os.close(pipe)
    call = 0
    while True:
        kind, nonce, payload, pipe = receive(commands)
        if kind == CALL:
            call = os.fork()
            if call == 0:
                _call(pipe, nonce, payload, settings, function)
            os.close(pipe)
        elif kind == SWEEP:
            kill_everybody(settings, call)
            ended = _reap(wait=True)
            clean = _empty(settings["folder"])
            commands.sendall(SWEPT.pack(ended.get(call, -1), clean))


def _call(
    pipe: int, nonce: bytes, payload: bytes, settings: dict[str, Any], function: Callable[..., Any]
) -> NoReturn:
    os.closerange(3, pipe)
    os.closerange(pipe + 1, 1 << 10)
    os.setsid()
    scope(settings["landlock"], settings["folder"])
    most = settings["call_cpu_s"]
    resource.setrlimit(resource.RLIMIT_CPU, (most, most))
    os.set_inheritable(pipe, False)
    fields: dict[str, Any]
    try:
        fields = {"value": function(*json.loads(payload))}
    except BaseException as error:  # whatever it is, it is the function's
        fields = described(error, "")
    answer(pipe, nonce, **fields)
    os._exit(0)


def _empty(folder: str) -> bool:
    """Remove what a call left in its folder; say whether nothing is left."""
    os.chdir(folder)
    for entry in Path(folder).iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink()
    return not any(Path(folder).iterdir())


def described(error: BaseException, when: str) -> dict[str, Any]:
    """Return a fault that tells the function's author what happened and where."""
    if isinstance(error, MemoryError):
        return {"fault": "resources", "detail": "out of memory (MemoryError)"}
    try:
        message = str(error)
    except BaseException:  # an exception may be hostile too
        message = ""
    line, frame = 0, error.__traceback__
    while frame is not None:
        if frame.tb_frame.f_code.co_filename == SOURCE_NAME:
            line = frame.tb_lineno
        frame = frame.tb_next
    text = f"{type(error).__name__}: {message}" if message else type(error).__name__
    if line:
        text += f" (line {line}: {linecache.getline(SOURCE_NAME, line).strip()})"
    return {"fault": "raised", "detail": f"{text} {when}".strip()[:DETAIL_CHARACTERS]}
