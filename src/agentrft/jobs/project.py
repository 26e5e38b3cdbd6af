"""A project folder opened: config, agent spec, data, tools and grader.

Reads files and imports the user's environment; knows nothing of models or training.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import ConfigError, boundary
from agentrft.core.policy import AgentSpec, Policy
from agentrft.core.protocols import Grader, OpenEnvironment, Sampler
from agentrft.core.run import Split
from agentrft.core.task import Demonstration, Task, ToolSpec
from agentrft.graders.build import build_grader
from agentrft.rollout.environment import Environment, python_environment, tool_specs
from agentrft.rollout.episode import Renderer, RolloutSetup, visible_tools
from agentrft.rollout.http_tools import combined_environment, http_environment
from agentrft.store.codec import load_project_config
from agentrft.store.datasets import read_demonstrations, read_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """Everything a job needs to know about the agent."""

    folder: Path
    config: ProjectConfig
    spec: AgentSpec
    open_environment: OpenEnvironment
    grader: Grader
    tools: tuple[ToolSpec, ...]
    """Tools of the project as a whole; none if every row brings its own."""
    numbered_rows: bool = False
    """Whether rows are named by their line, see `read_tasks`."""

    def tasks(self, split: Split) -> tuple[Task, ...]:
        """Read a split. Raises DataError naming file, line and field."""
        files = self.config.data
        name = {"train": files.train, "validation": files.validation, "holdout": files.holdout}
        return read_tasks(self.folder / name[split], numbered=self.numbered_rows)

    def demonstrations(self) -> tuple[Demonstration, ...]:
        """Read the demonstrations; none if the project has no such file."""
        if not self.config.data.demonstrations:
            return ()
        path = self.folder / self.config.data.demonstrations
        return read_demonstrations(path, numbered=self.numbered_rows)

    def tools_shown(self, row: Task | Demonstration) -> tuple[ToolSpec, ...]:
        """Return the tools that the model is told about in this row, as a rollout would."""
        task = Task(id=row.id, messages=row.messages, tools=row.tools)
        return visible_tools(self.tools or row.tools, task, self.spec.tool_notes)

    def setup(self, sampler: Sampler, renderer: Renderer) -> RolloutSetup:
        """Join the project with a model, at policy version 0."""
        return RolloutSetup(
            policy=Policy(model=self.config.model, version=0, spec=self.spec),
            sampler=sampler,
            renderer=renderer,
            open_environment=self.open_environment,
            grader=self.grader,
        )


def open_project(folder: Path, *, config_file: str = "agent.toml", preset: str = "") -> Project:
    """Open a project folder. Raises ConfigError or DataError with what to do."""
    path = folder / config_file
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no {config_file} here; a project folder needs one. "
            "`agentrft init NAME` writes a working example"
        )
    config = load_project_config(path, preset or None)
    methods = config.methods
    if methods.supervised.trainer.adapter != methods.reinforcement.trainer.adapter:
        raise ConfigError(
            f"{path}: methods.supervised.trainer.adapter and methods.reinforcement.trainer.adapter "
            "differ; reinforcement goes on with the warm start's adapter, so make them equal"
        )
    system = _read_text(folder, config.system) if config.system else ""
    openers: list[OpenEnvironment] = []
    specs: tuple[ToolSpec, ...] = ()
    if config.environment:
        environment = _load_class(folder, config.environment)
        openers.append(python_environment(environment))
        specs += tool_specs(environment)
    if config.tools:
        openers.append(http_environment(config.tools))
        specs += tuple(
            ToolSpec(name=tool.name, description=tool.description, parameters=tool.parameters)
            for tool in config.tools
            if tool.parameters
        )
    if not openers:
        raise ConfigError(
            f'{path}: the agent has no tools; set `environment = "tools.py:MyEnvironment"` '
            "or add [[tools]] entries with name and server_url"
        )
    if not config.grader and not config.environment:
        raise ConfigError(
            f"{path}: nothing grades the rollouts; add a [grader] object or an environment with grade()"
        )
    return Project(
        folder=folder,
        config=config,
        spec=AgentSpec(system=system, limits=config.limits, decoding=config.decoding),
        open_environment=openers[0] if len(openers) == 1 else combined_environment(openers),
        grader=build_grader(config.grader),
        tools=specs,
    )


def _read_text(folder: Path, name: str) -> str:
    path = folder / name
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the system text: {error}") from error


def _load_class(folder: Path, reference: str) -> type[Environment]:
    """Import `file.py:Class` with the project folder importable for its siblings."""
    file, colon, name = reference.partition(":")
    path = folder / file
    if not colon or not name or not path.is_file():
        raise ConfigError(
            f"environment = {reference!r}: write it as `file.py:Class`, relative to {folder}"
            + ("" if path.is_file() else f"; {path} does not exist")
        )
    found = _import_file(path).__dict__.get(name)
    if not isinstance(found, type) or not issubclass(found, Environment):
        what = "is missing" if found is None else "does not inherit from agentrft.Environment"
        raise ConfigError(f"environment = {reference!r}: class {name} {what} in {path}")
    return found


def _import_file(path: Path) -> object:
    module_name = f"agentrft_project_{path.resolve().parent.name}_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    folder = str(path.resolve().parent)
    if folder not in sys.path:
        sys.path.insert(0, folder)
    with boundary(ConfigError, str(path)):
        spec.loader.exec_module(module)
    return module
