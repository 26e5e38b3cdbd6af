from typing import Any

import pytest

from agentrft.core.errors import ConfigError
from agentrft.core.job import PreferenceMethod, ReinforcementMethod, SupervisedMethod
from agentrft.core.training_config import Adapter
from agentrft.jobs.hyperparameters import Resolved, resolve

GRADER = {"type": "string_check", "name": "g"}


def reinforcement(rows: int = 100, validation_rows: int = 20, **given: Any) -> Resolved:
    method = ReinforcementMethod(grader=GRADER, **given)
    return resolve(method, train_rows=rows, validation_rows=validation_rows)


def supervised(rows: int = 64, **given: Any) -> Resolved:
    return resolve(SupervisedMethod(**given), train_rows=rows, validation_rows=0)


def test_auto_aims_at_thirty_steps_and_five_validations() -> None:
    resolved = reinforcement(100)
    config = resolved.methods.reinforcement
    assert (config.tasks_per_step, config.group_size, config.steps) == (8, 8, 25)
    assert (config.validation_interval, config.validation_tasks) == (5, 0)
    assert resolved.shown == {
        "batch_size": 8,
        "learning_rate_multiplier": 1.0,
        "n_epochs": 2,
        "compute_multiplier": 1.0,
        "eval_interval": 5,
        "eval_samples": 1,
        "reasoning_effort": "medium",
    }


@pytest.mark.parametrize(("rows", "epochs"), [(1, 10), (10, 10), (240, 1), (50_000, 1)])
def test_auto_epochs_stay_between_one_and_ten(rows: int, epochs: int) -> None:
    resolved = reinforcement(rows)
    assert resolved.shown["n_epochs"] == epochs
    assert resolved.shown["batch_size"] == min(8, rows)


def test_given_values_are_kept() -> None:
    given: dict[str, Any] = {
        "batch_size": 16,
        "learning_rate_multiplier": 2.0,
        "n_epochs": 3,
        "compute_multiplier": 1.5,
        "eval_interval": 4,
        "eval_samples": 2,
        "reasoning_effort": "high",
    }
    resolved = reinforcement(50, **given)
    assert resolved.shown == given
    assert resolved.steps == 10  # 150 rows in batches of 16
    config = resolved.methods.reinforcement
    assert config.group_size == 12
    assert config.trainer.optimizer.learning_rate == pytest.approx(4e-4)
    assert resolved.methods.evaluation.samples_per_task == 2


@pytest.mark.parametrize(("multiplier", "group"), [(1e-4, 2), (0.5, 4), (10.0, 64)])
def test_compute_buys_rollouts_per_task_within_bounds(multiplier: float, group: int) -> None:
    assert reinforcement(compute_multiplier=multiplier).methods.reinforcement.group_size == group


def test_a_job_looks_at_its_validation_file_after_the_last_step_whatever_the_interval() -> None:
    resolved = reinforcement(80, batch_size=8, n_epochs=1, eval_interval=4)
    assert [step for step in range(1, 11) if resolved.looks_after(step)] == [4, 8, 10]
    assert reinforcement(8, batch_size=8, n_epochs=1, eval_interval=100).shown["eval_interval"] == 1


def test_effort_and_episode_steps_become_limits() -> None:
    low = reinforcement(reasoning_effort="low", max_episode_steps=3).limits
    default = reinforcement().limits
    high = reinforcement(reasoning_effort="high").limits
    assert (low.max_turns, low.max_tool_calls) == (3, 6)
    assert [x.max_turn_tokens for x in (low, default, high)] == [128, 256, 512]
    assert [x.max_tokens for x in (low, default, high)] == [512, 1024, 2048]


def test_the_context_is_never_larger_than_the_models() -> None:
    method = ReinforcementMethod(grader=GRADER)
    small = resolve(method, train_rows=9, validation_rows=0, model_context_tokens=2048)
    assert small.limits.max_context_tokens == 2048
    large = resolve(method, train_rows=9, validation_rows=0, model_context_tokens=131_072)
    assert large.limits.max_context_tokens == 4096


def test_a_batch_larger_than_the_file_is_refused_with_its_path() -> None:
    with pytest.raises(
        ConfigError, match=r"method\.reinforcement\.hyperparameters\.batch_size is 16"
    ):
        reinforcement(10, batch_size=16)
    with pytest.raises(ConfigError, match=r"method\.supervised\.hyperparameters\.batch_size"):
        supervised(10, batch_size=16)


@pytest.mark.parametrize("name", ["eval_interval", "eval_samples"])
def test_validation_settings_without_validation_rows_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=f"hyperparameters.{name} is 2.*validation_file"):
        reinforcement(validation_rows=0, **{name: 2})
    assert reinforcement(validation_rows=0).methods.reinforcement.validation_interval == 0


def test_supervised_jobs_aim_at_fifty_steps_and_offer_a_checkpoint_per_epoch() -> None:
    resolved = supervised(64)
    assert resolved.shown == {"batch_size": 4, "learning_rate_multiplier": 1.0, "n_epochs": 3}
    assert (resolved.steps, resolved.interval) == (48, 16)
    assert [step for step in range(1, 49) if resolved.looks_after(step)] == [16, 32, 48]
    assert resolved.methods.supervised.trainer.optimizer.learning_rate == pytest.approx(5e-4)
    assert supervised(5000).shown["batch_size"] == 32
    assert supervised(3).shown == {
        "batch_size": 3,
        "learning_rate_multiplier": 1.0,
        "n_epochs": 10,
    }


def test_preference_jobs_aim_at_thirty_steps_and_price_what_leaves_the_reference() -> None:
    resolved = resolve(PreferenceMethod(), train_rows=120, validation_rows=0)
    assert resolved.shown == {
        "batch_size": 7,
        "learning_rate_multiplier": 1.0,
        "n_epochs": 2,
        "beta": 0.1,
    }
    assert (resolved.steps, resolved.interval) == (35, 18)
    config = resolved.methods.preference
    assert (config.steps, config.batch_size) == (35, 7)
    assert config.trainer.optimizer.learning_rate == pytest.approx(5e-5)
    given = PreferenceMethod(beta=0.5, n_epochs=1, learning_rate_multiplier=4.0)
    priced = resolve(given, train_rows=16, validation_rows=0)
    assert priced.shown["beta"] == priced.methods.preference.trainer.preference.price == 0.5
    assert priced.methods.preference.trainer.optimizer.learning_rate == pytest.approx(2e-4)
    with pytest.raises(ConfigError, match=r"method\.dpo\.hyperparameters\.batch_size is 16"):
        resolve(PreferenceMethod(batch_size=16), train_rows=10, validation_rows=0)


def test_every_job_trains_the_same_adapter() -> None:
    for resolved in (supervised(), reinforcement()):
        assert resolved.methods.supervised.trainer.adapter == Adapter()
        assert resolved.methods.preference.trainer.adapter == Adapter()
        assert resolved.methods.reinforcement.trainer.adapter == Adapter()
