"""The chat process for real: started, asked over its socket, left by clients, ended."""

import asyncio
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from agentrft.core.config import EngineConfig
from agentrft.core.errors import ConfigError, SamplerError, UserError
from agentrft.core.protocols import SampleRequest
from agentrft.core.sample import Sample
from agentrft.core.task import Message, ToolSpec
from agentrft.core.training_config import Adapter, Optimizer, TrainerConfig
from agentrft.inference.chat import (
    ChatClient,
    ChatDelta,
    ChatEnd,
    ChatRequest,
    ToolName,
)
from agentrft.inference.embedded.engine import EmbeddedEngine
from agentrft.inference.renderer import load_renderer
from agentrft.inference.service import serve_chat
from agentrft.training.trainer import LocalTrainer

CHILD = """
import sys
from pathlib import Path
from agentrft.core.config import EngineConfig
from agentrft.inference.service import serve_chat
config = EngineConfig(max_sequences=int(sys.argv[3]), threads=1)
serve_chat(Path(sys.argv[1]), Path(sys.argv[2]), config)
"""
ASK = ChatRequest(
    base="smollm2-135m",
    messages=(Message(role="user", content="Where is my order W1234567?"),),
    temperature=0.0,
    max_tokens=24,
)
GET_ORDER = ToolSpec(
    name="get_order",
    description="Look an order up.",
    parameters={
        "type": "object",
        "properties": {"order_id": {"type": "string"}},
        "required": ["order_id"],
    },
)
REFUND = replace(GET_ORDER, name="refund", description="Pay an order back.")


def start(folder: Path, models: Path, max_sequences: int = 4) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", CHILD, str(folder / "chat.sock"), str(models)]
    child = subprocess.Popen([*command, str(max_sequences)])
    asyncio.run(until_ready(ChatClient(folder / "chat.sock"), child))
    return child


async def until_ready(client: ChatClient, child: subprocess.Popen[bytes]) -> None:
    while not await client.ready():
        assert child.poll() is None, "the chat process ended"
        await asyncio.sleep(0.05)


def end(child: subprocess.Popen[bytes]) -> int:
    child.send_signal(signal.SIGTERM)
    return child.wait(60)


@pytest.fixture(scope="module")
def client(smollm2_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatClient]:
    """A client of a process that decodes one answer at a time."""
    folder = tmp_path_factory.mktemp("chat")
    child = start(folder, smollm2_folder.parent, max_sequences=1)
    yield ChatClient(folder / "chat.sock")
    assert end(child) == 0


async def pieces(client: ChatClient, request: ChatRequest) -> tuple[list[ChatDelta], ChatEnd]:
    *deltas, last = [piece async for piece in client.stream(request)]
    assert isinstance(last, ChatEnd)
    return [delta for delta in deltas if isinstance(delta, ChatDelta)], last


def asked(client: ChatClient, request: ChatRequest) -> tuple[list[ChatDelta], ChatEnd]:
    return asyncio.run(pieces(client, request))


def test_the_stream_of_the_real_model_is_what_its_engine_samples(
    client: ChatClient, smollm2_folder: Path
) -> None:
    deltas, last = asked(client, ASK)
    renderer = load_renderer(smollm2_folder)
    config = EngineConfig(max_sequences=1)
    engine = EmbeddedEngine(smollm2_folder, config, max_context_tokens=8192)
    completion = asyncio.run(
        engine.sample(
            SampleRequest(
                prompt_ids=renderer.start(ASK.messages, ()),
                max_tokens=24,
                temperature=0.0,
                stop_token_ids=renderer.stop_token_ids,
            )
        )
    )
    engine.close()
    assert last.message == renderer.parse(completion.token_ids, ()).message
    assert "".join(delta.text for delta in deltas) == last.message.content
    assert len(deltas) > 10
    assert (last.finish_reason, last.completion_tokens) == ("length", 24)


def test_a_stop_string_ends_the_answer_before_it(client: ChatClient) -> None:
    _, whole = asked(client, ASK)
    middle = len(whole.message.content) // 2
    stop = whole.message.content[middle : middle + 12]
    first, _, _ = whole.message.content.partition(stop)
    deltas, last = asked(client, replace(ASK, stop=("never", stop)))
    assert last.message.content == first
    assert "".join(delta.text for delta in deltas) == last.message.content
    assert last.finish_reason == "stop"
    assert last.completion_tokens < whole.completion_tokens


@pytest.mark.parametrize("choice", ["required", ToolName(name="get_order")])
@pytest.mark.parametrize("tools", [(GET_ORDER,), (GET_ORDER, REFUND)])
def test_a_tool_that_must_be_called_is_called(
    client: ChatClient, choice: ToolName, tools: tuple[ToolSpec, ...]
) -> None:
    request = replace(
        ASK, tools=tools, tool_choice=choice, parallel_tool_calls=False, max_tokens=60
    )
    deltas, last = asked(client, request)
    (call,) = last.message.tool_calls
    assert call.name in {tool.name for tool in tools}
    assert '"order_id"' in call.arguments
    assert last.finish_reason == "tool_calls"
    (streamed,) = [delta.call for delta in deltas if delta.call is not None]
    assert (streamed.id, streamed.name, streamed.arguments) == (
        call.id,
        call.name,
        call.arguments,
    )


def test_logprobs_come_over_the_socket_byte_for_byte(client: ChatClient) -> None:
    deltas, last = asked(client, replace(ASK, top_logprobs=2))
    tokens = [one for delta in deltas for one in delta.logprobs]
    assert b"".join(one.bytes for one in tokens).decode() == last.message.content
    # At temperature 0 each token is the likeliest there was.
    assert all(one.top[0][1] == one.logprob for one in tokens)


def test_a_killed_client_frees_the_row_it_held(client: ChatClient) -> None:
    code = f"""
import asyncio
from pathlib import Path
from agentrft.core.task import Message
from agentrft.inference.chat import ChatClient, ChatRequest
request = ChatRequest(
    base="smollm2-135m", messages=(Message(role="user", content="Count to a million."),), seed=1,
    stop=("never written",), temperature=0.0,
)
async def run():
    async for piece in ChatClient(Path({str(client.socket)!r})).stream(request):
        print(piece, flush=True)
asyncio.run(run())
"""
    killed = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert killed.stdout is not None
    assert killed.stdout.readline()
    killed.kill()
    killed.communicate()
    # One row: this answer begins only when the other has left.
    _, last = asked(client, replace(ASK, max_tokens=2))
    assert last.completion_tokens == 2


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"base": "no-such-model"}, UserError, "neither a known name"),
        ({"tool_choice": "required"}, UserError, "asks for any tool"),
        ({"adapter": "/nowhere"}, SamplerError, "not there any more"),
        ({"top_p": 0.0}, SamplerError, "top_p"),
    ],
)
def test_errors_come_back_as_what_they_are(
    client: ChatClient, options: dict[str, object], kind: type[Exception], message: str
) -> None:
    request = replace(ASK, **options)  # pyright: ignore[reportArgumentType]
    with pytest.raises(kind, match=message):
        asked(client, request)


def test_a_checkpoint_of_the_real_model_answers_beside_it_with_the_trainers_logprobs(
    smollm2_folder: Path, tmp_path: Path
) -> None:
    renderer = load_renderer(smollm2_folder)
    said = Message(role="assistant", content="It is on its way to you.")
    ids, mask = renderer.demonstration((*ASK.messages, said), ())
    config = TrainerConfig(
        adapter=Adapter(rank=8), optimizer=Optimizer(learning_rate=3e-3, warmup_steps=1)
    )
    trainer = LocalTrainer(smollm2_folder, config, loss="cross_entropy", canaries=[ids], seed=1)
    sample = Sample(
        token_ids=ids,
        action_mask=mask,
        behavior_logprobs=(0.0,) * len(ids),
        advantages=tuple(map(float, mask)),
        trajectory_id="demonstration",
    )
    for _ in range(2):
        trainer.step([sample])
    trainer.save(tmp_path / "step-000002", {"step": 2})
    (trained,) = trainer.score([ids])

    child = start(tmp_path, smollm2_folder.parent)
    client = ChatClient(tmp_path / "chat.sock")
    tuned = replace(ASK, adapter=str(tmp_path / "step-000002"), top_logprobs=0)

    async def both() -> tuple[tuple[list[ChatDelta], ChatEnd], tuple[list[ChatDelta], ChatEnd]]:
        return await asyncio.gather(pieces(client, tuned), pieces(client, ASK))

    (deltas, after), (_, before) = asyncio.run(both())
    assert after.message.content != before.message.content
    served = [one for delta in deltas for one in delta.logprobs]
    own = [token for token, sampled in zip(ids, mask, strict=True) if sampled]
    expected = [value for value, sampled in zip(trained, mask[1:], strict=True) if sampled]
    likely = 0
    for one, token, logprob in zip(served, own, expected, strict=False):
        if one.bytes != renderer.token_bytes(token):
            break  # the model went another way; from here on they are about different texts
        assert one.logprob == pytest.approx(logprob, abs=0.15)
        likely += 1
    assert likely > 0
    assert end(child) == 0


def test_a_proxy_of_the_environment_is_not_asked(
    client: ChatClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    assert asyncio.run(client.ready())


def test_only_the_owner_reaches_the_socket(client: ChatClient) -> None:
    assert stat.S_IMODE(client.socket.stat().st_mode) == 0o600


def test_a_second_process_leaves_a_served_socket_alone(client: ChatClient) -> None:
    with pytest.raises(SamplerError, match="another process serves chats"):
        serve_chat(client.socket, Path(), EngineConfig())
    assert asyncio.run(client.ready())


def test_a_socket_that_nobody_serves_is_replaced(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(tmp_path / "chat.sock"))
    client = ChatClient(tmp_path / "chat.sock")
    assert not asyncio.run(client.ready())
    with pytest.raises(SamplerError, match="does not answer"):
        asked(client, ASK)
    child = start(tmp_path, tmp_path)
    assert end(child) == 0


def test_a_path_too_long_for_a_socket_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="too long for a socket"):
        serve_chat(tmp_path / ("x" * 120), tmp_path, EngineConfig())


def test_a_process_that_dies_amid_an_answer_is_a_sampler_error(
    smollm2_folder: Path, tmp_path: Path
) -> None:
    child = start(tmp_path, smollm2_folder.parent)

    async def run() -> None:
        stream = ChatClient(tmp_path / "chat.sock").stream(replace(ASK, max_tokens=None))
        async with aclosing(stream) as answer:
            async for _ in answer:
                os.kill(child.pid, signal.SIGKILL)

    with pytest.raises(SamplerError, match=r"does not answer|in the middle"):
        asyncio.run(run())
    child.wait(60)


def test_asked_to_end_amid_an_answer_the_process_ends(smollm2_folder: Path, tmp_path: Path) -> None:
    child = start(tmp_path, smollm2_folder.parent)

    async def run() -> None:
        request = replace(ASK, max_tokens=None, stop=("never written",))
        async with aclosing(ChatClient(tmp_path / "chat.sock").stream(request)) as answer:
            async for _ in answer:
                child.send_signal(signal.SIGTERM)

    with pytest.raises(SamplerError):
        asyncio.run(run())
    assert child.wait(60) == 0
