"""Whether training changed a model, told from files, one layer at a time."""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from agentrft.core.errors import StoreError
from agentrft.training.checkpoint import check_base, read_record
from agentrft.training.files import ADAPTER_PREFIX, WEIGHT_FILES, each_tensor
from agentrft.training.parameters import merge


def changed(checkpoint: Path, base: Path) -> bool:
    """Whether the checkpoint's weights, rounded as the base model stores its own, differ from them.

    Training that moves float32 masters by less than half a step of bfloat16 changes no model that
    anybody would serve. Raises StoreError or ModelError for folders that cannot be read, or do not
    belong together.
    """
    record = read_record(checkpoint)
    check_base(record, base, checkpoint)
    return any(
        not torch.equal(weight.to(stored.dtype), stored)
        for stored, weight in _both(checkpoint, base, record.kind)
    )


def _both(checkpoint: Path, base: Path, kind: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield each weight that training may change, as stored and as it is now."""
    path = checkpoint / WEIGHT_FILES[kind]
    if not path.exists():
        raise StoreError(f"checkpoint {checkpoint}: {path.name} is missing; take another one")
    with safe_open(path, "pt") as trained:
        names = set(trained.keys())
        if kind == "full":
            for name, stored in each_tensor(base):
                if name in names:
                    yield stored, trained.get_tensor(name)
            return
        settings = json.loads((checkpoint / "adapter_config.json").read_text())
        scale = settings["lora_alpha"] / settings["r"]
        for name, stored in each_tensor(base):
            layer = ADAPTER_PREFIX + name.removesuffix(".weight")
            if f"{layer}.lora_B.weight" in names:
                a_KI = trained.get_tensor(f"{layer}.lora_A.weight")
                b_OK = trained.get_tensor(f"{layer}.lora_B.weight")
                yield stored, merge(stored, a_KI, b_OK, scale)
