"""A server that speaks vLLM's protocol, on the path; and vLLM itself, wherever it is installed."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
NAMED, OURS = "AGENTRFT_TESTS_VLLM", HERE.parents[2] / ".bench" / "vllm" / "bin" / "python"


@pytest.fixture(scope="session")
def real_vllm() -> str:
    """What starts vLLM: its command, or the Python of its environment."""
    found = os.environ.get(NAMED) or shutil.which("vllm") or shutil.which(OURS)
    if not found:
        pytest.skip(f"no vLLM: {NAMED} names its command or the Python of its environment")
    return found


@pytest.fixture(scope="session")
def chat_model(
    tmp_path_factory: pytest.TempPathFactory, write_chat_model: Callable[..., Path]
) -> Path:
    """A tiny random model with heads as wide as vLLM's kernels want them."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder = write_chat_model(tmp_path_factory.mktemp("model") / "tiny")
    config = AutoConfig.from_pretrained(folder)
    config.hidden_size, config.num_attention_heads, config.head_dim = 128, 4, 32
    config.initializer_range = 0.15
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return folder
