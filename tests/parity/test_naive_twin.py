"""The readable twin and the trainer agree on loss and gradients, and the twin runs as a script."""

import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import naive_rl
import pytest
import torch
from tiny_training import config, perturbed, samples, tiny_model

from agentrft.core.sample import Sample
from agentrft.training.credit import LossName
from agentrft.training.trainer import LocalTrainer

LOSSES = {"policy_gradient": naive_rl.policy_gradient, "cross_entropy": naive_rl.cross_entropy}


def _as_rollout(sample: Sample) -> naive_rl.Rollout:
    return naive_rl.Rollout(
        token_ids=list(sample.token_ids),
        action_mask=list(sample.action_mask),
        behavior_logprobs=list(sample.behavior_logprobs),
        advantage=max(sample.advantages, key=abs),
    )


def _batch(loss: LossName, trainer: LocalTrainer) -> list[Sample]:
    """Return samples near the policy, some beyond the clip, one beyond the sequence bound."""
    draw = random.Random(5)
    batch: list[Sample] = []
    for place, sample in enumerate(samples(9, shared=24)):
        scored = [0.0, *trainer.score([sample.token_ids])[0]]
        spread = 9.0 if place == 0 else 0.4
        batch.append(
            replace(
                sample,
                behavior_logprobs=tuple(
                    logprob + draw.uniform(-spread, spread) if action else 0.0
                    for logprob, action in zip(scored, sample.action_mask, strict=True)
                ),
                advantages=tuple(
                    abs(value) if loss == "cross_entropy" else value for value in sample.advantages
                ),
            )
        )
    return batch


def _plain_model(folder: Path, kind: str, checkpoint: Path) -> Any:
    """Load what the trainer trains with transformers and PEFT alone."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if kind == "full":
        return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, checkpoint, is_trainable=True).eval()


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("loss", ["policy_gradient", "cross_entropy"])
def test_trainer_and_naive_twin_have_the_same_loss_and_gradients(
    tmp_path: Path, kind: str, loss: LossName
) -> None:
    folder = tiny_model(tmp_path / "model")
    trainer = perturbed(LocalTrainer(folder, config(kind), loss=loss, canaries=[], seed=1))
    trainer.save(tmp_path / "checkpoint", {})
    model = _plain_model(folder, kind, tmp_path / "checkpoint")
    batch = _batch(loss, trainer)
    expected_loss, expected = naive_rl.loss_and_gradients(
        model, [_as_rollout(sample) for sample in batch], naive_rl.Config(), LOSSES[loss]
    )
    value, gradients = trainer.loss_and_gradients(batch)
    assert value == pytest.approx(expected_loss, abs=1e-5)
    assert len(gradients) == len(expected)
    for name, gradient in expected.items():
        ours = gradients[name.replace(".default", "")]
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(ours, gradient, atol=1e-5, rtol=1e-4)


def test_the_twin_runs_as_a_script() -> None:
    ran = subprocess.run(
        [sys.executable, naive_rl.__file__, "--steps", "2"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert "step 1: reward" in ran.stdout


def test_the_twin_stays_readable_in_one_sitting() -> None:
    assert len(Path(naive_rl.__file__).read_text().splitlines()) <= 250


def test_the_twin_learns_where_luck_alone_finds_the_reward() -> None:
    torch.manual_seed(0)
    settings = naive_rl.Config(learning_rate=1e-2, group_size=8, turn_tokens=8)
    curve = naive_rl.train(
        naive_rl.tiny_model().eval(), naive_rl.ByteTokenizer(), settings, steps=12, seed=0
    )
    assert sum(curve[-3:]) > 2 * sum(curve[:3])
