"""The fake trainer: records samples and counts versions, without tensors, in milliseconds."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from agentrft.core.policy import Canary, Weights
from agentrft.core.sample import Sample


class RecordingTrainer:
    """Implements `core.protocols.Trainer` without a model.

    Every canary token gets `logprob`, as `inference.scripted.ScriptedSampler` answers by default.
    """

    def __init__(self, *, canaries: Sequence[Sequence[int]] = (), logprob: float = -0.5) -> None:
        self.batches: list[tuple[Sample, ...]] = []
        """Samples of every step that had any."""
        self.saved: list[Path] = []
        self.cursor: Mapping[str, int] = {}
        self.steps_done = 0
        self._canaries = [tuple(ids) for ids in canaries]
        self._logprob = logprob

    def step(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        """Record the samples; none change nothing."""
        if not samples:
            return {}
        self.batches.append(tuple(samples))
        self.steps_done += 1
        return {
            "loss": 0.0,
            "samples": float(len(samples)),
            "action_tokens": float(sum(sample.action_tokens for sample in samples)),
            "sample_tokens": float(sum(len(sample.token_ids) for sample in samples)),
        }

    def measure(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        """Return what `step` would, and record nothing."""
        return {"loss": 0.0, "token_accuracy": 1.0, "samples": float(len(samples))}

    def weights(self) -> Weights:
        """Return no tensors under the next version."""
        return Weights(
            version=self.steps_done,
            tensors={},
            canaries=tuple(
                Canary(token_ids=ids, logprobs=(self._logprob,) * (len(ids) - 1))
                for ids in self._canaries
            ),
        )

    def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        """Return the constant log-probability for every token after the first."""
        return [[self._logprob] * (len(ids) - 1) for ids in sequences]

    def save(self, folder: Path, cursor: Mapping[str, int]) -> None:
        """Write the step count and the cursor as one small file."""
        folder.mkdir(parents=True, exist_ok=True)
        record = {"steps_done": self.steps_done, "cursor": dict(cursor)}
        (folder / "trainer.json").write_text(json.dumps(record))
        self.saved.append(folder)

    @classmethod
    def resumed(cls, folder: Path, *, canaries: Sequence[Sequence[int]] = ()) -> "RecordingTrainer":
        """Continue from what `save` wrote."""
        record = json.loads((folder / "trainer.json").read_text())
        trainer = cls(canaries=canaries)
        trainer.steps_done = record["steps_done"]
        trainer.cursor = record["cursor"]
        return trainer
