"""A model folder becomes a GGUF file that reads back as the same model."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agentrft.core.config import Decoding
from agentrft.core.errors import ModelError, UserError
from agentrft.inference.gguf import convert
from agentrft.inference.gguf_export import Precision, modelfile
from agentrft.inference.gguf_export import write_gguf as export_gguf
from agentrft.inference.tokenizer import ChatTokenizer

TEXT = "Order W1234567, 3.14! It's\n\n  été 東京 <|im_end|>"


def tensors(folder: Path) -> Mapping[str, NDArray[np.float32]]:
    from safetensors.numpy import load_file

    return load_file(folder / "model.safetensors")


@pytest.fixture
def model(write_gguf: Callable[..., Path], tmp_path: Path) -> Callable[[str], Path]:
    """A model folder of an architecture."""

    def made(architecture: str) -> Path:
        folder = tmp_path / architecture
        folder.mkdir()
        convert(write_gguf(tmp_path / "source.gguf", architecture), folder, progress=lambda _: None)
        return folder

    return made


def read_back(file: Path, folder: Path) -> Path:
    folder.mkdir()
    convert(file, folder, progress=lambda _: None)
    return folder


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize(("precision", "close"), [("f16", 1e-3), ("bf16", 8e-3), ("q8_0", 2e-2)])
def test_a_model_reads_back_as_itself(
    model: Callable[[str], Path],
    tmp_path: Path,
    architecture: str,
    precision: Precision,
    close: float,
) -> None:
    folder, file = model(architecture), tmp_path / "model.gguf"
    export_gguf(folder, file, precision=precision, name="a model")
    back = read_back(file, tmp_path / "back")
    before, after = tensors(folder), tensors(back)
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        scale = float(np.abs(tensor).max())
        assert np.abs(after[name] - tensor).max() <= close * scale, name
        if tensor.ndim == 1:
            assert np.array_equal(after[name], tensor)  # vectors stay as they were
    assert ChatTokenizer(back).encode(TEXT) == ChatTokenizer(folder).encode(TEXT)
    kept = ("hidden_size", "num_key_value_heads", "head_dim", "rope_theta", "rms_norm_eps")
    configs = [json.loads((one / "config.json").read_text()) for one in (folder, back)]
    assert [configs[0][key] for key in kept] == [configs[1][key] for key in kept]


def test_the_chat_template_of_the_folder_goes_along(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, file = model("llama"), tmp_path / "model.gguf"
    (folder / "chat_template.jinja").write_text("{{ messages[0].content }}")
    export_gguf(folder, file, precision="f16", name="a model")
    back = read_back(file, tmp_path / "back")
    settings = json.loads((back / "tokenizer_config.json").read_text())
    assert settings["chat_template"] == "{{ messages[0].content }}"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "mamba"}, "only llama, qwen2, qwen3"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "yarn"),
    ],
)
def test_what_gguf_would_say_wrongly_is_refused(
    model: Callable[[str], Path], tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    folder = model("llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=message):
        export_gguf(folder, tmp_path / "model.gguf", precision="f16", name="a model")


def test_a_tokenizer_that_splits_in_a_way_of_its_own_is_refused(
    model: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = model("llama")
    path = folder / "tokenizer.json"
    description = json.loads(path.read_text())
    description["pre_tokenizer"] = {
        "type": "ByteLevel",
        "add_prefix_space": True,
        "trim_offsets": True,
        "use_regex": True,
    }
    path.write_text(json.dumps(description))
    with pytest.raises(ModelError, match="splits text unlike"):
        export_gguf(folder, tmp_path / "model.gguf", precision="f16", name="a model")


def test_a_modelfile_carries_template_system_text_and_decoding() -> None:
    text = modelfile(
        template="{{ .Response }}\n",
        system="Be brief.",
        decoding=Decoding(temperature=0.7, top_p=0.9),
        context_tokens=2048,
        stop=("<|im_end|>",),
    )
    assert text.splitlines() == [
        "FROM ./model.gguf",
        'TEMPLATE """{{ .Response }}"""',
        'SYSTEM """Be brief."""',
        "PARAMETER temperature 0.7",
        "PARAMETER top_p 0.9",
        "PARAMETER top_k 0",
        "PARAMETER repeat_penalty 1",
        "PARAMETER num_ctx 2048",
        'PARAMETER stop "<|im_end|>"',
    ]


def test_a_system_text_that_no_modelfile_can_quote_is_refused() -> None:
    with pytest.raises(UserError, match="cannot quote"):
        modelfile(template=None, system='a """ b', decoding=Decoding(), context_tokens=8, stop=())
