"""Write docs/compatibility.md: what a running server answers that a client's types do not know.

    python tests/e2e/compatibility.py JOB_ID > docs/compatibility.md

OPENAI_BASE_URL and OPENAI_API_KEY say where and who (an admin), JOB_ID is a reinforcement job that
succeeded. Every answer is validated against the types of each supported client.
"""

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx2
from pydantic import BaseModel, ValidationError

OLD_CLIENT = Path(sys.prefix) / "openai-1.109.1"

INTRODUCTION = """\
# Compatibility with the official client

Made by `tests/e2e/compatibility.py` from a running server. Every answer is validated against the
types of the client; only what they do not declare is listed. `extra`: the client hands the field over
as an attribute that its types do not know. `other type`: the type is narrower than the contract; the
client still hands the value over as it is. Routes without a row answer what both clients declare.
"""

TYPES = {
    "POST /files": "openai.types.FileObject",
    "GET /files/{id}": "openai.types.FileObject",
    "DELETE /files/{id}": "openai.types.FileDeleted",
    "GET /models/{id}": "openai.types.Model",
    "GET /fine_tuning/jobs/{id}": "openai.types.fine_tuning.FineTuningJob",
    "GET /fine_tuning/jobs/{id}/events": "openai.types.fine_tuning.FineTuningJobEvent",
    "GET /fine_tuning/jobs/{id}/checkpoints": (
        "openai.types.fine_tuning.jobs.FineTuningJobCheckpoint"
    ),
    "POST /fine_tuning/checkpoints/{model}/permissions": (
        "openai.types.fine_tuning.checkpoints.PermissionCreateResponse"
    ),
    "DELETE /fine_tuning/checkpoints/{model}/permissions/{id}": (
        "openai.types.fine_tuning.checkpoints.PermissionDeleteResponse"
    ),
    "POST /fine_tuning/alpha/graders/validate": (
        "openai.types.fine_tuning.alpha.GraderValidateResponse"
    ),
    "POST /fine_tuning/alpha/graders/run": "openai.types.fine_tuning.alpha.GraderRunResponse",
    "POST /chat/completions": "openai.types.chat.ChatCompletion",
    "POST /chat/completions, a chunk": "openai.types.chat.ChatCompletionChunk",
    "POST /responses": "openai.types.responses.Response",
}
"""Route to the type of its answer, or of one item of the page it answers."""


def answers(client: httpx2.Client, job_id: str) -> Mapping[str, Any]:
    """Call every route once and return one body for each."""

    def body(method: str, path: str, **options: Any) -> Any:
        reply = client.request(method, path, **options)
        assert reply.status_code == 200, f"{method} {path}: {reply.text}"
        return reply.json()

    row = json.dumps({"messages": [{"role": "user", "content": "Hi"}]})
    form = {"purpose": "user_data"}
    file = body("POST", "files", data=form, files={"file": ("a.jsonl", row.encode())})
    check = {"type": "string_check", "name": "a", "input": "a", "reference": "a"}
    multi = {
        "type": "multi",
        "name": "m",
        "graders": {"a": {**check, "operation": "eq"}},
        "calculate_output": "a",
    }
    job = f"fine_tuning/jobs/{job_id}"
    checkpoint = body("GET", f"{job}/checkpoints")["data"][0]
    model = checkpoint["fine_tuned_model_checkpoint"]
    permissions = f"fine_tuning/checkpoints/{model}/permissions"
    granted = body("POST", permissions, json={"project_ids": ["somebody"]})["data"][0]
    chat = {
        "model": "smollm2-135m",
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 2,
        "logprobs": True,
        "top_logprobs": 2,
    }
    with client.stream("POST", "chat/completions", json={**chat, "stream": True}) as stream:
        chunk = next(line for line in stream.iter_lines() if line.startswith("data: {"))
    events = body("GET", f"{job}/events", params={"limit": 100})["data"]
    run = {"grader": multi, "item": {}, "model_sample": "a"}
    said = {"model": "smollm2-135m", "input": "Hi", "max_output_tokens": 16, "store": False}
    return {
        "POST /files": file,
        "GET /files/{id}": body("GET", f"files/{file['id']}"),
        "DELETE /files/{id}": body("DELETE", f"files/{file['id']}"),
        "GET /models/{id}": body("GET", f"models/{model}"),
        "GET /fine_tuning/jobs/{id}": body("GET", job),
        "GET /fine_tuning/jobs/{id}/events": next(e for e in events if e["type"] == "metrics"),
        "GET /fine_tuning/jobs/{id}/checkpoints": checkpoint,
        "POST /fine_tuning/checkpoints/{model}/permissions": granted,
        "DELETE /fine_tuning/checkpoints/{model}/permissions/{id}": body(
            "DELETE", f"{permissions}/{granted['id']}"
        ),
        "POST /fine_tuning/alpha/graders/validate": body(
            "POST", "fine_tuning/alpha/graders/validate", json={"grader": multi}
        ),
        "POST /fine_tuning/alpha/graders/run": body(
            "POST", "fine_tuning/alpha/graders/run", json=run
        ),
        "POST /chat/completions": body("POST", "chat/completions", json=chat),
        "POST /chat/completions, a chunk": json.loads(chunk.removeprefix("data: ")),
        "POST /responses": body("POST", "responses", json=said),
    }


def deviations(bodies: Mapping[str, Any]) -> dict[str, dict[str, str]]:
    """Return route to field to how this process's client sees it, for fields its types do not fit."""
    found: dict[str, dict[str, str]] = {}
    for route, dotted in TYPES.items():
        module, _, name = dotted.rpartition(".")
        kind: type[BaseModel] = getattr(importlib.import_module(module), name)
        found[route] = {}
        for branch in (bodies[route], known_only(bodies[route], route)):
            try:
                found[route] |= dict.fromkeys(extras(kind.model_validate(branch)), "extra")
            except ValidationError as error:
                for problem in error.errors(include_url=False):
                    found[route][shown_path(problem["loc"], seen_keys(branch))] = "other type"
    return found


def shown_path(location: Sequence[int | str], keys: set[str]) -> str:
    """Return a dotted path without names of types; graders are a union that fits or does not."""
    parts = [part for part in map(str, location) if part in keys]
    return ".".join(parts[: parts.index("grader") + 1] if "grader" in parts else parts)


def known_only(body: Any, route: str) -> Any:
    """Leave out the part that no client types (the grader), so that the rest is checked as well."""
    if route != "GET /fine_tuning/jobs/{id}":
        return body
    return {key: value for key, value in body.items() if key != "method"}


def seen_keys(body: Any) -> set[str]:
    """Return every key of a body, however deep; what else an error's path names is a type."""
    if isinstance(body, dict):
        return set(body).union(*map(seen_keys, body.values()))
    if isinstance(body, list):
        return set[str]().union(*map(seen_keys, body))
    return set()


def extras(model: BaseModel) -> Iterator[str]:
    """Yield paths of fields that the type does not declare."""
    yield from model.model_extra or ()
    for name in type(model).model_fields:
        value = getattr(model, name)
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, BaseModel):
                yield from (f"{name}.{path}" for path in extras(one))


def table(bodies: Mapping[str, Any]) -> str:
    """Return the page: a row per deviation, a column per client."""
    columns: dict[str, dict[str, dict[str, str]]] = {}
    for path in ("", str(OLD_CLIENT)):
        done = subprocess.run(
            [sys.executable, __file__, "--types"],
            input=json.dumps(bodies),
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "PYTHONPATH": path},
        )
        version, found = json.loads(done.stdout)
        columns[version] = found
    lines = [
        INTRODUCTION,
        f"| route | field | {' | '.join(f'openai {version}' for version in columns)} |",
        f"| --- | --- |{' --- |' * len(columns)}",
    ]
    for route in TYPES:
        fields = sorted({field for found in columns.values() for field in found[route]})
        for field in fields:
            how = " | ".join(found[route].get(field, "declared") for found in columns.values())
            lines.append(f"| `{route}` | `{field}` | {how} |")
    return "\n".join(lines) + "\n"


def main(job_id: str) -> None:
    """Print the page."""
    client = httpx2.Client(
        base_url=os.environ["OPENAI_BASE_URL"] + "/",
        headers={"Authorization": f"Bearer {os.environ['OPENAI_API_KEY']}"},
        timeout=120,
    )
    with client:
        sys.stdout.write(table(answers(client, job_id)))


if __name__ == "__main__":
    if sys.argv[1] == "--types":
        import openai

        json.dump([openai.__version__, deviations(json.load(sys.stdin))], sys.stdout)
    else:
        main(sys.argv[1])
