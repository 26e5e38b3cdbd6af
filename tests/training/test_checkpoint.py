"""A checkpoint folder is complete or absent, whatever interrupts the writing."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from agentrft.core.errors import StoreError
from agentrft.training.checkpoint import verify_checkpoint, write_checkpoint


def _write(folder: Path, text: str) -> None:
    def fill(partial: Path) -> None:
        (partial / "weights").write_text(text)
        (partial / "state").write_text(text * 2)

    write_checkpoint(folder, fill)


def test_a_written_checkpoint_verifies(tmp_path: Path) -> None:
    _write(tmp_path / "runs" / "step-1", "one")
    verify_checkpoint(tmp_path / "runs" / "step-1")
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"step-1"}


def test_writing_again_replaces_the_whole_folder(tmp_path: Path) -> None:
    _write(tmp_path / "step", "one")
    (tmp_path / "step" / "stray").write_text("left by somebody")
    _write(tmp_path / "step", "two")
    verify_checkpoint(tmp_path / "step")
    assert (tmp_path / "step" / "weights").read_text() == "two"
    assert not (tmp_path / "step" / "stray").exists()


def test_a_full_disk_keeps_the_old_checkpoint_and_says_so(tmp_path: Path) -> None:
    _write(tmp_path / "step", "one")

    def fill(partial: Path) -> None:
        (partial / "weights").write_text("half of tw")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(StoreError, match=r"disk is full.*free space and resume"):
        write_checkpoint(tmp_path / "step", fill)
    verify_checkpoint(tmp_path / "step")
    assert (tmp_path / "step" / "weights").read_text() == "one"
    assert {path.name for path in tmp_path.iterdir()} == {"step"}


def test_a_bug_while_writing_leaves_no_partial_folder(tmp_path: Path) -> None:
    def fill(partial: Path) -> None:
        (partial / "weights").write_text("half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_checkpoint(tmp_path / "step", fill)
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_writing_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    _write(tmp_path / "step", "one")
    code = f"""
import os, signal
from pathlib import Path
from agentrft.training.checkpoint import write_checkpoint
def fill(partial):
    (partial / "weights").write_text("half of two")
    os.kill(os.getpid(), signal.SIGKILL)
write_checkpoint(Path({str(tmp_path / "step")!r}), fill)
"""
    killed = subprocess.run([sys.executable, "-c", code], check=False)
    assert killed.returncode == -signal.SIGKILL
    verify_checkpoint(tmp_path / "step")
    assert (tmp_path / "step" / "weights").read_text() == "one"
    _write(tmp_path / "step", "two")
    assert (tmp_path / "step" / "weights").read_text() == "two"


def test_a_kill_between_the_two_renames_gives_the_old_checkpoint_back(tmp_path: Path) -> None:
    _write(tmp_path / "step", "one")
    (tmp_path / "step").rename(tmp_path / ".step.replaced")
    verify_checkpoint(tmp_path / "step")
    assert (tmp_path / "step" / "weights").read_text() == "one"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "weights").write_text("eno"), "'weights' is corrupt"),
        (lambda f: (f / "state").write_text("o"), r"'state' is corrupt \(1 bytes, 6 expected\)"),
        (lambda f: (f / "state").unlink(), "'state' is missing"),
        (lambda f: (f / "manifest.json").write_text("{"), "manifest.json is missing or broken"),
        (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing or broken"),
    ],
)
def test_damage_is_found_and_named(
    tmp_path: Path, damage: Callable[[Path], object], message: str
) -> None:
    _write(tmp_path / "step", "one")
    damage(tmp_path / "step")
    with pytest.raises(StoreError, match=message):
        verify_checkpoint(tmp_path / "step")
