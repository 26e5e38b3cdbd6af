"""Settings that would not mean what they say are refused with what to do."""

import re
from dataclasses import replace

import pytest

from agentrft.core.training_config import (
    Credit,
    DistillationConfig,
    Loss,
    PreferenceConfig,
    PreferenceLoss,
    ReinforcementConfig,
    RejectionConfig,
    SupervisedConfig,
    TrainerConfig,
)
from agentrft.training.refusals import MethodConfig, refused

HELD = TrainerConfig(loss=Loss(kl_coefficient=0.1))
CREDIT = ReinforcementConfig(credit=Credit(turn_weight=0.5))


def _with_loss(loss: Loss, config: ReinforcementConfig | None = None) -> ReinforcementConfig:
    return replace(config or ReinforcementConfig(), trainer=TrainerConfig(loss=loss))


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (_with_loss(Loss(kind="gspo"), CREDIT), "'gspo'; it has one ratio per sequence"),
        (
            ReinforcementConfig(credit=Credit(advantage="grpo", turn_weight=0.5)),
            "'grpo'; it divides outcomes by their deviation",
        ),
        (ReinforcementConfig(credit=Credit(turn_weight=-1.0)), "turn_weight is -1; it must not"),
        (ReinforcementConfig(credit=Credit(turn_discount=1.5)), "must be between 0 and 1"),
        (ReinforcementConfig(group_size=1), "group_size is 1; .* at least 2"),
        (ReinforcementConfig(temperature=0.0), "temperature is 0; .* above 0"),
        (_with_loss(Loss(clip_low=1.0)), "clip_low is 1; .* below 1$"),
        (_with_loss(Loss(kind="cispo", clip_low=1.5)), "below 1 or 1 for no bound"),
        (_with_loss(Loss(clip_low=-0.1)), "must not be below 0"),
        (_with_loss(Loss(clip_high=-0.1)), "must not be below 0"),
        (_with_loss(Loss(kl_coefficient=-0.1)), "reward leaving the reference"),
        (_with_loss(Loss(tokens_per_sequence=0.0)), "tokens_per_sequence is 0; .* above 0"),
        (
            PreferenceConfig(trainer=TrainerConfig(preference=PreferenceLoss(beta=0.0))),
            "beta is 0; it must be above 0",
        ),
        (PreferenceConfig(trainer=HELD), "trainer.loss is set, and this method does not read it"),
        (SupervisedConfig(trainer=HELD), "trainer.loss is set, and this method does not read it"),
        (SupervisedConfig(batch_size=0), "^batch_size is 0; it must be at least 1"),
        (RejectionConfig(supervised=SupervisedConfig(steps=0)), "^supervised.steps is 0"),
        (DistillationConfig(samples=0), "^samples is 0"),
    ],
)
def test_what_would_mean_something_else_is_refused_with_the_reason(
    config: MethodConfig, reason: str
) -> None:
    message = refused(config)
    assert message is not None
    assert re.search(reason, message), message


@pytest.mark.parametrize("kind", ["clip", "cispo", "gspo"])
@pytest.mark.parametrize("advantage", ["centred", "rloo", "grpo"])
def test_every_loss_takes_every_advantage(kind: str, advantage: str) -> None:
    credit = Credit(advantage=advantage)  # pyright: ignore[reportArgumentType]
    loss = Loss(kind=kind, kl_coefficient=0.01)  # pyright: ignore[reportArgumentType]
    assert refused(_with_loss(loss, ReinforcementConfig(credit=credit))) is None


def test_turn_credit_goes_with_token_losses() -> None:
    for kind in ("clip", "cispo"):
        assert refused(_with_loss(Loss(kind=kind), CREDIT)) is None
    assert refused(PreferenceConfig()) is None
