"""What training changed of a model: whether anything, and the changed model. One layer at a time."""

import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from agentrft.core.errors import StoreError
from agentrft.training.checkpoint import MANIFEST, check_base, read_record
from agentrft.training.files import ADAPTER_PREFIX, MODEL_FILES, WEIGHT_FILES, each_tensor
from agentrft.training.parameters import merge

_INDEX = "model.safetensors.index.json"


def changed(checkpoint: Path, base: Path) -> bool:
    """Whether the checkpoint's weights, rounded as the base model stores its own, differ from them.

    Training that moves float32 masters by less than half a step of bfloat16 changes no model that
    anybody would serve. Raises StoreError or ModelError for folders that cannot be read, or do not
    belong together.
    """
    with _merged(checkpoint, base) as merged:
        return any(not torch.equal(merged(name, own), own) for name, own in each_tensor(base))


def write_merged(checkpoint: Path, base: Path, folder: Path) -> None:
    """Write the trained model as the base model is written: its files, tensors and number formats.

    Raises StoreError or ModelError as `changed` does.
    """
    copy_beside(base, folder)
    with _merged(checkpoint, base) as merged:
        for path in sorted(base.glob("model*.safetensors")):
            with safe_open(path, "pt") as own:
                tensors = {name: merged(name, own.get_tensor(name)) for name in own.keys()}
            save_file(tensors, folder / path.name, metadata={"format": "pt"})
            shutil.copymode(folder / "config.json", folder / path.name)  # else only we may read it
    if (base / _INDEX).is_file():
        shutil.copyfile(base / _INDEX, folder / _INDEX)


def copy_beside(base: Path, folder: Path) -> None:
    """Copy config, tokenizer, chat template and licence of a model, not its weights."""
    for pattern in (*MODEL_FILES, "LICENSE*"):
        for file in base.glob(pattern):
            if file.name not in (MANIFEST, _INDEX):
                shutil.copyfile(file, folder / file.name)


@contextmanager
def _merged(checkpoint: Path, base: Path) -> Iterator[Callable[[str, Tensor], Tensor]]:
    """Give what turns a named tensor of the base model into the trained one, rounded as it is."""
    record = read_record(checkpoint)
    check_base(record, base, checkpoint)
    path = checkpoint / WEIGHT_FILES[record.kind]
    if not path.exists():
        raise StoreError(f"checkpoint {checkpoint}: {path.name} is missing; take another one")
    scale = 0.0
    if record.kind == "lora":
        settings = json.loads((checkpoint / "adapter_config.json").read_text())
        scale = settings["lora_alpha"] / settings["r"]
    with safe_open(path, "pt") as trained:
        names = set(trained.keys())

        def merged(name: str, own: Tensor) -> Tensor:
            layer = ADAPTER_PREFIX + name.removesuffix(".weight")
            if record.kind == "full":
                return trained.get_tensor(name).to(own.dtype) if name in names else own
            if f"{layer}.lora_B.weight" not in names:
                return own
            a_KI = trained.get_tensor(f"{layer}.lora_A.weight")
            b_OK = trained.get_tensor(f"{layer}.lora_B.weight")
            return merge(own, a_KI, b_OK, scale).to(own.dtype)

        yield merged
