"""What an attack is: a hostile grader, and how the outside tells whether it got through.

A snippet defines `attack(item, number)`, which returns evidence. `item` says where things are and never
holds a secret: a snippet that brings one home has read it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attacks.world import World

from agentrft.core.protocols import FunctionResult

HONEST = 0.25
"""What a snippet of the result channel returns when nothing was forged."""

PRELUDE = r'''
import ctypes, errno, json, os, platform, re, signal, socket, stat, struct, sys
import tempfile, threading, time

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.syscall.restype = ctypes.c_long
_COMMON = {"bpf": (321, 280), "perf_event_open": (298, 241), "io_uring_setup": (425, 425),
    "keyctl": (250, 219), "add_key": (248, 217), "userfaultfd": (323, 282), "init_module": (175, 105),
    "finit_module": (313, 273), "kexec_load": (246, 104), "reboot": (169, 142), "ptrace": (101, 117),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "unshare": (272, 97),
    "setns": (308, 268), "clone": (56, 220), "clone3": (435, 435), "fsopen": (430, 430),
    "open_tree": (428, 428), "mount_setattr": (442, 442), "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "pidfd_send_signal": (424, 424), "open_by_handle_at": (304, 265), "openat2": (437, 437),
    "syslog": (103, 116), "quotactl": (179, 60), "swapon": (167, 224), "acct": (163, 89),
    "fanotify_init": (300, 262), "shmget": (29, 194), "shmat": (30, 196), "mq_open": (240, 180),
    "prlimit64": (302, 261), "kcmp": (312, 272), "capget": (125, 90), "sethostname": (170, 161),
    "memfd_create": (319, 279), "clock_settime": (227, 112), "move_pages": (279, 239),
    "lsm_list_modules": (461, 461), "ioperm": (173, -1), "modify_ldt": (154, -1)}
_ARM = platform.machine() == "aarch64"


def system(name, *arguments):
    """A raw system call; OSError if it fails."""
    ctypes.set_errno(0)
    number = _COMMON[name][_ARM] if isinstance(name, str) else name
    if number < 0:
        raise OSError(errno.ENOSYS, "not on this machine", name)
    as_long = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    value = _LIBC.syscall(ctypes.c_long(number), *as_long)
    if value == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(name))
    return value


def reached(name, *arguments):
    """Evidence that the kernel got as far as the arguments; OSError if it refused to look."""
    try:
        return [name, system(name, *arguments)]
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES, errno.ENOSYS):
            raise
        return [name, errno.errorcode[error.errno]]


def first(*ways):
    """What the first of several ways brings; the last way's error if none does."""
    problem = None
    for way in ways:
        try:
            if found := way():
                return found
        except (OSError, ValueError) as error:
            problem = error
    if problem is not None:
        raise problem


def read(path):
    with open(path, "rb") as file:
        return file.read(1 << 20).decode("utf-8", "replace")


def in_a_child(action):
    """Run in a fork, so that what it does to the process stays there; returns what it brings."""
    far, near = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(far)
            os.write(near, json.dumps({"found": action()}).encode())
        except OSError as error:
            os.write(near, json.dumps({"errno": error.errno, "text": str(error)}).encode())
        finally:
            os._exit(0)
    os.close(near)
    said = b""
    while block := os.read(far, 1 << 16):
        said += block
    os.waitpid(pid, 0)
    told = json.loads(said or b'{"errno": 1, "text": "the child died"}')
    if "errno" in told:
        raise OSError(told["errno"], f"in a child: {told['text']}")
    return told["found"]


def places():
    """Folders a grader may be able to write into."""
    return dict.fromkeys([os.getcwd(), tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm"])


'''

EPILOGUE = r"""

def grade(sample, item):
    if sample.get("well"):
        return 7
    _LIBC.prctl(15, item["marker"].encode(), 0, 0, 0)  # PR_SET_NAME: who outlives the call is found
    return attack(item, sample["number"])
"""

FORGED = r"""
import base64, pickle
FORGED = [
    b"1.0\n", b'{"score": 1.0}\n', b'{"value": 1.0, "fault": null}\n', b'{"result": 1.0}\n', b'[1.0]\n',
    base64.b64encode(pickle.dumps(("value", 1.0))) + b"\n",
    *(struct.pack(order + "I", len(body)) + body for order in "<>" for body in (
        b"1.0", b'{"score": 1.0}', b'{"value": 1.0}', pickle.dumps(1.0))),
    *(struct.pack(order + "Q", len(body)) + body for order in "<>" for body in (
        b"1.0", b'{"value": 1.0}')),
]
"""
"""Scores in the notations that a caller might believe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was seen of one attack."""

    results: tuple[FunctionResult, ...]
    hung: bool
    """A call did not come back long after its deadline."""
    well: bool
    """The function graded an honest sample afterwards."""
    survivors: tuple[int, ...]
    """Processes of the attack that were alive a second after the last call."""
    left_files: tuple[str, ...]
    grown_bytes: int
    """Memory of the caller's process, at the worst moment of the attack."""
    world: World

    @property
    def values(self) -> tuple[Any, ...]:
        """What the calls returned that had no fault."""
        return tuple(result.value for result in self.results if result.fault is None)


Judge = Callable[[Outcome], str]
"""Evidence in words, or nothing."""


def said(outcome: Outcome) -> str:
    """The snippet itself has evidence, in its last call."""
    last = outcome.results[-1]
    return f"returned {last.value!r:.200}" if last.fault is None and last.value else ""


def leaked(outcome: Outcome) -> str:
    """The secret, which no snippet is given, came back."""
    shown = json.dumps([outcome.values, [result.detail for result in outcome.results]])
    return "returned the secret" if outcome.world.secret in shown else ""


def heard(channel: str) -> Judge:
    """A server outside was reached."""
    return lambda outcome: (
        f"{channel} was reached" if channel in outcome.world.heard_channels() else ""
    )


def changed(outcome: Outcome) -> str:
    """Something of the files outside is not as it was."""
    return outcome.world.damage()


def killed(outcome: Outcome) -> str:
    """The victim process outside died or was stopped."""
    return "" if outcome.world.victim_runs() else "the victim does not run any more"


def not_honest(outcome: Outcome) -> str:
    """A call gave a value that the snippet did not return."""
    forged = [value for value in outcome.values if value != HONEST]
    return f"forged {forged[0]!r:.200}" if forged else ""


def any_value(outcome: Outcome) -> str:
    """A call that must be a fault gave a value."""
    return f"gave {outcome.values[0]!r:.200}" if outcome.values else ""


def not_json(outcome: Outcome) -> str:
    """A value came through that is no JSON value, or not one that can be stored and sent."""
    for value in outcome.values:
        try:
            text = json.dumps(value, allow_nan=False, ensure_ascii=False)
            text.encode()
        except (TypeError, ValueError, RecursionError) as problem:
            return f"a {type(value).__name__} came through: {problem}"
        if json.loads(text) != value:
            return f"a {type(value).__name__} changes when stored"
        if len(text) > 1 << 20:
            return f"{len(text)} characters came through"
    return ""


def grown(outcome: Outcome) -> str:
    """The caller's process held much of what the grader poured out."""
    grown_mib = outcome.grown_bytes >> 20
    return f"the caller grew by {grown_mib} MiB" if grown_mib > 64 else ""


def long_detail(outcome: Outcome) -> str:
    """The description of a fault is so long, or so strange, that it can do harm in a log."""
    for result in outcome.results:
        if len(result.detail) > 10_000:
            return f"{len(result.detail)} characters of detail"
        if strange := [c for c in result.detail if not c.isprintable() and c not in "\n\t"]:
            return f"{strange[0]!r} in the detail"
    return ""


def either(*judges: Judge) -> Judge:
    """Any of several kinds of evidence."""
    return lambda outcome: next(filter(None, (judge(outcome) for judge in judges)), "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Attack:
    """One hostile grader."""

    name: str
    source: str
    judge: Judge = said
    calls: int = 1
    owners: Sequence[str] = ("",)
    """Who brings the function, call by call."""
    at_once: bool = False
    """The calls run side by side."""
    timeout_s: float = 10.0
    import_timeout_s: float = 30.0
    leaves_files: bool = False
    """Files named after the marker are searched for afterwards."""
    spoils_import: bool = False
    """The module cannot be imported, so no honest sample can be graded afterwards."""
    gets_through_l1: str = ""
    """Why the weaker level may let it through; docs/sandbox.md lists these."""
    needs_root: bool = False
    """Outside, only root could do it."""
    not_outside: str = ""
    """Why its strength is not proven by running it without a sandbox."""

    @property
    def module(self) -> str:
        """The grader's source."""
        return f"{PRELUDE}{self.source.strip()}\n{EPILOGUE}"

    def got_through(self, outcome: Outcome) -> str:
        """Evidence that the attack succeeded, or nothing."""
        if evidence := self.judge(outcome):
            return evidence
        if outcome.hung:
            return "a call did not come back"
        if outcome.survivors:
            return f"{len(outcome.survivors)} processes outlived the call"
        if outcome.left_files:
            return f"left {outcome.left_files[0]}"
        return "" if outcome.well or self.spoils_import else "the function is broken for good"
