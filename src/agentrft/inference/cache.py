"""Folders that appear whole or not at all, and say what they hold.

A folder is built aside under a lock of its own, gets a manifest with the size and sha256 of every
file, is synced and then renamed into place. Leftovers of killed processes go with the next build.
"""

import errno
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from agentrft.core.errors import ModelError

_MANIFEST = "manifest.json"
_LOCK_TIMEOUT_S = 1800.0


def free_bytes(folder: Path) -> int:
    """Return the bytes that may still be written below an existing folder."""
    return shutil.disk_usage(folder).free


def build_folder(
    folder: Path,
    build: Callable[[Path], dict[str, Any]],
    *,
    needed_bytes: int,
    replace_damaged: bool = False,
    free_bytes: Callable[[Path], int] = free_bytes,
) -> None:
    """Make `folder` by running `build` in an empty directory beside it, once for all processes.

    `build` returns facts for the manifest. An intact folder is left alone; a damaged one raises
    ModelError unless `replace_damaged`. A full disk raises ModelError before or during the build.
    """
    if not replace_damaged and folder.exists() and find_damage(folder) is None:
        return  # without the lock, so that a cache may be read-only
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.parent / f".{folder.name}.lock", timeout=_LOCK_TIMEOUT_S)
    try:
        with lock, _disk_errors(folder.parent, needed_bytes):
            for leftover in folder.parent.glob(f".{folder.name}.partial-*"):
                shutil.rmtree(leftover, ignore_errors=True)
            if folder.exists():
                damage = find_damage(folder, hashes=replace_damaged)
                if damage is None:
                    return
                if not replace_damaged:
                    raise ModelError(f"{damage}; delete the folder {folder} or pull the model")
            if (free := free_bytes(folder.parent)) < needed_bytes:
                raise OSError(errno.ENOSPC, f"{free} bytes are free")
            _build(folder, build)
    except Timeout as error:
        raise ModelError(
            f"another process has been building {folder} for {_LOCK_TIMEOUT_S:.0f} s; "
            "wait for it or end it, then try again"
        ) from error


def _build(folder: Path, build: Callable[[Path], dict[str, Any]]) -> None:
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}.partial-", dir=folder.parent))
    try:
        facts = build(partial)
        files = {path.name: _entry(path) for path in sorted(partial.iterdir())}
        text = json.dumps({**facts, "files": files}, indent=2) + "\n"
        (partial / _MANIFEST).write_text(text, encoding="utf-8")
        for path in partial.iterdir():
            _sync(path)
        _sync(partial)
        partial.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        partial.rename(folder)
        _sync(folder.parent)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return what `build` recorded; raises ModelError if it is missing or broken."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        dict(manifest["files"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(f"the manifest of {folder} is missing or broken ({error})") from error
    return manifest


def is_built(folder: Path) -> bool:
    """Whether the folder was made here, so that it must have an intact manifest."""
    return (folder / _MANIFEST).exists()


def find_damage(folder: Path, *, hashes: bool = False) -> str | None:
    """Return what is wrong with a built folder; reads every byte only with `hashes`."""
    try:
        files = read_manifest(folder)["files"]
    except ModelError as error:
        return str(error)
    for name, entry in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != entry["size_bytes"]:
            return f"{path} has {path.stat().st_size} bytes, {entry['size_bytes']} were written"
        if hashes and file_sha256(path) != entry["sha256"]:
            return f"{path} has changed since it was written"
    return None


def file_sha256(path: Path) -> str:
    """Return the hash of a file as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _entry(path: Path) -> dict[str, Any]:
    return {"size_bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _disk_errors(folder: Path, needed_bytes: int) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise ModelError(
            f"not enough disk space in {folder}: about {needed_bytes >> 20} MiB are needed, "
            f"{error.strerror}; free some space or choose another home folder"
        ) from error
