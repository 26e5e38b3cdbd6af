"""Tiny random models in float32, saved the way transformers saves them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen2Config,
    Qwen3Config,
)

SIZES: dict[str, Any] = {
    "vocab_size": 300,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.25,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
LLAMA3: dict[str, Any] = {
    "attention_bias": True,
    "mlp_bias": True,
    "rope_parameters": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}
FAMILIES: dict[str, tuple[Callable[..., PretrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": True}),
    "llama3": (LlamaConfig, LLAMA3),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": False}),
    "qwen3": (Qwen3Config, {"head_dim": 16, "tie_word_embeddings": True}),
    # These run through transformers: learned positions, and windows narrower than the prompts.
    "gpt2": (GPT2Config, {}),
    "gemma2": (Gemma2Config, {"head_dim": 16, "sliding_window": 32}),
}


def save(family: str, folder: Path, *, seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Save a random model whose biases and norms are not at their neutral start."""
    torch.manual_seed(seed)
    config_type, special = FAMILIES[family]
    config = config_type(**SIZES | special | overrides)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="session")
def save_model() -> Callable[..., PreTrainedModel]:
    return save


@pytest.fixture(params=sorted(FAMILIES))
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama-shaped model that many tests share."""
    folder = tmp_path_factory.mktemp("llama")
    save("llama", folder)
    return folder
