"""What the graders of a process reach beyond themselves, made from its config and closed at its end.

Nothing is started here: a sandbox or a model begins with the first grader that asks for it.
"""

import json
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from agentrft.core.config import ProjectConfig, SandboxConfig, ServerConfig
from agentrft.core.errors import ConfigError
from agentrft.core.protocols import Function, FunctionResult, Program, ProgramResult
from agentrft.egress.policy import EgressPolicy
from agentrft.graders.backends import Backends
from agentrft.store.home import Home

if TYPE_CHECKING:
    from agentrft.sandbox.local import LocalSandbox


class Grading:
    """Makes backends for projects and servers of a home; whoever made them closes them."""

    def __init__(self, home: Home, *, unsafe: bool = False) -> None:
        """With `unsafe`, code of graders may run without any sandbox where there is none."""
        self._home, self._unsafe = home, unsafe
        self._sandboxes: list[DeferredSandbox] = []

    def of_project(self, config: ProjectConfig) -> Backends:
        """Return the backends of a project's graders.

        Raises ConfigError if one of them needs a sandbox that this machine does not offer.
        """
        backends = self._backends(config, EgressPolicy())
        if "python" in grader_types(config.grader) | grader_types(config.gold_grader):
            self._sandboxes[-1].opened  # noqa: B018 - refuse before any work
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

    def _backends(self, config: ProjectConfig | ServerConfig, policy: EgressPolicy) -> Backends:
        sandbox = DeferredSandbox(
            partial(_open_sandbox, config.sandbox, self._home.images, unsafe=self._unsafe)
        )
        self._sandboxes.append(sandbox)
        return Backends(policy=policy, sandbox=sandbox, signing_key=self._home.signing_key())


class DeferredSandbox:
    """Opens the sandbox behind it when it is first used: looking for the strongest level takes time."""

    def __init__(self, open_it: Callable[[], "LocalSandbox"]) -> None:
        self._open = open_it

    @cached_property
    def opened(self) -> "LocalSandbox":
        """Raises ConfigError if the level asked for is not to be had."""
        return self._open()

    async def run(self, program: Program) -> ProgramResult:
        """Run a program."""
        return await self.opened.run(program)

    async def call(self, function: Function, arguments: Sequence[Any]) -> FunctionResult:
        """Call a function."""
        return await self.opened.call(function, arguments)

    async def close(self) -> None:
        """Close the sandbox, if it was ever opened."""
        if "opened" in self.__dict__:
            await self.opened.close()


def _open_sandbox(config: SandboxConfig, images: Path, *, unsafe: bool) -> "LocalSandbox":
    from agentrft.sandbox.local import open_sandbox  # loads what only some systems have

    return open_sandbox(config, images=images, unsafe=unsafe)


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
