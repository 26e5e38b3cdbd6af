"""Where the numbers live: device, number format, threads and memory."""

import os
from pathlib import Path

import torch

from agentrft.core.errors import ModelError


def choose_device(name: str) -> torch.device:
    """`auto` is CUDA if there is one; raises ModelError for CUDA where there is none."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise ModelError("device is 'cuda' but no CUDA device is visible; use 'cpu' or 'auto'")
    return torch.device(name)


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """`auto` is bfloat16 on CUDA and on processors that multiply it natively, else float32."""
    if name == "auto":
        native = device.type == "cuda" or _multiplies_bfloat16()
        name = "bfloat16" if native else "float32"
    return torch.bfloat16 if name == "bfloat16" else torch.float32


def choose_threads(threads: int) -> int:
    """0 takes the physical cores."""
    return threads or int(torch.cpu.get_capabilities().get("num_physical_cores", 1))


def memory_beside(weights_bytes: int, folder: Path, device: torch.device) -> int:
    """Return the bytes left beside the weights; raises ModelError if they do not fit."""
    if device.type == "cuda":
        available = torch.cuda.mem_get_info(device)[0]
    else:
        available = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if weights_bytes > 0.9 * available:
        raise ModelError(
            f"model {str(folder)!r} needs {weights_bytes / 1e9:.1f} GB for its weights and the "
            f"machine has {available / 1e9:.1f} GB; take a smaller model"
        )
    return available - weights_bytes


def _multiplies_bfloat16() -> bool:
    abilities = torch.cpu.get_capabilities()
    return bool(abilities.get("amx_bf16") or abilities.get("avx512_bf16"))
