"""What trainer and checkpoint hand to vLLM is the adapter behind the weights, in PEFT's format."""

from pathlib import Path

import torch
from peft import PeftModel
from tiny_teacher import lesson, teacher_of
from transformers import AutoModelForCausalLM

from agentrft.core.policy import Weights
from agentrft.inference.embedded.checkpoint import read_checkpoint


def written(weights: Weights, folder: Path) -> Path:
    folder.mkdir()
    assert weights.write_adapter is not None
    weights.write_adapter(folder)
    return folder


def test_the_adapter_is_that_of_the_weights_whatever_is_trained_since(
    chat_model: Path, tmp_path: Path
) -> None:
    teacher = teacher_of(chat_model)
    teacher.step([lesson()])
    weights = teacher.weights()
    teacher.save(tmp_path / "checkpoint", {})
    teacher.step([lesson()])
    folder = written(weights, tmp_path / "published")
    base = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    merged = PeftModel.from_pretrained(base, str(folder)).merge_and_unload().state_dict()
    for name, tensor in weights.tensors.items():
        assert torch.allclose(merged[name], tensor, atol=1e-6)
    again = written(read_checkpoint(tmp_path / "checkpoint", chat_model), tmp_path / "served")
    for file in folder.iterdir():
        assert (again / file.name).read_bytes() == file.read_bytes()


def test_weights_that_all_train_have_no_adapter(chat_model: Path) -> None:
    teacher = teacher_of(chat_model, kind="full")
    assert teacher.weights().write_adapter is None
