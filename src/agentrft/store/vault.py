"""Secrets at rest: sealed with one key, which lives in a file of its own or comes from the caller."""

import json
import os
import secrets
import stat
from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from agentrft.core.errors import StoreError

_OWNER_ONLY = 0o600


class Vault:
    """Seals small maps of text; whoever has the database without the key reads nothing."""

    def __init__(self, key_file: Path, key: str = "") -> None:
        """Use the text `key` (base64 of 32 bytes), or else the file's, which first use makes.

        Raises StoreError if `key` is given and is none.
        """
        self._key_file = key_file
        self._given = _fernet(key, "the key given") if key else None

    def seal(self, values: Mapping[str, str]) -> bytes:
        """Encrypt. Raises StoreError if the key file cannot be made or read."""
        return self._fernet(create=True).encrypt(json.dumps(dict(values)).encode())

    def open(self, sealed: bytes) -> Mapping[str, str]:
        """Decrypt. Raises StoreError for a missing or another key."""
        try:
            return json.loads(self._fernet(create=False).decrypt(sealed))
        except InvalidToken:
            where = "the key given" if self._given else f"the key in {self._key_file}"
            raise StoreError(
                f"secrets of this home were sealed with another key than {where}; bring back the "
                "key they were sealed with, or enter the secrets again"
            ) from None

    def _fernet(self, *, create: bool) -> Fernet:
        if self._given is not None:
            return self._given
        if create and not self._key_file.exists():
            self._create()
        return _fernet(self._read(), str(self._key_file))

    def _read(self) -> str:
        try:
            with self._key_file.open(encoding="ascii") as file:
                mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
                if os.name == "posix" and mode & 0o077:
                    raise StoreError(
                        f"{self._key_file} can be read by others (mode {mode:o}); "
                        f"run: chmod 600 {self._key_file}"
                    )
                return file.read().strip()
        except FileNotFoundError:
            raise StoreError(
                f"{self._key_file} is gone, and secrets cannot be read without it; "
                "restore it from a backup, or enter the secrets again"
            ) from None
        except (OSError, UnicodeDecodeError) as error:
            raise StoreError(f"{self._key_file} cannot be read: {error}") from error

    def _create(self) -> None:
        """Make the key file; of several processes at once, one wins and the others use its key."""
        draft = self._key_file.with_name(f"{self._key_file.name}.{secrets.token_hex(8)}")
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, _OWNER_ONLY)
            try:
                os.write(descriptor, Fernet.generate_key() + b"\n")
                os.fsync(descriptor)
                # A link, unlike a rename, fails if somebody else's key is already there.
                os.link(draft, self._key_file)
                _sync_folder(self._key_file.parent)
            finally:
                os.close(descriptor)
                draft.unlink()
        except FileExistsError:
            return
        except OSError as error:
            raise StoreError(
                f"key file {self._key_file} cannot be made ({error.strerror}); make the folder "
                "writable or give the key as text"
            ) from error


def _fernet(key: str, where: str) -> Fernet:
    try:
        return Fernet(key)
    except ValueError:
        raise StoreError(
            f"{where} is no key; a key is 32 random bytes as 44 characters of URL-safe base64"
        ) from None


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
