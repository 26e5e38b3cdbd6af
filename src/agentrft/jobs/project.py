"""A project folder opened: config, agent spec, data, tools and grader.

Reads files and imports the user's environment; knows nothing of models or training.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from agentrft.core.config import ProjectConfig
from agentrft.core.errors import ConfigError
from agentrft.core.policy import Policy
from agentrft.core.protocols import Grader, OpenEnvironment
from agentrft.core.run import Split
from agentrft.core.spec import AgentSpec, system_sections
from agentrft.core.task import Demonstration, Preference, Task, ToolSpec
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.reward_terms import with_terms
from agentrft.graders.second_model import second_opinion
from agentrft.jobs.project_code import ProjectCode
from agentrft.rollout.dialogue import Speaker
from agentrft.rollout.environment import python_environment, tool_specs
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.http_tools import combined_environment, http_environment
from agentrft.store.codec import load_project_config
from agentrft.store.datasets import read_demonstrations, read_preferences, read_tasks
from agentrft.store.spec_files import read_spec
from agentrft.training.refusals import refused

SPEC_FOLDER = "spec"
"""Beside `agent.toml`: what overlays it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """Everything a job needs to know about the agent."""

    folder: Path
    config: ProjectConfig
    spec: AgentSpec
    open_environment: OpenEnvironment
    grader: Grader
    """The project's grader with its reward terms."""
    tools: tuple[ToolSpec, ...]
    """Tools of the project as a whole; none if every row brings its own."""
    gold_grader: Grader | None = None
    """Held out: watched, never in the gradient, and without reward terms."""
    second_grader: Grader | None = None
    """The project's grader with another model behind it; watched likewise."""
    backends: Backends = field(default_factory=Backends)
    """What its graders reach."""
    numbered_rows: bool = False
    """Whether rows are named by their line, see `read_tasks`."""

    def tasks(self, split: Split) -> tuple[Task, ...]:
        """Read a split. Raises DataError naming file, line and field."""
        files = self.config.data
        name = {"train": files.train, "validation": files.validation, "holdout": files.holdout}
        return read_tasks(self.folder / name[split], numbered=self.numbered_rows)

    def examples(self) -> tuple[Task, ...]:
        """Read the held-out rows, or those of training if the project has none. Raises DataError."""
        file = self.folder / self.config.data.holdout
        return self.tasks("holdout" if file.is_file() else "train")

    @property
    def validation_rows(self) -> Split:
        """The split that validation looks at: without a file of its own it is the train rows."""
        file = self.folder / self.config.data.validation
        return "validation" if file.is_file() else "train"

    def demonstrations(self) -> tuple[Demonstration, ...]:
        """Read the demonstrations; none if the project has no such file."""
        if not self.config.data.demonstrations:
            return ()
        path = self.folder / self.config.data.demonstrations
        return read_demonstrations(path, numbered=self.numbered_rows)

    def preferences(self) -> tuple[Preference, ...]:
        """Read the pairs for preference training; none if the project has no such file."""
        if not self.config.data.preferences:
            return ()
        path = self.folder / self.config.data.preferences
        return read_preferences(path, numbered=self.numbered_rows)

    def offered(self, row: Task | Demonstration) -> tuple[ToolSpec, ...]:
        """Return the tools that a rollout of this row may be offered, under their own names."""
        return self.tools or row.tools

    def setup(self, speaker: Speaker) -> RolloutSetup:
        """Join the project with a model, at policy version 0."""
        return RolloutSetup(
            policy=Policy(model=self.config.agent_model, version=0, spec=self.spec),
            speaker=speaker,
            open_environment=self.open_environment,
            grader=self.grader,
        )


OpenBackends = Callable[[ProjectConfig], Backends]
"""What the graders of a project with this config may reach."""


def open_project(
    folder: Path,
    *,
    config_file: str = "agent.toml",
    preset: str = "",
    backends: OpenBackends = lambda _: Backends(),
) -> Project:
    """Open a project folder. Raises ConfigError or DataError with what to do."""
    return assembled(folder, read_config(folder, config_file, preset), backends)


def read_config(folder: Path, config_file: str = "agent.toml", preset: str = "") -> ProjectConfig:
    """Read the config of a project folder. Raises ConfigError with what to do."""
    path = folder / config_file
    if not path.is_file():
        raise ConfigError(
            f"{folder}: no {config_file} here; a project folder needs one. "
            "`agentrft init NAME` writes a working example"
        )
    config = load_project_config(path, preset or None)
    methods = config.methods
    for name, trainer in (
        ("supervised", methods.supervised.trainer),
        ("rejection.supervised", methods.rejection.supervised.trainer),
        ("distillation.supervised", methods.distillation.supervised.trainer),
        ("preference", methods.preference.trainer),
    ):
        if trainer.adapter != methods.reinforcement.trainer.adapter:
            raise ConfigError(
                f"{path}: methods.{name}.trainer.adapter and methods.reinforcement.trainer.adapter "
                "differ; each method goes on with the adapter of the one before, so make all equal"
            )
    for name, method in (
        ("supervised", methods.supervised),
        ("rejection", methods.rejection),
        ("distillation", methods.distillation),
        ("preference", methods.preference),
        ("reinforcement", methods.reinforcement),
    ):
        if reason := refused(method):
            raise ConfigError(f"{path}: methods.{name}: {reason}")
    if not config.environment and not config.tools:
        raise ConfigError(
            f'{path}: the agent has no tools; set `environment = "tools.py:MyEnvironment"` '
            "or add [[tools]] entries with name and server_url"
        )
    if not config.environment and not config.grader:
        raise ConfigError(
            f"{path}: nothing grades the rollouts; add a [grader] object or an environment with grade()"
        )
    return config


def assembled(folder: Path, config: ProjectConfig, backends: OpenBackends) -> Project:
    """Put together what a config that was read describes."""
    code = ProjectCode(folder)
    reached = replace(backends(config), functions=code.grader)
    openers: list[OpenEnvironment] = []
    specs: tuple[ToolSpec, ...] = ()
    if config.environment:
        environment = code.environment(config.environment)
        openers.append(python_environment(environment))
        specs += tool_specs(environment)
    if config.tools:
        openers.append(http_environment(config.tools))
        specs += tuple(
            ToolSpec(name=tool.name, description=tool.description, parameters=tool.parameters)
            for tool in config.tools
            if tool.parameters
        )
    return Project(
        folder=folder,
        config=config,
        spec=_spec(folder, config, {spec.name for spec in specs}),
        open_environment=openers[0] if len(openers) == 1 else combined_environment(openers),
        grader=with_terms(build_grader(config.grader, backends=reached), config.reward),
        gold_grader=build_grader(config.gold_grader, "gold_grader", backends=reached)
        if config.gold_grader
        else None,
        second_grader=build_grader(second_opinion(config.grader, second), backends=reached)
        if (second := config.methods.reinforcement.monitors.second_model)
        else None,
        tools=specs,
        backends=reached,
    )


def plain_spec(folder: Path, config: ProjectConfig) -> AgentSpec:
    """Return what `agent.toml` says of the spec, without the folder that overlays it."""
    system = _read_text(folder, config.system) if config.system else ""
    return AgentSpec(
        sections=system_sections(system), limits=config.limits, decoding=config.decoding
    )


def _spec(folder: Path, config: ProjectConfig, tools: set[str]) -> AgentSpec:
    spec = read_spec(folder / SPEC_FOLDER, plain_spec(folder, config))
    known = tools | {tool.name for tool in config.tools}
    for name in spec.tools.keys() - known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"its tools: {', '.join(sorted(known))}"
        raise ConfigError(f"{folder / SPEC_FOLDER}: the agent has no tool {name!r}; {hint}")
    return spec


def _read_text(folder: Path, name: str) -> str:
    path = folder / name
    try:
        return path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read the system text: {error}") from error
