"""Settings that would not mean what they say. Pure; asked when a project is read and a run starts."""

from collections.abc import Iterator

from agentrft.core.training_config import (
    DistillationConfig,
    Loss,
    PreferenceConfig,
    ReinforcementConfig,
    RejectionConfig,
    SupervisedConfig,
    TaskChoice,
    TrainerConfig,
)

MethodConfig = (
    SupervisedConfig | RejectionConfig | DistillationConfig | PreferenceConfig | ReinforcementConfig
)


def refused(config: MethodConfig) -> str | None:
    """Return which setting would mean something else and what to do, the first of them; or None."""
    match config:
        case ReinforcementConfig():
            found = _reinforcement(config)
        case PreferenceConfig():
            found = _preference(config)
        case SupervisedConfig():
            found = _supervised(config)
        case RejectionConfig() | DistillationConfig():
            found = _own_rollouts(config)
    return next(found, None)


def _supervised(config: SupervisedConfig) -> Iterator[str]:
    yield from _counts(steps=config.steps, batch_size=config.batch_size)
    yield from _unread(config.trainer, "loss", "preference", "reference")


def _own_rollouts(config: RejectionConfig | DistillationConfig) -> Iterator[str]:
    yield from _counts(samples=config.samples, most_per_task=config.most_per_task)
    yield from (f"supervised.{reason}" for reason in _supervised(config.supervised))


def _counts(**counts: int) -> Iterator[str]:
    for name, count in counts.items():
        if count < 1:
            yield f"{name} is {count}; it must be at least 1"


def _unread(trainer: TrainerConfig, *names: str) -> Iterator[str]:
    default = TrainerConfig()
    for name in names:
        if getattr(trainer, name) != getattr(default, name):
            yield f"trainer.{name} is set, and this method does not read it: leave it out"


def _reinforcement(config: ReinforcementConfig) -> Iterator[str]:
    credit, kind = config.credit, config.trainer.loss.kind
    if config.group_size < 2:
        yield f"group_size is {config.group_size}; credit compares rollouts of a task: take at least 2"
    if config.staleness not in (0, 1):
        yield (
            f"staleness is {config.staleness}; one step of training can hide behind the rollouts of "
            "one step, so take 0 or 1"
        )
    if config.temperature <= 0:
        yield (
            f"temperature is {config.temperature:g}; rollouts of a task would all be the same: "
            "take one above 0"
        )
    if credit.turn_weight < 0:
        yield f"credit.turn_weight is {credit.turn_weight:g}; it must not be below 0"
    if not 0 <= credit.turn_discount <= 1:
        yield f"credit.turn_discount is {credit.turn_discount:g}; it must be between 0 and 1"
    if credit.turn_weight > 0 and kind == "gspo":
        yield (
            f"credit.turn_weight is {credit.turn_weight:g} and trainer.loss.kind is 'gspo'; it "
            "has one ratio per sequence, for one advantage per sequence: take kind 'clip' or "
            "'cispo', or turn_weight 0"
        )
    if credit.turn_weight > 0 and credit.advantage == "grpo":
        yield (
            f"credit.turn_weight is {credit.turn_weight:g} and credit.advantage is 'grpo'; it "
            "divides outcomes by their deviation, so that turn_weight would mean something else "
            "in each group: take 'centred' or 'rloo', or turn_weight 0"
        )
    yield from _counts(steps=config.steps, tasks_per_step=config.tasks_per_step)
    yield from _tasks(config.tasks)
    yield from _loss(config.trainer.loss)
    yield from _unread(config.trainer, "preference")


def _tasks(tasks: TaskChoice) -> Iterator[str]:
    for name, value, fits, wanted in (
        ("low", tasks.low, tasks.low <= tasks.high, f"at most tasks.high, {tasks.high:g}"),
        ("revisited", tasks.revisited, 0 <= tasks.revisited <= 1, "between 0 and 1"),
        ("rounds", tasks.rounds, tasks.rounds >= 1, "at least 1"),
        ("oversampling", tasks.oversampling, tasks.oversampling >= 1, "at least 1"),
    ):
        if not fits:
            yield f"tasks.{name} is {value:g}; it must be {wanted}"


def _loss(loss: Loss) -> Iterator[str]:
    low, high = loss.bounds
    if low > 1 or high < 1:
        yield "trainer.loss.clip_low and trainer.loss.clip_high must not be below 0"
    if low < 0 or (low == 0 and loss.kind != "cispo"):
        yield (
            f"trainer.loss.clip_low is {loss.clip_low:g}; a ratio is above 0, so that it would bound "
            f"nothing: take one below 1{' or 1 for no bound' if loss.kind == 'cispo' else ''}"
        )
    if loss.kl_coefficient < 0:
        yield (
            f"trainer.loss.kl_coefficient is {loss.kl_coefficient:g}; below 0 it would reward "
            "leaving the reference"
        )
    for name, value in (
        ("sequence_log_ratio_bound", loss.sequence_log_ratio_bound),
        ("tokens_per_sequence", loss.tokens_per_sequence),
    ):
        if value <= 0:
            yield f"trainer.loss.{name} is {value:g}; it must be above 0"


def _preference(config: PreferenceConfig) -> Iterator[str]:
    beta = config.trainer.preference.price
    if beta <= 0:
        yield f"trainer.preference.beta is {beta:g}; it must be above 0"
    if (imitation := config.trainer.preference.imitation) < 0:
        yield f"trainer.preference.imitation is {imitation:g}; it must be 0 or more"
    yield from _counts(steps=config.steps, batch_size=config.batch_size, samples=config.samples)
    yield from _counts(most_per_task=config.most_per_task)
    yield from _unread(config.trainer, "loss")
