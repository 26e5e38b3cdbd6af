"""PostgreSQL under a home: schema, failures, and what only a server can do."""

import subprocess
import sys
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psycopg
import pytest
import sqlalchemy as sa
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from job_builders import event, queued
from private_postgres import LOCKED, PrivatePostgres

from agentrft.core.errors import ConfigError, StoreError, UserError
from agentrft.core.run import Event, Method, Run, RunStatus
from agentrft.store import schema
from agentrft.store.database import Database
from agentrft.store.home import Home

MIGRATIONS = Path(sys.modules[Database.__module__].__file__ or "").parent / "migrations"
RUN = Run(id="r1", project="desk", method=Method.EVALUATION, status=RunStatus.RUNNING)
PASSWORD = "hunter2-canary"


@pytest.mark.parametrize("start", [None, "0001", schema.HEAD])
def test_every_older_database_is_brought_up_to_date(
    tmp_path: Path, postgres_url: str, start: str | None
) -> None:
    engine = sa.create_engine(postgres_url.replace("postgresql:", "postgresql+psycopg:"))
    if start is not None:
        with engine.begin() as connection:
            config = Config()
            config.set_main_option("script_location", str(MIGRATIONS))
            config.attributes["connection"] = connection
            command.upgrade(config, start)
    home = Home.open(tmp_path, postgres_url)
    with home.database.reading() as connection:
        context = MigrationContext.configure(connection)
        assert context.get_current_revision() == schema.HEAD
        assert compare_metadata(context, schema.metadata) == []
    home.close()
    engine.dispose()
    assert not (tmp_path / "agentrft.db").exists()


def test_a_migration_that_fails_leaves_the_old_database(tmp_path: Path, postgres_url: str) -> None:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        # The first migration creates `projects` and then stumbles over this one.
        connection.execute("CREATE TABLE runs (mine TEXT)")
        with pytest.raises(StoreError, match='"runs" already exists'):
            Home.open(tmp_path, postgres_url)
        query = "SELECT tablename FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(query).fetchall() == [("runs",)]


def test_many_processes_may_open_a_new_database_at_once(tmp_path: Path, postgres_url: str) -> None:
    code = (
        "import sys; from pathlib import Path; from agentrft.store.home import Home\n"
        "home = Home.open(Path(sys.argv[1]), sys.argv[2]); print(home.store.runs().items)\n"
        "home.close()"
    )
    argv = [sys.executable, "-c", code, str(tmp_path / "home"), postgres_url]
    processes = [
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    assert [process.communicate() for process in processes] == [("()\n", "")] * 3


def test_a_database_of_a_newer_version_is_left_alone(tmp_path: Path, postgres_url: str) -> None:
    home = Home.open(tmp_path, postgres_url)
    with home.database.writing() as connection:
        connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
    home.close()
    with pytest.raises(StoreError, match=r"PostgreSQL .* by a newer agentrft \(schema 9999"):
        Home.open(tmp_path, postgres_url)


def test_a_server_that_is_not_there_is_named_with_what_to_do(tmp_path: Path) -> None:
    url = f"postgresql://ada:{PASSWORD}@127.0.0.1:1/desk"
    with pytest.raises(StoreError, match=r"'desk' on 127\.0\.0\.1:1: cannot connect") as caught:
        Home.open(tmp_path, url)
    assert "start the server or correct the database URL" in str(caught.value)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_a_wrong_password_is_not_shown(tmp_path: Path, postgres_server: PrivatePostgres) -> None:
    with psycopg.connect(postgres_server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {LOCKED} LOGIN PASSWORD 'right'")
    url = postgres_server.url(user=f"{LOCKED}:{PASSWORD}")
    with pytest.raises(StoreError, match="correct user and password in the database URL") as caught:
        Home.open(tmp_path, url)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_a_database_that_does_not_exist_is_named(
    tmp_path: Path, postgres_server: PrivatePostgres
) -> None:
    with pytest.raises(StoreError, match=r'"nowhere" does not exist; create it \(createdb\)'):
        Home.open(tmp_path, postgres_server.url("nowhere"))


@pytest.mark.parametrize(
    "url", [f"mysql://ada:{PASSWORD}@host/x", f"//{PASSWORD}", f"postgresql://a:{PASSWORD}@h:x/y"]
)
def test_another_kind_of_url_is_refused_without_repeating_it(tmp_path: Path, url: str) -> None:
    with pytest.raises(ConfigError, match="write postgresql://USER:PASSWORD@HOST/NAME") as caught:
        Home.open(tmp_path, url)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


def test_a_missing_driver_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['psycopg'] = None\n"
        "from pathlib import Path; from agentrft.store.home import Home\n"
        "Home.open(Path(sys.argv[1]), 'postgresql://host/name')"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert "ConfigError: PostgreSQL needs psycopg" in done.stderr
    assert "pip install 'agentrft[postgres]'" in done.stderr


def test_a_home_in_a_file_loads_no_driver(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from agentrft.store.home import Home\n"
        "Home.open(Path(sys.argv[1])); print('psycopg' in sys.modules)"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_text_that_postgres_cannot_hold_is_the_callers_mistake(
    tmp_path: Path, postgres_url: str
) -> None:
    home = Home.open(tmp_path, postgres_url)
    with pytest.raises(UserError, match="NUL"):
        home.outbox.add_webhook("desk", "http://\0")
    home.close()


def test_a_server_that_was_restarted_is_found_again(
    tmp_path: Path, postgres_server: PrivatePostgres
) -> None:
    url = postgres_server.create("restarted")
    home = Home.open(tmp_path, url)
    home.store.put_run(RUN)

    def crash_and_delete(connection: sa.Connection) -> None:
        postgres_server.crash()
        connection.execute(sa.delete(schema.runs))

    with (
        pytest.raises(StoreError, match="the connection was lost: .* was not kept, try again"),
        home.database.writing() as connection,
    ):
        crash_and_delete(connection)
    assert home.store.run("r1") == RUN
    home.close()


def test_a_follower_misses_nothing_of_writers_side_by_side(
    tmp_path: Path, postgres_url: str
) -> None:
    home = Home.open(tmp_path, postgres_url)
    home.store.put_run(RUN)

    def write(writer: int) -> None:
        for number in range(40):
            home.store.append("r1", [event(f"{writer}-{number}"), event("twin")])

    def follow() -> list[str]:
        seen: list[str] = []
        after = 0
        while len(seen) < 4 * 40 * 2:
            page = home.store.events_since("r1", after, 7)
            seen += [said.message for _, said in page.items]
            after = page.last
        return seen

    with ThreadPoolExecutor(5) as pool:
        following = pool.submit(follow)
        list(pool.map(write, range(4)))
        seen = following.result(timeout=60)
    assert sorted(set(seen) - {"twin"}) == sorted(f"{w}-{n}" for w in range(4) for n in range(40))
    assert len(home.store.read("r1", Event, limit=1000).items) == len(seen)
    home.close()


def test_a_claim_does_not_wait_for_a_job_that_somebody_is_taking(
    tmp_path: Path, postgres_url: str
) -> None:
    home = Home.open(tmp_path, postgres_url)
    for name in "ab":
        home.queue.submit(queued(name), {})
    with home.database.writing() as connection:
        first = sa.select(schema.jobs.c.id).order_by(schema.jobs.c.sequence).limit(1)
        connection.execute(first.with_for_update())
        lease = home.queue.claim("w", 30)
    assert lease is not None
    assert lease.job.id == "ftjob-b"
    home.close()
