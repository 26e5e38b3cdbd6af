"""Settings that would not mean what they say. Pure; asked when a project is read and a run starts."""

from collections.abc import Iterator

from agentrft.core.training_config import (
    Loss,
    PreferenceConfig,
    ReinforcementConfig,
    TaskChoice,
)


def refused(config: ReinforcementConfig | PreferenceConfig) -> str | None:
    """Return which setting would mean something else and what to do, the first of them; or None."""
    match config:
        case ReinforcementConfig():
            return next(_reinforcement(config), None)
        case PreferenceConfig():
            return next(_preference(config), None)


def _reinforcement(config: ReinforcementConfig) -> Iterator[str]:
    credit, kind = config.credit, config.trainer.loss.kind
    if config.group_size < 2:
        yield f"group_size is {config.group_size}; credit compares rollouts of a task: take at least 2"
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
    yield from _tasks(config.tasks)
    yield from _loss(config.trainer.loss)


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
