"""A Hugging Face folder as one GGUF file and an Ollama `Modelfile`, on the `gguf` library.

Llama-, Qwen2- and Qwen3-shaped models; anything it cannot say exactly is refused. Reads one tensor
at a time and needs no torch. The way back is `gguf.py`, which tests and exports check it with.
"""

import json
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from agentrft.core.config import Decoding
from agentrft.core.errors import ModelError, UserError
from agentrft.inference.gguf import tokenizer_of
from agentrft.inference.tokenizer import ChatTokenizer

if TYPE_CHECKING:
    from gguf import GGUFWriter

Precision = Literal["f16", "bf16", "q8_0"]

_FAMILIES = ("llama", "qwen2", "qwen3")
_FLAVOURS = ("smollm", "qwen2", "llama-bpe")
"""Ways of splitting text that llama.cpp knows by name and `gguf.py` reads back."""
_PROBE = (
    "Order W1234567, 3.14 and 42! It's 2026-11-22;\n\n\tdon't  WE'LL été naïve 東京 مرحبا 🙂🚀 a_b "
    "  indented\r\n<tag> x**2 // 1,000 ﬁ Ⅷ é"
)
_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_CONVERTED = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    path: Path
    dtype: str
    shape: tuple[int, ...]
    start: int
    """Of its bytes in the file."""

    def read(self) -> NDArray[np.float32]:
        """Return the tensor in float32, in which all three formats are exact."""
        raw = np.memmap(
            self.path, _CONVERTED[self.dtype], mode="r", offset=self.start, shape=self.shape
        )
        if self.dtype == "BF16":
            return (raw.astype(np.uint32) << 16).view(np.float32)
        return raw.astype(np.float32)


def write_gguf(folder: Path, target: Path, *, precision: Precision, name: str) -> None:
    """Write the model of a folder, its tokenizer and chat template included.

    Matrices get the precision, vectors stay float32. Raises ModelError for what GGUF or we cannot
    say: other families, rotary scaling, tokenizers that llama.cpp would split otherwise.
    """
    from gguf import GGUFWriter, LlamaFileType

    config = _json(folder / "config.json")
    family = str(config.get("model_type", ""))
    _check(config, family)
    writer = GGUFWriter(target, family)
    try:
        writer.add_name(name)
        _add_shape(writer, config)
        writer.add_file_type(
            {
                "f16": LlamaFileType.MOSTLY_F16,
                "bf16": LlamaFileType.MOSTLY_BF16,
                "q8_0": LlamaFileType.MOSTLY_Q8_0,
            }[precision]
        )
        writer.add_quantization_version(2)
        _add_tokenizer(writer, folder, int(config["vocab_size"]))
        _write_tensors(writer, folder, config, precision)
    finally:
        writer.close()


def _check(config: Mapping[str, Any], family: str) -> None:
    if family not in _FAMILIES:
        raise ModelError(
            f"models of type {family!r} cannot be written as GGUF here, only "
            f"{', '.join(_FAMILIES)}; export them as 'merged' and run llama.cpp's own "
            "convert_hf_to_gguf.py on the folder"
        )
    rope: Mapping[str, Any] = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind != "default":
        raise ModelError(
            f"the model scales its rotary embedding ({kind!r}), which is not written as GGUF here; "
            "export it as 'merged' and run llama.cpp's own convert_hf_to_gguf.py on the folder"
        )


def _add_shape(writer: "GGUFWriter", config: Mapping[str, Any]) -> None:
    heads, hidden = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or hidden // heads)
    rope: Mapping[str, Any] = config.get("rope_parameters") or {}
    writer.add_context_length(int(config["max_position_embeddings"]))
    writer.add_embedding_length(hidden)
    writer.add_block_count(int(config["num_hidden_layers"]))
    writer.add_feed_forward_length(int(config["intermediate_size"]))
    writer.add_head_count(heads)
    writer.add_head_count_kv(int(config.get("num_key_value_heads") or heads))
    writer.add_key_length(head_dim)
    writer.add_value_length(head_dim)
    writer.add_rope_dimension_count(head_dim)
    writer.add_rope_freq_base(float(rope.get("rope_theta") or config.get("rope_theta") or 10000.0))
    writer.add_layer_norm_rms_eps(float(config["rms_norm_eps"]))
    writer.add_vocab_size(int(config["vocab_size"]))


def _add_tokenizer(writer: "GGUFWriter", folder: Path, size: int) -> None:
    """Write vocabulary, merges and template under the name by which llama.cpp splits text."""
    from gguf import SpecialVocab

    description = _json(folder / "tokenizer.json")
    model: Mapping[str, Any] = description.get("model", {})
    if model.get("type") != "BPE" or "ByteLevel" not in json.dumps(description.get("decoder")):
        raise ModelError(
            f"{folder} has no byte-level BPE tokenizer, the one kind written as GGUF here; export "
            "it as 'merged' and run llama.cpp's own convert_hf_to_gguf.py on the folder"
        )
    tokens = [f"[PAD{place}]" for place in range(size)]
    types = [_UNUSED] * size
    for token, place in model["vocab"].items():
        tokens[place], types[place] = token, _NORMAL
    for added in description.get("added_tokens", ()):
        tokens[added["id"]] = added["content"]
        types[added["id"]] = _CONTROL if added.get("special") else _USER_DEFINED
    # The folder's chat template, whichever of its two places it is in.
    special = SpecialVocab(folder, load_merges=True, n_vocab=size)
    if special.chat_template is None and (template := folder / "chat_template.jinja").is_file():
        special.chat_template = template.read_text(encoding="utf-8")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(_flavour(folder, tokens, types, special.merges))
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    special.add_to_gguf(writer, quiet=True)


def _flavour(folder: Path, tokens: list[str], types: list[int], merges: list[str]) -> str:
    """Return the way of splitting that gives the model's own ids for a text full of traps."""
    own = ChatTokenizer(folder).plain(_PROBE)
    for flavour in _FLAVOURS:
        fields = {"tokens": tokens, "token_type": types, "merges": merges, "model": "gpt2"}
        named = {f"tokenizer.ggml.{key}": value for key, value in fields.items()}
        built = tokenizer_of({**named, "tokenizer.ggml.pre": flavour}, folder)
        built.encode_special_tokens = True
        if built.encode(_PROBE, add_special_tokens=False).ids == own:
            return flavour
    raise ModelError(
        f"the tokenizer of {folder} splits text unlike {', '.join(_FLAVOURS)}, so that a GGUF file "
        "would read prompts wrongly; export it as 'merged' and run llama.cpp's own converter"
    )


def _write_tensors(
    writer: "GGUFWriter", folder: Path, config: Mapping[str, Any], precision: Precision
) -> None:
    from gguf import MODEL_ARCH, GGMLQuantizationType, get_tensor_name_map
    from gguf.quants import quant_shape_to_byte_shape, quantize

    arch = MODEL_ARCH[str(config["model_type"]).upper()]
    names = get_tensor_name_map(arch, int(config["num_hidden_layers"]))
    wanted = {
        "f16": GGMLQuantizationType.F16,
        "bf16": GGMLQuantizationType.BF16,
        "q8_0": GGMLQuantizationType.Q8_0,
    }[precision]
    plan: list[tuple[str, _Tensor, GGMLQuantizationType]] = []
    for name, tensor in _tensors(folder):
        if name == "lm_head.weight" and config.get("tie_word_embeddings"):
            continue
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if target is None:
            raise ModelError(f"{folder} has a tensor {name!r} that has no name in GGUF")
        *rows, columns = tensor.shape
        kind = wanted if rows else GGMLQuantizationType.F32
        if kind is GGMLQuantizationType.Q8_0 and columns % 32:
            kind = GGMLQuantizationType.F16  # blocks hold 32 numbers
        size = quant_shape_to_byte_shape(tensor.shape, kind)
        writer.add_tensor_info(target, size, np.dtype(np.uint8), int(np.prod(size)), raw_dtype=kind)
        plan.append((name, tensor, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, tensor, kind in plan:
        array = _as_llama_cpp(name, tensor.read(), config)
        if kind is GGMLQuantizationType.F16 and np.abs(array).max() > np.finfo(np.float16).max:
            raise ModelError(f"{name} has numbers too large for f16; use bf16")
        writer.write_tensor_data(quantize(array, kind))


def _as_llama_cpp(
    name: str, array: NDArray[np.float32], config: Mapping[str, Any]
) -> NDArray[np.float32]:
    """Order the rows of llama's q and k as llama.cpp pairs rotary halves."""
    heads = int(config["num_attention_heads"])
    part = name.split(".")[-2]
    if config["model_type"] != "llama" or part not in ("q_proj", "k_proj"):
        return array
    if part == "k_proj":
        heads = int(config.get("num_key_value_heads") or heads)
    rows = array.shape[0]
    halves = array.reshape(heads, 2, rows // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


def _tensors(folder: Path) -> Iterator[tuple[str, _Tensor]]:
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header: dict[str, dict[str, Any]] = json.loads(file.read(length))
        for name, entry in header.items():
            if name == "__metadata__":
                continue
            if entry["dtype"] not in _CONVERTED:
                raise ModelError(f"{path}: {name} is stored as {entry['dtype']}; merge it first")
            start = 8 + length + entry["data_offsets"][0]
            yield (
                name,
                _Tensor(path=path, dtype=entry["dtype"], shape=tuple(entry["shape"]), start=start),
            )


def modelfile(
    *,
    template: str | None,
    system: str,
    decoding: Decoding,
    context_tokens: int,
    stop: tuple[str, ...],
) -> str:
    """Return an Ollama `Modelfile` for `model.gguf` beside it.

    Without a template of ours Ollama takes the one in the file. Raises UserError for a system text
    that a Modelfile cannot quote.
    """
    if '"""' in system:
        raise UserError(
            'the system text holds """, which a Modelfile cannot quote; change it in the spec'
        )
    lines = ["FROM ./model.gguf"]
    if template is not None:
        lines.append(f'TEMPLATE """{template.rstrip()}"""')
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines += [
        f"PARAMETER temperature {decoding.temperature:g}",
        f"PARAMETER top_p {decoding.top_p:g}",
        # Ollama's own, 40 and 1.1, would act as another policy than was trained.
        "PARAMETER top_k 0",
        "PARAMETER repeat_penalty 1",
        f"PARAMETER num_ctx {context_tokens}",
        *(f"PARAMETER stop {json.dumps(text, ensure_ascii=False)}" for text in stop),
    ]
    return "\n".join(lines) + "\n"


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}; copy the whole folder") from error
