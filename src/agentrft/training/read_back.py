"""An exported model read by the libraries that others read it with: transformers, and PEFT.

Float32 whatever the file holds, so that what differs is the export and not the arithmetic.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What a model says of one sequence."""

    logprobs: tuple[float, ...]
    """Of every token after the first."""
    shortfalls: tuple[float, ...]
    """How much likelier the likeliest token would have been, in nats: 0 where greedy decoding
    takes the sequence's own token."""


@torch.inference_mode()
def read_model(
    folder: Path,
    sequences: Sequence[Sequence[int]],
    *,
    gguf_file: str | None = None,
    adapter: Path | None = None,
) -> list[Reading]:
    """Load a model folder, or a GGUF file in it, or an adapter on top of it, and read sequences."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()

    options: dict[str, Any] = {} if gguf_file is None else {"gguf_file": gguf_file}
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    if adapter is not None:
        from peft import PeftModel

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # PEFT's, of transformers
            model = PeftModel.from_pretrained(model, adapter)
    model.eval()
    return [_read(model(torch.tensor([list(ids)])).logits[0], ids) for ids in sequences]


def _read(logits_TV: Tensor, ids: Sequence[int]) -> Reading:
    logprobs_TV = torch.log_softmax(logits_TV[:-1].float(), dim=-1)
    own = logprobs_TV.gather(1, torch.tensor(list(ids[1:]))[:, None])[:, 0]
    best = logprobs_TV.max(dim=-1).values
    return Reading(logprobs=tuple(own.tolist()), shortfalls=tuple((best - own).tolist()))
