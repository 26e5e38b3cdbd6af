from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from served import Served, error_of, served

from agentrft.core.job import FineTuningJob, ReinforcementMethod
from agentrft.core.run import Event
from agentrft.store.access import Role
from agentrft.store.catalogue import CallableModel

TUNED = CallableModel(
    id="ft:smollm2-135m:agentrft:desk:1", project="default", job_id="ftjob-1",
    base="smollm2-135m", path="/c/3", step=3, final=True, created_at=7.5,
)  # fmt: skip


def checkpoint(step: int) -> CallableModel:
    return replace(
        TUNED, id=f"{TUNED.id}:ckpt-step-{step}", path=f"/c/{step}", step=step, final=False
    )


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    with served(tmp_path) as it:
        job = FineTuningJob(
            id="ftjob-1", project="default", model="smollm2-135m", base="smollm2-135m",
            method=ReinforcementMethod(grader={}), training_file="file-1", seed=1, created_at=1.0,
        )  # fmt: skip
        it.home.queue.submit(job, {})
        for model in (checkpoint(1), checkpoint(2), checkpoint(3), TUNED):
            it.home.catalogue.add(model, None)
        yield it


def test_base_and_tuned_models_are_listed_and_found(server: Served) -> None:
    listed = server.client.get("/v1/models").json()["data"]
    assert listed[0]["id"] == "smollm2-135m"
    assert TUNED.id in [model["id"] for model in listed]
    found = server.client.get(f"/v1/models/{TUNED.id}").json()
    assert found == next(model for model in listed if model["id"] == TUNED.id)
    assert (found["object"], found["created"], found["owned_by"]) == ("model", 7, "default")
    assert server.client.get("/v1/models/gpt-5").json()["id"] == "smollm2-135m"
    error = error_of(server.client.get("/v1/models/gpt-9"))
    assert (error["param"], error["code"]) == ("model", "model_not_found")


def test_a_tuned_model_can_be_deleted_and_a_base_model_cannot(server: Served) -> None:
    assert server.client.delete("/v1/models/smollm2-135m").status_code == 403
    reply = server.client.delete(f"/v1/models/{TUNED.id}")
    assert reply.json() == {"id": TUNED.id, "object": "model", "deleted": True}
    assert server.client.get(f"/v1/models/{TUNED.id}").status_code == 404


def test_a_model_is_seen_by_those_who_were_permitted_and_deleted_by_none_of_them(
    server: Served,
) -> None:
    guest = server.caller(Role.SUBMIT, "proj_guest")
    path = f"/v1/models/{TUNED.id}"
    assert server.client.get(path, headers=guest).status_code == 404
    permissions = f"/v1/fine_tuning/checkpoints/{TUNED.id}/permissions"
    reply = server.client.post(permissions, json={"project_ids": ["proj_guest", "proj_b"]})
    granted = reply.json()["data"]
    assert {entry["project_id"] for entry in granted} == {"proj_guest", "proj_b"}
    assert granted[0]["object"] == "checkpoint.permission"
    assert server.client.get(path, headers=guest).status_code == 200
    assert server.client.delete(path, headers=guest).status_code == 403

    one = server.client.get(permissions, params={"limit": 1, "order": "ascending"}).json()
    assert one["has_more"]
    two = server.client.get(
        permissions, params={"after": one["last_id"], "order": "ascending"}
    ).json()
    assert len(two["data"]) == 1
    picked = server.client.get(permissions, params={"project_id": "proj_guest"}).json()["data"]
    assert [entry["project_id"] for entry in picked] == ["proj_guest"]

    gone = server.client.delete(f"{permissions}/{picked[0]['id']}").json()
    assert gone == {"id": picked[0]["id"], "object": "checkpoint.permission", "deleted": True}
    assert server.client.get(path, headers=guest).status_code == 404


def test_permissions_are_for_administrators_of_the_owner(server: Served) -> None:
    permissions = f"/v1/fine_tuning/checkpoints/{TUNED.id}/permissions"
    submitter = server.caller(Role.SUBMIT)
    stranger = server.caller(Role.ADMIN, "other")
    assert server.client.get(permissions, headers=submitter).status_code == 403
    assert server.client.get(permissions, headers=stranger).status_code == 404
    body = {"project_ids": ["other"]}
    assert server.client.post(permissions, json=body, headers=stranger).status_code == 404
    assert server.client.post(permissions, json={"project_ids": []}).status_code == 400


def test_checkpoints_are_listed_latest_first_with_the_metrics_of_their_step(server: Served) -> None:
    data = {"step": 2, "train_mean_reward": 0.5, "full_valid_mean_reward": 0.75, "scores": {}}
    metrics = Event(
        level="info", message="Step 2/3", created_at=1.0, data=data, step=2, kind="metrics"
    )
    note = Event(level="info", message="Checkpoint created", created_at=2.0, step=2)
    server.home.store.append("ftjob-1", [metrics, note])
    path = "/v1/fine_tuning/jobs/ftjob-1/checkpoints"
    body = server.client.get(path).json()
    assert [entry["step_number"] for entry in body["data"]] == [3, 2, 1]
    assert body["first_id"] == body["data"][0]["id"]
    assert body["last_id"] == body["data"][2]["id"]
    second = body["data"][1]
    assert second["object"] == "fine_tuning.job.checkpoint"
    assert second["id"].startswith("ftckpt_")
    assert second["fine_tuned_model_checkpoint"] == f"{TUNED.id}:ckpt-step-2"
    assert second["fine_tuning_job_id"] == "ftjob-1"
    assert second["metrics"] == {
        "step": 2,
        "train_mean_reward": 0.5,
        "full_valid_mean_reward": 0.75,
    }
    slice_ = server.client.get(path, params={"after": body["first_id"], "limit": 1}).json()
    assert [entry["step_number"] for entry in slice_["data"]] == [2]
    assert slice_["has_more"]
    assert server.client.get(path, params={"after": "ftckpt_none"}).status_code == 404
