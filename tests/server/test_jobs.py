from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from served import (
    CHECK,
    Served,
    demonstrations,
    error_of,
    reinforcement,
    served,
    tasks,
    tool_schema,
)

from agentrft.core.job import REDACTED, JobError, JobStatus, Wish
from agentrft.core.run import Event
from agentrft.graders.backends import Backends
from agentrft.inference.grader_model import ScriptedGraderModel
from agentrft.server.job_reply import job_reply
from agentrft.server.settings import ServerSettings
from agentrft.store.access import Role
from agentrft.store.catalogue import CallableModel

JOBS = "/v1/fine_tuning/jobs"
KEYS = {
    *(
        "object id model created_at finished_at fine_tuned_model organization_id result_files status"
    ).split(),
    *("training_file validation_file trained_tokens error user_provided_suffix seed").split(),
    *("estimated_finish integrations hyperparameters metadata usage_metrics").split(),
    *("shared_with_openai eval_id method preflight worker").split(),
}
SECRET = "Bearer secret-of-a-tool"
TOOLS = [
    {
        "name": "search",
        "server_url": "https://tools.example/search",
        "headers": {"Authorization": SECRET},
    },
    {"name": "list", "server_url": "http://127.0.0.1:9/list", "rate_limit": 5},
]
ENDPOINT = {
    "type": "endpoint",
    "name": "g",
    "url": "https://grader.example/grade",
    "headers": {"X-Key": "secret-of-a-grader"},
    "rate_limit": 50,
    "pass_threshold": 0.75,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    backends = Backends(models={"judge": ScriptedGraderModel([])})
    with served(tmp_path_factory.mktemp("home"), backends=backends) as it:
        yield it


@pytest.fixture(scope="module")
def files(server: Served) -> dict[str, str]:
    pairs = [
        {
            "input": {"messages": row["messages"][:1]},
            "preferred_output": row["messages"][1:],
            "non_preferred_output": [{"role": "assistant", "content": "no"}],
        }
        for row in demonstrations()
    ]
    return {
        "tasks": server.upload(tasks()),
        "tools": server.upload(tasks(tools=["search", "list"])),
        "demonstrations": server.upload(demonstrations()),
        "pairs": server.upload(pairs),
    }


def create(server: Served, **body: Any) -> Any:
    return server.client.post(JOBS, json={"model": "smollm2-135m"} | body)


def test_a_hosted_job_is_taken_as_it_is_written(server: Served, files: dict[str, str]) -> None:
    body = {
        "model": "gpt-5-2025-08-07",
        "training_file": files["tools"],
        "validation_file": files["tools"],
        "suffix": "finqa",
        "seed": 42,
        "metadata": {"who": "me"},
        "method": reinforcement(
            tools=TOOLS,
            grader=ENDPOINT,
            response_format=None,
            max_episode_steps=50,
            hyperparameters={
                "reasoning_effort": "medium",
                "n_epochs": 1,
                "batch_size": 16,
                "compute_multiplier": 1,
                "eval_samples": 2,
                "eval_interval": 5,
                "learning_rate_multiplier": "auto",
            },
        ),
    }
    reply = server.client.post(JOBS, json=body)
    job = reply.json()
    assert reply.status_code == 200, job
    assert set(job) == KEYS
    assert job["status"] == "validating_files"
    assert job["model"] == "gpt-5-2025-08-07"
    assert (job["seed"], job["user_provided_suffix"]) == (42, "finqa")
    assert job["worker"] is None
    sent = job["method"]["reinforcement"]
    assert sent["hyperparameters"]["batch_size"] == 16
    assert sent["hyperparameters"]["learning_rate_multiplier"] == "auto"
    assert sent["tools"][0]["headers"] == {"Authorization": REDACTED}
    assert sent["tools"][1]["rate_limit"] == 5
    assert sent["grader"]["headers"] == {"X-Key": REDACTED}
    assert sent["max_episode_steps"] == 50
    assert server.client.get(f"{JOBS}/{job['id']}").json() == job
    messages = [
        e["message"] for e in server.client.get(f"{JOBS}/{job['id']}/events").json()["data"]
    ]
    assert any("'smollm2-135m' is trained in its place" in message for message in messages)


def test_header_values_reach_the_worker_and_nobody_else(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        file = server.upload(tasks(tools=["search", "list"]))
        job = create(server, training_file=file, method=reinforcement(tools=TOOLS, grader=ENDPOINT))
        assert job.status_code == 200, job.text
        lease = server.home.queue.claim("worker", 60)
        assert lease is not None
        assert server.home.queue.secrets(lease) == {
            "tools[0].headers.Authorization": SECRET,
            "grader.headers.X-Key": "secret-of-a-grader",
        }
        for path in (f"{JOBS}/{job.json()['id']}", f"{JOBS}/{job.json()['id']}/events", JOBS):
            assert "secret-of" not in server.client.get(path).text
        server.home.database.close()
        stored = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
        assert b"secret-of" not in stored


def test_the_deprecated_hyperparameters_mean_supervised_ones(
    server: Served, files: dict[str, str]
) -> None:
    body = {"training_file": files["demonstrations"], "hyperparameters": {"n_epochs": 3}}
    job = create(server, **body).json()
    assert job["method"] == {
        "type": "supervised",
        "supervised": {"hyperparameters": job["hyperparameters"]},
    }
    assert job["hyperparameters"] == {
        "n_epochs": 3,
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
    }
    both = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 2}}}
    assert create(server, **body, method=both).status_code == 400
    assert create(server, **body, method={"type": "supervised"}).status_code == 200


@pytest.mark.parametrize(
    "form",
    [
        {
            "type": "json_schema",
            "json_schema": {"name": "a", "strict": True, "schema": {"type": "object"}},
        },
        {"type": "json_schema", "name": "a", "strict": True, "schema": {"type": "object"}},
    ],
)
def test_both_forms_of_response_format_come_back_nested(
    server: Served, files: dict[str, str], form: dict[str, Any]
) -> None:
    job = create(server, training_file=files["tasks"], method=reinforcement(response_format=form))
    assert job.json()["method"]["reinforcement"]["response_format"] == {
        "type": "json_schema",
        "json_schema": {"name": "a", "strict": True, "schema": {"type": "object"}},
    }


def test_a_dpo_job_is_checked_in_full_and_taken(server: Served, files: dict[str, str]) -> None:
    method: dict[str, Any] = {
        "type": "dpo",
        "dpo": {"hyperparameters": {"beta": 0.1, "n_epochs": "auto"}},
    }
    job = create(server, training_file=files["pairs"], method=method).json()
    assert job["method"]["dpo"]["hyperparameters"] == {
        "batch_size": "auto",
        "learning_rate_multiplier": "auto",
        "n_epochs": "auto",
        "beta": 0.1,
    }
    assert job["hyperparameters"] == {}
    assert job["eval_id"] is None
    bare = create(server, training_file=files["pairs"], method={"type": "dpo"}).json()
    assert bare["method"]["dpo"]["hyperparameters"]["beta"] == "auto"
    error = error_of(create(server, training_file=files["tasks"], method=method))
    assert error["param"] == "training_file"
    method["dpo"]["hyperparameters"]["beta"] = 3
    error = error_of(create(server, training_file=files["pairs"], method=method))
    assert error["param"] == "method.dpo.hyperparameters.beta"


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"model": "gpt-9"}, "model"),
    ({"model": 5}, "model"),
    ({"model": "../../etc"}, "model"),
    ({"suffix": "x" * 65}, "suffix"),
    ({"suffix": ""}, "suffix"),
    ({"seed": -1}, "seed"),
    ({"seed": 2**31}, "seed"),
    ({"seed": True}, "seed"),
    ({"metadata": {str(n): "" for n in range(17)}}, "metadata"),
    ({"metadata": {"k": "v" * 513}}, "metadata.k"),
    ({"metadata": {"preflight": "off"}}, "metadata.preflight"),
    ({"metadata": {"audit": "off"}}, "metadata.audit"),
    ({"metadata": {"monitors": "off"}}, "metadata.monitors"),
    ({"integrations": [{"type": "wandb", "wandb": {"project": "p"}}]}, "integrations"),
    ({"integrations": [{"type": "other"}]}, "integrations[0].type"),
    ({"training_file": "file-none"}, "training_file"),
    ({"validation_file": "file-none"}, "validation_file"),
    ({"extra": 1}, "extra"),
    ({"method": {"type": "ppo"}}, "method.type"),
    ({"method": {"type": "reinforcement"}}, "method"),
    ({"method": {"type": "supervised", "dpo": {}}}, "method"),
]
WRONG_REINFORCEMENT: list[tuple[str, Any, str]] = [
    ("extra", 1, "extra"),
    ("grader", "x", "grader"),
    ("grader", {}, "grader"),
    ("grader", {"type": "lambda"}, "grader.type"),
    ("grader", {"type": "python", "source": ""}, "grader.source"),
    ("grader", CHECK | {"more": 1}, "grader.more"),
    (
        "grader",
        {"type": "multi", "graders": {"a": CHECK | {"input": 1}}, "calculate_output": "a"},
        "grader.graders.a.input",
    ),
    (
        "grader",
        {"type": "score_model", "model": "judge", "input": [{"role": "tool", "content": ""}]},
        "grader.input[0].role",
    ),
    ("max_episode_steps", 0, "max_episode_steps"),
    ("hyperparameters", {"batch_size": 257}, "hyperparameters.batch_size"),
    ("hyperparameters", {"batch_size": "8"}, "hyperparameters.batch_size"),
    ("hyperparameters", {"n_epochs": 0}, "hyperparameters.n_epochs"),
    ("hyperparameters", {"compute_multiplier": 11}, "hyperparameters.compute_multiplier"),
    ("hyperparameters", {"reasoning_effort": "extreme"}, "hyperparameters.reasoning_effort"),
    ("hyperparameters", {"beta": 1}, "hyperparameters.beta"),
    ("tools", [TOOLS[0], TOOLS[0]], "tools[1].name"),
    ("tools", [TOOLS[0] | {"timeout": 5}], "tools[0].timeout"),
    ("tools", [TOOLS[0] | {"server_url": "ftp://a/b"}], "tools[0].server_url"),
    ("tools", [TOOLS[0] | {"server_url": "http://169.254.169.254/"}], "tools[0].server_url"),
    ("tools", [TOOLS[0] | {"headers": {"a": "b\r\nc: d"}}], "tools[0].headers"),
    ("response_format", {"type": "json_object"}, "response_format.type"),
    ("response_format", {"type": "json_schema", "name": "a"}, "response_format.schema"),
]


@pytest.mark.parametrize(("wrong", "param"), WRONG, ids=[param for _, param in WRONG])
def test_what_is_wrong_is_named_by_its_path(
    server: Served, files: dict[str, str], wrong: dict[str, Any], param: str
) -> None:
    good = {"training_file": files["tasks"], "method": reinforcement()}
    reply = create(server, **(good | wrong))
    assert (reply.status_code, error_of(reply)["param"]) == (400, param), reply.text


@pytest.mark.parametrize(("key", "value", "param"), WRONG_REINFORCEMENT)
def test_what_is_wrong_with_the_method_is_named_by_its_path(
    server: Served, files: dict[str, str], key: str, value: Any, param: str
) -> None:
    method = reinforcement(**{key: value})
    reply = create(server, training_file=files["tasks"], method=method)
    assert reply.status_code == 400
    assert error_of(reply)["param"] == f"method.reinforcement.{param}", reply.text


def test_a_url_with_a_password_is_refused_and_the_password_not_repeated(
    server: Served, files: dict[str, str]
) -> None:
    tool = TOOLS[0] | {"server_url": "https://user:hunter2@tools.example/"}
    error = error_of(
        create(server, training_file=files["tools"], method=reinforcement(tools=[tool]))
    )
    assert "headers" in error["message"]
    assert "hunter2" not in error["message"]


def test_an_unknown_model_is_answered_with_those_that_exist(
    server: Served, files: dict[str, str]
) -> None:
    error = error_of(create(server, model="gpt-9", training_file=files["demonstrations"]))
    assert error["code"] == "model_not_found"
    assert "smollm2-135m" in error["message"]


def test_rows_that_do_not_fit_the_method_are_named_by_line(
    server: Served, files: dict[str, str]
) -> None:
    error = error_of(create(server, training_file=files["demonstrations"], method=reinforcement()))
    assert (error["param"], error["code"]) == ("training_file", "invalid_training_file")
    assert "line 1" in error["message"]
    few = server.upload(tasks(9))
    assert (
        "9 rows" in error_of(create(server, training_file=few, method=reinforcement()))["message"]
    )


def test_rows_may_use_only_tools_of_the_job_and_must_list_them(
    server: Served, files: dict[str, str]
) -> None:
    method = reinforcement(tools=TOOLS[:1])
    error = error_of(create(server, training_file=files["tools"], method=method))
    assert "'list'" in error["message"]
    error = error_of(create(server, training_file=files["tasks"], method=method))
    assert "list no tools" in error["message"]


def test_a_file_of_another_purpose_or_project_is_no_training_file(server: Served) -> None:
    reply = server.client.post(
        "/v1/files", files={"file": ("a.jsonl", "{}")}, data={"purpose": "evals"}
    )
    assert (
        "purpose 'evals'" in error_of(create(server, training_file=reply.json()["id"]))["message"]
    )
    foreign = server.client.post(
        "/v1/files",
        files={"file": ("a.jsonl", '{"a": 1}')},
        data={"purpose": "fine-tune"},
        headers=server.caller(Role.SUBMIT, "other"),
    )
    error = error_of(create(server, training_file=foreign.json()["id"]))
    assert error["code"] == "file_not_found"


def test_a_job_may_begin_with_a_fine_tuned_model(server: Served, files: dict[str, str]) -> None:
    model = CallableModel(
        id="ft:smollm2-135m:agentrft::first", project="default", job_id="ftjob-x",
        base="smollm2-135m", path="/checkpoint", step=3, final=True, created_at=1.0,
    )  # fmt: skip
    server.home.catalogue.add(model, None)
    job = create(
        server, model=model.id, training_file=files["tasks"], method=reinforcement()
    ).json()
    stored = server.home.queue.get(job["id"]).job
    assert (stored.base, stored.start) == ("smollm2-135m", "/checkpoint")


def test_jobs_are_listed_newest_first_and_by_metadata(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        file = server.upload(demonstrations())
        ids = [
            create(server, training_file=file, metadata=metadata).json()["id"]
            for metadata in (None, {"a": "1"}, {"a": "1", "b": "2"}, {"a": "2"})
        ]

        def listed(**query: Any) -> tuple[list[int], bool]:
            body = server.client.get(JOBS, params=query).json()
            return [ids.index(job["id"]) for job in body["data"]], body["has_more"]

        assert listed() == ([3, 2, 1, 0], False)
        assert listed(limit=2) == ([3, 2], True)
        assert listed(limit=2, after=ids[2]) == ([1, 0], False)
        assert listed(**{"metadata[a]": "1"}) == ([2, 1], False)
        assert listed(**{"metadata[a]": "1", "metadata[b]": "2"}) == ([2], False)
        assert listed(metadata="null") == ([0], False)
        assert server.client.get(f"{JOBS}?other=1").status_code == 400
        assert server.client.get(f"{JOBS}?after=ftjob-none").status_code == 404
        assert server.client.get(f"{JOBS}?limit=0").status_code == 400


def test_pause_resume_and_cancel_follow_the_states(server: Served, files: dict[str, str]) -> None:
    job = create(server, training_file=files["demonstrations"]).json()["id"]

    def asked(verb: str) -> tuple[int, str]:
        reply = server.client.post(f"{JOBS}/{job}/{verb}")
        return reply.status_code, reply.json().get("status", "")

    assert asked("resume") == (409, "")
    assert asked("pause") == (200, "paused")
    assert asked("pause") == (409, "")
    assert asked("resume") == (200, "validating_files")
    assert asked("cancel") == (200, "cancelled")
    for verb in ("cancel", "pause", "resume"):
        assert asked(verb) == (409, "")


def test_a_worker_shows_as_alive_and_then_as_stalled(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        job = create(server, training_file=server.upload(demonstrations())).json()["id"]
        lease = server.home.queue.claim("worker-1", lease_s=60)
        assert lease is not None
        assert server.client.get(f"{JOBS}/{job}").json()["worker"]["id"] == "worker-1"
        state = server.home.queue.get(job)
        assert state.heartbeat_at is not None
        silence_s = ServerSettings().silence_s
        for silent_s, shown in ((silence_s - 0.5, "alive"), (silence_s + 0.5, "stalled")):
            now = state.heartbeat_at + silent_s
            reply = job_reply(state, organization="o", now=now, silence_s=silence_s)
            assert reply.worker is not None
            assert reply.worker.state == shown
        assert server.client.post(f"{JOBS}/{job}/cancel").json()["status"] == "validating_files"
        assert server.home.queue.heartbeat(lease, 60) is Wish.CANCEL


def test_what_auto_came_to_and_why_it_failed_is_shown(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        job_id = create(server, training_file=server.upload(demonstrations())).json()["id"]
        lease = server.home.queue.claim("worker", 60)
        assert lease is not None
        resolved = {"n_epochs": 3, "batch_size": 4, "learning_rate_multiplier": 1.0}
        ended = replace(
            lease.job,
            status=JobStatus.FAILED,
            hyperparameters=resolved,
            error=JobError(code="server_error", message="no", param=None),
            finished_at=5.9,
        )
        server.home.queue.finish(lease, ended, [Event(level="error", message="no", created_at=5.0)])
        job = server.client.get(f"{JOBS}/{job_id}").json()
        assert job["hyperparameters"] == resolved
        assert job["method"]["supervised"]["hyperparameters"] == resolved
        assert job["error"] == {"code": "server_error", "message": "no", "param": None}
        assert (job["finished_at"], job["worker"]) == (5, None)


def test_the_same_request_under_the_same_key_is_one_job(
    server: Served, files: dict[str, str]
) -> None:
    def repeated(key: str, **changes: Any) -> Any:
        body = {"model": "smollm2-135m", "training_file": files["demonstrations"]} | changes
        return server.client.post(JOBS, json=body, headers={"idempotency-key": key})

    first, second = repeated("a"), repeated("a")
    assert first.content == second.content
    assert second.headers["idempotency-replayed"] == "true"
    assert repeated("a", suffix="other").status_code == 409
    assert repeated("b").json()["id"] != first.json()["id"]
    assert repeated("c", model="gpt-9").status_code == 400
    assert repeated("c").status_code == 200
    assert repeated("k" * 300).status_code == 400


def test_a_crash_before_the_reply_does_not_make_a_second_job(
    server: Served, files: dict[str, str]
) -> None:
    body = {"model": "gpt-5", "training_file": files["demonstrations"], "seed": 1}
    headers = {"idempotency-key": "crashed"}
    first = server.client.post(JOBS, json=body, headers=headers).json()
    # The job was written, the reply was not: as after a crash in between.
    with server.home.database.writing() as connection:
        connection.exec_driver_sql("DELETE FROM replies WHERE key = 'crashed'")
    second = server.client.post(JOBS, json=body, headers=headers).json()
    assert second == first
    events = server.client.get(f"{JOBS}/{first['id']}/events").json()["data"]
    assert len({event["message"] for event in events}) == len(events)


def test_rows_with_tools_and_a_job_without_are_fine(server: Served) -> None:
    rows = [row | {"tools": [tool_schema("search")]} for row in tasks()]
    assert (
        create(server, training_file=server.upload(rows), method=reinforcement()).status_code == 200
    )
