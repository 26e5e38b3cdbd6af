"""A checkpoint that changes nothing anybody would serve is recognised as one."""

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_training import config, samples, tiny_model

from agentrft.core.errors import ModelError, StoreError
from agentrft.training.change import changed
from agentrft.training.trainer import LocalTrainer


def _checkpoint(folder: Path, kind: str, to: Path, *, steps: int) -> Path:
    trainer = LocalTrainer(folder, config(kind), loss="policy_gradient", canaries=[], seed=1)
    for _ in range(steps):
        trainer.step(samples(4))
    trainer.save(to, {})
    return to


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_training_changes_a_model_and_none_does_not(tmp_path: Path, kind: str) -> None:
    folder = tiny_model(tmp_path / "model")
    assert not changed(_checkpoint(folder, kind, tmp_path / "none", steps=0), folder)
    assert changed(_checkpoint(folder, kind, tmp_path / "some", steps=2), folder)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_what_rounding_swallows_is_no_change(tmp_path: Path, kind: str) -> None:
    folder = tiny_model(tmp_path / "model")
    file = folder / "model.safetensors"
    stored = {name: tensor.bfloat16() for name, tensor in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    checkpoint = _checkpoint(folder, kind, tmp_path / "checkpoint", steps=0)
    weights = checkpoint / ("adapter_model.safetensors" if kind == "lora" else "model.safetensors")
    tensors = load_file(weights)
    moved = next(name for name in tensors if "lora_B" in name or "q_proj" in name)
    tensors[moved] = tensors[moved] + 1e-9
    save_file(tensors, weights)
    assert not changed(checkpoint, folder)
    tensors[moved] = tensors[moved] + 1.0
    save_file(tensors, weights)
    assert changed(checkpoint, folder)


def test_a_checkpoint_of_another_model_or_without_weights_is_refused(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    checkpoint = _checkpoint(folder, "lora", tmp_path / "checkpoint", steps=0)
    with pytest.raises(ModelError, match="belongs to model 'model', not to 'other'"):
        changed(checkpoint, tiny_model(tmp_path / "other", "qwen2"))
    (checkpoint / "adapter_model.safetensors").unlink()
    with pytest.raises(StoreError, match=r"adapter_model\.safetensors is missing"):
        changed(checkpoint, folder)
