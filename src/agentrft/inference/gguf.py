"""Turn a GGUF file into an ordinary Hugging Face folder, without torch.

Owns names, shapes and the tokenizer of the llama, qwen2 and qwen3 architectures; anything it does
not know is refused, never dropped. Weights are kept in float32, exactly as the source says them: in
bfloat16, small updates merged into them would be lost to the grid.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from agentrft.core.errors import ModelError

if TYPE_CHECKING:
    from gguf import GGUFReader
    from tokenizers import Tokenizer

_ARCHITECTURES = {
    "llama": "LlamaForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}

_TENSORS = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}

_QWEN2_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3_PATTERN = _QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|")

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
"""Token types of the GGUF specification that are not ordinary pieces."""


def convert(source: Path, folder: Path, *, progress: Callable[[float], None]) -> None:
    """Write config, weights and tokenizer of `source` into `folder`; raises ModelError.

    `progress` hears the share of tensors written, 0 to 1.
    """
    from gguf import GGUFReader

    try:
        reader = GGUFReader(source)
    except (ValueError, IndexError, KeyError) as error:
        raise ModelError(f"{source} is not a readable GGUF file: {error}") from error
    fields = {name: field.contents() for name, field in reader.fields.items()}
    architecture = str(fields.get("general.architecture", ""))
    if architecture not in _ARCHITECTURES:
        raise ModelError(
            f"{source} has architecture {architecture!r}; only {', '.join(_ARCHITECTURES)} can be "
            "converted. Use a safetensors version of this model."
        )
    config = _config(fields, architecture)
    tokenizer = tokenizer_of(fields, source)
    shapes = {tensor.name: tensor.shape for tensor in reader.tensors}
    config["vocab_size"] = int(shapes["token_embd.weight"][1])
    config["tie_word_embeddings"] = "output.weight" not in shapes
    config["attention_bias"] = "blk.0.attn_q.bias" in shapes
    _write_weights(reader, config, folder / "model.safetensors", progress)
    _write_json(folder / "config.json", config)
    ids = {k: config[k] for k in ("bos_token_id", "eos_token_id", "pad_token_id") if k in config}
    _write_json(folder / "generation_config.json", ids)
    tokenizer.save(str(folder / "tokenizer.json"))
    _write_json(folder / "tokenizer_config.json", _tokenizer_config(fields, config))


def _config(fields: Mapping[str, Any], architecture: str) -> dict[str, Any]:
    def read(key: str, default: object = None) -> Any:
        value = fields.get(f"{architecture}.{key}", default)
        if value is None:
            raise ModelError(f"the GGUF file has no {architecture}.{key}; it is incomplete")
        return value

    if f"{architecture}.rope.scaling.type" in fields:
        raise ModelError(
            "the GGUF file uses rotary scaling, which cannot be converted; "
            "use a safetensors version of this model"
        )
    heads = int(read("attention.head_count"))
    hidden = int(read("embedding_length"))
    config: dict[str, Any] = {
        "architectures": [_ARCHITECTURES[architecture]],
        "model_type": architecture,
        "hidden_size": hidden,
        "intermediate_size": int(read("feed_forward_length")),
        "num_hidden_layers": int(read("block_count")),
        "num_attention_heads": heads,
        "num_key_value_heads": int(read("attention.head_count_kv", heads)),
        "head_dim": int(read("attention.key_length", hidden // heads)),
        "max_position_embeddings": int(read("context_length")),
        # Files hold float32: 1e-5 reads back as 9.99999974e-06.
        "rms_norm_eps": float(f"{read('attention.layer_norm_rms_epsilon'):.6g}"),
        "rope_theta": float(read("rope.freq_base", 10000.0)),
        "hidden_act": "silu",
        "dtype": "float32",
    }
    for ours, theirs in (("bos", "bos"), ("eos", "eos"), ("pad", "padding")):
        if (token := fields.get(f"tokenizer.ggml.{theirs}_token_id")) is not None:
            config[f"{ours}_token_id"] = int(token)
    return config


def _write_weights(
    reader: "GGUFReader",
    config: Mapping[str, Any],
    path: Path,
    progress: Callable[[float], None],
) -> None:
    """Stream one tensor at a time in safetensors format, so that the largest bounds memory."""
    from gguf.quants import dequantize

    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for tensor in reader.tensors:
        shape = [int(size) for size in reversed(tensor.shape)]
        end = offset + 4 * int(tensor.n_elements)
        header[_tensor_name(tensor.name)] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for number, tensor in enumerate(reader.tensors, start=1):
            array = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
            if config["model_type"] == "llama" and ".attn_q." in tensor.name:
                array = unpermute(array, heads)
            if config["model_type"] == "llama" and ".attn_k." in tensor.name:
                array = unpermute(array, key_heads)
            file.write(np.ascontiguousarray(array).tobytes())
            progress(number / len(reader.tensors))


def _tensor_name(name: str) -> str:
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)", name)
    if match is None or match[2] not in _TENSORS:
        raise ModelError(f"the GGUF file has a tensor {name!r} that cannot be converted")
    layer = f"model.layers.{match[1]}." if match[1] is not None else ""
    return f"{layer}{_TENSORS[match[2]]}.{match[3]}"


def unpermute(array: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Undo the row order llama.cpp gives to llama's q and k, which pairs rotary halves."""
    rows = array.shape[0]
    paired = array.reshape(heads, rows // heads // 2, 2, *array.shape[1:])
    return paired.swapaxes(1, 2).reshape(array.shape)


def tokenizer_of(fields: Mapping[str, Any], source: Path) -> "Tokenizer":
    """Return the tokenizer that a GGUF file describes. Raises ModelError for kinds unknown here."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE

    kind, flavour = fields.get("tokenizer.ggml.model"), fields.get("tokenizer.ggml.pre")
    if kind != "gpt2" or flavour not in ("smollm", "qwen2", "llama-bpe"):
        raise ModelError(
            f"{source} has tokenizer {kind!r}/{flavour!r}, which cannot be converted; "
            "use a safetensors version of this model"
        )
    tokens = cast(list[str], fields["tokenizer.ggml.tokens"])
    types = cast(list[int], fields["tokenizer.ggml.token_type"])
    merges = [tuple(m.split(" ")) for m in cast(list[str], fields["tokenizer.ggml.merges"])]
    vocabulary = {
        token: i
        for i, (token, kind) in enumerate(zip(tokens, types, strict=True))
        if kind != _UNUSED
    }
    model = BPE(
        vocab=vocabulary,
        merges=cast(list[tuple[str, str]], merges),
        ignore_merges=flavour == "llama-bpe",
    )
    tokenizer = Tokenizer(model)
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=flavour == "smollm")
    if flavour == "smollm":
        split = pre_tokenizers.Digits(individual_digits=True)
    else:
        pattern = _QWEN2_PATTERN if flavour == "qwen2" else _LLAMA3_PATTERN
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
    if flavour == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    for token, kind in zip(tokens, types, strict=True):
        if kind in (_CONTROL, _USER_DEFINED):
            special = kind == _CONTROL
            tokenizer.add_tokens([AddedToken(token, special=special, normalized=False)])
    return tokenizer


def _tokenizer_config(fields: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, Any]:
    tokens = fields["tokenizer.ggml.tokens"]
    result: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": config["max_position_embeddings"],
        "clean_up_tokenization_spaces": False,
    }
    for name in ("bos", "eos", "pad"):
        if f"{name}_token_id" in config:
            result[f"{name}_token"] = tokens[config[f"{name}_token_id"]]
    if template := fields.get("tokenizer.chat_template"):
        result["chat_template"] = template
    return result


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
