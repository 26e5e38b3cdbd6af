"""What the graders of a process reach beyond themselves, made from its config and closed at its end.

Nothing is started here: a sandbox or a model begins with the first grader that asks for it.
"""

import asyncio
import json
import os
import sys
import threading
import tomllib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from agentrft.core.config import ProjectConfig, SandboxConfig, ServerConfig
from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Function, FunctionResult, Program, ProgramResult
from agentrft.egress.policy import EgressPolicy
from agentrft.graders.backends import Backends
from agentrft.graders.remote_model import RemoteEmbedder, grader_models
from agentrft.inference.own_model import OwnModels
from agentrft.store.home import Home

if TYPE_CHECKING:
    from agentrft.sandbox.local import LocalSandbox


class Grading:
    """Makes backends for projects and servers of a home; whoever made them closes them."""

    def __init__(self, home: Home, *, unsafe: bool = False, served: bool = False) -> None:
        """With `unsafe`, code of graders may run without any sandbox where there is none.

        With `served`, a server of this home answers for its own models; else a process that does is
        started when a grader asks one.
        """
        self._home, self._unsafe = home, unsafe
        self._sandboxes: list[DeferredSandbox] = []
        self._own_models = OwnModels(
            home.path / "chat.sock", None if served else self._chat_process
        )

    def of_project(self, config: ProjectConfig) -> Backends:
        """Return the backends of a project's graders.

        Raises ConfigError if one of them needs a sandbox that this machine does not offer.
        """
        backends = self._backends(config, EgressPolicy())
        if "python" in grader_types(config.grader) | grader_types(config.gold_grader):
            self._sandboxes[-1].open()  # refuses now what it would refuse amid the work
        return backends

    def of_server(self, config: ServerConfig, *, own_ports: Collection[int] = ()) -> Backends:
        """Return the backends of graders that come in requests; `owner` is set for each project."""
        policy = EgressPolicy(
            multi_project=config.private_addresses == "listed",
            allowed=frozenset(config.allowed),
            own_ports=frozenset(own_ports),
        )
        return self._backends(config, policy)

    async def close(self) -> None:
        """Stop whatever was started."""
        for sandbox in self._sandboxes:
            await sandbox.close()
        await asyncio.to_thread(self._own_models.close)

    def _backends(self, config: ProjectConfig | ServerConfig, policy: EgressPolicy) -> Backends:
        sandbox = DeferredSandbox(config.sandbox, self._home.images, unsafe=self._unsafe)
        self._sandboxes.append(sandbox)
        embedding = config.embedding_model
        return Backends(
            policy=policy,
            sandbox=sandbox,
            images=self._home.images,
            models=grader_models(config.grader_models, policy=policy, own=self._own_models),
            embedder=RemoteEmbedder(embedding, policy=policy) if embedding else None,
            signing_key=self._home.signing_key(),
        )

    def _chat_process(self, socket: Path) -> Sequence[str]:
        """Return the command of a process that serves grader models where no server does."""
        start = [sys.executable, "-m", "agentrft", "chat-process"]
        parent, home = str(os.getpid()), str(self._home.path)
        return [*start, "--home", home, "--parent", parent, "--socket", str(socket)]


class DeferredSandbox:
    """Opens the sandbox behind it when it is first used: looking for the strongest level takes time.

    Calls get the limits of the config.
    """

    def __init__(self, config: SandboxConfig, images: Path, *, unsafe: bool) -> None:
        self._config, self._images, self._unsafe = config, images, unsafe
        self._opened: LocalSandbox | None = None
        self._opening = threading.Lock()
        """An audit of the API opens it from a thread of its own."""

    def open(self) -> "LocalSandbox":
        """Return the sandbox. Raises ConfigError if the level asked for is not to be had."""
        with self._opening:
            if self._opened is None:
                from agentrft.sandbox.local import open_sandbox  # loads what only some systems have

                self._opened = open_sandbox(self._config, images=self._images, unsafe=self._unsafe)
            return self._opened

    async def run(self, program: Program) -> ProgramResult:
        """Run a program."""
        return await (await self._ready()).run(program)

    async def call(self, function: Function, arguments: Sequence[Any]) -> FunctionResult:
        """Call a function."""
        limited = replace(
            function,
            timeout_s=self._config.timeout_s,
            memory_bytes=self._config.memory_bytes,
        )
        return await (await self._ready()).call(limited, arguments)

    async def _ready(self) -> "LocalSandbox":
        """Look for a level beside the event loop, the first time."""
        return self._opened or await asyncio.to_thread(self.open)

    async def close(self) -> None:
        """Close the sandbox, if it was ever opened."""
        if self._opened is not None:
            await self._opened.close()


def grader_types(config: Mapping[str, Any]) -> frozenset[str]:
    """Return the types in a grader object, parts included; none for an empty one."""
    types = {str(config["type"])} if "type" in config else set[str]()
    match config.get("graders"):
        case Mapping() as parts:
            for part in cast(Mapping[str, object], parts).values():
                if isinstance(part, Mapping):
                    types |= grader_types(cast(Mapping[str, Any], part))
        case _:
            pass
    return frozenset(types)


def read_table(path: Path) -> dict[str, Any]:
    """Read an object from a JSON or TOML file. Raises ConfigError with what to do."""
    try:
        text = path.read_text(encoding="utf-8")
        value = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is no {path.suffix or 'JSON'} file: {error}") from error
    if not isinstance(value, dict):
        raise ConfigError(f"{path} holds {type(value).__name__}; it must be an object")
    return cast(dict[str, Any], value)
