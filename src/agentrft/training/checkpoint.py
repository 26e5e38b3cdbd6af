"""Checkpoints on disk: complete or absent, never half. A folder is written beside its place, synced,
listed in a manifest with sizes and hashes, and renamed. Knows files, not optimizers.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from agentrft.core.errors import ModelError, StoreError
from agentrft.core.policy import Canary

MANIFEST = "manifest.json"
RECORD = "trainer.json"
CANARIES = "canaries.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerRecord:
    """`trainer.json`: what a checkpoint is and where training stood."""

    kind: Literal["lora", "full"]
    base: str
    """Fingerprint of the base model's config file; a checkpoint fits no other model."""
    base_name: str
    steps_done: int
    loss: str
    seed: int
    cursor: Mapping[str, int]
    config: Mapping[str, Any]
    """Trainer config as it was."""
    schema: int = 1


def write_checkpoint(folder: Path, fill: Callable[[Path], None]) -> None:
    """Let `fill` write files into a fresh folder, then put it in place of `folder` at once.

    Whatever fails, `folder` is afterwards either what it was or complete. Raises StoreError.
    """
    parent = folder.parent
    partial = parent / f".{folder.name}.partial-{os.getpid()}"
    replaced = parent / f".{folder.name}.replaced"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        _restore(folder)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        fill(partial)
        files = {
            path.name: {"size_bytes": path.stat().st_size, "sha256": _sync_and_hash(path)}
            for path in sorted(partial.iterdir())
        }
        manifest = partial / MANIFEST
        manifest.write_text(json.dumps({"schema": 1, "files": files}, indent=1))
        _sync_and_hash(manifest)
        _sync_folder(partial)
        if folder.exists():
            folder.rename(replaced)
        partial.rename(folder)
        _sync_folder(parent)
        shutil.rmtree(replaced, ignore_errors=True)
    except OSError as error:
        _restore(folder)
        raise StoreError(_write_failure(folder, error)) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def verify_checkpoint(folder: Path) -> None:
    """Check every file against the manifest. Raises StoreError naming the file that is wrong."""
    _restore(folder)
    manifest = folder / MANIFEST
    try:
        files: dict[str, dict[str, Any]] = json.loads(manifest.read_text())["files"]
    except (OSError, ValueError, KeyError) as error:
        raise StoreError(
            f"checkpoint {folder}: {MANIFEST} is missing or broken ({error}); "
            "take another checkpoint"
        ) from error
    for name, expected in files.items():
        path = folder / name
        if not path.exists():
            raise StoreError(f"checkpoint {folder}: file {name!r} is missing; take another one")
        size_bytes = path.stat().st_size
        if size_bytes != expected["size_bytes"] or _hash(path) != expected["sha256"]:
            raise StoreError(
                f"checkpoint {folder}: file {name!r} is corrupt ({size_bytes} bytes, "
                f"{expected['size_bytes']} expected); take another checkpoint"
            )


def read_record(folder: Path) -> TrainerRecord:
    """Read `trainer.json`. Raises StoreError."""
    try:
        return TrainerRecord(**json.loads((folder / RECORD).read_text()))
    except (OSError, ValueError, TypeError) as error:
        raise StoreError(f"checkpoint {folder}: {RECORD} cannot be read: {error}") from error


def write_record(folder: Path, record: TrainerRecord) -> None:
    """Write `trainer.json`."""
    (folder / RECORD).write_text(json.dumps(asdict(record), indent=1))


def write_canaries(folder: Path, canaries: Sequence[Canary]) -> None:
    """Write the trainer's own logprobs, by which whoever serves the checkpoint proves that it does."""
    (folder / CANARIES).write_text(json.dumps([asdict(canary) for canary in canaries]))


def fingerprint(model_folder: Path) -> str:
    """Return 16 hex digits over the model's config file. Raises ModelError."""
    try:
        return hashlib.sha256((model_folder / "config.json").read_bytes()).hexdigest()[:16]
    except OSError as error:
        raise ModelError(
            f"model folder {model_folder}: config.json cannot be read: {error}"
        ) from error


def check_base(record: TrainerRecord, base_folder: Path, checkpoint: Path) -> None:
    """Raise ModelError if the checkpoint was trained on another model."""
    if record.base != fingerprint(base_folder):
        raise ModelError(
            f"checkpoint {checkpoint} belongs to model {record.base_name!r}, not to "
            f"{base_folder.name!r}; give the model it was trained from"
        )


def _restore(folder: Path) -> None:
    """Undo a replacement that died between its two renames."""
    replaced = folder.parent / f".{folder.name}.replaced"
    if replaced.exists():
        if folder.exists():
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            replaced.rename(folder)


def _write_failure(folder: Path, error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        free_mib = shutil.disk_usage(folder.parent).free >> 20
        return (
            f"checkpoint {folder}: the disk is full ({free_mib} MiB free); earlier checkpoints are "
            "untouched: free space and resume"
        )
    return f"checkpoint {folder}: cannot be written: {error}; earlier checkpoints are untouched"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_and_hash(path: Path) -> str:
    with path.open("rb") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
