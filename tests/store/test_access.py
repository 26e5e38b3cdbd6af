import hashlib
from pathlib import Path

import pytest

from agentrft.core.errors import UserError
from agentrft.store.access import Access, Identity, Role
from agentrft.store.database import Database
from agentrft.store.errors import ConflictError, NotFoundError


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def access(database: Database, clock: Clock) -> Access:
    access = Access(database, clock=clock)
    access.create_project("default")
    return access


def test_a_token_speaks_for_its_project_in_its_role(access: Access) -> None:
    info, token = access.create_token("default", Role.SUBMIT, "ci")
    assert access.identify(token) == Identity(
        token_id=info.id, project="default", role=Role.SUBMIT, name="ci"
    )


def test_roles_are_ordered_by_what_they_may_do() -> None:
    assert sorted([Role.ADMIN, Role.SUBMIT, Role.READ]) == [Role.READ, Role.SUBMIT, Role.ADMIN]
    assert Role.ADMIN > Role.READ
    assert Role.SUBMIT >= Role.SUBMIT
    assert Role.READ <= Role.SUBMIT


def test_a_token_has_256_random_bits_and_is_kept_as_a_digest_only(
    access: Access, database: Database
) -> None:
    tokens = {access.create_token("default", Role.READ, "t")[1] for _ in range(20)}
    assert len(tokens) == 20
    assert {len(token) for token in tokens} == {len("art-") + 43}
    with database.reading() as connection:
        kept = str(connection.exec_driver_sql("SELECT * FROM tokens").all())
    assert not [token for token in tokens if token.removeprefix("art-") in kept]
    assert all(hashlib.sha256(token.encode()).hexdigest() in kept for token in tokens)


def test_an_unknown_token_is_nobody(access: Access) -> None:
    access.create_token("default", Role.READ, "t")
    for guess in ("", "art-", "art-x", "\ud800", "ü\0", "x" * 100_000):
        assert access.identify(guess) is None


def test_a_token_ends_with_its_time_or_its_revocation(access: Access, clock: Clock) -> None:
    _, short = access.create_token("default", Role.READ, "short", expires_at=1010.0)
    info, token = access.create_token("default", Role.READ, "long")
    clock.now = 1009.9
    assert access.identify(short) is not None
    clock.now = 1010.0
    assert access.identify(short) is None
    access.revoke(info.id)
    assert access.identify(token) is None
    clock.now = 1011.0
    access.revoke(info.id)
    assert [token.revoked_at for token in access.tokens() if token.id == info.id] == [1010.0]


def test_the_last_use_is_noted_once_a_minute(access: Access, clock: Clock) -> None:
    _, token = access.create_token("default", Role.READ, "t")
    seen: list[float | None] = [access.tokens()[0].last_used_at]
    for clock.now in (1001.0, 1060.9, 1061.0):
        access.identify(token)
        seen.append(access.tokens()[0].last_used_at)
    assert seen == [None, 1001.0, 1001.0, 1061.0]


def test_tokens_are_listed_by_project_without_their_text(access: Access, clock: Clock) -> None:
    other = access.create_project()
    mine, token = access.create_token("default", Role.ADMIN, "a")
    clock.now += 1
    theirs, _ = access.create_token(other, Role.READ, "b", expires_at=5000.0)
    assert access.tokens("default") == (mine,)
    assert access.tokens() == (mine, theirs)
    assert token not in repr(access.tokens())


def test_a_token_of_another_project_cannot_be_revoked_from_here(access: Access) -> None:
    other = access.create_project()
    info, token = access.create_token(other, Role.READ, "b")
    for token_id, project in ((info.id, "default"), ("tok_none", None)):
        with pytest.raises(NotFoundError, match=f"no token '{token_id}'"):
            access.revoke(token_id, project)
    assert access.identify(token) is not None


def test_a_project_is_made_once_and_unnamed_ones_get_random_names(access: Access) -> None:
    assert access.create_project("default") == "default"
    first, second = access.create_project(), access.create_project()
    assert first != second
    assert first.startswith("proj_")
    assert set(access.projects()) == {"default", first, second}


def test_a_project_name_is_plain(access: Access) -> None:
    for name in ("../x", "a b", "-x", "x" * 65, "a\n", "ü"):
        with pytest.raises(ConflictError, match="a name has 1 to 64"):
            access.create_project(name)


def test_a_token_needs_a_project(access: Access) -> None:
    with pytest.raises(NotFoundError, match="no project 'nowhere'"):
        access.create_token("nowhere", Role.READ, "t")


def test_a_home_without_tokens_says_so(access: Access) -> None:
    assert access.is_empty()
    info, _ = access.create_token("default", Role.READ, "t")
    access.revoke(info.id)
    assert not access.is_empty()


def test_a_second_process_sees_the_same_tokens(tmp_path: Path, clock: Clock) -> None:
    first = Database(tmp_path / "home.db")
    Access(first, clock=clock).create_project("default")
    _, token = Access(first, clock=clock).create_token("default", Role.READ, "t")
    first.close()
    second = Database(tmp_path / "home.db")
    assert Access(second, clock=clock).identify(token) is not None
    second.close()


def test_a_name_that_no_database_can_hold_is_the_callers_mistake_or_unknown(access: Access) -> None:
    with pytest.raises((NotFoundError, UserError)):
        access.revoke("tok_\0")
