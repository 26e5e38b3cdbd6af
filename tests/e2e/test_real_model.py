"""The one suite that uses the real default model: the whole climb, and sampler against trainer."""

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from agentrft.core.config import EngineConfig
from agentrft.core.run import RolloutRecord, RunStatus, StepMetrics
from agentrft.core.training_config import Optimizer, TrainerConfig
from agentrft.core.trajectory import Trajectory
from agentrft.inference.embedded.engine import EmbeddedEngine
from agentrft.inference.renderer import load_renderer
from agentrft.jobs.project import open_project
from agentrft.jobs.starter import write_starter
from agentrft.jobs.supervised import rendered
from agentrft.rollout.dialogue import TokenSpeaker
from agentrft.rollout.episode import recorded_ids
from agentrft.rollout.group import Collected, collect
from agentrft.store.home import Home
from agentrft.training.credit import credited
from agentrft.training.trainer import LocalTrainer

FEW = """
[methods.evaluation]
tasks = 2
"""


@pytest.fixture(scope="module")
def project_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter project, cut down to a few steps."""
    folder = tmp_path_factory.mktemp("real") / "loans"
    write_starter(folder)
    config = folder / "agent.toml"
    text = config.read_text().replace("steps = 8", "steps = 2").replace("steps = 4", "steps = 2")
    text = text.replace("tasks_per_step = 4", "tasks_per_step = 2")
    text = text.replace("samples = 4", "samples = 1").replace("rollouts = 400", "rollouts = 60")
    config.write_text(text.replace("group_size = 8", "group_size = 4") + FEW)
    return folder


def test_improve_survives_an_interruption_and_climbs_to_a_report(
    project_folder: Path, smollm2_folder: Path, tmp_path: Path
) -> None:
    models = tmp_path / "home" / "models"
    models.mkdir(parents=True)
    (models / smollm2_folder.name).symlink_to(smollm2_folder)
    command = [
        *(sys.executable, "-c", "from agentrft.cli import main; main()", "improve"),
        *(str(project_folder), "--home", str(tmp_path / "home")),
    ]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as interrupted:
        assert interrupted.stdout is not None
        assert interrupted.stderr is not None
        for line in interrupted.stdout:
            if "supervised: steps 1/" in line:
                interrupted.send_signal(signal.SIGTERM)
        assert "--resume" in interrupted.stderr.read()
    assert interrupted.returncode == 130

    shown = subprocess.run([*command, "--resume"], capture_output=True, text=True, check=False)
    assert shown.returncode == 0, shown.stderr
    assert "search: baseline" not in shown.stdout
    for stage in ("base", "warm start", "reinforcement"):
        assert stage in shown.stdout

    home = Home.open(tmp_path / "home")
    runs = {run.id.partition(".")[2]: run for run in home.store.runs().items}
    assert {run.status for run in runs.values()} == {RunStatus.SUCCEEDED}
    tuned = runs["reinforcement"].id
    steps = home.store.read(tuned, StepMetrics).items
    assert [step.step for step in steps] == [1, 2]
    rollouts = home.store.read(tuned, RolloutRecord).items
    assert len(rollouts) == 2 * 2 * 4
    report = home.report(runs[""].id)
    document = json.loads((report / "report.json").read_text())
    names = [stage["name"] for stage in document["stages"] if stage["name"] != "spec"]
    assert names == ["base", "warm start", "reinforcement"]
    assert [advice["rule"] for advice in document["advice"]][:2] == ["R6", "R9"]
    assert "plotly" in (report / "report.html").read_text().lower()
    checkpoint = home.store.latest_checkpoint(tuned)
    assert checkpoint is not None
    assert (Path(checkpoint.path) / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(("dtype", "bound"), [("float32", 1e-4), ("bfloat16", 0.03)])
def test_trainer_and_sampler_agree_on_real_rollouts_of_a_warm_policy(
    project_folder: Path,
    smollm2_folder: Path,
    dtype: Literal["float32", "bfloat16"],
    bound: float,
) -> None:
    project, renderer = open_project(project_folder), load_renderer(smollm2_folder)
    config = TrainerConfig(dtype=dtype, optimizer=Optimizer(learning_rate=1e-3))
    trainer = LocalTrainer(smollm2_folder, config, loss="cross_entropy", canaries=[], seed=0)
    for _ in range(4):
        trainer.step(rendered(project.demonstrations()[:3], project, renderer))
    engine = EmbeddedEngine(smollm2_folder, EngineConfig(dtype=dtype), max_context_tokens=768)

    async def rollouts() -> Collected:
        await engine.load(trainer.weights())
        setup = project.setup(TokenSpeaker(engine, renderer))
        return await collect(setup, project.tasks("train")[:2], group_size=2, seed=1)

    try:
        collected = asyncio.run(rollouts())
    finally:
        engine.close()
    trajectories = [g.trajectory for group in collected.groups for g in group.graded]
    assert len(trajectories) == 4
    assert np.mean([difference(trainer, trajectory) for trajectory in trajectories]) < bound


def difference(trainer: LocalTrainer, trajectory: Trajectory) -> float:
    """Mean absolute difference between behaviour logprobs and the trainer's own, in nats."""
    (sample,) = credited(trajectory, [1.0] * len(trajectory.turns), temperature=1.0)
    assert sample.token_ids == recorded_ids(trajectory.turns)
    (scored,) = trainer.score([sample.token_ids])
    mask = np.asarray(sample.action_mask[1:])
    behavior = np.asarray(sample.behavior_logprobs[1:])
    return float(np.abs(np.asarray(scored) - behavior)[mask].mean())
