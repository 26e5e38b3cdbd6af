"""Whatever the loss, a training that was interrupted ends with the weights of one that was not."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import VOCABULARY, config, samples, tiny_model

from agentrft.core.errors import UserError
from agentrft.core.sample import Sample
from agentrft.core.training_config import Loss
from agentrft.training.credit import imitation, preference_pair
from agentrft.training.reference import Reference
from agentrft.training.trainer import LocalTrainer


def pairs(count: int) -> list[tuple[Sample, Sample]]:
    draw = random.Random(3)

    def ids(length: int) -> list[int]:
        return [draw.randrange(3, VOCABULARY) for _ in range(length)]

    made: list[tuple[Sample, Sample]] = []
    for number in range(count):
        prompt = ids(30)
        first, second = ([first, *ids(draw.randrange(1, 8))] for first in (1, 2))
        mask = [False] * len(prompt)
        made.append(
            preference_pair(
                (prompt + first, mask + [True] * len(first)),
                (prompt + second, mask + [True] * len(second)),
                f"pair {number}",
            )
        )
    return made


def _batch(loss: str, step: int) -> list[Sample]:
    match loss:
        case "preference":  # pairs come again in other company; one comes late
            made = pairs(4)
            return [s for place in ((0, 1), (1, 2), (2, 3), (3, 0))[step] for s in made[place]]
        case "cross_entropy":
            made = samples(5, seed=step)
            return [imitation(s.token_ids, s.action_mask, s.trajectory_id) for s in made]
        case _:
            return samples(5, seed=step)


def _steps(trainer: LocalTrainer, loss: str, steps: Sequence[int]) -> None:
    for step in steps:
        trainer.step(_batch(loss, step))
        trainer.measure(_batch(loss, 0))


@pytest.mark.parametrize(
    ("loss", "kind", "reference", "changes"),
    [
        ("cross_entropy", "lora", "start", {}),
        ("policy_gradient", "lora", "start", {"loss": Loss(kind="cispo", kl_coefficient=0.1)}),
        ("policy_gradient", "lora", "base", {"loss": Loss(kind="gspo", kl_coefficient=0.1)}),
        ("policy_gradient", "full", "base", {"loss": Loss(kl_coefficient=0.1)}),
        ("preference", "lora", "start", {"threads": 2}),
        ("preference", "lora", "base", {"dtype": "bfloat16"}),
        ("preference", "full", "base", {}),
    ],
)
def test_interrupted_training_ends_with_the_same_weights(
    tmp_path: Path, loss: Any, kind: str, reference: str, changes: dict[str, Any]
) -> None:
    folder = tiny_model(tmp_path / "model")
    settings = config(kind, deterministic=True, reference=reference, **changes)
    warm = LocalTrainer(folder, settings, loss="cross_entropy", canaries=[], seed=2)
    _steps(warm, "cross_entropy", (0, 1))
    warm.save(tmp_path / "warm", {})

    def opened(**places: Path) -> LocalTrainer:
        return LocalTrainer(folder, settings, loss=loss, canaries=[(1, 2, 3)], seed=1, **places)

    straight = opened(start=tmp_path / "warm")
    _steps(straight, loss, range(4))
    straight.save(tmp_path / "straight", {"step": 4})
    first = opened(start=tmp_path / "warm")
    _steps(first, loss, range(2))
    first.save(tmp_path / "half", {"step": 2})
    second = opened(resume=tmp_path / "half")
    assert second.steps_done == second.cursor["step"] == 2
    _steps(second, loss, range(2, 4))
    second.save(tmp_path / "resumed", {"step": 4})

    weights = "adapter_model.safetensors" if kind == "lora" else "model.safetensors"
    for file in (weights, "trainer_state.safetensors"):
        expected = load_file(tmp_path / "straight" / file)
        resumed = load_file(tmp_path / "resumed" / file)
        assert expected.keys() == resumed.keys()
        for name, tensor in expected.items():
            assert name == "rng.cpu" or torch.equal(tensor, resumed[name]), name
    started = load_file(tmp_path / "warm" / weights)
    ended = load_file(tmp_path / "resumed" / weights)
    assert any(not torch.equal(started[name], tensor) for name, tensor in ended.items())


def test_all_weights_cannot_be_held_to_a_checkpoint_without_a_second_model(tmp_path: Path) -> None:
    folder = tiny_model(tmp_path / "model")
    warm = LocalTrainer(folder, config("full"), loss="cross_entropy", canaries=[], seed=1)
    warm.save(tmp_path / "warm", {})
    with pytest.raises(UserError, match="second model in memory; set reference = 'base'"):
        LocalTrainer(
            folder,
            config("full"),
            loss="preference",
            canaries=[],
            seed=1,
            start=tmp_path / "warm",
        )


@pytest.mark.parametrize(("keep", "passes"), [(True, 1), (False, 2)])
def test_only_what_comes_again_is_kept(tmp_path: Path, keep: bool, passes: int) -> None:
    trainer = LocalTrainer(
        tiny_model(tmp_path / "model"), config(), loss="preference", canaries=[], seed=1
    )
    reference = Reference(trainer.trainable, keep=keep)
    scored: list[Sample] = []

    def score(batch: Sequence[Sample]) -> list[torch.Tensor]:
        scored.extend(batch)
        return [torch.tensor([float(len(sample.token_ids))]) for sample in batch]

    batch = [sample for pair in pairs(2) for sample in pair]
    expected = [float(len(sample.token_ids)) for sample in batch]
    for order in (1, -1):
        found = reference.logprobs(batch[::order], score)
        assert [value.item() for value in found] == expected[::order]
    assert len(scored) == passes * len(batch)
    assert bool(reference.state()) == keep


def test_the_model_computes_with_its_own_weights_again_after_the_reference(tmp_path: Path) -> None:
    for kind in ("lora", "full"):
        folder = tiny_model(tmp_path / kind)
        trainer = LocalTrainer(
            folder,
            config(kind),
            loss="policy_gradient",
            canaries=[],
            seed=1,
        )
        trainer.step(samples(4))
        ids = [(1, 2, 3, 4, 5)]
        moved = trainer.score(ids)
        with trainer.trainable.switched({}):
            assert trainer.score(ids) != moved
        assert trainer.score(ids) == moved
