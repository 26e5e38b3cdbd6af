"""Reinforcement with rollouts from vLLM: real weights, real adapters, tiny."""

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import pytest

from agentrft.core.errors import ConfigError
from agentrft.core.run import Method, RolloutRecord, StepMetrics
from agentrft.core.training_config import Adapter
from agentrft.jobs.context import Job
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import Project, open_project
from agentrft.jobs.serving import served_model
from agentrft.jobs.stages import reinforcement
from agentrft.store.home import Home

TOOLS = """
from agentrft import Environment

class Odd(Environment):
    def grade(self, trajectory) -> float:
        return sum(trajectory.turns[0].action_ids) % 5 / 4
"""
TOML = """
name = "odd"
model = "{model}"
environment = "tools.py:Odd"
[limits]
max_turns = 1
max_turn_tokens = 8
max_context_tokens = 250
[engine]
max_sequences = 8
dtype = "float32"
[engine.vllm]
executable = "{executable}"
kv_cache_bytes = 67108864
[methods.reinforcement]
steps = 2
tasks_per_step = 2
group_size = 4
identity_bound = 0.002
[methods.reinforcement.trainer]
dtype = "float32"
device = "cpu"
threads = 1
optimizer = {{ learning_rate = 1e-2, warmup_steps = 0 }}
"""


def a_project(folder: Path, model: Path, executable: str) -> Project:
    folder.mkdir()
    (folder / "tools.py").write_text(TOOLS)
    (folder / "agent.toml").write_text(TOML.format(model=model, executable=executable))
    lines = [
        {"id": f"t{n}", "messages": [{"role": "user", "content": f"Say {n}."}]} for n in range(4)
    ]
    (folder / "train.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return open_project(folder)


def a_job(home: Path) -> Job:
    run = Job.start(
        Home.open(home),
        "odd",
        Method.IMPROVE,
        config={},
        seed=5,
        progress=SilentProgress(),
        stop=asyncio.Event(),
        run_id="run-1",
    )
    # A stage of an improvement, which has audited the grader.
    return run.child("training", Method.REINFORCEMENT)


def test_rollouts_of_vllm_train_the_policy_and_each_step_is_sampled_by_the_last_one(
    real_vllm: str, chat_model: Path, tmp_path: Path
) -> None:
    project, job = a_project(tmp_path / "odd", chat_model, real_vllm), a_job(tmp_path / "home")

    async def train() -> None:
        with served_model(project, job.home, trained=True, job=job) as model:
            checkpoint = await reinforcement(job, model, None)
            assert model.changed(Path(checkpoint.path))

    asyncio.run(train())
    steps = job.read_all(StepMetrics)
    assert len(steps) == 2
    assert all(step.values["identity_difference"] < 0.002 for step in steps)
    versions = [record.graded.trajectory.versions for record in job.read_all(RolloutRecord)]
    assert versions == [(0, 0)] * 8 + [(1, 1)] * 8


def test_training_all_weights_is_refused_before_anything_is_started(
    chat_model: Path, tmp_path: Path
) -> None:
    project = a_project(tmp_path / "odd", chat_model, "no-such-vllm")
    methods = project.config.methods
    trainer = replace(methods.reinforcement.trainer, adapter=Adapter(kind="full"))
    methods = replace(methods, reinforcement=replace(methods.reinforcement, trainer=trainer))
    project = replace(project, config=replace(project.config, methods=methods))
    home = Home.open(tmp_path / "home")
    with (
        pytest.raises(ConfigError, match="adapter.kind to 'lora'"),
        served_model(project, home, trained=True),
    ):
        pass
