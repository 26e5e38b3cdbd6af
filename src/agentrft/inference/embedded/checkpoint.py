"""A trained checkpoint folder as weights to serve: checked, merged, and with its proof of identity."""

import hashlib
import json
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from agentrft.core.errors import SamplerError
from agentrft.core.policy import Canary, Weights
from agentrft.inference.cache import find_damage

_PREFIX = "base_model.model."
_FACTOR_A = ".lora_A.weight"


def read_checkpoint(checkpoint: Path, base: Path) -> Weights:
    """Return what a checkpoint changes of its base model, merged in float32.

    Canaries are empty in folders written before there were any. Raises SamplerError for a folder
    that is damaged, by its manifest, or belongs to another model.
    """
    if damage := find_damage(checkpoint, hashes=True):
        raise SamplerError(f"the fine-tuned model cannot be served: {damage}")
    try:
        record = json.loads((checkpoint / "trainer.json").read_text())
        config = hashlib.sha256((base / "config.json").read_bytes()).hexdigest()[:16]
        if record["base"] != config:
            raise SamplerError(
                f"checkpoint {checkpoint} belongs to model {record['base_name']!r}, not to "
                f"{base.name!r}"
            )
        full = record["kind"] == "full"
        return Weights(
            version=record["steps_done"],
            tensors=_read(checkpoint / "model.safetensors") if full else _merge(checkpoint, base),
            canaries=_read_canaries(checkpoint / "canaries.json"),
            write_adapter=None if full else partial(_copy_adapter, checkpoint),
        )
    except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
        raise SamplerError(f"checkpoint {checkpoint} cannot be read: {error}") from error


def _copy_adapter(checkpoint: Path, folder: Path) -> None:
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copyfile(checkpoint / name, folder / name)


def _merge(checkpoint: Path, base: Path) -> dict[str, Tensor]:
    """Return W + alpha / r * B A for every layer that the adapter touches."""
    factors = _read(checkpoint / "adapter_model.safetensors")
    settings: dict[str, Any] = json.loads((checkpoint / "adapter_config.json").read_text())
    scale = settings["lora_alpha"] / settings["r"]
    layers = [
        name.removeprefix(_PREFIX).removesuffix(_FACTOR_A)
        for name in factors
        if name.endswith(_FACTOR_A)
    ]
    weights = {f"{layer}.weight" for layer in layers}
    bases: dict[str, Tensor] = {}
    for path in sorted(base.glob("model*.safetensors")):
        bases |= _read(path, only=weights)
    return {
        f"{layer}.weight": torch.addmm(
            bases[f"{layer}.weight"].float(),
            factors[f"{_PREFIX}{layer}.lora_B.weight"].float(),
            factors[f"{_PREFIX}{layer}{_FACTOR_A}"].float(),
            alpha=scale,
        )
        for layer in layers
    }


def _read(path: Path, *, only: set[str] | None = None) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys() if only is None or name in only}


def _read_canaries(path: Path) -> tuple[Canary, ...]:
    if not path.exists():
        return ()
    return tuple(
        Canary(token_ids=tuple(one["token_ids"]), logprobs=tuple(one["logprobs"]))
        for one in json.loads(path.read_text())
    )
