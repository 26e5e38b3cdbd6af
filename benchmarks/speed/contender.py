"""The driver's end: a system under measurement, its time, its processor time and its memory."""

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

WORKERS = Path(__file__).parent / "workers"
_MEMORY_EVERY_S = 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one request cost, children included."""

    seconds: float
    cpu_s: float
    peak_bytes: int
    """Most resident memory seen while it ran; pages its processes share count for each."""
    answer: Mapping[str, Any]


class Contender:
    """One worker process. Raises RuntimeError with the end of its log if it dies."""

    def __init__(
        self,
        name: str,
        script: str,
        *,
        python: Path,
        settings: Mapping[str, Any],
        log: Path,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.name = name
        self._log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [str(python), str(WORKERS / script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env={**_environment(script), **(environment or {})},
            )
        self.started = self._ask(settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def ask(self, do: str, **arguments: Any) -> Taken:
        """Send a command and return its answer with what it took."""
        return self._ask({"do": do, **arguments})

    def close(self) -> None:
        """End the process and its children."""
        family = self._family()
        assert self._process.stdin is not None
        self._process.stdin.close()
        for process in family:
            process.terminate()
        _gone, alive = psutil.wait_procs(family, timeout=10)
        for process in alive:
            process.kill()
        self._process.wait()

    def _ask(self, message: Mapping[str, Any]) -> Taken:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        before = self._cpu_s()
        began = time.perf_counter()
        with _Memory(self._family) as memory:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
            seconds = time.perf_counter() - began
        if not line:
            tail = self._log.read_text(encoding="utf-8", errors="replace")[-2000:]
            raise RuntimeError(f"{self.name} ended with {self._process.wait()}:\n{tail}")
        return Taken(
            seconds=seconds,
            cpu_s=self._cpu_s() - before,
            peak_bytes=memory.peak_bytes,
            answer=json.loads(line),
        )

    def _family(self) -> list[psutil.Process]:
        try:
            head = psutil.Process(self._process.pid)
            return [head, *head.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def _cpu_s(self) -> float:
        total = 0.0
        for process in self._family():
            try:
                times = process.cpu_times()
            except psutil.NoSuchProcess:
                continue
            total += times.user + times.system
        return total


def _environment(script: str) -> dict[str, str]:
    """Return each system's own habits: ours waits as its command line makes it, others as they do."""
    waiting = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "20000"}
    inherited = {name: value for name, value in os.environ.items() if name not in waiting}
    return {
        **inherited,
        **(waiting if script.startswith("ours_") else {}),
        "HF_HUB_OFFLINE": "1",
        "PYTHONPATH": str(Path(__file__).parent),
    }


class _Memory:
    """Samples the memory of processes in a thread."""

    def __init__(self, family: Any) -> None:
        self._family = family
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.peak_bytes = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            held = 0
            for process in self._family():
                try:
                    held += process.memory_info().rss
                except (psutil.NoSuchProcess, psutil.AccessDenied):
                    continue
            self.peak_bytes = max(self.peak_bytes, held)
            if self._done.wait(_MEMORY_EVERY_S):
                return
