"""What all parts share: the model, the environments of the contenders, and where results go."""

import json
import os
import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any

import torch
from contender import Contender
from platformdirs import user_data_path

from agentrft.inference.models import ModelFiles, resolve

ROOT = Path(__file__).parent.parent.parent
DESK = ROOT / "examples" / "support_desk"
RESULTS = ROOT / "benchmarks" / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One run of the benchmark."""

    home: Path
    environments: Path
    """A virtual environment per competitor."""
    threads: int
    rounds: int
    quick: bool
    """Sizes that end in minutes; such results are not to be quoted."""
    gpu: str = "cuda"
    """Device of the part that measures a GPU; the others stay on the processor."""
    seeds: int = 2
    """Trainings of each system where there is something to learn."""

    @property
    def model(self) -> ModelFiles:
        return resolve("smollm2-135m", cache=self.home / "models")

    def contender(
        self,
        name: str,
        script: str,
        settings: Mapping[str, Any],
        *,
        environment: str = "",
        variables: Mapping[str, str] | None = None,
    ) -> Contender | None:
        """Start one; None, with a line that says so, where its environment was not made."""
        python = Path(sys.executable)
        if environment:
            python = self.environments / environment / "bin" / "python"
            if not python.exists():
                print(f"{name}: not measured, {python} does not exist (make bench-environments)")
                return None
        print(f"{name}: starting", flush=True)
        return Contender(
            name,
            script,
            python=python,
            settings={
                "model": str(self.model.folder),
                "threads": self.threads,
                "device": "cpu",
                **settings,
            },
            log=self.home / "bench" / f"{name.replace(' ', '-')}.log",
            environment=variables,
        )

    def write(self, part: str, values: Mapping[str, Any]) -> None:
        """Keep a part's numbers with what they were measured on."""
        name = f"speed-{part}{'-quick' if self.quick else ''}.json"
        RESULTS.mkdir(exist_ok=True)
        about = {
            "part": part,
            "when": time.strftime("%Y-%m-%d"),
            "machine": machine(),
            "threads": self.threads,
            "torch": torch.__version__,
        }
        text = json.dumps({**about, **values}, indent=1, default=_plain)
        (RESULTS / name).write_text(text + "\n", encoding="utf-8")
        print(f"written: {RESULTS / name}")


def machine() -> str:
    """Return processor and accelerator in words."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        processor = next(line.split(":")[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        processor = platform.processor()
    words = [f"{os.cpu_count()} cores of {processor}"]
    abilities = torch.cpu.get_capabilities()
    words += [name for name in ("amx_bf16", "avx512_bf16") if abilities.get(name)]
    if torch.cuda.is_available():
        words.append(torch.cuda.get_device_name())
    return ", ".join(words)


def home() -> Path:
    return Path(os.environ.get("AGENTRFT_HOME") or user_data_path("agentrft"))


def present(contenders: Sequence[Contender | None]) -> list[Contender]:
    return [contender for contender in contenders if contender is not None]


def _plain(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{value!r} cannot be written")
