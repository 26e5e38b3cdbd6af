"""Loss and gradients of every loss with every advantage are those of plain formulas under autograd."""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import plain_losses
import pytest
import torch
from plain_losses import PlainRollout, PlainSettings
from tiny_training import VOCABULARY, config, tiny_model
from torch import Tensor

from agentrft.core.grade import Grade, GradedTrajectory, Group
from agentrft.core.sample import Sample
from agentrft.core.task import Message, Task
from agentrft.core.training_config import Credit, Loss, PreferenceLoss, TrainerConfig
from agentrft.core.trajectory import StopReason, Trajectory, Turn
from agentrft.training.credit import LossName, credited_group, preference_pair
from agentrft.training.trainer import LocalTrainer

Kind = Literal["lora", "full"]
TASK = Task(id="task", messages=(Message(role="user", content="hi"),))
CLIPS = {"clip": (0.2, 0.28), "cispo": (0.3, 0.4), "gspo": (0.02, 0.03)}
"""Narrow enough that some of the ratios lie outside."""
TEMPERATURE = 0.8


def _plain_model(folder: Path, kind: Kind, checkpoint: Path | None) -> Any:
    """Load with transformers and PEFT alone; without a checkpoint the model as it is."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    if checkpoint is None or kind == "full":
        path = checkpoint or folder
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return PeftModel.from_pretrained(base, checkpoint, is_trainable=True).eval()


def _moved(trainer: LocalTrainer, seed: int) -> None:
    """Move all weights that train, so that the policy is far from every reference."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, master in trainer.trainable.masters.items():
            if "lora_A" not in name:
                master.add_(torch.randn(master.shape, generator=generator), alpha=0.03)
    trainer.trainable.refresh()


class Twins:
    """The trainer, and the same policy and reference as plain models."""

    def __init__(
        self, tmp_path: Path, kind: Kind, name: LossName, *, started: bool = False, **changes: Any
    ) -> None:
        folder = tiny_model(tmp_path / "model")
        settings: TrainerConfig = config(kind, **changes)
        start = None
        if started:
            start = tmp_path / "start"
            warm = LocalTrainer(folder, settings, loss="cross_entropy", canaries=[], seed=2)
            _moved(warm, 1)
            warm.save(start, {})
        self.trainer = LocalTrainer(folder, settings, loss=name, canaries=[], seed=1, start=start)
        _moved(self.trainer, 3)
        self.trainer.save(tmp_path / "checkpoint", {})
        self.policy = _plain_model(folder, kind, tmp_path / "checkpoint")
        of_start = settings.reference == "start"
        self.reference = _plain_model(folder, kind, start if of_start else None).requires_grad_(
            False
        )

    def compare(self, samples: Sequence[Sample], plain: Callable[[], Tensor]) -> None:
        self.policy.zero_grad()
        expected_loss = plain()
        expected_loss.backward()
        expected = {
            name.replace(".default", ""): parameter.grad
            for name, parameter in self.policy.named_parameters()
            if parameter.requires_grad
        }
        loss, gradients = self.trainer.loss_and_gradients(samples)
        assert loss == pytest.approx(expected_loss.item(), abs=1e-5)
        assert self.trainer.measure(samples)["loss"] == pytest.approx(loss, abs=1e-6)
        assert gradients.keys() == expected.keys()
        for name, gradient in expected.items():
            assert gradient is not None
            assert gradient.abs().max() > 1e-6, name
            torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4)


def _groups(model: Any) -> list[list[PlainRollout]]:
    """Return rollouts near the policy, some beyond every clip, one beyond the sequence bound."""
    draw = random.Random(5)
    system = [draw.randrange(VOCABULARY) for _ in range(24)]
    groups: list[list[PlainRollout]] = []
    for task in range(3):
        prompt = system + [draw.randrange(VOCABULARY) for _ in range(17)]
        group: list[PlainRollout] = []
        for place in range(4):
            rollout = PlainRollout([], [], [], [], draw.random(), [])
            for turn in range(draw.randrange(1, 4)):
                seen = prompt if turn == 0 else [draw.randrange(VOCABULARY) for _ in range(5)]
                acted = [draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 8))]
                rollout.ids += seen + acted
                rollout.action += [False] * len(seen) + [True] * len(acted)
                rollout.turn_of += [turn] * (len(seen) + len(acted))
                rollout.turn_scores.append(draw.random())
            with torch.no_grad():
                scored = plain_losses.token_logprobs(model, rollout.ids, TEMPERATURE)
            # Whole sequences move too, else no ratio of a sequence would leave its bounds.
            spread, shift = (9.0, 0.0) if task == place == 0 else (0.4, draw.uniform(-0.1, 0.1))
            rollout.behavior = [0.0, *scored.tolist()]
            rollout.behavior = [
                value + shift + draw.uniform(-spread, spread) if action else 0.0
                for value, action in zip(rollout.behavior, rollout.action, strict=True)
            ]
            group.append(rollout)
        groups.append(group)
    return groups


def _turns(rollout: PlainRollout) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    for number in range(len(rollout.turn_scores)):
        places = [place for place, turn in enumerate(rollout.turn_of) if turn == number]
        acted = [place for place in places if rollout.action[place]]
        turns.append(
            Turn(
                observation_ids=tuple(rollout.ids[p] for p in places if not rollout.action[p]),
                action_ids=tuple(rollout.ids[p] for p in acted),
                behavior_logprobs=tuple(rollout.behavior[p] for p in acted),
                first_version=0,
                last_version=0,
                message=Message(role="assistant"),
            )
        )
    return tuple(turns)


def _as_group(rollouts: Sequence[PlainRollout], number: int) -> Group:
    graded = [
        GradedTrajectory(
            trajectory=Trajectory(
                id=f"trace_{number}_{place}",
                task_id="task",
                model="tiny",
                spec_hash="0",
                seed=0,
                prompt=TASK.messages,
                turns=_turns(rollout),
                stop_reason=StopReason.FINISHED,
            ),
            grade=Grade(score=rollout.score, turn_scores=tuple(rollout.turn_scores)),
        )
        for place, rollout in enumerate(rollouts)
    ]
    return Group(task=TASK, policy_version=0, graded=tuple(graded))


def _compare_policy_gradient(twins: Twins, loss: Loss, credit: Credit) -> None:
    groups = _groups(twins.policy)
    low, high = CLIPS[loss.kind]
    settings = PlainSettings(loss.kind, low, high, loss.kl_coefficient, temperature=TEMPERATURE)

    def plain() -> Tensor:
        shares: list[Tensor] = []
        for group in groups:
            outcomes = plain_losses.plain_advantages(group, credit.advantage)
            of_turns = plain_losses.plain_turn_credit(group, credit.advantage, credit.turn_discount)
            for rollout, outcome, single in zip(group, outcomes, of_turns, strict=True):
                reference = None
                if loss.kl_coefficient:
                    reference = plain_losses.token_logprobs(
                        twins.reference, rollout.ids, TEMPERATURE
                    )
                advantages = [outcome + credit.turn_weight * value for value in single]
                shares.append(
                    plain_losses.rollout_loss(
                        twins.policy, rollout, advantages, settings, reference
                    )
                )
        return torch.stack(shares).sum() / len(shares)

    samples = [
        sample
        for number, group in enumerate(groups)
        for sample in credited_group(_as_group(group, number), credit, temperature=TEMPERATURE)
    ]
    twins.compare(samples, plain)
    metrics = twins.trainer.measure(samples)
    assert metrics["masked_sequences"] == 1
    assert metrics["clip_share_low"] > 0
    assert metrics["clip_share_high"] > 0


def _loss(kind: Any, kl: float = 0.0) -> Loss:
    low, high = CLIPS[kind]
    return Loss(kind=kind, clip_low=low, clip_high=high, kl_coefficient=kl)


@pytest.mark.parametrize("loss", ["clip", "cispo", "gspo"])
@pytest.mark.parametrize("advantage", ["centred", "rloo", "grpo"])
def test_every_loss_with_every_advantage(tmp_path: Path, loss: str, advantage: Any) -> None:
    twins = Twins(tmp_path, "lora", "policy_gradient", loss=_loss(loss))
    _compare_policy_gradient(twins, _loss(loss), Credit(advantage=advantage))


@pytest.mark.parametrize("loss", ["clip", "cispo"])
@pytest.mark.parametrize("advantage", ["centred", "rloo"])
def test_every_turn_with_its_own_credit(tmp_path: Path, loss: str, advantage: Any) -> None:
    twins = Twins(tmp_path, "lora", "policy_gradient", loss=_loss(loss), micro_batch_tokens=64)
    credit = Credit(advantage=advantage, turn_weight=0.7, turn_discount=0.6)
    _compare_policy_gradient(twins, _loss(loss), credit)


@pytest.mark.parametrize("loss", ["clip", "cispo", "gspo"])
@pytest.mark.parametrize(
    ("kind", "reference", "started"),
    [
        ("lora", "base", True),
        ("lora", "start", True),
        ("lora", "start", False),
        ("full", "base", False),
    ],
)
def test_every_loss_held_to_a_reference(
    tmp_path: Path, loss: str, kind: Kind, reference: str, started: bool
) -> None:
    held = _loss(loss, kl=0.3)
    twins = Twins(
        tmp_path, kind, "policy_gradient", loss=held, reference=reference, started=started
    )
    _compare_policy_gradient(twins, held, Credit())


def _pairs(count: int = 4) -> list[tuple[tuple[Sequence[int], Sequence[bool]], ...]]:
    """Return pairs with a long common beginning, some with answers before they part."""
    draw = random.Random(7)
    system = [draw.randrange(VOCABULARY) for _ in range(40)]
    pairs: list[tuple[tuple[Sequence[int], Sequence[bool]], ...]] = []
    for number in range(count):
        asked = system + [draw.randrange(VOCABULARY) for _ in range(30)]
        common = [draw.randrange(VOCABULARY) for _ in range(number)]
        sides: list[tuple[Sequence[int], Sequence[bool]]] = []
        for first in (1, 2):
            own = [first, *(draw.randrange(VOCABULARY) for _ in range(draw.randrange(1, 12)))]
            mask = [False] * len(asked) + [True] * (len(common) + len(own))
            sides.append((asked + common + own, mask))
        pairs.append(tuple(sides))
    return pairs


def _only_own(side: tuple[Sequence[int], Sequence[bool]], first: int) -> tuple[Any, Any]:
    return side[0], [counted and place >= first for place, counted in enumerate(side[1])]


@pytest.mark.parametrize(
    "preference",
    [
        PreferenceLoss(beta=0.7),
        PreferenceLoss(beta=0.7, length_normalised=True),
        PreferenceLoss(beta=0.7, imitation=0.4),
    ],
    ids=["plain", "length-normalised", "with imitation"],
)
@pytest.mark.parametrize("budget", [16, 120, 100_000])
@pytest.mark.parametrize(
    ("kind", "reference", "started"),
    [
        ("lora", "base", True),
        ("lora", "start", True),
        ("lora", "start", False),
        ("full", "base", False),
    ],
)
def test_pairs_held_to_a_reference(
    tmp_path: Path,
    kind: Kind,
    reference: str,
    started: bool,
    budget: int,
    preference: PreferenceLoss,
) -> None:
    twins = Twins(
        tmp_path,
        kind,
        "preference",
        preference=preference,
        reference=reference,
        started=started,
        micro_batch_tokens=budget,
    )
    pairs = _pairs()

    def plain() -> Tensor:
        shares: list[Tensor] = []
        for number, pair in enumerate(pairs):
            sides = [_only_own(side, 70 + number) for side in pair]
            references = [
                plain_losses.token_logprobs(twins.reference, ids, 1.0) for ids, _ in sides
            ]
            shares.append(
                plain_losses.pair_loss(
                    twins.policy,
                    sides,
                    references,
                    beta=0.7,
                    length_normalised=preference.length_normalised,
                    imitation=preference.imitation,
                )
            )
        return torch.stack(shares).mean()

    samples = [
        sample
        for number, (preferred, rejected) in enumerate(pairs)
        for sample in preference_pair(preferred, rejected, f"pair {number}")
    ]
    twins.compare(samples, plain)


def test_the_adapter_switched_off_is_what_peft_calls_disabled(tmp_path: Path) -> None:
    twins = Twins(tmp_path, "lora", "preference", reference="base")
    preferred, rejected = _pairs(1)[0]
    pair = preference_pair(preferred, rejected, "pair")
    with twins.policy.disable_adapter(), torch.no_grad():
        references = [plain_losses.token_logprobs(twins.policy, s.token_ids, 1.0) for s in pair]
    sides = [(sample.token_ids, sample.action_mask) for sample in pair]
    loss = plain_losses.pair_loss(
        twins.policy, sides, references, beta=0.1, length_normalised=False
    )
    assert twins.trainer.measure(pair)["loss"] == pytest.approx(loss.item(), abs=1e-5)
