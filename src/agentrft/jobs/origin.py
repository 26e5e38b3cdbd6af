"""A run that is done, as what another model has to repeat; and whether that model can."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from agentrft.core.config import Methods
from agentrft.core.errors import ConfigError, UserError
from agentrft.core.policy import Checkpoint
from agentrft.core.run import TRAINING, Method, RolloutRecord, RunStatus
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Demonstration, Message
from agentrft.core.training_config import TrainerConfig
from agentrft.inference.models import ModelFiles, resolve
from agentrft.inference.renderer import load_renderer
from agentrft.jobs.checkpoints import delivered
from agentrft.jobs.context import Job
from agentrft.jobs.distillation import short_spec
from agentrft.jobs.improvement_report import children_of
from agentrft.jobs.optimize import STAGE as SEARCH
from agentrft.jobs.optimize import found_again, kept_spec
from agentrft.jobs.project import Project
from agentrft.jobs.serving import require_weights
from agentrft.jobs.stages import MEASURED
from agentrft.jobs.trials import spec_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a run did to its model, and what came of it."""

    job: Job
    """To read from."""
    model: str
    spec: AgentSpec
    """What it ended with."""
    steps: tuple[tuple[Method, AgentSpec], ...]
    """What trained the weights, in order, each under its spec."""
    trainings: tuple[Job, ...]
    """The runs of these steps."""
    checkpoint: Checkpoint
    """What came of the last step."""
    demonstrations: tuple[Demonstration, ...]
    """The project's, and what its search has verified."""

    def known(self, *, trained: bool) -> list[RolloutRecord]:
        """Return holdout rollouts of its first or last weights under the last spec, if it made any."""
        children = children_of(self.job)
        place = {name: number for number, name in enumerate(children)}
        trainings = [place[name] for name, one in children.items() if _trained(one)]
        return [
            record
            for name, child in children.items()
            if name.endswith(MEASURED) and child.run.result.get("spec_hash") == self.spec.hash
            if (place[name] > max(trainings) if trained else place[name] < min(trainings))
            for record in child.read_all(RolloutRecord)
        ]


def origin_of(job: Job, project: Project) -> Origin:
    """Read what a run did; `project` is the run's own, with its settings.

    Raises UserError for a run that trained nothing, is not done, or began from other weights.
    """
    run = job.run
    require_weights(project.config)
    if run.method not in {Method.IMPROVE} | TRAINING:
        raise UserError(
            f"run {run.id} is of method {run.method}; name an improvement or a training to repeat"
        )
    if run.status is not RunStatus.SUCCEEDED:
        raise UserError(f"run {run.id} is {run.status}; finish it with --resume first")
    if run.method in TRAINING:
        return _of_training(job, project)
    children = children_of(job)
    trainings = tuple(filter(_trained, children.values()))
    if not trainings:
        raise UserError(
            f"run {run.id} trained nothing, so another model has nothing to repeat; set `model` and "
            "run `agentrft improve` instead"
        )
    verified = found_again(children[SEARCH]).demonstrations
    shown = {one.id: one for one in (*verified, *project.demonstrations())}
    return Origin(
        job=job,
        model=project.config.model,
        spec=kept_spec(job.folder, run.result["spec"]),
        steps=tuple((c.run.method, _under(job, c.run.result.get("spec"))) for c in trainings),
        trainings=trainings,
        checkpoint=delivered(trainings[-1]),
        demonstrations=tuple(shown.values()),
    )


def _trained(job: Job) -> bool:
    """Whether a stage changed the weights; an improvement passes over what left nothing."""
    return job.run.method in TRAINING and job.is_done


def _of_training(job: Job, project: Project) -> Origin:
    run, checkpoint = job.run, delivered(job)
    if run.result.get("start"):
        raise UserError(
            f"run {run.id} began from the checkpoint {run.result['start']}, and weights of one "
            "model do not fit another; rebase the run that led there, or an `agentrft improve`"
        )
    distilled = run.method is Method.DISTILLATION
    spec = short_spec(project) if distilled else project.spec
    if checkpoint.spec_hash not in ("", spec.hash):
        raise ConfigError(
            f"run {run.id} trained under spec {checkpoint.spec_hash}, the project's is {spec.hash} "
            "now; restore it to repeat the run"
        )
    return Origin(
        job=job,
        model=project.config.model,
        spec=spec,
        steps=((run.method, project.spec),),
        trainings=(job,),
        checkpoint=checkpoint,
        demonstrations=project.demonstrations(),
    )


def _under(job: Job, name: str | None) -> AgentSpec:
    if name is None or not spec_path(job.folder, name).is_file():
        raise UserError(
            f"run {job.run.id} kept no spec of its training stages; it was made by an older version"
        )
    return kept_spec(job.folder, name)


def carried_over(origin: Origin, project: Project, models: Path) -> list[str]:
    """Return what a reader must know of the move to the project's model.

    Raises UserError for what that model cannot do, ModelError if it is not to be had.
    """
    former = resolve(origin.model, cache=models)
    new = resolve(project.config.model, cache=models)
    if former.folder == new.folder:
        raise UserError(
            f"run {origin.job.run.id} trained {origin.model} itself; name another model"
        )
    for spec in (origin.spec, *(spec for _, spec in origin.steps)):
        _check_context(spec, new)
    for method, _ in origin.steps:
        _check_layers(method, trainer_of(project.config.methods, method), new)
    return list(_differences(former, new))


def trainer_of(methods: Methods, method: Method) -> TrainerConfig:
    """Return how a method trains."""
    trainers: Mapping[Method, TrainerConfig] = {
        Method.SUPERVISED: methods.supervised.trainer,
        Method.REJECTION: methods.rejection.supervised.trainer,
        Method.DISTILLATION: methods.distillation.supervised.trainer,
        Method.PREFERENCE: methods.preference.trainer,
        Method.REINFORCEMENT: methods.reinforcement.trainer,
    }
    return trainers[method]


def _check_context(spec: AgentSpec, files: ModelFiles) -> None:
    wanted, made_for = spec.limits.max_context_tokens, files.context_length
    if made_for and wanted > made_for:
        raise UserError(
            f"the spec lets a rollout use {wanted} tokens of context (limits.max_context_tokens), and "
            f"{files.name} was made for {made_for}; take a model with a longer context"
        )


def _check_layers(method: Method, trainer: TrainerConfig, files: ModelFiles) -> None:
    if trainer.adapter.kind != "lora":
        return
    names = "\n".join(_weights(files.folder))
    if missing := [name for name in trainer.adapter.targets if f".{name}.weight" not in names]:
        raise UserError(
            f"{files.name} has no layers named {', '.join(missing)}, which "
            f"methods.{method}'s trainer.adapter.targets asks for; the same adapter cannot be trained"
        )


def _weights(folder: Path) -> Iterator[str]:
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            yield from file.keys()


PROBE: Sequence[Message] = (
    Message(role="system", content="s"),
    Message(role="user", content="u"),
)


def _differences(former: ModelFiles, new: ModelFiles) -> Iterator[str]:
    tokenizers = [(one.folder / "tokenizer.json").read_bytes() for one in (former, new)]
    if tokenizers[0] == tokenizers[1]:
        return
    yield (
        f"{new.name} has another tokenizer than {former.name}: token limits of the spec hold other "
        "amounts of text, and counts of tokens do not compare"
    )
    renderers = [load_renderer(one.folder) for one in (former, new)]
    written = [renderer.decode(renderer.start(PROBE, ())) for renderer in renderers]
    if written[0] != written[1]:
        yield (
            f"{new.name} belongs to another chat family than {former.name}: the spec is the same, but "
            "its prompts, tools and calls are written otherwise"
        )
