import hashlib
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from agentrft.core.errors import StoreError
from agentrft.store.access import Access
from agentrft.store.database import Database
from agentrft.store.errors import ConflictError, NotFoundError, TooLargeError
from agentrft.store.files import MAX_FILE_BYTES, FileRegistry, StoredFile

DAY = 24 * 3600.0


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def registry(database: Database, tmp_path: Path, clock: Clock) -> FileRegistry:
    for project in ("default", "other"):
        Access(database).create_project(project)
    return FileRegistry(database, tmp_path / "files", clock=clock)


def put(
    registry: FileRegistry,
    content: bytes = b"{}\n",
    *,
    project: str = "default",
    filename: str = "train.jsonl",
    purpose: str = "fine-tune",
    file_id: str = "",
    expires_at: float | None = None,
) -> StoredFile:
    with registry.receive(project, filename, purpose) as incoming:
        for start in range(0, len(content), 7):
            incoming.write(content[start : start + 7])
        return incoming.commit(file_id=file_id, expires_at=expires_at)


def contents(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "files").glob("??/*"))


def test_a_committed_file_is_found_whole(registry: FileRegistry, clock: Clock) -> None:
    content = b'{"messages": []}\n' * 9
    file = put(registry, content)
    assert file == StoredFile(
        id=file.id,
        project="default",
        filename="train.jsonl",
        purpose="fine-tune",
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        created_at=clock.now,
    )
    assert file.id.startswith("file-")
    assert registry.get("default", file.id) == file
    assert registry.path(file).read_bytes() == content


def test_what_is_not_committed_leaves_nothing(registry: FileRegistry, tmp_path: Path) -> None:
    with registry.receive("default", "a", "fine-tune") as incoming:
        incoming.write(b"half")
    with (
        pytest.raises(ZeroDivisionError),
        registry.receive("default", "a", "fine-tune") as incoming,
    ):
        incoming.write(bytes([1 // (incoming.bytes)]))
    assert registry.list("default").items == ()
    assert contents(tmp_path) == []
    assert list((tmp_path / "files" / "incoming").iterdir()) == []


def test_a_draft_can_be_read_before_it_counts_and_named_late(registry: FileRegistry) -> None:
    with registry.receive("default", "rows.jsonl") as incoming:
        incoming.write(b"{}\n")
        assert incoming.draft().read_bytes() == b"{}\n"
        assert incoming.sha256 == hashlib.sha256(b"{}\n").hexdigest()
        file = incoming.commit(purpose="fine-tune")
    assert registry.get("default", file.id).purpose == "fine-tune"


def test_a_file_of_another_project_is_not_found(registry: FileRegistry) -> None:
    file = put(registry)
    for act in (registry.get, registry.delete):
        with pytest.raises(NotFoundError, match=f"no file '{file.id}'"):
            act("other", file.id)
    with pytest.raises(NotFoundError):
        registry.list("other", after=file.id)
    assert registry.list("other").items == ()
    assert registry.get("default", file.id) == file


def test_equal_contents_are_kept_once_and_go_with_the_last_file(
    registry: FileRegistry, tmp_path: Path
) -> None:
    first, second = put(registry), put(registry, project="other")
    assert first.id != second.id
    assert contents(tmp_path) == [first.sha256]
    registry.delete("default", first.id)
    assert registry.path(second).read_bytes() == b"{}\n"
    registry.delete("other", second.id)
    assert contents(tmp_path) == []
    with pytest.raises(NotFoundError):
        registry.delete("other", second.id)


def test_deleting_and_receiving_the_same_content_at_once_loses_none(
    registry: FileRegistry,
) -> None:
    def turn(_: int) -> StoredFile:
        registry.delete("default", put(registry).id)
        return put(registry)

    with ThreadPoolExecutor(4) as threads:
        kept = list(threads.map(turn, range(12)))
    assert [registry.path(file).read_bytes() for file in kept] == [b"{}\n"] * 12


def test_a_file_over_the_limit_is_refused_before_it_is_written(registry: FileRegistry) -> None:
    chunk = bytes(1 << 20)
    with registry.receive("default", "big.jsonl", "fine-tune") as incoming:
        incoming.write(chunk)
        with pytest.raises(TooLargeError, match=r"'big.jsonl' is larger than 512 MB; split it"):
            incoming.write(bytes(MAX_FILE_BYTES))
    assert registry.list("default").items == ()


SHOWN_NAMES = {
    "train.jsonl": "train.jsonl",
    "../../etc/passwd": "passwd",
    "C:\\data\\rows.jsonl": "rows.jsonl",
    "a\x00b\x1b[31m\u202egnp.jsonl": "ab[31mgnp.jsonl",
    "\ud800x": "x",
    "größe 1.jsonl": "größe 1.jsonl",
    "": "file",
    "..": "file",
    "dir/": "file",
    "x" * 300: "x" * 255,
}


def test_a_file_name_is_for_display_only(registry: FileRegistry, tmp_path: Path) -> None:
    for given, shown in SHOWN_NAMES.items():
        file = put(registry, filename=given)
        assert registry.get("default", file.id).filename == shown
        assert contents(tmp_path) == [file.sha256]


def test_files_are_paged_by_purpose_in_both_orders(registry: FileRegistry) -> None:
    files = [put(registry, purpose="fine-tune") for _ in range(5)]
    put(registry, purpose="evals")
    put(registry, project="other")
    for newest_first, expected in ((True, files[::-1]), (False, files)):
        seen: list[StoredFile] = []
        after: str | None = None
        while True:
            page = registry.list(
                "default", purpose="fine-tune", after=after, limit=2, newest_first=newest_first
            )
            seen += page.items
            after = page.items[-1].id
            if not page.has_more:
                break
        assert seen == expected


def test_an_expired_file_is_not_found_and_swept(
    registry: FileRegistry, tmp_path: Path, clock: Clock
) -> None:
    file = put(registry, expires_at=clock.now + 10)
    clock.now += 9
    assert registry.get("default", file.id) == file
    clock.now += 1
    with pytest.raises(NotFoundError):
        registry.get("default", file.id)
    assert registry.list("default").items == ()
    assert contents(tmp_path) == [file.sha256]
    registry.sweep()
    assert contents(tmp_path) == []


def test_a_repetition_under_its_own_id_replaces_the_first_try(
    registry: FileRegistry, tmp_path: Path, clock: Clock
) -> None:
    first = put(registry, b"step\n1\n", file_id="file-result")
    clock.now += 5
    second = put(registry, b"step\n1\n2\n", file_id="file-result")
    assert second.created_at == first.created_at
    assert registry.list("default").items == (second,)
    assert contents(tmp_path) == [second.sha256]
    assert put(registry, b"step\n1\n2\n", file_id="file-result") == second
    assert contents(tmp_path) == [second.sha256]


def test_an_id_of_another_project_cannot_be_taken(registry: FileRegistry, tmp_path: Path) -> None:
    file = put(registry, file_id="file-result")
    with pytest.raises(ConflictError, match="'file-result' is taken"):
        put(registry, b"other", project="other", file_id="file-result")
    assert contents(tmp_path) == [file.sha256]


def test_a_file_needs_a_project(registry: FileRegistry, tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no project 'nowhere'"):
        put(registry, project="nowhere")
    assert contents(tmp_path) == []


def test_lost_content_is_named(registry: FileRegistry) -> None:
    file = put(registry)
    registry.path(file).unlink()
    with pytest.raises(StoreError, match=f"content of file {file.id} is gone"):
        registry.path(file)


def test_a_folder_that_cannot_be_made_is_named(database: Database, tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        FileRegistry(database, tmp_path / "plain" / "files")


def test_what_a_crash_left_is_removed_after_a_day(
    registry: FileRegistry, database: Database, tmp_path: Path, clock: Clock
) -> None:
    kept = put(registry)
    leftovers = [tmp_path / "files" / "incoming" / "x", tmp_path / "files" / "ab" / ("ab" * 32)]
    for leftover in leftovers:
        leftover.parent.mkdir(exist_ok=True)
        leftover.write_bytes(b"half")
    FileRegistry(database, tmp_path / "files", clock=clock)
    assert [leftover.exists() for leftover in leftovers] == [True, True]
    clock.now += DAY + 60
    FileRegistry(database, tmp_path / "files", clock=clock)
    assert [leftover.exists() for leftover in leftovers] == [False, False]
    assert registry.path(kept).exists()


RECEIVE_FOR_EVER = """
import os, sys
from pathlib import Path
from agentrft.store.database import Database
from agentrft.store.files import FileRegistry
home = Path(sys.argv[1])
registry = FileRegistry(Database(home / "crash.db"), home / "files")
print("ready", flush=True)
while True:
    with registry.receive("default", "rows.jsonl", "fine-tune") as incoming:
        for _ in range(4):
            incoming.write(os.urandom(1 << 16))
        file = incoming.commit()
    print(file.id, file.sha256, flush=True)
"""


def test_kill_9_leaves_no_half_file_that_counts(tmp_path: Path) -> None:
    chance = random.Random(7)
    database = Database(tmp_path / "crash.db")
    Access(database).create_project("default")
    told: dict[str, str] = {}
    for _ in range(5):
        writer = subprocess.Popen(
            [sys.executable, "-c", RECEIVE_FOR_EVER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(chance.uniform(0.01, 0.2))
        writer.send_signal(signal.SIGKILL)
        # The last line may be cut by the kill; only whole ones were told.
        lines = [line.split() for line in writer.communicate()[0].splitlines(keepends=True)]
        told |= {words[0]: words[1] for words in lines if len(words) == 2 and len(words[1]) == 64}
    registry = FileRegistry(database, tmp_path / "files")
    kept = {file.id: file for file in registry.list("default", limit=10_000).items}
    assert told.items() <= {file.id: file.sha256 for file in kept.values()}.items()
    for file in kept.values():
        content = registry.path(file).read_bytes()
        assert (len(content), hashlib.sha256(content).hexdigest()) == (file.bytes, file.sha256)
    database.close()


RECEIVE_WITHOUT_ROOM = """
import resource, signal, sys
from pathlib import Path
from agentrft.core.errors import StoreError
from agentrft.store.database import Database
from agentrft.store.files import FileRegistry
home = Path(sys.argv[1])
registry = FileRegistry(Database(home / "crash.db"), home / "files")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    with registry.receive("default", "rows.jsonl", "fine-tune") as incoming:
        incoming.write(bytes(200_000))
        incoming.commit()
except StoreError as error:
    print(error)
"""


def test_a_disk_that_takes_no_more_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    database = Database(tmp_path / "crash.db")
    Access(database).create_project("default")
    database.close()
    said = subprocess.run(
        [sys.executable, "-c", RECEIVE_WITHOUT_ROOM, str(tmp_path)],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert "files/incoming cannot be written (File too large); free disk space" in said
    assert contents(tmp_path) == []
    assert list((tmp_path / "files" / "incoming").iterdir()) == []
