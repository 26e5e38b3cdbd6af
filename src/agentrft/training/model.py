"""A causal language model from a folder, and its forward over a micro-batch.

Shapes: as in `pack.py`, and E hidden width, V vocabulary.
"""

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from agentrft.core.errors import ModelError, boundary
from agentrft.training.decoder import Decoder
from agentrft.training.pack import MicroBatch
from agentrft.training.parameters import Gradients, Trainable
from agentrft.training.projection import action_logprobs

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageModel:
    """A model split where training needs it: everything below the vocabulary, and the projection."""

    causal: Any
    """The transformers model."""
    backbone: nn.Module
    head: nn.Linear
    decoder: Decoder | None
    """The fast pass over token trees; None for families that only transformers can run."""

    def logprobs(self, batch: MicroBatch, sums: Gradients | None) -> tuple[Tensor, Tensor, Tensor]:
        """Return of each action token what `action_logprobs` returns, (A,) each.

        The backward adds to `sums` what it does not leave to autograd; None: no backward.
        """
        hidden_TE = (
            self._padded_hidden(batch) if self.decoder is None else self.decoder.hidden(batch, sums)
        )
        logprobs_M, entropy_M, likeliest_M = action_logprobs(
            hidden_TE.index_select(0, batch.predictor_M),
            self.head.weight,
            self.head.bias,
            batch.target_M,
            batch.temperatures_M,
        )
        return (
            logprobs_M.index_select(0, batch.prediction_A),
            entropy_M.index_select(0, batch.prediction_A),
            likeliest_M.index_select(0, batch.prediction_A),
        )

    def _padded_hidden(self, batch: MicroBatch) -> Tensor:
        """Rows are whole samples here, as `pack(share=False)` lays them out."""
        rows = [batch.token_ids_T[branch.first : branch.last] for branch in batch.branches]
        input_ids = pad_sequence(rows, batch_first=True)
        real = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        output = self.backbone(input_ids=input_ids, attention_mask=real, use_cache=False)
        return output.last_hidden_state[real.bool()]


def load_causal(folder: Path, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a causal LM of transformers in the compute type. Raises ModelError."""
    from transformers import AutoModelForCausalLM

    with (
        boundary(ModelError, f"model {folder.name!r}: cannot be loaded from {folder}"),
        _no_progress_bars(),
    ):
        causal = cast(
            Any,
            AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True),
        )
    if causal.get_output_embeddings() is None or causal.base_model is causal:
        raise ModelError(
            f"model {folder.name!r}: its family {causal.config.model_type!r} does not separate the "
            "vocabulary projection; training supports Llama-, Qwen- and similarly built models"
        )
    causal.to(device)
    causal.eval()  # dropout would make the policy another one than the sampler's
    return causal


def language_model(causal: Any, trainable: Trainable, *, fast: bool = True) -> LanguageModel:
    """Return the model with the fast pass where its family has one; `fast=False` never does."""
    return LanguageModel(
        causal=causal,
        backbone=causal.base_model,
        head=causal.get_output_embeddings(),
        decoder=Decoder(causal, trainable) if fast and Decoder.supports(causal) else None,
    )


def compute_dtype(
    wanted: Literal["auto", "bfloat16", "float32"], device: torch.device
) -> torch.dtype:
    """Resolve `auto`: bfloat16 where the processor multiplies it natively, else float32."""
    if wanted != "auto":
        return DTYPES[wanted]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float32
    # Without these instructions oneDNN emulates bfloat16 and float32 is faster.
    processor = cast(Any, torch.cpu)  # no public name asks for them
    native = processor._is_amx_tile_supported() or processor._is_avx512_bf16_supported()  # noqa: SLF001
    return torch.bfloat16 if native else torch.float32


def compute_device(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """Resolve `auto`: a CUDA device if there is one. Raises ModelError if a wanted one is missing."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ModelError("trainer.device is 'cuda' but no CUDA device is visible; use 'auto'")
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(wanted)


def available_bytes(device: torch.device) -> int:
    """Return free memory of the device; for the CPU what the kernel says is available."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def count_weights(file: Path) -> int:
    """Return how many numbers a safetensors file holds. Raises ModelError."""
    try:
        with safe_open(file, "pt") as opened:
            return sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())
    except (OSError, SafetensorError) as error:
        raise ModelError(f"model file {file} cannot be read: {error}; fetch it again") from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
