import re
from dataclasses import replace
from pathlib import Path

from served import Served, demonstrations, served, tasks

from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.job import FineTuningJob, ReinforcementMethod
from agentrft.core.run import RolloutRecord, Split
from agentrft.core.task import Message
from agentrft.core.trajectory import Failure, FailureKind, StopReason, Trajectory, Turn
from agentrft.store.access import Role


def test_health_tells_what_works(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        assert server.client.get("/healthz").json() == {
            "status": "ok",
            "database": True,
            "chat": True,
            "worker_heartbeat_age_s": None,
        }
        body = {"model": "smollm2-135m", "training_file": server.upload(demonstrations())}
        server.client.post("/v1/fine_tuning/jobs", json=body)
        server.home.queue.claim("worker", 60)
        assert server.client.get("/healthz").json()["worker_heartbeat_age_s"] >= 0


def metric(server: Served, name: str) -> str:
    text = server.client.get("/metrics").text
    found = re.search(rf"^{re.escape(name)} (.*)$", text, re.MULTILINE)
    assert found is not None, text
    return found[1]


def test_metrics_count_by_route_and_never_by_what_callers_write(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        for job in ("ftjob-1", "ftjob-2"):
            server.client.get(f"/v1/fine_tuning/jobs/{job}")
        for path in ("/x1", "/x2", "/v1/x3"):
            server.client.get(path)
        route = "/v1/fine_tuning/jobs/{job_id}"
        name = f'agentrft_requests_total{{method="GET",route="{route}",status="404"}}'
        assert metric(server, name) == "2.0"
        name = 'agentrft_requests_total{method="any",route="none",status="404"}'
        assert metric(server, name) == "3.0"
        assert metric(server, "agentrft_queue_age_seconds") == "0.0"
        body = {"model": "smollm2-135m", "training_file": server.upload(demonstrations())}
        server.client.post("/v1/fine_tuning/jobs", json=body)
        assert metric(server, 'agentrft_jobs{status="validating_files"}') == "1.0"
        assert metric(server, "agentrft_event_followers") == "0.0"
        assert server.client.get("/metrics", headers=server.caller(Role.SUBMIT)).status_code == 403


def test_the_page_shows_every_route_and_loads_nothing(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        document = server.client.get("/openapi.json").json()
        reply = server.client.get("/docs")
        for path in document["paths"]:
            assert path in reply.text
        assert not re.search(r"<script|https?://|<link|<img|javascript:", reply.text)
        policy = reply.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert reply.headers["content-type"].startswith("text/html")


def rollout(step: int, score: float | None, split: Split = "validation") -> RolloutRecord:
    failure = Failure(kind=FailureKind.GRADER, where="grader", message="down")
    trajectory = Trajectory(
        id=f"trace_{step}", task_id="t", model="m", spec_hash="h", seed=1,
        prompt=(Message(role="user", content="hello"),),
        turns=(
            Turn(
                observation_ids=(1, 2), action_ids=(3,), behavior_logprobs=(-0.5,),
                first_version=0, last_version=0,
                message=Message(role="assistant", content="hi"),
            ),
        ),
        stop_reason=StopReason.FINISHED,
    )  # fmt: skip
    grade = Grade(score=score, failure=None if score is not None else failure, grader="g")
    graded = GradedTrajectory(trajectory=trajectory, grade=grade)
    return RolloutRecord(stage="reinforcement", split=split, step=step, family="f", graded=graded)


def test_every_validation_can_be_opened_down_to_the_tokens(tmp_path: Path) -> None:
    with served(tmp_path) as server:
        job = FineTuningJob(
            id="ftjob-1", project="default", model="smollm2-135m", base="smollm2-135m",
            method=ReinforcementMethod(grader={}), training_file="file-1", seed=1, created_at=1.0,
        )  # fmt: skip
        server.home.queue.submit(job, {})
        server.home.queue.submit(replace(job, id="ftjob-2"), {})
        records = [rollout(2, 1.0), rollout(2, 0.0), rollout(2, None), rollout(4, 1.0)]
        server.home.store.append("ftjob-1", [*records, rollout(2, 0.3, "train")])
        path = "/v1/fine_tuning/jobs/ftjob-1"
        evaluations = server.client.get(f"{path}/evaluations").json()["data"]
        shown = [(e["step"], e["rollouts"], e["dropped"], e["score_mean"]) for e in evaluations]
        assert shown == [(2, 3, 1, 0.5), (4, 1, 0, 1.0)]
        assert evaluations[0]["eval_id"] == server.client.get(path).json()["eval_id"]

        page = server.client.get(f"{path}/evaluations/2/rollouts?limit=2").json()
        assert [line["score"] for line in page["data"]] == [1.0, 0.0]
        assert page["has_more"]
        rest = server.client.get(
            f"{path}/evaluations/2/rollouts", params={"after": page["last_id"]}
        ).json()
        assert [line["score"] for line in rest["data"]] == [None]

        record = page["data"][0]["id"]
        whole = server.client.get(f"{path}/rollouts/{record}").json()
        assert [message["content"] for message in whole["messages"]] == ["hello", "hi"]
        assert whole["trajectory"]["turns"][0]["action_ids"] == [3]
        assert whole["grade"]["score"] == 1.0
        assert (whole["gold"], whole["screened"]) == (None, "")
        known = page["data"][0]["trajectory_id"]
        assert known == whole["trajectory"]["id"]
        assert server.client.get(f"{path}/rollouts/{known}").json()["trajectory"]["id"] == known
        for name in (record, known, "trace_gone"):
            foreign = server.client.get(f"/v1/fine_tuning/jobs/ftjob-2/rollouts/{name}")
            assert foreign.status_code == 404
        assert server.client.get(f"{path}/rollouts/x").status_code == 400


def test_what_silent_workers_hold_is_queued_again_without_another_worker(tmp_path: Path) -> None:
    with served(tmp_path, silence_s=0.05) as server:
        file = server.upload(tasks())
        method = {
            "type": "reinforcement",
            "reinforcement": {
                "grader": {
                    "type": "string_check",
                    "name": "a",
                    "input": "a",
                    "reference": "a",
                    "operation": "eq",
                }
            },
        }
        body = {"model": "smollm2-135m", "training_file": file, "method": method}
        job = server.client.post("/v1/fine_tuning/jobs", json=body).json()["id"]
        server.home.queue.claim("worker", 0.01)
        path = f"/v1/fine_tuning/jobs/{job}"
        for _ in range(2000):
            if server.client.get(path).json()["worker"] is None:
                break
        assert server.client.get(path).json()["worker"] is None
        messages = [e["message"] for e in server.client.get(f"{path}/events").json()["data"]]
        assert any("silent" in message for message in messages)
