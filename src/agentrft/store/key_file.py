"""A secret in a file of its own, which nobody but its owner may read."""

import os
import secrets
import stat
from pathlib import Path

from agentrft.core.errors import StoreError

_OWNER_ONLY = 0o600


def read_key_file(path: Path) -> str:
    """Return the key. Raises FileNotFoundError, and StoreError if others may read the file too."""
    try:
        with path.open(encoding="ascii") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if os.name == "posix" and mode & 0o077:
                raise StoreError(
                    f"{path} can be read by others (mode {mode:o}); run: chmod 600 {path}"
                )
            return file.read().strip()
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise StoreError(f"{path} cannot be read: {error}") from error


def make_key_file(path: Path, key: str) -> None:
    """Write the key unless the file exists; of several processes at once, one wins.

    Raises StoreError if the folder cannot be written.
    """
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
        try:
            os.write(descriptor, key.encode() + b"\n")
            os.fsync(descriptor)
            # A link, unlike a rename, fails if somebody else's key is already there.
            os.link(draft, path)
            _sync_folder(path.parent)
        finally:
            os.close(descriptor)
            draft.unlink()
    except FileExistsError:
        return
    except OSError as error:
        raise StoreError(
            f"key file {path} cannot be made ({error.strerror}); make the folder "
            "writable or give the key as text"
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
