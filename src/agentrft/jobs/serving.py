"""A project's model opened for rollouts: files on disk with renderer and engine, or an endpoint.

torch is loaded when files are opened, so that an endpoint's project does without it.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn, Protocol

from agentrft.core.config import AgentEndpoint, ProjectConfig
from agentrft.core.errors import ConfigError, UserError
from agentrft.core.protocols import Sampler, Trainer
from agentrft.core.task import Message, ToolSpec
from agentrft.core.training_config import TrainerConfig
from agentrft.core.usage import TokenUsage
from agentrft.inference.models import ModelFiles, check_memory, resolve
from agentrft.inference.renderer import load_renderer
from agentrft.jobs.checkpoints import resume_point
from agentrft.jobs.context import Job
from agentrft.jobs.project import Project
from agentrft.rollout.dialogue import Renderer, TokenSpeaker
from agentrft.rollout.endpoint_dialogue import EndpointSpeaker
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.harness import Harness
from agentrft.store.home import Home
from agentrft.training.checkpoint import verify_checkpoint
from agentrft.training.credit import LossName

ROOM_TOKENS = 4096
"""Context that specs of a search may ask for; the engine's cache grows only as it is used."""
SPENT = "endpoint_spent.json"
"""In a run's folder: the tokens it took of its endpoint."""
CANARIES = 3
"""Conversations that serve as canary sequences of the policy identity check."""


class DemonstrationRenderer(Renderer, Protocol):
    """A renderer that also renders conversations to imitate."""

    def demonstration(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec]
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        """Return the ids of a whole conversation, and True where the model would have sampled."""
        ...


class Engine(Sampler, Protocol):
    """A sampler that holds a model until it is closed."""

    def close(self) -> None:
        """Free the model; whoever waits fails."""
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
class OpenWeights:
    """A project's model, ready to roll out and to be trained."""

    renderer: DemonstrationRenderer
    sampler: Sampler
    project: Project
    open_trainer: OpenTrainer
    verify: Callable[[Path], None]
    """Raises StoreError for a damaged checkpoint folder."""
    changed: Callable[[Path], bool]
    """Whether a checkpoint's weights, as they would be served, differ from the model's own."""

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
        start = begun_from(job, start)
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
        """Whole conversations, which the policy finds likely, or prompts if there are none."""
        project, harness = self.project, Harness(self.project.spec)
        preferred = [pair.ways[0] for pair in project.preferences()[:CANARIES]]
        if rows := project.demonstrations()[:CANARIES] or preferred:
            shown = [harness.demonstration(row, project.offered(row)) for row in rows]
            return [self.renderer.demonstration(one.messages, one.tools)[0] for one in shown]
        tasks = project.tasks("train")[:CANARIES]
        sessions = [harness.session(task, project.offered(task)) for task in tasks]
        return [self.renderer.start(session.prompt, session.tools) for session in sessions]


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointModel:
    """A project's model behind an endpoint: it acts, and whatever needs its weights is refused."""

    project: Project
    speaker: EndpointSpeaker
    endpoint: AgentEndpoint

    @property
    def concurrency(self) -> int:
        """Rollouts in flight: as many as keep within the rate without waiting their time away."""
        endpoint, limits = self.endpoint, self.project.spec.limits
        if not endpoint.rate_limit:
            return endpoint.max_concurrent
        turn_s = min(endpoint.timeout_s, limits.timeout_s / limits.max_turns) / 2
        return max(1, min(endpoint.max_concurrent, int(endpoint.rate_limit * turn_s)))

    def setup(self) -> RolloutSetup:
        """Rollouts with the model as it is."""
        return self.project.setup(self.speaker)

    @property
    def renderer(self) -> NoReturn:
        """Raises UserError: only the server renders."""
        raise no_weights(self.endpoint.model)

    @property
    def sampler(self) -> NoReturn:
        """Raises UserError: no tokens are known."""
        raise no_weights(self.endpoint.model)

    def trainer(self, *_: object, **__: object) -> NoReturn:
        """Raises UserError."""
        raise no_weights(self.endpoint.model)

    def resumed_trainer(self, *_: object, **__: object) -> NoReturn:
        """Raises UserError."""
        raise no_weights(self.endpoint.model)

    def changed(self, *_: object) -> NoReturn:
        """Raises UserError."""
        raise no_weights(self.endpoint.model)


ServedModel = OpenWeights | EndpointModel


def no_weights(model: str) -> UserError:
    """Return what is said where weights of a model behind an endpoint are needed."""
    return UserError(
        f"{model} answers behind an endpoint, and its weights cannot be changed from here; set "
        "`model` in agent.toml to an open-weights base (`agentrft models list`) and remove [endpoint]"
    )


def require_weights(config: ProjectConfig) -> None:
    """Raise UserError for a project whose model cannot be trained."""
    if config.endpoint is not None:
        raise no_weights(config.endpoint.model)


class OpenModel(Protocol):
    """Open a project's model; what tests replace to run without one."""

    def __call__(
        self, project: Project, home: Home, *, trained: bool
    ) -> AbstractContextManager[ServedModel]:
        """Leaving the context frees the model."""
        ...


def begun_from(job: Job, start: Path | None) -> Path | None:
    """Return the checkpoint whose weights a run begins from, noted when it began; None for the base.

    So what led to its weights can be found, and a resumed run need not be told again. Raises
    ConfigError if it is told another.
    """
    if "start" not in job.run.result:
        job.note_result(start=str(start or ""))
    noted = job.run.result["start"]
    if start is not None and str(start) != noted:
        raise ConfigError(
            f"run {job.run.id} began from {noted or 'the base model'}, not from {start}; resume it "
            "without a start, or start a new run"
        )
    return Path(noted) if noted else None


def first_step(trainer: Trainer) -> int:
    """Return the first step still to do; steps that trained nothing count as done."""
    return trainer.cursor.get("step", 0)


@contextmanager
def served_model(
    project: Project, home: Home, *, trained: bool, job: Job | None = None
) -> Iterator[ServedModel]:
    """Open the project's model and close it again. Raises ModelError if it is missing or too big.

    An endpoint's budget counts all that `job` took of it before, and its log hears what it cannot do.
    """
    if project.config.endpoint is not None:
        if trained:
            require_weights(project.config)
        yield _endpoint_model(project, project.config.endpoint, job)
        return
    from agentrft.training.change import changed
    from agentrft.training.trainer import LocalTrainer

    files = resolve(project.config.model, cache=home.models)
    dtype = "float32" if project.config.engine.dtype == "float32" else "bfloat16"
    adapter = project.config.methods.reinforcement.trainer.adapter
    check_memory(files, dtype, adapter.kind if trained else None)
    told = _say_nothing if job is None else job.event
    engine = _open_engine(project, files, trained=trained, told=told)
    try:
        yield OpenWeights(
            renderer=load_renderer(files.folder),
            sampler=engine,
            project=project,
            open_trainer=partial(LocalTrainer, files.folder),
            verify=verify_checkpoint,
            changed=partial(changed, base=files.folder),
        )
    finally:
        engine.close()


def _open_engine(
    project: Project, files: ModelFiles, *, trained: bool, told: Callable[[str], None]
) -> Engine:
    """Open who samples. Raises ConfigError for settings that this engine cannot honour."""
    config = project.config.engine
    context_tokens = max(
        project.spec.limits.max_context_tokens, min(files.context_length, ROOM_TOKENS)
    )
    if config.vllm is None:
        from agentrft.inference.embedded.engine import EmbeddedEngine

        return EmbeddedEngine(files.folder, config, max_context_tokens=context_tokens)
    from agentrft.inference.embedded.device import choose_device, choose_dtype
    from agentrft.inference.embedded.shape import read_config
    from agentrft.inference.vllm.sampler import VllmSampler, all_weights_refused
    from agentrft.inference.vllm.server import Served, VllmServer

    adapter = project.config.methods.reinforcement.trainer.adapter  # all methods train the same
    if trained and adapter.kind == "full":
        raise all_weights_refused()
    shape = read_config(files.folder)
    served = Served(
        folder=files.folder,
        dtype=str(choose_dtype(config.dtype, choose_device("auto"))).removeprefix("torch."),
        # To score a whole context, vLLM needs room for one token behind it.
        context_tokens=min(context_tokens + 1, files.context_length),
        adapter_rank=adapter.rank,
        adapter_targets=adapter.targets,
    )
    return VllmSampler(
        VllmServer(config, served, told),
        max_context_tokens=context_tokens,
        vocabulary=shape.get("text_config", shape)["vocab_size"],
    )


def _say_nothing(message: str) -> None:
    """Stand in for a run's log where there is no run."""


def _endpoint_model(project: Project, endpoint: AgentEndpoint, job: Job | None) -> EndpointModel:
    if job is None:
        speaker = EndpointSpeaker(endpoint)
    else:
        path = job.folder / SPENT
        speaker = EndpointSpeaker(
            endpoint,
            spent=_spent(path),
            kept=partial(_keep, path),
            told=partial(job.event, level="warn"),
        )
    return EndpointModel(project=project, speaker=speaker, endpoint=endpoint)


def _spent(path: Path) -> TokenUsage:
    """Return what earlier processes of a run took, rollouts that were never stored included."""
    return TokenUsage(**json.loads(path.read_bytes())) if path.exists() else TokenUsage()


def _keep(path: Path, spent: TokenUsage) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(json.dumps(asdict(spent)), encoding="utf-8")
    draft.replace(path)
