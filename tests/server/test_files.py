import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import psutil
import pytest
from live import live_server
from served import Served, bearer, error_of, served, tasks
from starlette.testclient import TestClient

from agentrft.inference.scripted import ScriptedChat, scripted_answer
from agentrft.store.access import Role

LINE = b'{"messages": [{"role": "user", "content": "hello"}]}\n'


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with served(tmp_path_factory.mktemp("home")) as it:
        yield it


def send(
    client: TestClient,
    content: bytes = LINE,
    name: str = "a.jsonl",
    fields: Mapping[str, str] | None = None,
) -> Any:
    data = {"purpose": "fine-tune"} | dict(fields or {})
    return client.post("/v1/files", files={"file": (name, content)}, data=data)


def test_what_was_uploaded_comes_back_byte_by_byte(server: Served) -> None:
    reply = send(server.client, LINE * 3).json()
    assert reply["object"] == "file"
    assert (reply["bytes"], reply["filename"]) == (len(LINE) * 3, "a.jsonl")
    assert (reply["purpose"], reply["status"]) == ("fine-tune", "processed")
    assert reply["expires_at"] is None
    found = server.client.get(f"/v1/files/{reply['id']}")
    assert found.json() == reply
    content = server.client.get(f"/v1/files/{reply['id']}/content")
    assert content.content == LINE * 3
    assert content.headers["content-disposition"].startswith("attachment")


def test_a_form_may_name_the_purpose_after_the_file(server: Served) -> None:
    boundary = "x"
    body = (
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="late.jsonl"\r\n'
        b"Content-Type: application/octet-stream\r\n\r\n" + LINE + b"\r\n"
        b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n--x--\r\n'
    )
    headers = {"content-type": f"multipart/form-data; boundary={boundary}"}
    for cut in (1, 7, 10_000):
        pieces = iter([body[at : at + cut] for at in range(0, len(body), cut)])
        reply = server.client.post("/v1/files", content=pieces, headers=headers)
        assert reply.status_code == 200, reply.text
        content = server.client.get(f"/v1/files/{reply.json()['id']}/content").content
        assert content == LINE


def test_a_broken_row_is_named_by_its_line_and_nothing_stays(server: Served) -> None:
    before = len(server.client.get("/v1/files").json()["data"])
    reply = send(server.client, LINE + b'{"messages": [\n' + LINE)
    assert reply.status_code == 400
    assert "line 2" in error_of(reply)["message"]
    assert error_of(reply)["param"] == "file"
    assert len(server.client.get("/v1/files").json()["data"]) == before
    assert list((server.home.path / "files" / "incoming").iterdir()) == []


def test_a_dataset_is_called_jsonl_and_other_purposes_take_anything(server: Served) -> None:
    assert "'.jsonl'" in error_of(send(server.client, name="a.csv"))["message"]
    reply = send(server.client, b"\x00\xff", name="a.bin", fields={"purpose": "user_data"})
    assert reply.json()["purpose"] == "user_data"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"purpose": "training"}, "purpose"),
        ({"purpose": ""}, "purpose"),
        ({"more": "1"}, "more"),
        ({"expires_after[anchor]": "created_at"}, "expires_after.seconds"),
        ({"expires_after[seconds]": "3600"}, "expires_after.anchor"),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "5"},
            "expires_after.seconds",
        ),
        (
            {"expires_after[anchor]": "created_at", "expires_after[seconds]": "x"},
            "expires_after.seconds",
        ),
    ],
)
def test_a_wrong_field_is_named(server: Served, fields: dict[str, str], param: str) -> None:
    reply = send(server.client, fields=fields)
    assert (reply.status_code, error_of(reply)["param"]) == (400, param)


def test_a_file_may_be_told_when_to_go(server: Served) -> None:
    expiry = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "7200"}
    reply = send(server.client, fields=expiry).json()
    assert reply["expires_at"] - reply["created_at"] in (7200, 7201)


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "multipart/form-data; boundary=x"),
        (b"", "multipart/form-data"),
        (b"{}", "application/json"),
        (b"--x\r\n\r\n--x--", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"\r\n\r\nabc',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\nabc',
            "multipart/form-data; boundary=x",
        ),
        (
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\n' + b"x" * 5000,
            "multipart/form-data; boundary=x",
        ),
        (b"--x\r\nContent-Disposition: " + b"y" * 5000, "multipart/form-data; boundary=x"),
        (b"no boundary here", "multipart/form-data; boundary=x"),
        (
            b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--\r\n',
            "multipart/form-data; boundary=x",
        ),
    ],
)
def test_a_broken_form_is_a_400(server: Served, body: bytes, content_type: str) -> None:
    reply = server.client.post("/v1/files", content=body, headers={"content-type": content_type})
    assert reply.status_code == 400
    assert error_of(reply)["message"]
    assert list((server.home.path / "files" / "incoming").iterdir()) == []


def test_files_are_listed_in_slices_both_ways(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        ids = [send(server.client, LINE * (n + 1)).json()["id"] for n in range(5)]
        other = send(server.client, fields={"purpose": "evals"}).json()["id"]

        def listed(query: str) -> tuple[list[str], bool]:
            body = server.client.get(f"/v1/files?{query}").json()
            return [entry["id"] for entry in body["data"]], body["has_more"]

        assert listed("purpose=fine-tune&limit=2") == (ids[:2:-1], True)
        assert listed(f"purpose=fine-tune&limit=3&after={ids[3]}") == (ids[2::-1], False)
        assert listed("order=asc") == ([*ids, other], False)
        assert server.client.get("/v1/files?after=file-none").status_code == 404


def test_a_deleted_file_is_gone_and_what_shares_its_content_is_not(server: Served) -> None:
    one, two = (send(server.client, LINE * 9).json()["id"] for _ in range(2))
    reply = server.client.delete(f"/v1/files/{one}")
    assert reply.json() == {"id": one, "object": "file", "deleted": True}
    for path in (f"/v1/files/{one}", f"/v1/files/{one}/content"):
        assert server.client.get(path).status_code == 404
    assert server.client.delete(f"/v1/files/{one}").status_code == 404
    assert server.client.get(f"/v1/files/{two}/content").content == LINE * 9


def test_the_same_upload_under_the_same_key_is_one_file(server: Served) -> None:
    def repeated(key: str, rows: int) -> Any:
        content = "\n".join(json.dumps(row) for row in tasks(rows))
        return server.client.post(
            "/v1/files",
            files={"file": ("a.jsonl", content)},
            data={"purpose": "fine-tune"},
            headers={"idempotency-key": key},
        )

    first, second = repeated("k", 3), repeated("k", 3)
    assert first.json() == second.json()
    assert second.headers["idempotency-replayed"] == "true"
    assert repeated("k", 4).status_code == 409
    assert repeated("other", 3).json()["id"] != first.json()["id"]


def test_a_refused_upload_leaves_its_key_free(server: Served) -> None:
    headers = {"idempotency-key": "free"}
    for content, status in ((b"{", 400), (LINE, 200)):
        reply = server.client.post(
            "/v1/files",
            files={"file": ("a.jsonl", content)},
            data={"purpose": "fine-tune"},
            headers=headers,
        )
        assert reply.status_code == status


def test_reading_tokens_cannot_upload_or_delete(server: Served) -> None:
    reader = server.caller(Role.READ)
    file_id = send(server.client).json()["id"]
    assert server.client.get(f"/v1/files/{file_id}", headers=reader).status_code == 200
    assert server.client.delete(f"/v1/files/{file_id}", headers=reader).status_code == 403
    reply = server.client.post(
        "/v1/files", files={"file": ("a.jsonl", LINE)}, data={"purpose": "evals"}, headers=reader
    )
    assert reply.status_code == 403


def test_a_long_upload_does_not_stay_in_memory(tmp_path: Path) -> None:
    process = psutil.Process()
    line = b'{"messages": [{"role": "user", "content": "' + b"x" * 1000 + b'"}]}\n'
    grown: list[int] = []

    def body() -> Iterator[bytes]:
        yield b'--x\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
        yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.jsonl"\r\n\r\n'
        before = process.memory_info().rss
        for _ in range(96):
            yield line * 1000
            grown.append(process.memory_info().rss - before)
        yield b"\r\n--x--\r\n"

    chat = ScriptedChat(lambda _request: scripted_answer("hello"))
    with live_server(tmp_path, chat) as live:
        headers = bearer(live.token) | {"content-type": "multipart/form-data; boundary=x"}
        reply = httpx2.post(f"{live.url}/v1/files", content=body(), headers=headers, timeout=60)
    assert reply.json()["bytes"] == 96_000 * len(line)
    assert max(grown) < 48 << 20
