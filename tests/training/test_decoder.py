"""The hand-written passes give transformers' own loss and gradients."""

from pathlib import Path

import pytest
import torch
from tiny_training import config, perturbed, samples, tiny_model

from agentrft.training.model import language_model
from agentrft.training.trainer import LocalTrainer


def _loss_and_gradients(
    folder: Path, kind: str, *, fast: bool, shared: int, temperature: float, budget: int
) -> tuple[float, dict[str, torch.Tensor]]:
    trainer = LocalTrainer(
        folder,
        config(kind, micro_batch_tokens=budget),
        loss="policy_gradient",
        canaries=[],
        seed=1,
    )
    perturbed(trainer)
    if not fast:
        trainer.model = language_model(trainer.model.causal, trainer.trainable, fast=False)
    batch = samples(7, shared=shared, temperature=temperature)
    loss, gradients = trainer.loss_and_gradients(batch)
    return loss, dict(gradients)


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("shared", [0, 20, 1100])
def test_a_token_tree_gives_the_loss_and_gradients_of_plain_padded_batches(
    tmp_path: Path, family: str, kind: str, shared: int
) -> None:
    folder = tiny_model(tmp_path / "model", family)
    plain, plain_gradients = _loss_and_gradients(
        folder, kind, fast=False, shared=shared, temperature=0.8, budget=100_000
    )
    tree, tree_gradients = _loss_and_gradients(
        folder, kind, fast=True, shared=shared, temperature=0.8, budget=100_000
    )
    assert tree == pytest.approx(plain, abs=1e-5)
    assert tree_gradients.keys() == plain_gradients.keys()
    for name, expected in plain_gradients.items():
        assert expected.abs().max() > 0, name
        torch.testing.assert_close(tree_gradients[name], expected, atol=1e-5, rtol=1e-4)


def test_micro_batches_add_up_to_the_whole_step(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    whole, whole_gradients = _loss_and_gradients(
        folder, "lora", fast=True, shared=20, temperature=1.0, budget=100_000
    )
    parts, part_gradients = _loss_and_gradients(
        folder, "lora", fast=True, shared=20, temperature=1.0, budget=64
    )
    assert parts == pytest.approx(whole, abs=1e-6)
    for name, expected in whole_gradients.items():
        torch.testing.assert_close(part_gradients[name], expected, atol=1e-6, rtol=1e-4)


def test_an_untied_head_trains_too(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model", tied=False)
    _, plain = _loss_and_gradients(
        folder, "full", fast=False, shared=20, temperature=1.0, budget=100_000
    )
    _, tree = _loss_and_gradients(
        folder, "full", fast=True, shared=20, temperature=1.0, budget=100_000
    )
    assert plain["lm_head.weight"].abs().max() > 0
    for name, expected in plain.items():
        torch.testing.assert_close(tree[name], expected, atol=1e-5, rtol=1e-4)
