"""What the hyperparameters of a fine-tuning job come to: `auto` resolved, multipliers applied.

Pure and deterministic; docs/fine_tuning_api.md holds the same rules as a table.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from agentrft.core.config import EvaluationConfig, Limits, Methods
from agentrft.core.errors import ConfigError
from agentrft.core.job import (
    FineTuningMethod,
    PreferenceMethod,
    ReinforcementMethod,
    SupervisedMethod,
)
from agentrft.core.training_config import (
    PreferenceConfig,
    PreferenceLoss,
    ReinforcementConfig,
    SupervisedConfig,
    TrainerConfig,
)

REINFORCEMENT_STEPS = 30
SUPERVISED_STEPS = 50
PREFERENCE_STEPS = 30
"""Steps that `n_epochs` `auto` aims at."""
MOST_AUTO_EPOCHS = 10
VALIDATIONS = 5
"""Validations that `eval_interval` `auto` aims at."""
ROLLOUTS_PER_TASK = 8
"""At `compute_multiplier` 1."""
EPISODE_STEPS = 10
"""Model calls of a rollout if the job does not say."""
TURN_TOKENS: Mapping[str, int] = {"low": 128, "medium": 256, "high": 512}
"""Sampled tokens in one turn, by `reasoning_effort`."""
CONTEXT_TOKENS = 4096
CHECKPOINT_INTERVAL = 1
"""Steps; a step costs far more than writing an adapter, and a killed worker loses one at most."""
ROLLOUT_TIMEOUT_S = 1800.0
"""Wall clock of one rollout; a tool alone may take ten minutes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """A job's settings, ready to run."""

    methods: Methods
    """The job's own method and its evaluation are resolved, the other methods are the defaults."""
    limits: Limits
    steps: int
    """Optimizer steps."""
    interval: int
    """Steps between looks at the validation file; see `looks_after`."""
    shown: Mapping[str, Any]
    """Hyperparameters by their API names, each with its value."""

    def looks_after(self, step: int) -> bool:
        """Whether the job validates and offers a checkpoint after this step; the last one does."""
        return step % self.interval == 0 or step == self.steps


def resolve(
    method: FineTuningMethod,
    *,
    train_rows: int,
    validation_rows: int,
    model_context_tokens: int = CONTEXT_TOKENS,
) -> Resolved:
    """Resolve a job's hyperparameters over its data.

    Raises ConfigError naming the path of a value that does not fit the data.
    """
    limits = Limits(
        max_context_tokens=min(CONTEXT_TOKENS, model_context_tokens), timeout_s=ROLLOUT_TIMEOUT_S
    )
    match method:
        case SupervisedMethod():
            return _supervised(method, limits, train_rows)
        case PreferenceMethod():
            return _preference(method, limits, train_rows)
        case ReinforcementMethod():
            return _reinforcement(method, limits, train_rows, validation_rows)


def _supervised(method: SupervisedMethod, limits: Limits, rows: int) -> Resolved:
    passes = _passes(method, SUPERVISED_STEPS, rows)
    default = SupervisedConfig()
    config = replace(
        default,
        steps=passes.steps,
        batch_size=passes.batch_size,
        trainer=_faster(default.trainer, passes.multiplier),
        checkpoint_interval=CHECKPOINT_INTERVAL,
    )
    return Resolved(
        methods=Methods(supervised=config),
        limits=limits,
        steps=passes.steps,
        interval=passes.epoch_steps,
        shown=passes.shown,
    )


def _preference(method: PreferenceMethod, limits: Limits, rows: int) -> Resolved:
    passes = _passes(method, PREFERENCE_STEPS, rows)
    default = PreferenceConfig()
    loss = PreferenceLoss(beta=method.beta)
    config = replace(
        default,
        steps=passes.steps,
        batch_size=passes.batch_size,
        trainer=replace(_faster(default.trainer, passes.multiplier), preference=loss),
        checkpoint_interval=CHECKPOINT_INTERVAL,
    )
    return Resolved(
        methods=Methods(preference=config),
        limits=limits,
        steps=passes.steps,
        interval=passes.epoch_steps,
        shown={**passes.shown, "beta": loss.price},
    )


def _reinforcement(
    method: ReinforcementMethod, limits: Limits, rows: int, validation_rows: int
) -> Resolved:
    if not validation_rows:
        _refuse_without_validation(method)
    batch_size = _batch_size(method, 8, rows)
    epochs = method.n_epochs or _epochs(REINFORCEMENT_STEPS, batch_size, rows)
    multiplier = method.learning_rate_multiplier or 1.0
    compute = method.compute_multiplier or 1.0
    steps = math.ceil(epochs * rows / batch_size)
    interval = min(method.eval_interval or max(1, _rounded(steps / VALIDATIONS)), steps)
    samples = method.eval_samples or 1
    default = ReinforcementConfig()
    config = replace(
        default,
        steps=steps,
        tasks_per_step=batch_size,
        group_size=min(max(2, _rounded(ROLLOUTS_PER_TASK * compute)), 64),
        trainer=_faster(default.trainer, multiplier),
        checkpoint_interval=CHECKPOINT_INTERVAL,
        validation_interval=interval if validation_rows else 0,
        validation_tasks=0,
    )
    effort = "medium" if method.reasoning_effort == "default" else method.reasoning_effort
    turns = method.max_episode_steps or EPISODE_STEPS
    return Resolved(
        methods=Methods(
            reinforcement=config,
            # As the policy acts in training; greedy decoding would hide how often it goes wrong.
            evaluation=EvaluationConfig(samples_per_task=samples, temperature=config.temperature),
        ),
        limits=replace(
            limits,
            max_turns=turns,
            max_tool_calls=2 * turns,
            max_turn_tokens=TURN_TOKENS[effort],
            max_tokens=4 * TURN_TOKENS[effort],
        ),
        steps=steps,
        interval=interval,
        shown={
            "batch_size": batch_size,
            "learning_rate_multiplier": multiplier,
            "n_epochs": epochs,
            "compute_multiplier": compute,
            "eval_interval": interval,
            "eval_samples": samples,
            "reasoning_effort": effort,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Passes:
    """How a job goes through its rows."""

    batch_size: int
    epochs: int
    multiplier: float
    rows: int

    @property
    def steps(self) -> int:
        return math.ceil(self.epochs * self.rows / self.batch_size)

    @property
    def epoch_steps(self) -> int:
        return min(math.ceil(self.rows / self.batch_size), self.steps)

    @property
    def shown(self) -> dict[str, Any]:
        return {
            "batch_size": self.batch_size,
            "learning_rate_multiplier": self.multiplier,
            "n_epochs": self.epochs,
        }


def _passes(method: SupervisedMethod | PreferenceMethod, steps: int, rows: int) -> _Passes:
    batch_size = _batch_size(method, min(max(4, rows // 16), 32), rows)
    return _Passes(
        batch_size=batch_size,
        epochs=method.n_epochs or _epochs(steps, batch_size, rows),
        multiplier=method.learning_rate_multiplier or 1.0,
        rows=rows,
    )


def _refuse_without_validation(method: ReinforcementMethod) -> None:
    for name, value in (
        ("eval_interval", method.eval_interval),
        ("eval_samples", method.eval_samples),
    ):
        if value is not None:
            raise ConfigError(
                f"{_path(method, name)} is {value}, but the job has no validation rows; "
                "give a validation_file or leave it out"
            )


def _batch_size(method: FineTuningMethod, auto: int, rows: int) -> int:
    if method.batch_size is None:
        return min(auto, rows)
    if method.batch_size > rows:
        raise ConfigError(
            f"{_path(method, 'batch_size')} is {method.batch_size}, but the training file has "
            f'{rows} rows; write at most {rows} or "auto"'
        )
    return method.batch_size


def _epochs(steps: int, batch_size: int, rows: int) -> int:
    """Return how often to pass through the rows for about so many steps."""
    return min(max(1, _rounded(steps * batch_size / rows)), MOST_AUTO_EPOCHS)


def _faster(trainer: TrainerConfig, multiplier: float) -> TrainerConfig:
    """Return the same trainer, and so the same adapter for all jobs, at another learning rate."""
    rate = trainer.optimizer.learning_rate * multiplier
    return replace(trainer, optimizer=replace(trainer.optimizer, learning_rate=rate))


def _rounded(value: float) -> int:
    """Round half up; Python's own rounding takes 2.5 to 2."""
    return math.floor(value + 0.5)


def _path(method: FineTuningMethod, name: str) -> str:
    return f"method.{method.type}.hyperparameters.{name}"
