"""A vLLM server as a child: started, waited for, ended with us, and heard when it fails."""

import asyncio
import shutil
import subprocess
import sys
import textwrap
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from agentrft.core.config import EngineConfig, VllmConfig
from agentrft.core.errors import ConfigError, ModelError, SamplerError
from agentrft.core.protocols import SampleRequest
from agentrft.inference.vllm.sampler import VllmSampler
from agentrft.inference.vllm.server import Served, VllmServer

HERE = Path(__file__).parent
SERVED = Served(
    folder=Path("/models/tiny"),
    dtype="float32",
    context_tokens=41,
    adapter_rank=12,
    adapter_targets=("q_proj", "up_proj"),
)


@pytest.fixture
def executable(tmp_path: Path) -> str:
    """A program that takes vLLM's arguments and speaks its protocol."""
    program = tmp_path / "vllm"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {HERE / "fake_vllm.py"} "$@"\n')
    program.chmod(0o755)
    return str(program)


def opened(config: VllmConfig) -> VllmSampler:
    server = VllmServer(EngineConfig(vllm=config), SERVED, print)
    return VllmSampler(server, max_context_tokens=40, vocabulary=100)


def sample(sampler: VllmSampler) -> tuple[int, ...]:
    request = SampleRequest(prompt_ids=(1, 2), max_tokens=3)
    return asyncio.run(sampler.sample(request)).token_ids


def test_a_child_is_started_with_what_it_must_know_and_ends_with_the_sampler(
    executable: str,
) -> None:
    config = VllmConfig(executable=executable, arguments=("--extra=1",))
    server = VllmServer(EngineConfig(vllm=config, max_sequences=7), SERVED, print)
    sampler = VllmSampler(server, max_context_tokens=40, vocabulary=100)
    assert sample(sampler) == (10, 11, 12)
    said = (server.folder / "server.log").read_text()
    for argument in (
        '"serve", "/models/tiny"',
        "--dtype=float32",
        "--max-model-len=41",
        "--max-num-seqs=7",
        "--max-lora-rank=16",
        '"--lora-target-modules", "q_proj", "up_proj", "--',
        "--logprobs-mode=processed_logprobs",
        "--extra=1",
    ):
        assert argument in said
    sampler.close()
    sampler.close()
    assert not server.folder.exists()
    with pytest.raises(SamplerError, match="does not answer"):
        sample(sampler)


def test_a_server_that_cannot_start_is_heard(executable: str) -> None:
    config = VllmConfig(executable=executable, arguments=("--refuse",))
    sampler = opened(config)
    with pytest.raises(
        ModelError, match=r"ended with code 1 and said:\n(.*\n)*ValueError: this model"
    ):
        sample(sampler)
    sampler.close()


def test_a_server_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    program = tmp_path / "vllm"
    program.write_text("#!/bin/sh\necho Loading\nexec sleep 3600\n")
    program.chmod(0o755)
    config = VllmConfig(executable=str(program), start_timeout_s=0.3)
    sampler = opened(config)
    with pytest.raises(ModelError, match="engine.vllm.start_timeout_s"):
        sample(sampler)
    sampler.close()


def test_a_child_does_not_outlive_a_killed_parent(executable: str) -> None:
    code = f"""
        import asyncio, os, signal
        from pathlib import Path
        from agentrft.core.config import EngineConfig, VllmConfig
        from agentrft.inference.vllm.server import Served, VllmServer
        served = Served(
            folder=Path("m"),
            dtype="float32",
            context_tokens=41,
            adapter_rank=8,
            adapter_targets=("q_proj",),
        )
        server = VllmServer(EngineConfig(vllm=VllmConfig(executable={executable!r})), served, print)
        asyncio.run(server.ready())
        print(server.folder, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    folder = Path(done.stdout.strip())
    assert (folder / "server.sock").exists()
    asyncio.run(_until_nobody_listens(folder / "server.sock"))
    shutil.rmtree(folder)


async def _until_nobody_listens(socket: Path) -> None:
    async with asyncio.timeout(60):
        with suppress(ConnectionError):
            while True:
                _, writer = await asyncio.open_unix_connection(socket)
                writer.close()
                await asyncio.sleep(0.05)


@pytest.mark.parametrize(
    ("engine", "message"),
    [
        (EngineConfig(vllm=VllmConfig(executable="no-such-vllm")), "no program 'no-such-vllm'"),
        (EngineConfig(vllm=VllmConfig(api_key_file="/nowhere/key")), "/nowhere/key"),
        (EngineConfig(vllm=VllmConfig(), threads=2), "engine.threads"),
        (EngineConfig(vllm=VllmConfig(), device="cuda"), "engine.device"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(engine: EngineConfig, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        VllmServer(engine, SERVED, print)


def test_an_adapter_larger_than_vllm_takes_is_refused(executable: str) -> None:
    engine = EngineConfig(vllm=VllmConfig(executable=executable))
    served = replace(SERVED, adapter_rank=513)
    with pytest.raises(ConfigError, match="512 at most, not 513"):
        VllmServer(engine, served, print)
