import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from served import Served, error_of, served
from standardwebhooks import Webhook

from agentrft.core.job import FineTuningJob, JobStatus, SupervisedMethod
from agentrft.store.access import Role


@dataclass
class Receiver:
    """A web server that notes what it is sent and answers with the statuses it is given."""

    url: str = ""
    statuses: list[int] = field(default_factory=list[int])
    received: list[tuple[dict[str, str], bytes]] = field(
        default_factory=list[tuple[dict[str, str], bytes]]
    )
    arrived: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))


@contextmanager
def receiver() -> Iterator[Receiver]:
    it = Receiver()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            it.received.append(({k.lower(): v for k, v in self.headers.items()}, body))
            self.send_response(it.statuses.pop(0) if it.statuses else 200)
            self.send_header("content-length", "0")
            self.end_headers()
            it.arrived.release()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        it.url = f"http://127.0.0.1:{server.server_address[1]}/hook"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield it
        server.shutdown()
        thread.join()


def end_a_job(server: Served) -> str:
    job = FineTuningJob(
        id="ftjob-1", project="default", model="smollm2-135m", base="smollm2-135m",
        method=SupervisedMethod(), training_file="file-1", seed=1, created_at=1.0,
    )  # fmt: skip
    server.home.queue.submit(job, {})
    lease = server.home.queue.claim("worker", 60)
    assert lease is not None
    server.home.queue.finish(lease, replace(lease.job, status=JobStatus.FAILED))
    return job.id


def test_the_end_of_a_job_is_announced_and_signed(tmp_path: Path) -> None:
    with receiver() as there, served(tmp_path) as server:
        made = server.client.post("/v1/webhooks", json={"url": there.url}).json()
        job = end_a_job(server)
        assert there.arrived.acquire(timeout=20)
        headers, body = there.received[0]
        event = Webhook(made["secret"]).verify(body.decode(), headers)
        assert event == json.loads(body)
        assert event["type"] == "fine_tuning.job.failed"
        assert event["object"] == "event"
        assert event["data"] == {"id": job}
        assert event["id"] == headers["webhook-id"]


def test_a_webhook_shows_its_secret_once(tmp_path: Path) -> None:
    with served(tmp_path, deliver_webhooks=False) as server:
        headers = {"idempotency-key": "k"}
        made = server.client.post(
            "/v1/webhooks", json={"url": "https://a.example/hook"}, headers=headers
        ).json()
        assert made["secret"].startswith("whsec_")
        listed = server.client.get("/v1/webhooks").json()["data"]
        assert [one["id"] for one in listed] == [made["id"]]
        assert "secret" not in listed[0]
        gone = server.client.delete(f"/v1/webhooks/{made['id']}").json()
        assert gone == {"id": made["id"], "object": "webhook", "deleted": True}
        assert server.client.get("/v1/webhooks").json()["data"] == []
        assert server.client.delete(f"/v1/webhooks/{made['id']}").status_code == 404
        server.home.database.close()
        stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert made["secret"].encode() not in stored


@pytest.mark.parametrize(
    "url", ["ftp://a", "http://u:p@a/", "http://169.254.169.254/", "nonsense", ""]
)
def test_a_webhook_goes_only_where_calls_may_go(tmp_path: Path, url: str) -> None:
    with served(tmp_path, deliver_webhooks=False) as server:
        reply = server.client.post("/v1/webhooks", json={"url": url})
        assert (reply.status_code, error_of(reply)["param"]) == (400, "url")


def test_webhooks_are_for_administrators(tmp_path: Path) -> None:
    with served(tmp_path, deliver_webhooks=False) as server:
        submitter = server.caller(Role.SUBMIT)
        body = {"url": "https://a.example/hook"}
        assert server.client.post("/v1/webhooks", json=body, headers=submitter).status_code == 403
        assert server.client.get("/v1/webhooks", headers=submitter).status_code == 403


def test_a_failed_delivery_is_noted_and_tried_again_later(tmp_path: Path) -> None:
    with receiver() as there, served(tmp_path) as server:
        there.statuses.append(500)
        server.client.post("/v1/webhooks", json={"url": there.url})
        end_a_job(server)
        assert there.arrived.acquire(timeout=20)
        with server.home.database.writing() as connection:
            connection.exec_driver_sql("UPDATE outbox SET due_at = 0 WHERE delivered_at IS NULL")
        assert there.arrived.acquire(timeout=20)
        assert {headers["webhook-id"] for headers, _ in there.received} == {
            there.received[0][0]["webhook-id"]
        }
