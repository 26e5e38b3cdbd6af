"""Fine-tuning jobs on the real default model and the support desk's tools over HTTP."""

import asyncio
import importlib
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from agentrft.core.config import HttpTool
from agentrft.core.job import (
    FineTuningJob,
    JobStatus,
    ReinforcementMethod,
    SupervisedMethod,
    Wish,
)
from agentrft.core.run import Event, RolloutRecord, StepMetrics
from agentrft.jobs.worker import WorkerConfig, work
from agentrft.store.home import Home
from agentrft.training.checkpoint import verify_checkpoint

EXAMPLES = Path(__file__).parents[2] / "examples"
DESK = EXAMPLES / "support_desk"
TOOLS: list[dict[str, Any]] = json.loads((EXAMPLES / "openai_client" / "tools.json").read_text())
PROJECT = "default"
GRADER = {
    "type": "string_check",
    "name": "has_comma",
    "input": "{{ sample.output_text }}",
    "reference": ",",
    "operation": "like",
}
"""What a model that was hardly taught does now and then."""


@pytest.fixture(scope="module")
def desk_url() -> Iterator[str]:
    """The desk's own server, on a free port."""
    sys.path.insert(0, str(DESK))
    with importlib.import_module("server").DeskServer(0) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture(scope="module")
def home(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Home]:
    folder = tmp_path_factory.mktemp("jobs")
    (folder / "models").mkdir()
    (folder / "models" / smollm2_folder.name).symlink_to(smollm2_folder)
    home = Home.open(folder)
    home.access.create_project(PROJECT)
    yield home
    home.close()


def uploaded(home: Home, split: str, count: int) -> str:
    lines = (DESK / f"{split}.jsonl").read_text().splitlines()[:count]
    system = {"role": "system", "content": (DESK / "system.txt").read_text().strip()}
    rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
    with home.files.receive(PROJECT, f"{split}.jsonl", "fine-tune") as incoming:
        for row in rows:
            row |= {"messages": [system, *row["messages"]], "tools": TOOLS}
            incoming.write(json.dumps(row).encode() + b"\n")
        return incoming.commit().id


def submitted(home: Home, job_id: str, method: Any, split: str, **fields: Any) -> None:
    job = FineTuningJob(
        id=job_id,
        project=PROJECT,
        model="smollm2-135m",
        base="smollm2-135m",
        method=method,
        seed=1,
        created_at=time.time(),
        training_file=uploaded(home, split, 10),
        **fields,
    )
    home.queue.submit(job, {})


def worked(home: Home, wishes: Callable[[], bool], job_id: str) -> None:
    """Run a worker until the job ends; `wishes` is asked again and again, until it says True."""

    async def main() -> None:
        stop = asyncio.Event()
        worker = asyncio.create_task(work(home, WorkerConfig(heartbeat_s=0.2), stop))
        async with asyncio.timeout(240.0):
            while True:
                if wishes() and home.queue.get(job_id).job.status.is_final:
                    break
                await asyncio.sleep(0.1)
        stop.set()
        await worker

    asyncio.run(main())


def told(home: Home, job_id: str) -> Sequence[str]:
    return [event.message for event in home.store.read(job_id, Event, limit=500).items]


def test_a_model_is_taught_then_reinforced_with_a_pause_in_the_middle(
    home: Home, desk_url: str
) -> None:
    teaching = SupervisedMethod(batch_size=4, n_epochs=1)
    submitted(home, "ftjob-taught", teaching, "demonstrations")
    worked(home, lambda: True, "ftjob-taught")
    taught = home.queue.get("ftjob-taught").job
    assert taught.status is JobStatus.SUCCEEDED, told(home, "ftjob-taught")
    assert taught.fine_tuned_model is not None
    start = home.catalogue.get(PROJECT, taught.fine_tuned_model)
    verify_checkpoint(Path(start.path))

    reinforcing = ReinforcementMethod(
        grader=GRADER,
        tools=tuple(
            HttpTool(name=name, server_url=f"{desk_url}/{name}")
            for name in (tool["function"]["name"] for tool in TOOLS)
        ),
        max_episode_steps=1,
        batch_size=5,
        n_epochs=1,
        compute_multiplier=0.25,
        eval_interval=1,
        reasoning_effort="low",
    )
    submitted(
        home,
        "ftjob-reinforced",
        reinforcing,
        "train",
        validation_file=uploaded(home, "validation", 1),
        start=start.path,
        metadata={"preflight": "warn"},
    )
    wished: list[Wish] = []

    def pause_after_a_step_and_resume() -> bool:
        state = home.queue.get("ftjob-reinforced")
        steps = home.store.read("ftjob-reinforced", StepMetrics).items
        if steps and not wished:
            wished.append(Wish.PAUSE)
            home.queue.wish("ftjob-reinforced", PROJECT, Wish.PAUSE)
        if state.job.status is JobStatus.PAUSED:
            snapshot = home.catalogue.of_job("ftjob-reinforced")[-1]
            verify_checkpoint(Path(snapshot.path))
            home.queue.resume("ftjob-reinforced", PROJECT)
        return state.job.status.is_final

    worked(home, pause_after_a_step_and_resume, "ftjob-reinforced")
    job = home.queue.get("ftjob-reinforced").job
    assert job.status is JobStatus.SUCCEEDED, told(home, "ftjob-reinforced")
    assert "Fine-tuning job paused" in told(home, "ftjob-reinforced")
    steps = home.store.read("ftjob-reinforced", StepMetrics).items
    assert [step.step for step in steps] == [1, 2]
    records = home.store.read("ftjob-reinforced", RolloutRecord, limit=500).items
    assert sum(r.split == "validation" for r in records) == 2
    graded = [r for r in records if r.graded.grade.score is not None]
    assert graded
    assert job.trained_tokens
