"""Every route with every kind of caller. The application lists its routes, so none is forgotten."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import pytest
from served import CHECK, Served, bearer, demonstrations, served
from test_operation import rollout

from agentrft.core.job import FineTuningJob, JobStatus, ReinforcementMethod
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Event
from agentrft.server.auth import OPEN
from agentrft.store.access import Role
from agentrft.store.catalogue import CallableModel

SECRET = "only-for-the-owner"
"""Part of every text that belongs to the owner's project."""
TUNED = f"ft:smollm2-135m:agentrft:{SECRET}:1"
CHAT = {"messages": [{"role": "user", "content": "hello"}]}
ADMINISTRATION = ("/permissions", "/webhooks", "/metrics")
CALLS = ("/v1/chat/completions", "/v1/responses")
"""Routes that name a model in their body."""
READING = (*CALLS, "/v1/fine_tuning/alpha/graders/validate")
"""Routes that are asked by POST and change nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    server: Served
    names: dict[str, str]
    """Path parameter to the owner's id."""
    callers: dict[str, dict[str, str]]
    bodies: dict[tuple[str, str], dict[str, Any]]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with served(tmp_path_factory.mktemp("home"), deliver_webhooks=False) as server:
        home = server.home
        revoked, token = home.access.create_token("default", Role.ADMIN, "revoked")
        home.access.revoke(revoked.id)
        _, expired = home.access.create_token("default", Role.ADMIN, "expired", expires_at=1.0)
        callers = {
            "reader": server.caller(Role.READ),
            "submitter": server.caller(Role.SUBMIT),
            "stranger": server.caller(Role.ADMIN, "other"),
            "revoked": bearer(token),
            "expired": bearer(expired),
            "nobody": {"authorization": ""},
        }
        yield World(server=server, names=owned(server), callers=callers, bodies=bodies(server))


def owned(server: Served) -> dict[str, str]:
    """Give the owner one of everything; return the ids."""
    home = server.home
    job = FineTuningJob(
        id="ftjob-owned", project="default", model=SECRET, base="smollm2-135m",
        method=ReinforcementMethod(grader=CHECK), training_file="file-1", suffix=SECRET, seed=1,
        created_at=1.0, metadata={"k": SECRET}, status=JobStatus.VALIDATING_FILES,
    )  # fmt: skip
    home.queue.submit(job, {"grader.headers.X": SECRET})
    records = [Event(level="info", message=SECRET, created_at=1.0), rollout(2, 1.0)]
    home.store.append(job.id, [replace(records[0]), records[1]])
    home.store.append(job.id, [Checkpoint(run_id=job.id, step=2, path="/c", policy_version=2)])
    model = CallableModel(
        id=TUNED, project="default", job_id=job.id, base="smollm2-135m",
        path="/c", step=2, final=False, created_at=1.0,
    )  # fmt: skip
    home.catalogue.add(model, None)
    (permission,) = home.catalogue.grant("default", TUNED, ["guest"])
    webhook, _ = home.outbox.add_webhook("default", f"https://{SECRET}.example/")
    rows = [row | {"note": SECRET} for row in demonstrations()]
    record = server.client.get("/v1/fine_tuning/jobs/ftjob-owned/evaluations/2/rollouts").json()
    return {
        "job_id": job.id,
        "file_id": server.upload(rows),
        "model": TUNED,
        "permission_id": permission.id,
        "webhook_id": webhook.id,
        "step": "2",
        "rollout": record["data"][0]["id"],
    }


def bodies(server: Served) -> dict[tuple[str, str], dict[str, Any]]:
    """Return a good request for every route that takes one, about things of the owner."""
    file = server.upload(demonstrations())
    call = {"type": "function_call", "name": "t", "server_url": "http://127.0.0.1:9/"}
    call |= {"arguments": "{}", "call_id": "c"}
    jobs = "/v1/fine_tuning"
    return {
        ("POST", f"{jobs}/jobs"): {"json": {"model": TUNED, "training_file": file}},
        ("POST", f"{jobs}/checkpoints/{{model}}/permissions"): {"json": {"project_ids": ["x"]}},
        ("POST", f"{jobs}/alpha/graders/run"): {
            "json": {"grader": CHECK, "item": {"answer": "a"}, "model_sample": "a"}
        },
        ("POST", f"{jobs}/alpha/graders/validate"): {"json": {"grader": CHECK}},
        ("POST", f"{jobs}/alpha/tool/run"): {"json": call},
        ("POST", "/v1/chat/completions"): {"json": CHAT | {"model": TUNED}},
        ("POST", "/v1/responses"): {"json": {"model": TUNED, "input": "hello", "store": False}},
        ("POST", "/v1/webhooks"): {"json": {"url": "https://a.example/"}},
        ("POST", "/v1/files"): {
            "files": {"file": ("a.jsonl", '{"a": 1}')},
            "data": {"purpose": "fine-tune"},
        },
    }


def routes(server: Served) -> list[tuple[str, str]]:
    """Return every method and path there is."""
    document = server.client.get("/openapi.json").json()
    found = [
        (method.upper(), path)
        for path, operations in document["paths"].items()
        for method in operations
    ]
    return [*found, ("GET", "/openapi.json"), ("GET", "/docs")]


def ask(world: World, method: str, path: str, headers: dict[str, str]) -> Any:
    filled = path
    for name, value in world.names.items():
        filled = filled.replace(f"{{{name}}}", value)
    assert "{" not in filled, f"give an id for {path}"
    body = world.bodies.get((method, path), {})
    return world.server.client.request(method, filled, headers=headers, **body)


def is_reading(method: str, path: str) -> bool:
    return method == "GET" or path in READING


def test_every_route_is_in_the_document(world: World) -> None:
    documented = {path for _, path in routes(world.server)}
    served_paths = {route.path for route in every_route(world.server.app.routes)}
    assert {path.replace(":path}", "}") for path in served_paths} == documented


def every_route(entries: Any) -> Iterator[Any]:
    for entry in entries:
        if hasattr(entry, "original_router"):
            yield from every_route(entry.original_router.routes)
        else:
            yield entry


def test_without_a_valid_token_no_route_says_anything(world: World) -> None:
    for method, path in routes(world.server):
        for who in ("nobody", "revoked", "expired"):
            reply = ask(world, method, path, world.callers[who])
            if path in OPEN:
                assert reply.status_code == 200
                continue
            assert reply.status_code == 401, f"{who} {method} {path}"
            assert SECRET not in reply.text
            assert SECRET not in str(reply.headers)


def test_a_stranger_learns_nothing_and_changes_nothing(world: World) -> None:
    before = everything(world)
    for method, path in routes(world.server):
        reply = ask(world, method, path, world.callers["stranger"])
        where = f"{method} {path}: {reply.text}"
        names_something = "{" in path or path in CALLS or path == "/v1/fine_tuning/jobs"
        if names_something and method != "GET":
            assert reply.status_code in (400, 404), where
        elif "{" in path:
            assert reply.status_code == 404, where
        assert SECRET not in reply.text.replace(TUNED, ""), where
        if method == "GET":
            assert world.names["job_id"] not in reply.text.partition("message")[0], where
    assert everything(world) == before


def test_what_is_not_there_and_what_belongs_to_others_read_the_same(world: World) -> None:
    stranger = world.callers["stranger"]
    for method, path in routes(world.server):
        if "{" not in path:
            continue
        foreign = ask(world, method, path, stranger)
        absent = World(
            server=world.server,
            names={
                key: f"no{value}" if not value.isdigit() else value
                for key, value in world.names.items()
            },
            callers=world.callers,
            bodies=world.bodies,
        )
        missing = ask(absent, method, path, stranger)
        assert foreign.status_code == missing.status_code, f"{method} {path}"
        texts = [reply.text for reply in (foreign, missing)]
        for key, value in world.names.items():
            texts[0] = texts[0].replace(value, key)
            texts[1] = texts[1].replace(absent.names[key], key)
        assert texts[0] == texts[1], f"{method} {path}"


def test_a_reader_may_look_and_nothing_else(world: World) -> None:
    before = everything(world)
    for method, path in routes(world.server):
        if path in OPEN:
            continue
        reply = ask(world, method, path, world.callers["reader"])
        administration = any(part in path for part in ADMINISTRATION)
        if is_reading(method, path) and not administration:
            assert reply.status_code == 200, f"{method} {path}: {reply.text}"
        else:
            assert reply.status_code == 403, f"{method} {path}: {reply.text}"
    assert everything(world) == before


def test_a_submitter_may_not_administer(world: World) -> None:
    for method, path in routes(world.server):
        if any(part in path for part in ADMINISTRATION):
            reply = ask(world, method, path, world.callers["submitter"])
            assert reply.status_code == 403, f"{method} {path}"


def everything(world: World) -> list[str]:
    """Return what the owner sees, except what only time changes."""
    client = world.server.client
    paths = ["/v1/files", "/v1/fine_tuning/jobs", "/v1/models", "/v1/webhooks"]
    job = f"/v1/fine_tuning/jobs/{world.names['job_id']}"
    paths += [f"{job}{path}" for path in ("", "/events", "/checkpoints", "/evaluations")]
    paths.append(f"/v1/fine_tuning/checkpoints/{TUNED}/permissions")
    return [client.get(path).text for path in paths]
