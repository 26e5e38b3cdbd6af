"""Which layers hold, that each stops something by itself, and which level they make."""

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from agentrft.core.config import SandboxConfig
from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Function
from agentrft.sandbox.confinement import Level, Plan
from agentrft.sandbox.levels import PROBE, Found, Layer, choose, plan_for, survey
from agentrft.sandbox.local import LocalSandbox, open_sandbox

LAYERS = {"bubblewrap", "seccomp", "landlock", "cgroup", "own uid", "rlimits"}


def seen(plan: Plan) -> dict[str, Any]:
    async def look() -> Any:
        sandbox = LocalSandbox(plan, Path("none"), workers=1)
        result = await sandbox.call(Function(source=PROBE, name="probe"), [])
        await sandbox.close()
        assert result.fault is None, result.detail
        return result.value

    return asyncio.run(look())


def found(*missing: str) -> Found:
    layers = tuple(
        Layer(name=name, holds=name not in missing, detail=f"{name} is wanting") for name in LAYERS
    )
    return Found(
        layers=layers,
        plan=Plan(level=Level.L2, bubblewrap=Path("bwrap"), landlock=7, seccomp=b"filter"),
        l1=not {"landlock", "seccomp", "rlimits"} & set(missing),
        l2=not {"bubblewrap", "seccomp", "rlimits"} & set(missing),
    )


def test_the_survey_names_every_layer_once_and_says_how_or_why_not() -> None:
    surveyed = survey()
    assert {layer.name for layer in surveyed.layers} == LAYERS
    assert len(surveyed.layers) == len(LAYERS)
    assert all(layer.detail for layer in surveyed.layers)


def test_the_level_follows_from_the_layers_that_hold() -> None:
    surveyed = survey()
    holding = {layer.name for layer in surveyed.layers if layer.holds}
    if {"bubblewrap", "seccomp", "rlimits"} <= holding:
        assert surveyed.level == Level.L2
    elif {"landlock", "seccomp", "rlimits"} <= holding:
        assert surveyed.level == Level.L1
    else:
        assert surveyed.level is None


def test_without_layers_everything_gets_through_so_the_probe_can_fail() -> None:
    open_to_all = seen(Plan(level=Level.L0))
    assert (open_to_all["socket"], open_to_all["listing"], open_to_all["host"]) == ("", "", True)


def test_each_layer_stops_something_by_itself() -> None:
    if survey().level != Level.L2:
        pytest.skip("not every layer is to be had here; `agentrft doctor` says which")
    whole, bare = plan_for("L2", unsafe=False), Plan(level=Level.L0)
    assert seen(replace(bare, seccomp=whole.seccomp))["socket"] == "EPERM"
    assert seen(replace(bare, landlock=whole.landlock))["listing"] == "EACCES"
    boxed = replace(bare, level=Level.L2, bubblewrap=whole.bubblewrap, namespaces=whole.namespaces)
    assert seen(boxed)["host"] is False


def test_auto_takes_the_strongest_level_and_a_named_one_is_exactly_that() -> None:
    assert choose(found(), "auto", unsafe=False).level == Level.L2
    assert choose(found("bubblewrap"), "auto", unsafe=False).level == Level.L1
    weaker = choose(found(), "L1", unsafe=False)
    assert (weaker.level, weaker.bubblewrap, weaker.landlock) == (Level.L1, None, 7)


def test_cgroup_and_own_uid_are_not_needed_for_a_level() -> None:
    assert choose(found("cgroup", "own uid"), "auto", unsafe=False).level == Level.L2


@pytest.mark.parametrize(
    ("level", "missing"), [("L2", "bubblewrap"), ("L1", "landlock"), ("auto", "seccomp")]
)
def test_a_level_that_is_not_to_be_had_is_refused_and_names_the_layer(
    level: str, missing: str
) -> None:
    with pytest.raises(ConfigError, match=f"sandbox.level: '{level}'.*{missing} is wanting"):
        choose(found(missing), level, unsafe=False)


def test_no_sandbox_at_all_needs_to_be_asked_for() -> None:
    nothing = found("bubblewrap", "landlock", "seccomp")
    with pytest.raises(ConfigError, match="agentrft doctor"):
        choose(nothing, "auto", unsafe=False)
    assert choose(nothing, "auto", unsafe=True) == Plan(level=Level.L0)
    assert choose(found(), "auto", unsafe=True).level == Level.L2


def test_no_sandbox_at_all_still_keeps_calls_apart_and_on_time(tmp_path: Path) -> None:
    source = "n = 0\ndef grade():\n    global n\n    n += 1\n    return n"

    async def calls() -> list[Any]:
        sandbox = LocalSandbox(Plan(level=Level.L0), tmp_path, workers=1)
        values = [(await sandbox.call(Function(source=source), [])).value for _ in range(2)]
        spinning = Function(source="def grade():\n  while True: pass", timeout_s=0.3)
        values.append((await sandbox.call(spinning, [])).fault)
        await sandbox.close()
        return values

    assert asyncio.run(calls()) == [1, 1, "timeout"]


def test_opening_starts_nothing(tmp_path: Path) -> None:
    if survey().level is None:
        pytest.skip("no level is to be had here")
    sandbox = open_sandbox(SandboxConfig(), images=tmp_path)
    assert sandbox.level == survey().level
    asyncio.run(sandbox.close())
