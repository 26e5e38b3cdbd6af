from collections.abc import Iterator
from pathlib import Path

import pytest
from served import Served, bearer, error_of, served

from agentrft.server.limits import Limiter
from agentrft.store.access import Role


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("home")
    with served(folder, allowed_hosts=("desk.example",), allowed_origins=("https://a.b",)) as it:
        yield it


METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]


@pytest.mark.parametrize("method", METHODS)
def test_a_foreign_host_or_origin_is_refused_on_every_method(server: Served, method: str) -> None:
    for headers in (
        {"host": "evil.example"},
        {"origin": "http://evil.example"},
        {"origin": "null"},
    ):
        reply = server.client.request(method, "/v1/models", headers=headers)
        assert reply.status_code == 403
        assert "access-control-allow-origin" not in reply.headers


@pytest.mark.parametrize(
    "host", ["localhost:99", "127.0.0.1", "[::1]:80", "desk.example", "DESK.example:1"]
)
def test_named_hosts_are_answered_and_their_own_origin_too(server: Served, host: str) -> None:
    headers = {"host": host, "origin": f"http://{host}"}
    assert server.client.get("/v1/models", headers=headers).status_code == 200
    assert server.client.get("/v1/models", headers={"origin": "https://a.b"}).status_code == 200


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/nothing", "/v1/files"])
@pytest.mark.parametrize("header", ["", "Bearer ", "Bearer art-wrong", "Basic abc", "art-x"])
def test_without_a_token_nothing_but_health_and_the_document_answers(
    server: Served, path: str, header: str
) -> None:
    reply = server.client.get(path, headers={"authorization": header})
    assert reply.status_code == 401
    assert error_of(reply)["code"] == "invalid_api_key"
    for open_path in ("/healthz", "/docs", "/openapi.json"):
        assert server.client.get(open_path, headers={"authorization": header}).status_code == 200


def test_a_revoked_and_an_expired_token_are_like_unknown_ones(server: Served) -> None:
    revoked, token = server.home.access.create_token("default", Role.ADMIN, "revoked")
    assert server.client.get("/v1/models", headers=bearer(token)).status_code == 200
    server.home.access.revoke(revoked.id)
    assert server.client.get("/v1/models", headers=bearer(token)).status_code == 401
    _, old = server.home.access.create_token("default", Role.ADMIN, "old", expires_at=1.0)
    assert server.client.get("/v1/models", headers=bearer(old)).status_code == 401


def test_every_reply_has_an_id_of_its_own_and_none_is_taken_from_the_client(server: Served) -> None:
    ids = set[str]()
    for path in ("/v1/models", "/nothing", "/v1/models", "/healthz"):
        reply = server.client.get(path, headers={"x-request-id": "mine"})
        ids.add(reply.headers["x-request-id"])
        assert reply.headers["x-request-id"].startswith("req_")
        assert reply.headers["openai-processing-ms"].isdigit()
        assert reply.headers["openai-version"]
        assert reply.headers["x-content-type-options"] == "nosniff"
    assert len(ids) == 4


def test_wrong_urls_and_methods_have_the_contracts_error_body(server: Served) -> None:
    reply = server.client.get("/v1/nothing")
    assert (reply.status_code, error_of(reply)["code"]) == (404, "unknown_url")
    reply = server.client.put("/v1/models")
    assert (reply.status_code, error_of(reply)["code"]) == (405, "method_not_supported")
    assert reply.headers["allow"] == "GET"


@pytest.mark.parametrize(
    "body",
    [
        b'{"url": 1, "url": 2}',
        b'{"url": NaN}',
        b'{"url": ' + b"1" * 5000 + b"}",
        b'{"url": "\\ud800"}',
        b"[" * 5000 + b"]" * 5000,
        b'{"a":' * 70 + b"1" + b"}" * 70,
        b"\xff",
        b"{",
        b"",
    ],
)
def test_json_that_two_readers_could_read_differently_is_refused(
    server: Served, body: bytes
) -> None:
    headers = {"content-type": "application/json"}
    reply = server.client.post("/v1/webhooks", content=body, headers=headers)
    assert reply.status_code == 400
    assert error_of(reply)["message"]


def test_a_wrong_type_is_named_by_its_path(server: Served) -> None:
    reply = server.client.post("/v1/webhooks", json={"url": {}})
    assert error_of(reply) == {
        "message": "Invalid type for 'url': expected a string, but got an object instead.",
        "type": "invalid_request_error",
        "param": "url",
        "code": "invalid_type",
    }
    reply = server.client.post("/v1/webhooks", json={})
    assert error_of(reply)["code"] == "missing_required_parameter"
    reply = server.client.post("/v1/webhooks", json={"url": "https://a.b", "more": 1})
    assert error_of(reply)["param"] == "more"
    reply = server.client.get("/v1/files?limit=x")
    assert (reply.status_code, error_of(reply)["param"]) == (400, "limit")


def test_a_body_without_its_content_type_is_told_so(server: Served) -> None:
    reply = server.client.post("/v1/webhooks", content=b'{"url": "https://a.b"}')
    assert reply.status_code == 400
    assert "content-type" in error_of(reply)["message"]


def test_a_body_over_the_limit_is_413_whether_announced_or_not(tmp_path: Path) -> None:
    with served(tmp_path, json_bytes=1000) as server:
        headers = {"content-type": "application/json"}
        whole = server.client.post("/v1/webhooks", content=b"x" * 1001, headers=headers)
        parts = server.client.post(
            "/v1/webhooks", content=iter([b"x" * 600, b"x" * 600]), headers=headers
        )
        assert (whole.status_code, parts.status_code) == (413, 413)
        assert error_of(parts)["code"] == "too_large"


def test_a_token_that_asks_too_often_is_told_when_to_come_back(tmp_path: Path) -> None:
    with served(tmp_path, requests_per_minute=3) as server:
        other = server.caller(Role.READ)
        replies = [server.client.get("/v1/models") for _ in range(4)]
        assert [reply.status_code for reply in replies] == [200, 200, 200, 429]
        assert [reply.headers["x-ratelimit-remaining-requests"] for reply in replies[:3]] == [
            *"210"
        ]
        assert error_of(replies[3])["code"] == "rate_limit_exceeded"
        assert int(replies[3].headers["retry-after"]) > 0
        assert server.client.get("/v1/models", headers=other).status_code == 200


def test_a_bucket_fills_steadily() -> None:
    limiter = Limiter(60)
    assert [limiter.take("a", 0.0).allowed for _ in range(61)] == [True] * 60 + [False]
    assert limiter.take("a", 0.5).retry_s == pytest.approx(0.5)
    assert limiter.take("a", 1.0).allowed
    assert limiter.take("a", 1000.0).remaining == 59


def test_a_failure_inside_says_nothing_but_the_request_id(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        server.home.database.close()
        # A new file: whoever still holds the old one would write it whole again.
        (tmp_path / "agentrft.db").unlink()
        (tmp_path / "agentrft.db").write_bytes(b"this is no database, it is a secret")
        for leftover in tmp_path.glob("agentrft.db-*"):
            leftover.unlink()
        reply = server.client.get("/v1/models")
        assert reply.status_code == 500
        error = error_of(reply)
        assert reply.headers["x-request-id"] in error["message"]
        assert "database" not in error["message"]
        assert server.client.get("/healthz").status_code == 503
