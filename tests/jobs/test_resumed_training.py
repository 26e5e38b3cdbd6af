"""Stopped amid its steps and resumed, a run on real weights ends bit for bit as one that was not."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from desk_model import a_desk, a_model, a_training, tiny_families

from agentrft.core.policy import Checkpoint
from agentrft.core.run import Method, RolloutRecord, StepMetrics
from agentrft.core.sample import Sample
from agentrft.inference.renderer import load_renderer
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.distillation import distillation
from agentrft.jobs.preference import preference
from agentrft.jobs.project import Project
from agentrft.jobs.rejection import rejection
from agentrft.jobs.serving import OpenTrainer
from agentrft.jobs.stages import warm_start
from agentrft.training.checkpoint import verify_checkpoint
from agentrft.training.trainer import LocalTrainer

RUN = {
    Method.SUPERVISED: warm_start,
    Method.REJECTION: rejection,
    Method.DISTILLATION: distillation,
    Method.PREFERENCE: preference,
}
HELD_OUT_PAIR = {
    "input": {"messages": [{"role": "user", "content": "where is W80?"}]},
    "preferred_output": [{"role": "assistant", "content": "W80 is sent."}],
    "non_preferred_output": [{"role": "assistant", "content": "I do not know."}],
}
EXACT = """
[data]
demonstrations = "demonstrations.jsonl"
held_out_demonstrations = "demonstrations.jsonl"
held_out_preferences = "pairs.jsonl"
[methods.supervised]
steps = 4
batch_size = 2
checkpoint_interval = 3
[methods.preference]
steps = 4
batch_size = 2
samples = 4
checkpoint_interval = 3
"""


class Stopping(LocalTrainer):
    """Asks a job to stop while it makes its third step."""

    def __init__(self, job: Job, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._job = job

    def step(self, samples: Sequence[Sample]) -> Any:
        if self.steps_done == 2:
            self._job.stop.set()
        return super().step(samples)


def trained(job: Job, project: Project, folder: Path, open_trainer: OpenTrainer) -> Checkpoint:
    model = a_model(project, load_renderer(folder), open_trainer)
    model = replace(model, verify=verify_checkpoint)
    return asyncio.run(RUN[job.run.method](job, model, None))


def weights_and_moments(checkpoint: Checkpoint) -> dict[str, bytes]:
    files = Path(checkpoint.path).glob("*.safetensors")
    found = {file.name: file.read_bytes() for file in files}
    assert len(found) >= 2
    return found


def last_look(job: Job) -> float:
    (last,) = (m for m in job.read_all(StepMetrics) if m.step == 4)
    assert 0.0 <= last.values["validation_token_accuracy"] <= 1.0
    return last.values["validation_loss"]


@pytest.mark.parametrize("method", RUN)
def test_a_resumed_run_ends_with_the_same_weights(tmp_path: Path, method: Method) -> None:
    folder = tiny_families._write_chat_model(tmp_path / "model")
    exact = "".join(
        f'[methods.{name}.trainer]\ndtype = "float32"\ndevice = "cpu"\nthreads = 1\n'
        "deterministic = true\n"
        for name in ("supervised", "rejection.supervised", "distillation.supervised", "preference")
    )
    project = a_desk(tmp_path / "desk", toml=EXACT + exact)
    (project.folder / "pairs.jsonl").write_text(json.dumps(HELD_OUT_PAIR))
    whole = a_training(tmp_path / "whole", method)
    expected = trained(whole, project, folder, partial(LocalTrainer, folder))
    job = a_training(tmp_path / "home", method)
    with pytest.raises(Stopped):
        trained(job, project, folder, partial(Stopping, job, folder))
    again = a_training(tmp_path / "home", method)
    result = trained(again, project, folder, partial(LocalTrainer, folder))
    assert weights_and_moments(result) == weights_and_moments(expected)
    assert [m.step for m in again.read_all(StepMetrics)] == [1, 2, 3, 4]
    assert len(again.read_all(RolloutRecord)) == len(whole.read_all(RolloutRecord))
    assert last_look(again) == last_look(whole)
    assert again.run.result["held_out_before"] == whole.run.result["held_out_before"]
