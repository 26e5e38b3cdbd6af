"""Our own engine as a grader model: processes that are there, started, gone; the real model once."""

import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from jsonschema_rs import validator_for

from agentrft.core.errors import GraderError, SamplerError
from agentrft.core.task import Message
from agentrft.inference.grader_model import GradingReply, GradingRequest
from agentrft.inference.own_model import OwnGraderModel, OwnModels, bounded

CHILD = """
import sys
from pathlib import Path
from agentrft.core.config import EngineConfig
from agentrft.inference.service import serve_chat
serve_chat(Path(sys.argv[1]), Path(sys.argv[2]), EngineConfig(max_sequences=4))
"""
VERDICT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "steps": {"type": "array", "maxItems": 1, "items": {"type": "string", "maxLength": 12}},
        "result": {"type": "number", "minimum": 0, "maximum": 1},
    },
    "required": ["steps", "result"],
    "additionalProperties": False,
}
ASK = GradingRequest(
    messages=(Message(role="user", content="Is Paris in France? Reply in JSON."),), schema=VERDICT
)


def chat_process(models: Path) -> Callable[[Path], Sequence[str]]:
    return lambda socket: [sys.executable, "-c", CHILD, str(socket), str(models)]


def test_the_real_model_is_forced_into_the_schema_by_a_process_of_its_own(
    smollm2_folder: Path, tmp_path: Path
) -> None:
    sockets: list[Path] = []
    start = chat_process(smollm2_folder.parent)

    def recorded(socket: Path) -> Sequence[str]:
        sockets.append(socket)
        return start(socket)

    own = OwnModels(tmp_path / "chat.sock", recorded)

    async def both(*asked: OwnModels) -> list[GradingReply]:
        models = [OwnGraderModel("smollm2-135m", one) for one in asked]
        return await asyncio.gather(*(model.ask(ASK) for model in models))

    try:
        assert sockets == []  # nothing starts before somebody asks
        replies = asyncio.run(both(own, own))
        replies += asyncio.run(both(OwnModels(sockets[0])))  # as others reach a server's process
        fits = validator_for(VERDICT)
        for reply in replies:
            assert reply.finish_reason == "stop"
            assert fits.is_valid(json.loads(reply.text))
            assert reply.usage.prompt_tokens > 10
            assert reply.usage.completion_tokens > 5
        unknown = OwnGraderModel("no-such-model", own)
        with pytest.raises(GraderError, match="no-such-model") as caught:
            asyncio.run(unknown.ask(ASK))
        assert caught.value.code == "model_grader_server_error"
    finally:
        own.close()
    assert len(sockets) == 1
    assert not sockets[0].parent.exists()
    own.close()


@pytest.mark.parametrize("command", [None, lambda _socket: [sys.executable, "-c", "exit(3)"]])
def test_without_a_process_there_is_an_error_and_no_score(
    command: Callable[[Path], Sequence[str]] | None, tmp_path: Path
) -> None:
    own = OwnModels(tmp_path / "chat.sock", command)
    try:
        with pytest.raises(GraderError, match="no answer in 0.5 s; the last reason") as caught:
            asyncio.run(OwnGraderModel("m", own, timeout_s=0.5).ask(ASK))
    finally:
        own.close()
    assert caught.value.code == "model_grader_server_error"


def test_processes_that_died_leave_no_folders_behind(tmp_path: Path) -> None:
    folders: list[Path] = []

    def command(socket: Path) -> Sequence[str]:
        folders.append(socket.parent)
        return [sys.executable, "-c", "exit(3)"]

    own = OwnModels(tmp_path / "chat.sock", command)
    for _ in range(2):
        with pytest.raises(SamplerError, match="ended with code 3"):
            asyncio.run(own.client())
    assert [folder.exists() for folder in folders] == [False, True]
    own.close()
    assert not folders[-1].exists()


def test_a_private_process_ends_with_close(tmp_path: Path) -> None:
    started = tmp_path / "pid"
    script = "import os, sys, time; open(sys.argv[2], 'w').write(str(os.getpid())); time.sleep(600)"
    own = OwnModels(
        tmp_path / "chat.sock",
        lambda socket: [sys.executable, "-c", script, str(socket), str(started)],
    )

    async def ask() -> None:
        with pytest.raises(GraderError):
            await OwnGraderModel("m", own, timeout_s=30).ask(ASK)

    async def until_started() -> int:
        asking = asyncio.create_task(ask())
        while not started.exists() or not started.read_text():  # noqa: ASYNC110 - a process writes it
            await asyncio.sleep(0.02)
        asking.cancel()
        return int(started.read_text())

    pid = asyncio.run(until_started())
    own.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_only_free_texts_get_a_greatest_length() -> None:
    schema = {
        "type": "object",
        "properties": {
            "why": {"type": "string"},
            "label": {"type": "string", "enum": ["a"]},
            "short": {"type": "string", "maxLength": 5},
            "type": {"type": "array", "items": {"type": "string"}, "anyOf": [{"type": "string"}]},
        },
    }
    assert bounded(schema) == {
        "type": "object",
        "properties": {
            "why": {"type": "string", "maxLength": 300},
            "label": {"type": "string", "enum": ["a"]},
            "short": {"type": "string", "maxLength": 5},
            "type": {
                "type": "array",
                "items": {"type": "string", "maxLength": 300},
                "anyOf": [{"type": "string", "maxLength": 300}],
            },
        },
    }
