"""The sandbox against graders that mean harm, at every level this machine offers.

Each is also run in a host without one, where it must succeed: what never works proves nothing.
"""

import asyncio
import dataclasses
import gc
import mmap
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from attacks.attack import Attack, Outcome
from attacks.catalogue import ATTACKS, GROUPS
from attacks.runner import attacked, unleashed
from attacks.world import MemoryPeak, World

from agentrft.core.config import SandboxConfig
from agentrft.core.errors import ConfigError
from agentrft.sandbox.levels import Level, survey
from agentrft.sandbox.local import open_sandbox

LEVELS: tuple[Literal["L2", "L1"], ...] = ("L2", "L1")
FOREIGN_TO_THIS_KERNEL = ("ENOSYS", "EAFNOSUPPORT", "EPROTONOSUPPORT", "ESOCKTNOSUPPORT", "ENODEV")


@pytest.fixture(scope="module")
def shared_world() -> Iterator[World]:
    with World() as world:
        yield world


@pytest.fixture
def world(shared_world: World) -> Iterator[World]:
    shared_world.restore()
    yield shared_world
    shared_world.end_survivors()


async def in_the_sandbox(
    level: Literal["L2", "L1"], attack: Attack, world: World, images: Path
) -> Outcome:
    try:
        sandbox = open_sandbox(SandboxConfig(level=level), images=images)
    except ConfigError as missing:
        pytest.skip(f"{level} is not to be had here: {missing}")
    try:
        outcome = await attacked(sandbox, attack, world)
    finally:
        await sandbox.close()
    if attack.leaves_files:
        return dataclasses.replace(outcome, left_files=world.take_left_files())
    return outcome


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("name", ATTACKS)
def test_no_attack_gets_through(
    name: str, level: Literal["L2", "L1"], world: World, tmp_path: Path
) -> None:
    attack = ATTACKS[name]
    outcome = asyncio.run(in_the_sandbox(level, attack, world, tmp_path))
    evidence = attack.got_through(outcome)
    if evidence and level == "L1" and attack.gets_through_l1:
        pytest.xfail(f"{attack.gets_through_l1}: {evidence}")
    assert not evidence, [result.detail for result in outcome.results]


@pytest.mark.parametrize("name", [name for name in ATTACKS if not ATTACKS[name].not_outside])
def test_every_attack_succeeds_where_there_is_no_sandbox(
    name: str, world: World, tmp_path: Path
) -> None:
    attack = ATTACKS[name]
    if attack.needs_root and os.geteuid() != 0:
        pytest.skip("only root could do this without a sandbox")
    outcome = unleashed(attack, world, tmp_path)
    evidence = attack.got_through(outcome)
    told = outcome.results[-1].detail
    if not evidence and told.startswith(FOREIGN_TO_THIS_KERNEL):
        pytest.skip(f"this kernel has no such door: {told}")
    if not evidence and attack.needs_root and told.startswith(("EPERM", "EACCES")):
        pytest.skip(f"root of this machine may not do it either: {told}")
    assert evidence, outcome.results


def test_growth_shows_although_the_kernel_takes_pages_of_files_back(tmp_path: Path) -> None:
    size = 128 << 20
    (tmp_path / "file").write_bytes(bytes(size))
    gc.collect()  # no garbage of other tests leaves meanwhile
    with (tmp_path / "file").open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    with mapped:
        assert not any(mapped[:: mmap.PAGESIZE])  # its pages count as this process's
        peak = MemoryPeak()
        mapped.madvise(mmap.MADV_DONTNEED)
        # Not from the allocator, which may still hold what another test gave back.
        with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as held:
            held.write(bytes(size // 2 + mmap.PAGESIZE))
            assert peak.grown_bytes() > size // 2


def test_this_machine_offers_a_level() -> None:
    assert survey().level in (Level.L2, Level.L1), survey()


def test_the_corpus_covers_twelve_groups_and_the_weaker_level_stops_most_of_it() -> None:
    assert len(GROUPS) == 12
    assert len(ATTACKS) == sum(len(attacks) for attacks in GROUPS.values()) >= 200
    exceptions = [name for name, attack in ATTACKS.items() if attack.gets_through_l1]
    assert len(exceptions) <= 0.05 * len(ATTACKS), exceptions
