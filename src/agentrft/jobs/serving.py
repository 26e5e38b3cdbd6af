"""A model opened for rollouts: files on disk, renderer, engine. Loads torch, so only jobs call it."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from agentrft.core.config import TrainerConfig
from agentrft.core.protocols import Sampler
from agentrft.core.task import Task
from agentrft.inference.embedded.engine import EmbeddedEngine
from agentrft.inference.models import ModelFiles, check_memory, resolve
from agentrft.inference.renderer import ChatRenderer, load_renderer
from agentrft.jobs.project import Project
from agentrft.rollout.episode import RolloutSetup, prompt_messages, visible_tools
from agentrft.store.home import Home
from agentrft.training.trainer import LocalTrainer, LossName

CANARIES = 6
"""Conversations that serve as canary sequences of the policy identity check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A project's model, ready to roll out and to be trained."""

    files: ModelFiles
    renderer: ChatRenderer
    sampler: Sampler
    project: Project

    @property
    def concurrency(self) -> int:
        """Rollouts worth having in flight: more than the engine decodes, since some wait for tools."""
        return self.project.config.engine.max_sequences * 3 // 2

    def setup(self) -> RolloutSetup:
        """Rollouts with the untouched model."""
        return self.project.setup(self.sampler, self.renderer)

    def trainer(
        self,
        config: TrainerConfig,
        loss: LossName,
        *,
        seed: int,
        start: Path | None = None,
        resume: Path | None = None,
    ) -> LocalTrainer:
        """Open a trainer on the same base weights, with canaries from this project's prompts."""
        return LocalTrainer(
            self.files.folder,
            config,
            loss=loss,
            canaries=self._canaries(),
            seed=seed,
            start=start,
            resume=resume,
        )

    def _canaries(self) -> Sequence[tuple[int, ...]]:
        """Whole demonstrations where there are some: text that the policy finds likely."""
        spec = self.project.spec
        shown = [
            Task(id=demonstration.id, messages=demonstration.messages, tools=demonstration.tools)
            for demonstration in self.project.demonstrations()[:CANARIES]
        ]
        canaries: list[tuple[int, ...]] = []
        for task in shown or self.project.tasks("train")[:CANARIES]:
            messages = prompt_messages(spec.system, task.messages)
            tools = visible_tools(self.project.tools, task, spec.tool_notes)
            token_ids, _ = self.renderer.demonstration(messages, tools)
            canaries.append(token_ids)
        return canaries


@contextmanager
def served_model(project: Project, home: Home, *, trained: bool) -> Iterator[ServedModel]:
    """Open the project's model and close it again. Raises ModelError if it is missing or too big."""
    files = resolve(project.config.model, cache=home.models)
    engine_config = project.config.engine
    dtype = "float32" if engine_config.dtype == "float32" else "bfloat16"
    adapter = project.config.methods.reinforcement.trainer.adapter
    check_memory(files, dtype, adapter.kind if trained else None)
    engine = EmbeddedEngine(
        files.folder,
        engine_config,
        max_context_tokens=project.config.limits.max_context_tokens,
    )
    try:
        yield ServedModel(
            files=files,
            renderer=load_renderer(files.folder),
            sampler=engine,
            project=project,
        )
    finally:
        engine.close()
