import stat
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from agentrft.core.errors import StoreError
from agentrft.store.vault import Vault

SECRETS = {"tools[0].headers.Authorization": "Bearer canary", "grader.headers.X": "ü"}


def test_what_was_sealed_comes_back_and_cannot_be_read_meanwhile(tmp_path: Path) -> None:
    sealed = Vault(tmp_path / "key").seal(SECRETS)
    assert b"canary" not in sealed
    assert Vault(tmp_path / "key").open(sealed) == SECRETS


def test_the_key_file_is_the_owners_alone_and_made_at_first_use(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "key")
    assert not (tmp_path / "key").exists()
    vault.seal({})
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [tmp_path / "key"]


def test_processes_that_start_at_once_agree_on_one_key(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from agentrft.store.vault import Vault\n"
        "vault = Vault(Path(sys.argv[1])); print('ready', flush=True); sys.stdin.readline()\n"
        "print(vault.seal({'a': 'b'}).decode())"
    )
    starting = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(tmp_path / "key")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    for process in starting:
        assert process.stdout is not None
        process.stdout.readline()
    sealed = [process.communicate("go\n")[0].strip().encode() for process in starting]
    assert [Vault(tmp_path / "key").open(one) for one in sealed] == [{"a": "b"}] * 4


def test_a_key_given_as_text_needs_no_file(tmp_path: Path) -> None:
    key = Fernet.generate_key().decode()
    sealed = Vault(tmp_path / "key", key).seal(SECRETS)
    assert Vault(tmp_path / "elsewhere", key).open(sealed) == SECRETS
    assert list(tmp_path.iterdir()) == []


def test_another_key_says_what_to_do(tmp_path: Path) -> None:
    sealed = Vault(tmp_path / "key").seal(SECRETS)
    other = Vault(tmp_path / "key", Fernet.generate_key().decode())
    with pytest.raises(StoreError, match=r"another key than the key given; bring back the key"):
        other.open(sealed)


def test_a_lost_key_file_is_not_replaced_when_secrets_are_read(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "key")
    sealed = vault.seal(SECRETS)
    (tmp_path / "key").unlink()
    with pytest.raises(StoreError, match="is gone, .* restore it from a backup"):
        vault.open(sealed)
    assert not (tmp_path / "key").exists()


@pytest.mark.parametrize("key", ["short", "ü" * 44, "A" * 43, "=" * 44])
def test_a_text_that_is_no_key_is_refused_without_showing_it(tmp_path: Path, key: str) -> None:
    with pytest.raises(StoreError, match="the key given is no key; a key is 32") as caught:
        Vault(tmp_path / "key", key)
    assert key not in str(caught.value)


def test_a_damaged_key_file_is_named(tmp_path: Path) -> None:
    key_file = tmp_path / "key"
    key_file.write_bytes(b"\xff\n")
    key_file.chmod(0o600)
    with pytest.raises(StoreError, match="key cannot be read"):
        Vault(key_file).seal({})
    key_file.write_bytes(b"\n")
    with pytest.raises(StoreError, match="key is no key"):
        Vault(key_file).seal({})


def test_a_key_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    vault = Vault(tmp_path / "key")
    sealed = vault.seal(SECRETS)
    (tmp_path / "key").chmod(0o644)
    with pytest.raises(StoreError, match=r"can be read by others \(mode 644\); run: chmod 600"):
        vault.open(sealed)


def test_a_folder_that_takes_no_key_is_named(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="cannot be made .*; make the folder writable"):
        Vault(tmp_path / "missing" / "key").seal({})
    assert list(tmp_path.iterdir()) == []
