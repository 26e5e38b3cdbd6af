import base64
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event
from sqlalchemy.exc import OperationalError

from agentrft.core.errors import StoreError, UserError
from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.run import Event, Method, RolloutRecord, Run, RunStatus
from agentrft.core.task import Message
from agentrft.core.trajectory import StopReason, Trajectory, Turn
from agentrft.store import schema
from agentrft.store.database import Database
from agentrft.store.home import Home

MIGRATIONS = Path(sys.modules[Database.__module__].__file__ or "").parent / "migrations"
RUN = Run(id="r1", project="desk", method=Method.EVALUATION, status=RunStatus.RUNNING)


def alembic_config(connection: sa.Connection | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    config.attributes["connection"] = connection
    return config


def revisions() -> list[str]:
    scripts = ScriptDirectory.from_config(alembic_config()).walk_revisions()
    return [script.revision for script in scripts][::-1]


def small_rollout(number: int) -> RolloutRecord:
    turn = Turn(
        observation_ids=tuple(range(60)),
        action_ids=tuple(range(20)),
        behavior_logprobs=(-0.5,) * 20,
        first_version=0,
        last_version=0,
        message=Message(role="assistant", content="done"),
    )
    trajectory = Trajectory(
        id=f"trace_{number}",
        task_id=f"t{number}",
        model="m",
        spec_hash="s",
        seed=number,
        prompt=(Message(role="user", content="hi"),),
        turns=(turn,),
        stop_reason=StopReason.FINISHED,
    )
    return RolloutRecord(
        stage="base" if number % 2 else "rft",
        split="holdout" if number % 5 == 0 else "train",
        step=number // 100,
        family="",
        graded=GradedTrajectory(trajectory=trajectory, grade=Grade(score=1.0)),
    )


def test_a_home_has_a_place_for_everything(tmp_path: Path) -> None:
    home = Home.open(tmp_path / "deep" / "home")
    root = (tmp_path / "deep" / "home").resolve()
    assert home.models == root / "models"
    assert home.checkpoints("r1") == root / "runs" / "r1" / "checkpoints"
    assert home.report("r1") == home.run_folder("r1") / "report"
    assert home.report("r1").is_dir()
    assert (root / "agentrft.db").is_file()
    home.close()


def test_what_was_stored_is_there_after_reopening(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.store.put_run(RUN)
    home.store.append("r1", [small_rollout(1)])
    home.close()
    again = Home.open(tmp_path)
    assert again.store.run("r1") == RUN
    assert again.store.read("r1", RolloutRecord).items == (small_rollout(1),)
    again.close()


def test_a_home_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be made .*choose a writable one with --home"):
        Home.open(tmp_path / "file" / "home")


def test_a_file_that_is_no_database_says_so(tmp_path: Path) -> None:
    (tmp_path / "agentrft.db").write_bytes(b"not a database, not at all\n" * 100)
    with pytest.raises(StoreError, match=r"agentrft\.db: .*not a database; restore a backup"):
        Home.open(tmp_path)


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    with home.database.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    home.close()
    with pytest.raises(StoreError, match=r"written by a newer agentrft \(schema 9999"):
        Home.open(tmp_path)


def test_the_schema_head_is_the_newest_migration() -> None:
    assert revisions()[-1] == schema.HEAD


@pytest.mark.parametrize("start", [None, *revisions()])
def test_every_older_database_is_brought_up_to_date(tmp_path: Path, start: str | None) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'agentrft.db'}")
    if start is not None:
        with engine.begin() as connection:
            command.upgrade(alembic_config(connection), start)
            connection.execute(sa.text("INSERT INTO projects VALUES ('old', 1.0)"))
    home = Home.open(tmp_path)
    with home.database.reading() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == schema.HEAD
        assert compare_metadata(context, schema.metadata) == []
        names = connection.execute(sa.select(schema.projects.c.name)).scalars().all()
    assert names == ([] if start is None else ["old"])
    home.store.put_run(RUN)
    home.close()
    engine.dispose()


def test_a_migration_that_fails_leaves_the_old_database(tmp_path: Path) -> None:
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'agentrft.db'}")
    with engine.begin() as connection:
        # The first migration creates `projects` and then stumbles over this one.
        connection.execute(sa.text("CREATE TABLE runs (mine TEXT)"))
    with pytest.raises(StoreError, match="already exists"):
        Home.open(tmp_path)
    assert sa.inspect(engine).get_table_names() == ["runs"]
    engine.dispose()


def test_many_processes_may_open_a_new_home_at_once(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from agentrft.store.home import Home\n"
        "home = Home.open(Path(sys.argv[1])); print(home.store.runs().items); home.close()"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "home")]
    processes = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    ended = [process.communicate() for process in processes]
    assert ended == [("()\n", "")] * 3


def test_writers_in_several_threads_wait_for_each_other(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.store.put_run(RUN)

    def write(writer: int) -> None:
        for number in range(20):
            record = Event(level="info", message=f"{writer}-{number}", created_at=0.0)
            home.store.append("r1", [record])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    messages = [e.message for e in home.store.read("r1", Event, limit=1000).items]
    assert sorted(messages) == sorted(f"{w}-{n}" for w in range(4) for n in range(20))
    home.close()


def test_writes_are_synced_and_take_their_lock_first(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    with home.database.reading() as connection:
        pragmas = [
            connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]
    assert pragmas == ["wal", 2, 1, 30_000]
    impatient = sa.create_engine(
        f"sqlite:///{tmp_path / 'agentrft.db'}", connect_args={"timeout": 0}
    )
    with (
        home.database.writing(),
        pytest.raises(OperationalError, match="locked"),
        impatient.connect() as other,
    ):
        other.exec_driver_sql("BEGIN IMMEDIATE")
    impatient.dispose()
    home.close()


def test_a_full_disk_keeps_what_was_there_and_says_what_to_do(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    home.store.put_run(RUN)
    home.store.append("r1", [small_rollout(0)])
    with home.database.writing() as connection:
        pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
        connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreError, match="full; free disk space and resume"):
        home.store.append("r1", [small_rollout(n) for n in range(1, 400)])
    assert home.store.read("r1", RolloutRecord).items == (small_rollout(0),)
    home.close()


@pytest.fixture(scope="module")
def big(tmp_path_factory: pytest.TempPathFactory) -> Home:
    home = Home.open(tmp_path_factory.mktemp("big"))
    for run_id in ("other", "r1"):
        home.store.put_run(
            Run(id=run_id, project="desk", method=Method.EVALUATION, status=RunStatus.RUNNING)
        )
    for start in range(0, 10_000, 1_000):
        home.store.append("r1", [small_rollout(n) for n in range(start, start + 1_000)])
        home.store.append("other", [small_rollout(n) for n in range(10)])
    return home


@contextmanager
def watching(database: Database) -> Iterator[list[tuple[str, Any]]]:
    """Collect the statements that a block sends to the database, with their parameters."""
    sent: list[tuple[str, Any]] = []

    def note(*about: Any) -> None:
        _connection, _cursor, statement, parameters, *_ = about
        sent.append((statement, parameters))

    event.listen(database.engine, "after_cursor_execute", note)
    yield sent
    event.remove(database.engine, "after_cursor_execute", note)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, 10_000),
        ({"stage": "rft"}, 5_000),
        ({"split": "holdout"}, 2_000),
        ({"stage": "rft", "split": "holdout"}, 1_000),
    ],
)
def test_paging_through_ten_thousand_trajectories_reads_bounded_rows(
    big: Home, filters: dict[str, str], expected: int
) -> None:
    seen, after, more = 0, 0, True
    with watching(big.database) as sent:
        while more:
            page = big.store.trajectories("r1", after=after, limit=100, **filters)  # pyright: ignore[reportArgumentType]
            seen, after, more = seen + len(page.items), page.last, page.has_more
    assert seen == expected
    selects = [(s, p) for s, p in sent if s.startswith("SELECT")]
    assert len(selects) == expected // 100
    with big.database.reading() as connection:
        for statement, parameters in (selects[0], selects[-1]):
            assert "trajectory_bodies" not in statement
            assert "LIMIT" in statement
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            (step,) = [row.detail for row in plan]
            # One walk along an index that holds cursor order: no scan, no sorting.
            assert step.startswith("SEARCH trajectories USING INDEX trajectories_by_")
            assert step.endswith("sequence>?)")


def test_opening_one_of_ten_thousand_reads_one_row(big: Home) -> None:
    line = big.store.trajectories("r1", after=5_000, limit=1).items[0]
    with watching(big.database) as sent:
        record = big.store.trajectory(line.record_id)
    assert record.graded.trajectory.task_id == line.task_id
    ((statement, parameters),) = [(s, p) for s, p in sent if s.startswith("SELECT")]
    with big.database.reading() as connection:
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
        details = [row.detail for row in plan]
    assert details == ["SEARCH trajectory_bodies USING INTEGER PRIMARY KEY (rowid=?)"]


def test_importing_the_store_loads_no_alembic() -> None:
    code = "import sys, agentrft.store.home; print('alembic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_the_signing_key_is_made_once_and_only_its_owner_may_read_it(tmp_path: Path) -> None:
    with closing(Home.open(tmp_path)) as home:
        key = home.signing_key()
        assert home.signing_key() == key
    assert key.startswith("whsec_")
    assert len(base64.b64decode(key.removeprefix("whsec_"))) == 32
    assert (tmp_path / "signing.key").stat().st_mode & 0o777 == 0o600


def test_a_signing_key_that_others_may_read_is_refused(tmp_path: Path) -> None:
    with closing(Home.open(tmp_path)) as home:
        home.signing_key()
        (tmp_path / "signing.key").chmod(0o644)
        with pytest.raises(StoreError, match="chmod 600"):
            home.signing_key()


def test_two_processes_never_carry_out_the_same_run(tmp_path: Path) -> None:
    home = Home.open(tmp_path)
    held = f"""
from pathlib import Path
from agentrft.store.home import Home
with Home.open(Path({str(tmp_path)!r})).at_work("run-1"):
    print("held", flush=True)
    input()
"""
    with subprocess.Popen(
        [sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "held\n"
        message = "another process is carrying out run run-1"
        with pytest.raises(UserError, match=message), home.at_work("run-1"):
            pass
        with home.at_work("run-2"):
            other.kill()
            other.wait()
    with home.at_work("run-1"):
        pass
