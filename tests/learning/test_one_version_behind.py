"""Real engine, real trainer: what is rolled out while the step before trains, and learned from."""

import asyncio
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lab import a_job, reinforced, served, warmed
from recipes import REINFORCEMENT, TRAINER
from toys import BANDIT

from agentrft.core.config import Methods
from agentrft.core.errors import StoreError
from agentrft.core.run import Method, RolloutRecord, StepMetrics
from agentrft.core.sample import Sample
from agentrft.core.training_config import Optimizer
from agentrft.jobs.context import Job
from agentrft.training.trainer import LocalTrainer

QUICK = Optimizer(learning_rate=1e-2, warmup_steps=1)
SETTINGS = replace(
    REINFORCEMENT,
    steps=6,
    tasks_per_step=2,
    staleness=1,
    checkpoint_interval=3,
    validation_interval=6,
    trainer=replace(TRAINER, deterministic=True, optimizer=QUICK),
)
BEHIND = (0, 1, 1, 0, 1, 1)
"""Nothing runs ahead across the checkpoint after the third step."""
ROUNDING = 1e-4


@dataclass(frozen=True, kw_only=True)
class Found:
    """What a trainer finds of a batch before it learns from it."""

    moved: float
    """Greatest log-ratio of an action token under the weights about to change, in nats."""
    moved_before: float
    """The same under the weights one version older."""
    corrected: float
    """The loss with each token's ratio, by hand."""
    uncorrected: float
    """The loss if every ratio were 1."""


class Witness(LocalTrainer):
    """Looks at each batch first, and may be killed before one of them."""

    def __init__(self, *given: Any, killed_before: int, **named: Any) -> None:
        super().__init__(*given, **named)
        self._killed_before = killed_before
        self._older = self._masters()
        self.found: list[Found] = []

    def step(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        if self.steps_done + 1 == self._killed_before:
            raise StoreError("the disk is gone")
        ratios = list(self._log_ratios(samples))
        with torch.no_grad(), self.trainable.switched(self._older):
            older = list(self._log_ratios(samples))
        self.found.append(
            Found(
                moved=max(abs(ratio) for ratio, _ in ratios),
                moved_before=max(abs(ratio) for ratio, _ in older),
                corrected=sum(_loss(math.exp(ratio), a) for ratio, a in ratios) / len(samples),
                uncorrected=sum(_loss(1.0, a) for _, a in ratios) / len(samples),
            )
        )
        self._older = self._masters()
        return super().step(samples)

    def _masters(self) -> dict[str, torch.Tensor]:
        return {name: one.detach().clone() for name, one in self.trainable.masters.items()}

    def _log_ratios(self, samples: Sequence[Sample]) -> Iterator[tuple[float, float]]:
        """Of every action token to its behaviour logprob, with its advantage."""
        scored = self.score([sample.token_ids for sample in samples])
        for sample, logprobs in zip(samples, scored, strict=True):
            for place, acts in enumerate(sample.action_mask):
                if acts:
                    behavior = sample.behavior_logprobs[place]
                    yield logprobs[place - 1] - behavior, sample.advantages[place]


def _loss(ratio: float, advantage: float) -> float:
    settings = TRAINER.loss
    low, high = settings.bounds
    bounded = min(max(ratio, low), high)
    return -min(ratio * advantage, bounded * advantage) / settings.tokens_per_sequence


@dataclass(frozen=True, kw_only=True)
class Trained:
    job: Job
    witness: Witness
    files: Mapping[str, bytes]
    """Weights and the optimizer's state."""


def trained(warm: Path, folder: Path, *, killed_before: int = 0) -> Trained:
    """Train, or go on with what was killed in this folder."""
    job = a_job(folder, Method.REINFORCEMENT, 0)
    witnesses: list[Witness] = []

    def opened(*given: Any, **named: Any) -> Witness:
        witnesses.append(Witness(warm, *given, killed_before=killed_before, **named))
        return witnesses[-1]

    # One rollout at a time: batches of another size round otherwise.
    train = partial(reinforced, concurrency=1)
    with served(BANDIT, warm, folder, Methods(reinforcement=SETTINGS)) as model:
        checkpoint = asyncio.run(train(job, replace(model, open_trainer=opened)))
    files = {file.name: file.read_bytes() for file in Path(checkpoint.path).glob("*.safetensors")}
    assert len(files) >= 2
    return Trained(job=job, witness=witnesses[-1], files=files)


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return warmed(BANDIT, tmp_path_factory.mktemp("warm"), seed=0)


@pytest.fixture(scope="module")
def straight(warm: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return trained(warm, tmp_path_factory.mktemp("straight"))


def test_a_batch_is_from_the_older_policy_and_the_loss_corrects_for_that(straight: Trained) -> None:
    steps = [step.values for step in straight.job.read_all(StepMetrics)]
    assert tuple(step["staleness"] for step in steps) == BEHIND
    records = straight.job.read_all(RolloutRecord)
    for number, (step, found) in enumerate(zip(steps, straight.witness.found, strict=True)):
        turns = [
            turn
            for record in records
            if record.step == number + 1
            for turn in record.graded.trajectory.turns
        ]
        assert {turn.first_version for turn in turns} == {number - BEHIND[number]}
        assert step["loss"] == pytest.approx(found.corrected, rel=1e-3, abs=1e-6)
        if BEHIND[number]:
            assert found.moved_before < ROUNDING
            assert found.moved > 100 * ROUNDING
            assert abs(step["loss"] - found.uncorrected) > 1e-4
        else:
            assert found.moved < ROUNDING


def test_a_killed_run_ends_with_the_weights_of_one_that_was_not(
    warm: Path, straight: Trained, tmp_path: Path
) -> None:
    with pytest.raises(StoreError, match="the disk is gone"):
        trained(warm, tmp_path, killed_before=5)
    resumed = trained(warm, tmp_path)
    assert len(resumed.witness.found) == 3
    assert resumed.files == straight.files
