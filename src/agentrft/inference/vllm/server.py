"""The vLLM server that a sampler speaks to: a child process on a unix socket, or one that already runs.

The child is started at once and waited for at the first use, so that a trainer is loaded meanwhile.
"""

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2

from agentrft.core.config import EngineConfig, VllmConfig
from agentrft.core.errors import ConfigError, ModelError

RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
"""Adapters that vLLM makes room for; others must fit into the next one."""
ADAPTERS = 2
"""Versions decoded together: the newest, and the one before for requests under way."""

_CONNECT_S = 5.0
_POLL_S = 0.5
_TOLD_EVERY_S = 30.0
_ENDING_S = 20.0
_LOG_LINES = 15
# The pipe closes with our end, however that comes, and takes vLLM's processes along.
_WATCHED = 'exec 3<&0; (read -r _ <&3; kill 0) & exec "$@" </dev/null 3<&-'


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """The model that a started server serves, and the room it makes."""

    folder: Path
    dtype: str
    """As vLLM and torch call it."""
    context_tokens: int
    adapter_rank: int
    adapter_targets: tuple[str, ...]
    """Names of the layers that adapters change."""


class VllmServer:
    """A server to speak to. Raises ConfigError for settings that cannot be honoured.

    `told` hears how a start goes on. Adapters are handed over in `folder`.
    """

    def __init__(self, engine: EngineConfig, served: Served, told: Callable[[str], None]) -> None:
        self._config = config = _honoured(engine)
        self._told = told
        self._url = config.url.rstrip("/").removesuffix("/v1")
        # Once, and only where there is something to verify: it takes longer than asking.
        self._verify = ssl.create_default_context() if self._url.startswith("https:") else False
        self._headers = _authorization(config.api_key_file)
        self._process: subprocess.Popen[bytes] | None = None
        command = () if config.url else (*_program(config, served), *_arguments(served, engine))
        # Paths of sockets are short, those of home folders need not be.
        self.folder = Path(tempfile.mkdtemp(prefix="agentrft-vllm-"))
        self._log = self.folder / "server.log"
        self._started = time.monotonic()
        if command:
            self._process = self._start([*command, f"--uds={self._socket}", *config.arguments])

    @property
    def owned(self) -> bool:
        """Whether it was started here and ends here."""
        return self._process is not None

    @property
    def _socket(self) -> Path:
        return self.folder / "server.sock"

    def client(self, silence_s: float | None) -> httpx2.AsyncClient:
        """Return a client that waits this long for each piece of an answer, which may be for ever."""
        socket = str(self._socket) if self.owned else None
        return httpx2.AsyncClient(
            transport=httpx2.AsyncHTTPTransport(uds=socket, verify=self._verify),
            base_url=self._url or "http://vllm",
            headers=self._headers,
            timeout=httpx2.Timeout(silence_s, connect=_CONNECT_S),
        )

    def tell(self, path: str, body: Mapping[str, str]) -> None:
        """Post without waiting for anybody's event loop; nobody learns whether it arrived."""
        with suppress(httpx2.HTTPError):
            httpx2.post(self._url + path, json=body, headers=self._headers, verify=self._verify)

    async def ready(self) -> None:
        """Wait until it answers. Raises ModelError if it cannot start, ConfigError if none is there."""
        tell_after_s = _TOLD_EVERY_S
        async with self.client(_CONNECT_S) as client:
            while True:
                with suppress(httpx2.HTTPError):
                    if (await client.get("/health")).status_code == 200:
                        return
                if self._process is None:
                    raise ConfigError(
                        f"engine.vllm.url: no vLLM server answers at {self._url}; start it, or "
                        "remove the url to have one started"
                    )
                passed_s = time.monotonic() - self._started
                if self._process.poll() is not None or passed_s > self._config.start_timeout_s:
                    raise ModelError(
                        f"vLLM does not answer {passed_s:.0f} s after its start"
                        f"{self.obituary() or f' (engine.vllm.start_timeout_s){self.last_words()}'}"
                    )
                if passed_s > tell_after_s:
                    self._told(f"vLLM is starting for {passed_s:.0f} s: {self._log_end(1)}")
                    tell_after_s += _TOLD_EVERY_S
                await asyncio.sleep(_POLL_S)

    def obituary(self) -> str:
        """Return how its process ended and what it said last; empty while it runs."""
        if self._process is None or self._process.poll() is None:
            return ""
        return f"; it ended with code {self._process.returncode}{self.last_words()}"

    def last_words(self) -> str:
        """Return the end of its log; empty if it was not started here."""
        return f" and said:\n{self._log_end(_LOG_LINES)}" if self.owned else ""

    def close(self) -> None:
        """End the child, if there is one, with all its processes; closing twice is free."""
        if self._process is not None:
            assert self._process.stdin is not None
            self._process.stdin.close()
            try:
                self._process.wait(_ENDING_S)
            except subprocess.TimeoutExpired:
                os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        settings = ("VLLM_ALLOW_RUNTIME_LORA_UPDATING=True", "VLLM_NO_USAGE_STATS=1")
        with self._log.open("wb") as log:
            return subprocess.Popen(
                ["/bin/sh", "-c", _WATCHED, "sh", "/usr/bin/env", *settings, *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,
            )

    def _log_end(self, lines: int) -> str:
        text = self._log.read_text(errors="replace") if self._log.exists() else ""
        return "\n".join(line[:300] for line in text.strip().splitlines()[-lines:]) or "nothing yet"


def _honoured(engine: EngineConfig) -> VllmConfig:
    if (engine.cached_sequences, engine.device, engine.threads) != (0, "auto", 0):
        raise ConfigError(
            "engine.cached_sequences, engine.device and engine.threads are the embedded engine's; "
            "remove them beside [engine.vllm], or say it to vLLM in engine.vllm.arguments"
        )
    assert engine.vllm is not None
    return engine.vllm


def _arguments(served: Served, engine: EngineConfig) -> tuple[str, ...]:
    """Return what a server must be started with. Raises ConfigError for an adapter too large."""
    rank = next((rank for rank in RANKS if rank >= served.adapter_rank), None)
    if rank is None:
        raise ConfigError(
            f"vLLM serves adapters of rank {RANKS[-1]} at most, not {served.adapter_rank}"
        )
    assert engine.vllm is not None
    return (
        f"--dtype={served.dtype}",
        f"--max-model-len={served.context_tokens}",
        f"--max-num-seqs={engine.max_sequences}",
        f"--kv-cache-memory-bytes={engine.vllm.kv_cache_bytes}",
        "--enable-lora",
        f"--max-lora-rank={rank}",
        f"--max-loras={ADAPTERS}",
        # Otherwise the head is adapted too, which costs time at every token, and on processors fails
        # where several prompts are scored together.
        "--lora-target-modules",
        *served.adapter_targets,
        # Of the distribution that is drawn from, not of the model's own.
        "--logprobs-mode=processed_logprobs",
        # Nothing of the model folder changes how tokens are drawn, and no text is wanted.
        "--generation-config=vllm",
        "--skip-tokenizer-init",
        "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log",
    )


def _program(config: VllmConfig, served: Served) -> tuple[str, ...]:
    """Find it on the path, else beside this Python: its environment may not be active."""
    here = str(Path(sys.executable).parent)
    program = shutil.which(config.executable) or shutil.which(config.executable, path=here)
    if program is None:
        raise ConfigError(
            f"engine.vllm.executable: there is no program {config.executable!r}; install vLLM into an "
            "environment and name its `vllm`, or set engine.vllm.url to a server (docs/vllm.md)"
        )
    if Path(program).name.startswith("python"):
        return (program, "-m", "vllm.entrypoints.openai.api_server", f"--model={served.folder}")
    return (program, "serve", str(served.folder))


def _authorization(api_key_file: str) -> dict[str, str]:
    if not api_key_file:
        return {}
    try:
        key = Path(api_key_file).read_text().strip()
    except OSError as error:
        raise ConfigError(f"engine.vllm.api_key_file: {error}") from error
    return {"authorization": f"Bearer {key}"}
