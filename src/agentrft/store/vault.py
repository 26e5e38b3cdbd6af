"""Secrets at rest: sealed with one key, which lives in a file of its own or comes from the caller."""

import json
from collections.abc import Mapping
from pathlib import Path

from cryptography.fernet import Fernet, InvalidToken

from agentrft.core.errors import StoreError
from agentrft.store.key_file import make_key_file, read_key_file


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
            make_key_file(self._key_file, Fernet.generate_key().decode())
        try:
            return _fernet(read_key_file(self._key_file), str(self._key_file))
        except FileNotFoundError:
            raise StoreError(
                f"{self._key_file} is gone, and secrets cannot be read without it; "
                "restore it from a backup, or enter the secrets again"
            ) from None


def _fernet(key: str, where: str) -> Fernet:
    try:
        return Fernet(key)
    except ValueError:
        raise StoreError(
            f"{where} is no key; a key is 32 random bytes as 44 characters of URL-safe base64"
        ) from None
