"""The fake trainer counts, records and saves like the real one."""

from pathlib import Path

from agentrft.core.protocols import Trainer
from agentrft.training.credit import imitation
from agentrft.training.recording import RecordingTrainer

SAMPLE = imitation((1, 2, 3), (False, True, True), "demo")


def test_it_records_batches_and_counts_versions() -> None:
    fake = RecordingTrainer(canaries=[(1, 2, 3)])
    trainer: Trainer = fake
    assert trainer.step([]) == {}
    trainer.step([SAMPLE])
    assert trainer.weights().version == 1
    assert trainer.weights().canaries[0].logprobs == (-0.5, -0.5)
    assert fake.batches == [(SAMPLE,)]


def test_it_resumes_where_it_saved(tmp_path: Path) -> None:
    trainer = RecordingTrainer()
    trainer.step([SAMPLE])
    trainer.save(tmp_path / "step-1", {"row": 4})
    resumed = RecordingTrainer.resumed(tmp_path / "step-1")
    assert (resumed.steps_done, dict(resumed.cursor)) == (1, {"row": 4})
