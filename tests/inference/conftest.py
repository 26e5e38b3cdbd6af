"""Tiny tokenizers of every chat family, and tiny GGUF files, made on the spot."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer

from agentrft.inference.renderer import ChatRenderer, load_renderer

CORPUS = (
    "system user assistant tool Tools: Call a tool by writing the name and arguments",
    'order_id amount {"name": "get_order", "arguments": {"order_id": "W1234567"}} status: shipped',
    "<tool_call> </tool_call> <|im_start|> <|eot_id|> <tool_response> Where is my order? Thank you.",
)
QWEN_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
ZEPHYR_TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}</s>\n{% endfor %}"
    "{% if tools %}<|tools|>{{ tools | tojson }}</s>\n{% endif %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)

# Control tokens, and tokens like Qwen's tags that are added but not marked special.
FAMILIES: Mapping[str, tuple[str, list[str], list[str]]] = {
    "smollm2": ("llama", ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"], []),
    "qwen2": (
        "qwen2",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        ["<tool_call>", "</tool_call>"],
    ),
    "qwen3": (
        "qwen3",
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        [
            *("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>"),
            *("<think>", "</think>"),
        ],
    ),
    "llama3": (
        "llama",
        [
            *("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>"),
            *("<|eot_id|>", "<|eom_id|>", "<|python_tag|>"),
        ],
        [],
    ),
    "template": ("other", ["</s>", "<|user|>", "<|assistant|>", "<|system|>", "<|tools|>"], []),
}


def tiny_tokenizer(family: str) -> Tokenizer:
    """A byte-level BPE with the family's way of splitting text and its control tokens."""
    _, specials, tags = FAMILIES[family]
    tokenizer = Tokenizer(BPE())
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=family == "smollm2")
    split: Any = pre_tokenizers.Split(Regex(QWEN_PATTERN), behavior="isolated")
    if family == "smollm2":
        split = pre_tokenizers.Digits(individual_digits=True)
    if family.startswith("qwen"):
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=420,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=specials if family == "smollm2" else [],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.add_special_tokens(list(specials))
    tokenizer.add_tokens([AddedToken(tag, special=False, normalized=False) for tag in tags])
    return tokenizer


def write_family(family: str, folder: Path) -> Path:
    """Write what a renderer needs of a model folder."""
    folder.mkdir(parents=True, exist_ok=True)
    model_type, specials, _ = FAMILIES[family]
    tiny_tokenizer(family).save(str(folder / "tokenizer.json"))
    settings = {"eos_token": specials[0]}
    if family == "template":
        settings["chat_template"] = ZEPHYR_TEMPLATE
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.fixture(scope="session")
def write_chat_model() -> Callable[..., Path]:
    """Write a tiny random model that writes SmolLM2's chat format."""
    return _write_chat_model


def _write_chat_model(folder: Path, *, seed: int = 0) -> Path:
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=tiny_tokenizer("smollm2").get_vocab_size(),
        hidden_size=48,
        intermediate_size=80,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.25,
        tie_word_embeddings=True,
    )
    write_family("smollm2", folder)
    AutoModelForCausalLM.from_config(config).float().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def control_ids() -> Mapping[str, frozenset[int]]:
    """The ids that text must never become, by family."""
    ids: dict[str, frozenset[int]] = {}
    for family, (_, specials, tags) in FAMILIES.items():
        tokenizer = tiny_tokenizer(family)
        found = (tokenizer.token_to_id(token) for token in (*specials, *tags))
        ids[family] = frozenset(token for token in found if token is not None)
        assert len(ids[family]) == len(specials) + len(tags)
    return ids


@pytest.fixture(scope="session")
def family_folders(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """A folder of each family, without weights."""
    root = tmp_path_factory.mktemp("families")
    return {name: write_family(name, root / name) for name in FAMILIES}


@pytest.fixture(scope="session")
def renderers(family_folders: Mapping[str, Path]) -> Mapping[str, ChatRenderer]:
    """A renderer of each family."""
    return {name: load_renderer(folder) for name, folder in family_folders.items()}


@pytest.fixture(scope="session")
def write_gguf() -> Callable[..., Path]:
    """Write a tiny GGUF model of an architecture, as llama.cpp's converter lays it out."""
    return _write_gguf


def _write_gguf(path: Path, architecture: str = "llama", *, extra_tensor: str = "") -> Path:
    from gguf import GGMLQuantizationType, GGUFWriter, TokenType
    from gguf.quants import quantize

    hidden, heads, key_heads, wide, layers = 64, 4, 2, 96, 2
    head_size = 128 if architecture == "qwen3" else hidden // heads
    family = "smollm2" if architecture == "llama" else architecture
    description = json.loads(tiny_tokenizer(family).to_str())
    vocabulary: dict[str, int] = dict(description["model"]["vocab"])
    controls = {token["content"]: token for token in description["added_tokens"]}
    vocabulary |= {content: token["id"] for content, token in controls.items()}
    tokens = sorted(vocabulary, key=lambda token: vocabulary[token])
    writer = GGUFWriter(path, architecture)
    writer.add_block_count(layers)
    writer.add_context_length(128)
    writer.add_embedding_length(hidden)
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    if architecture == "qwen3":
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm" if architecture == "llama" else "qwen2")
    writer.add_token_list(tokens)
    kinds = [TokenType.NORMAL] * len(tokens)
    for token in controls.values():
        kinds[token["id"]] = TokenType.CONTROL if token["special"] else TokenType.USER_DEFINED
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in description["model"]["merges"]])
    writer.add_bos_token_id(vocabulary["<|endoftext|>"])
    writer.add_eos_token_id(vocabulary["<|im_end|>"])
    draw = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        weights = draw.normal(size=shape).astype(np.float32)
        if len(shape) == 1:
            writer.add_tensor(name, weights)
        else:
            kind = GGMLQuantizationType.Q8_0
            writer.add_tensor(name, quantize(weights, kind), raw_dtype=kind)

    add("token_embd.weight", len(tokens), hidden)
    add("output_norm.weight", hidden)
    for layer in range(layers):
        prefix = f"blk.{layer}"
        add(f"{prefix}.attn_norm.weight", hidden)
        add(f"{prefix}.ffn_norm.weight", hidden)
        for name, rows in (("q", heads), ("k", key_heads), ("v", key_heads)):
            add(f"{prefix}.attn_{name}.weight", rows * head_size, hidden)
            if architecture == "qwen2":
                add(f"{prefix}.attn_{name}.bias", rows * head_size)
            if architecture == "qwen3" and name != "v":
                add(f"{prefix}.attn_{name}_norm.weight", head_size)
        add(f"{prefix}.attn_output.weight", hidden, heads * head_size)
        add(f"{prefix}.ffn_gate.weight", wide, hidden)
        add(f"{prefix}.ffn_up.weight", wide, hidden)
        add(f"{prefix}.ffn_down.weight", hidden, wide)
    if extra_tensor:
        add(extra_tensor, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
