"""Webhooks and what is owed to them, over SQLite and PostgreSQL."""

import base64
import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import sqlalchemy as sa
from job_builders import Clock, queued

from agentrft.core.job import JobError, JobStatus
from agentrft.store import schema
from agentrft.store.errors import NotFoundError
from agentrft.store.home import Home
from agentrft.store.outbox import CLAIM_S, Outbox
from agentrft.store.queue import JobQueue


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def outbox(home: Home, clock: Clock) -> Outbox:
    return Outbox(home.database, home.vault, clock=clock)


@pytest.fixture
def queue(home: Home, clock: Clock) -> JobQueue:
    return JobQueue(home.database, home.vault, clock=clock)


def end(queue: JobQueue, name: str = "a", status: JobStatus = JobStatus.SUCCEEDED) -> None:
    queue.submit(queued(name), {})
    lease = queue.claim("w", 30)
    assert lease is not None
    error = JobError(code="c", message="m") if status is JobStatus.FAILED else None
    queue.finish(lease, replace(lease.job, status=status, error=error))


def test_a_webhook_shows_its_key_once_and_keeps_it_sealed(outbox: Outbox, home: Home) -> None:
    webhook, secret = outbox.add_webhook("desk", "https://desk.example/hook")
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"))) == 32
    assert outbox.webhooks("desk") == (webhook,)
    assert outbox.webhooks("shop") == ()
    with home.database.reading() as connection:
        sealed = connection.execute(sa.select(schema.secrets)).all()
        shown = connection.execute(sa.select(schema.webhooks)).all()
    assert secret not in repr((sealed, shown))
    assert secret not in repr(webhook)


@pytest.mark.parametrize("status", [s for s in JobStatus if s.is_final])
def test_the_end_of_a_job_is_owed_to_every_webhook_of_its_project(
    outbox: Outbox, queue: JobQueue, clock: Clock, status: JobStatus
) -> None:
    keys = dict(outbox.add_webhook("desk", f"https://{n}.example") for n in range(2))
    outbox.add_webhook("shop", "https://shop.example")
    end(queue, status=status)
    due = outbox.due()
    assert {d.webhook_id: (d.url, d.secret) for d in due} == {
        webhook.id: (webhook.url, secret) for webhook, secret in keys.items()
    }
    assert {d.event_id for d in due} == {"evt_a"}
    for delivery in due:
        assert json.loads(delivery.body) == {
            "id": "evt_a",
            "object": "event",
            "type": f"fine_tuning.job.{status}",
            "created_at": int(clock.now),
            "data": {"id": "ftjob-a"},
        }


def test_what_one_deliverer_claimed_is_left_alone_until_it_must_be_lost(
    outbox: Outbox, queue: JobQueue, clock: Clock
) -> None:
    outbox.add_webhook("desk", "https://x.example")
    end(queue)
    (first,) = outbox.due()
    clock.now += CLAIM_S - 1
    assert outbox.due() == ()
    clock.now += 1
    (again,) = outbox.due()
    assert (first.attempts, again.attempts) == (1, 2)
    assert (again.event_id, again.body) == (first.event_id, first.body)


def test_what_was_delivered_stays_so(outbox: Outbox, queue: JobQueue, clock: Clock) -> None:
    outbox.add_webhook("desk", "https://x.example")
    end(queue)
    (delivery,) = outbox.due()
    outbox.delivered(delivery.sequence)
    # A slower deliverer of the same event comes home late.
    outbox.failed(delivery.sequence, "timed out", retry_in_s=0)
    clock.now += 10 * CLAIM_S
    assert outbox.due() == ()


def test_a_failed_delivery_comes_back_after_its_pause_or_never(
    outbox: Outbox, queue: JobQueue, clock: Clock
) -> None:
    outbox.add_webhook("desk", "https://x.example")
    end(queue)
    (delivery,) = outbox.due()
    outbox.failed(delivery.sequence, "503", retry_in_s=300)
    clock.now += 299
    assert outbox.due() == ()
    clock.now += 1
    (again,) = outbox.due()
    assert again.attempts == 2
    outbox.failed(again.sequence, "410 Gone", retry_in_s=None)
    clock.now += 1e9
    assert outbox.due() == ()


def test_removing_a_webhook_forgets_what_was_owed_to_it(
    outbox: Outbox, queue: JobQueue, home: Home
) -> None:
    webhook, _ = outbox.add_webhook("desk", "https://x.example")
    end(queue)
    for project, webhook_id in (("shop", webhook.id), ("desk", "whk_none")):
        with pytest.raises(NotFoundError, match="no webhook 'whk_"):
            outbox.remove_webhook(project, webhook_id)
    outbox.remove_webhook("desk", webhook.id)
    assert outbox.due() == ()
    assert outbox.webhooks("desk") == ()
    with home.database.reading() as connection:
        assert connection.execute(sa.select(schema.secrets)).all() == []


def test_deliverers_side_by_side_never_share_an_announcement(
    outbox: Outbox, queue: JobQueue
) -> None:
    outbox.add_webhook("desk", "https://x.example")
    for number in range(30):
        end(queue, str(number))
    with ThreadPoolExecutor(4) as pool:
        claimed = [d.sequence for part in pool.map(lambda _: outbox.due(5), range(8)) for d in part]
    assert len(claimed) == len(set(claimed))
    claimed += [d.sequence for d in outbox.due(30)]
    assert len(set(claimed)) == 30
