"""Masters and optimizer to safetensors and back, in the formats of PEFT and transformers."""

import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from agentrft.core.errors import ModelError, StoreError
from agentrft.core.training_config import Adapter

STATE = "trainer_state.safetensors"
ADAPTER_PREFIX = "base_model.model."
"""What PEFT puts before the names of layers."""
WEIGHT_FILES = {"lora": "adapter_model.safetensors", "full": "model.safetensors"}
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""What stands beside the weights of a model folder: config, tokenizer, chat template."""


def each_tensor(folder: Path) -> Iterator[tuple[str, Tensor]]:
    """Read the tensors of a model folder one by one as they are stored. Raises ModelError."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        raise ModelError(f"model {folder.name!r}: {folder} has no model.safetensors; convert it")
    for file in files:
        try:
            with safe_open(file, "pt") as opened:
                for name in opened.keys():
                    yield name, opened.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise ModelError(
                f"model file {file} cannot be read: {error}; fetch it again"
            ) from error


def write_weights(
    folder: Path, model_folder: Path, masters: Mapping[str, Tensor], adapter: Adapter
) -> None:
    """Write masters in float32 so that PEFT or transformers loads the folder."""
    tensors = {name: master.detach().cpu().contiguous() for name, master in masters.items()}
    save_file(tensors, folder / WEIGHT_FILES[adapter.kind], metadata={"format": "pt"})
    match adapter.kind:
        case "lora":
            text = json.dumps(peft_config(adapter, model_folder.name), indent=1)
            (folder / "adapter_config.json").write_text(text)
        case "full":
            for pattern in MODEL_FILES:
                for file in model_folder.glob(pattern):
                    if not file.name.endswith(".index.json"):
                        shutil.copyfile(file, folder / file.name)


def peft_config(adapter: Adapter, base_name: str) -> dict[str, object]:
    """Return `adapter_config.json` of an adapter, as PEFT reads it."""
    return {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": adapter.alpha,
        "lora_dropout": 0.0,
        "target_modules": sorted(adapter.targets),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": False,
        "inference_mode": True,
    }


@torch.no_grad()
def read_weights(folder: Path, masters: Mapping[str, nn.Parameter]) -> None:
    """Copy a checkpoint's weights into the masters. Raises StoreError if they do not match."""
    file = next((folder / name for name in WEIGHT_FILES.values() if (folder / name).exists()), None)
    if file is None:
        raise StoreError(f"checkpoint {folder}: no weights in it; take another checkpoint")
    stored = load_file(file)
    for name, master in masters.items():
        if name not in stored or stored[name].shape != master.shape:
            raise StoreError(
                f"checkpoint {folder}: {name} is missing or of another shape than {[*master.shape]}"
                "; use the adapter settings it was trained with"
            )
        master.copy_(stored[name])


def write_state(
    folder: Path,
    optimizer: torch.optim.Optimizer,
    masters: Mapping[str, nn.Parameter],
    reference: Mapping[str, Tensor],
) -> None:
    """Write optimizer moments by parameter name, torch's generators, and the reference's state."""
    tensors = {"rng.cpu": torch.get_rng_state(), **reference}
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    for name, master in masters.items():
        for key, value in optimizer.state.get(master, {}).items():
            tensors[f"optimizer.{key}.{name}"] = value.detach().cpu().contiguous()
    save_file(tensors, folder / STATE)


def read_state(
    folder: Path, optimizer: torch.optim.Optimizer, masters: Mapping[str, nn.Parameter]
) -> dict[str, Tensor]:
    """Restore what `write_state` wrote; return all of it, for the reference to take its part."""
    tensors = load_file(folder / STATE)
    torch.set_rng_state(tensors["rng.cpu"])
    if torch.cuda.is_available() and "rng.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["rng.cuda"])
    for name, master in masters.items():
        state = {
            key: tensors[f"optimizer.{key}.{name}"]
            for key in ("step", "exp_avg", "exp_avg_sq")
            if f"optimizer.{key}.{name}" in tensors
        }
        if state:
            optimizer.state[master] = {key: value.to(master.device) for key, value in state.items()}
    return tensors
