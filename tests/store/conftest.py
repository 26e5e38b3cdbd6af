"""What the store's tests share: homes over SQLite and over a real PostgreSQL, and a virtual clock."""

import os
import sys
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import cast

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from private_postgres import WITHOUT, PostgresMissingError, PrivatePostgres, private_postgres

from agentrft.store.database import Database
from agentrft.store.home import Home

_numbers = count()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PrivatePostgres]:
    if os.environ.get(WITHOUT) == "1":
        pytest.skip(f"{WITHOUT}=1")
    try:
        with private_postgres() as server:
            yield server
    except PostgresMissingError as error:
        pytest.fail(str(error))


@pytest.fixture
def postgres_url(postgres_server: PrivatePostgres) -> str:
    """An empty database."""
    return postgres_server.create(f"test{next(_numbers)}")


@pytest.fixture(params=["sqlite", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str:
    """Where the home of a test keeps its rows; empty means in its folder."""
    if cast(str, request.param) == "sqlite":
        return ""
    return cast(str, request.getfixturevalue("postgres_url"))


@pytest.fixture
def open_home(tmp_path: Path, database_url: str) -> Iterator[Callable[[], Home]]:
    """Open the test's home, as often as there are processes to play."""
    opened: list[Home] = []

    def open_one() -> Home:
        opened.append(Home.open(tmp_path / "home", database_url))
        return opened[-1]

    yield open_one
    for home in opened:
        home.close()


@pytest.fixture
def home(open_home: Callable[[], Home]) -> Home:
    return open_home()


@pytest.fixture
def database(home: Home) -> Database:
    return home.database
