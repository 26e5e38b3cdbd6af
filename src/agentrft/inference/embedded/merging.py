"""A checkpoint and its base model as one ordinary model folder."""

import shutil
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file

from agentrft.inference.embedded.checkpoint import read_checkpoint

_BESIDE = ("*.json", "*.txt", "*.model", "*.jinja", "LICENSE*")
"""What stands beside the weights of a model folder."""
_OURS = ("manifest.json", "model.safetensors.index.json")


def copy_beside(base: Path, folder: Path) -> None:
    """Copy config, tokenizer, chat template and licence of a model, not its weights."""
    for pattern in _BESIDE:
        for file in base.glob(pattern):
            if file.name not in _OURS:
                shutil.copyfile(file, folder / file.name)


def write_merged(checkpoint: Path, base: Path, folder: Path) -> None:
    """Write the trained weights, merged in float32, in the formats and files of the base model.

    Raises SamplerError for a checkpoint that is damaged or belongs to another model.
    """
    trained = read_checkpoint(checkpoint, base).tensors
    copy_beside(base, folder)
    for path in sorted(base.glob("model*.safetensors")):
        with safe_open(path, framework="pt") as file:
            own = {name: file.get_tensor(name) for name in file.keys()}
        merged = {name: trained.get(name, tensor).to(tensor.dtype) for name, tensor in own.items()}
        save_file(merged, folder / path.name, metadata={"format": "pt"})
    index = base / "model.safetensors.index.json"
    if index.is_file():
        shutil.copyfile(index, folder / index.name)
