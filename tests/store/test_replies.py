from concurrent.futures import ThreadPoolExecutor

import pytest

from agentrft.store.database import Database
from agentrft.store.errors import ConflictError
from agentrft.store.replies import Replies, StoredReply


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def replies(database: Database, clock: Clock) -> Replies:
    return Replies(database, clock=clock)


def test_a_repeated_call_gets_the_first_answer(replies: Replies) -> None:
    assert replies.begin("default", "k", "digest") is None
    replies.finish("default", "k", 200, b'{"id": 1}')
    assert replies.begin("default", "k", "digest") == StoredReply(status=200, body=b'{"id": 1}')


def test_the_same_key_of_another_project_is_another_key(replies: Replies) -> None:
    assert replies.begin("default", "k", "digest") is None
    assert replies.begin("other", "k", "another digest") is None


def test_a_key_that_came_with_another_request_is_refused(replies: Replies) -> None:
    replies.begin("default", "k", "digest")
    with pytest.raises(ConflictError, match="another request; use a new key"):
        replies.begin("default", "k", "other")
    replies.finish("default", "k", 200, b"")
    with pytest.raises(ConflictError, match="another request"):
        replies.begin("default", "k", "other")


def test_one_of_many_calls_at_once_does_the_work(replies: Replies) -> None:
    def call(_: int) -> bool:
        try:
            return replies.begin("default", "k", "digest") is None
        except ConflictError:
            return False

    with ThreadPoolExecutor(8) as threads:
        assert sum(threads.map(call, range(8))) == 1


def test_an_abandoned_key_can_be_tried_again_but_an_answer_stays(replies: Replies) -> None:
    replies.begin("default", "k", "digest")
    replies.abandon("default", "k")
    assert replies.begin("default", "k", "digest") is None
    replies.finish("default", "k", 200, b"first")
    replies.abandon("default", "k")
    replies.finish("default", "k", 500, b"second")
    assert replies.begin("default", "k", "digest") == StoredReply(status=200, body=b"first")


def test_a_call_lost_with_its_server_is_taken_over_by_one(replies: Replies, clock: Clock) -> None:
    replies.begin("default", "k", "digest")
    clock.now += 599
    with pytest.raises(ConflictError, match="under way"):
        replies.begin("default", "k", "digest")
    clock.now += 1
    assert replies.begin("default", "k", "digest") is None
    with pytest.raises(ConflictError, match="under way"):
        replies.begin("default", "k", "digest")


def test_answers_are_kept_for_a_day(replies: Replies, clock: Clock) -> None:
    replies.begin("default", "k", "digest")
    replies.finish("default", "k", 200, b"")
    clock.now += 24 * 3600 - 1
    assert replies.begin("default", "k", "digest") is not None
    clock.now += 1
    assert replies.begin("default", "k", "digest") is None
