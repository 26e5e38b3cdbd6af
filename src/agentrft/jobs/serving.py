"""A model opened for rollouts: files on disk, renderer, engine. Loads torch, so only jobs call it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from agentrft.core.config import TrainerConfig
from agentrft.core.protocols import Sampler, Trainer
from agentrft.core.task import Message, ToolSpec
from agentrft.inference.embedded.engine import EmbeddedEngine
from agentrft.inference.models import check_memory, resolve
from agentrft.inference.renderer import load_renderer
from agentrft.jobs.checkpoints import resume_point
from agentrft.jobs.context import Job
from agentrft.jobs.project import Project
from agentrft.rollout.dialogue import Renderer, TokenSpeaker
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.harness import Harness
from agentrft.store.home import Home
from agentrft.training.checkpoint import verify_checkpoint
from agentrft.training.trainer import LocalTrainer, LossName

CANARIES = 6
"""Conversations that serve as canary sequences of the policy identity check."""


class DemonstrationRenderer(Renderer, Protocol):
    """A renderer that also renders conversations to imitate."""

    def demonstration(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec]
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Return the ids of a whole conversation, and True where the model would have sampled."""
        ...


class OpenTrainer(Protocol):
    """Make a trainer on the base weights of a model."""

    def __call__(
        self,
        config: TrainerConfig,
        *,
        loss: LossName,
        canaries: Sequence[Sequence[int]],
        seed: int,
        resume: Path | None,
        start: Path | None,
    ) -> Trainer:
        """`resume` continues a checkpoint exactly, `start` takes only its weights."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedModel:
    """A project's model, ready to roll out and to be trained."""

    renderer: DemonstrationRenderer
    sampler: Sampler
    project: Project
    open_trainer: OpenTrainer
    verify: Callable[[Path], None]
    """Raises StoreError for a damaged checkpoint folder."""

    @property
    def concurrency(self) -> int:
        """Rollouts worth having in flight: more than the engine decodes, since some wait for tools."""
        return self.project.config.engine.max_sequences * 3 // 2

    def setup(self) -> RolloutSetup:
        """Rollouts with the untouched model."""
        return self.project.setup(TokenSpeaker(self.sampler, self.renderer))

    def trainer(
        self, config: TrainerConfig, loss: LossName, *, seed: int, start: Path | None = None
    ) -> Trainer:
        """Open a trainer on the same base weights, with canaries from this project's prompts."""
        return self._trainer(config, loss, seed, resume=None, start=start)

    def resumed_trainer(
        self, job: Job, config: TrainerConfig, loss: LossName, start: Path | None
    ) -> Trainer:
        """Open the trainer where the job was left, else at `start`, else at the base model."""
        resume = resume_point(job, self.verify)
        return self._trainer(
            config, loss, job.run.seed, resume=resume, start=None if resume else start
        )

    def _trainer(
        self,
        config: TrainerConfig,
        loss: LossName,
        seed: int,
        *,
        resume: Path | None,
        start: Path | None,
    ) -> Trainer:
        return self.open_trainer(
            config,
            loss=loss,
            canaries=self._canaries(),
            seed=seed,
            resume=resume,
            start=start,
        )

    def _canaries(self) -> Sequence[tuple[int, ...]]:
        """Whole demonstrations, which the policy finds likely, or prompts if there are none."""
        project, harness = self.project, Harness(self.project.spec)
        if rows := project.demonstrations()[:CANARIES]:
            shown = [harness.demonstration(row, project.offered(row)) for row in rows]
            return [self.renderer.demonstration(one.messages, one.tools)[0] for one in shown]
        tasks = project.tasks("train")[:CANARIES]
        sessions = [harness.session(task, project.offered(task)) for task in tasks]
        return [self.renderer.start(session.prompt, session.tools) for session in sessions]


class OpenModel(Protocol):
    """Open a project's model; what tests replace to run without one."""

    def __call__(
        self, project: Project, home: Home, *, trained: bool
    ) -> AbstractContextManager[ServedModel]:
        """Leaving the context frees the model."""
        ...


def first_step(trainer: Trainer) -> int:
    """Return the first step still to do; steps that trained nothing count as done."""
    return trainer.cursor.get("step", 0)


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
            renderer=load_renderer(files.folder),
            sampler=engine,
            project=project,
            open_trainer=partial(LocalTrainer, files.folder),
            verify=verify_checkpoint,
        )
    finally:
        engine.close()
