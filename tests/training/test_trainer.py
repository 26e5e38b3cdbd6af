"""The local trainer: steps, weights with proof, checkpoints that resume exactly."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_training import config, perturbed, samples, tiny_model

from agentrft.core.errors import ModelError, StoreError, UserError
from agentrft.core.sample import Sample
from agentrft.core.training_config import Adapter, Optimizer
from agentrft.inference.embedded.checkpoint import read_checkpoint
from agentrft.training.credit import imitation
from agentrft.training.trainer import LocalTrainer, check_memory

CANARIES = [tuple(range(1, 40)), tuple(range(1, 30)), (5, 4, 3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tiny_model(tmp_path / "model")


def _trainer(folder: Path, kind: str = "lora", **changes: Any) -> LocalTrainer:
    arguments: dict[str, Any] = dict(loss="policy_gradient", canaries=CANARIES, seed=1)
    settings = changes.pop("config", config(kind, deterministic=True))
    return LocalTrainer(folder, settings, **(arguments | changes))


def _plain_logprobs(folder: Path, tensors: Any, ids: tuple[int, ...]) -> torch.Tensor:
    """Return what transformers computes with the folder's model and these weights."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.load_state_dict(tensors, strict=False)
    ids_1T = torch.tensor([ids])
    logprobs_TV = model(ids_1T).logits[0, :-1].log_softmax(-1).detach()
    return logprobs_TV.gather(1, ids_1T[0, 1:, None])[:, 0]


@pytest.mark.parametrize("family", ["llama", "mistral"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_imitation_learns_what_it_is_shown(tmp_path: Path, family: str, kind: str) -> None:
    folder = tiny_model(tmp_path / "model", family)
    trainer = _trainer(folder, kind, loss="cross_entropy")
    shown = [imitation((7, n, 50, 51, n), (False, False, True, True, True), "d") for n in (1, 2, 3)]
    losses = [trainer.step(shown)["loss"] for _ in range(30)]
    assert losses[-1] < 0.3 * losses[0]


def test_reinforcement_moves_probability_toward_what_scored_better(folder: Path) -> None:
    trainer = _trainer(folder)
    good, bad = (9, 8, 7, 20), (9, 8, 7, 30)

    def credited(ids: tuple[int, ...], advantage: float) -> Sample:
        scored = trainer.score([ids])[0][-1]
        return Sample(
            token_ids=ids,
            action_mask=(False, False, False, True),
            behavior_logprobs=(0.0, 0.0, 0.0, scored),
            advantages=(0.0, 0.0, 0.0, advantage),
            trajectory_id="t",
        )

    before = [trainer.score([ids])[0][-1] for ids in (good, bad)]
    for _ in range(5):
        metrics = trainer.step([credited(good, 0.5), credited(bad, -0.5)])
        assert metrics["kl_to_sampler"] < 1e-6
    after = [trainer.score([ids])[0][-1] for ids in (good, bad)]
    assert after[0] > before[0] + 0.1
    assert after[1] < before[1] - 0.1


def test_lanes_change_neither_loss_nor_gradients_and_never_depend_on_timing(folder: Path) -> None:
    def run(threads: int) -> tuple[float, dict[str, torch.Tensor], list[list[float]]]:
        trainer = perturbed(_trainer(folder, config=config(threads=threads)))
        loss, gradients = trainer.loss_and_gradients(samples(11))
        return loss, dict(gradients), trainer.score(CANARIES)

    loss, gradients, scores = run(1)
    first_loss, first, first_scores = run(3)
    assert first_loss == pytest.approx(loss, abs=1e-6)
    for name, gradient in gradients.items():
        torch.testing.assert_close(first[name], gradient, atol=1e-6, rtol=1e-4)
    for ours, expected in zip(first_scores, scores, strict=True):
        assert ours == pytest.approx(expected, abs=1e-5)
    for _ in range(3):
        again_loss, again, _ = run(3)
        assert again_loss == first_loss
        assert all(torch.equal(again[name], gradient) for name, gradient in first.items())


def test_the_step_reports_what_it_did(folder: Path) -> None:
    batch = samples(6)
    metrics = _trainer(folder).step(batch)
    assert metrics["samples"] == 6
    assert metrics["action_tokens"] == sum(sample.action_tokens for sample in batch)
    assert metrics["sample_tokens"] == sum(len(sample.token_ids) for sample in batch)
    assert metrics["shared_tokens"] == metrics["sample_tokens"] - metrics["computed_tokens"] > 0
    assert metrics["learning_rate"] == pytest.approx(0.005)
    assert 0 < metrics["gradient_norm"]
    sides = metrics["clip_share_low"] + metrics["clip_share_high"]
    assert 0 < sides < 1
    assert metrics["clip_share"] == pytest.approx(sides)


def test_measuring_tells_what_a_step_would_and_changes_nothing(folder: Path) -> None:
    trainer, batch = _trainer(folder), samples(6)
    before = trainer.weights()
    measured = trainer.measure(batch)
    after = trainer.weights()
    assert all(torch.equal(after.tensors[name], t) for name, t in before.tensors.items())
    assert all(master.grad is None for master in trainer.trainable.masters.values())
    stepped = trainer.step(batch)
    assert measured == {name: stepped[name] for name in measured}
    assert {"loss", "token_accuracy", "kl_to_sampler"} <= measured.keys()
    assert trainer.measure([]) == {}


def test_accuracy_is_the_share_of_tokens_that_greedy_decoding_would_take(folder: Path) -> None:
    trainer = _trainer(folder, loss="cross_entropy")
    shown = [imitation((7, 3, 50, 51, 3), (False, False, True, True, True), "d")]
    assert trainer.measure(shown)["token_accuracy"] < 1
    for _ in range(30):
        trainer.step(shown)
    assert trainer.measure(shown)["token_accuracy"] == 1


def test_no_samples_change_nothing(folder: Path) -> None:
    trainer = _trainer(folder)
    before = trainer.weights()
    assert trainer.step([]) == {}
    after = trainer.weights()
    assert after.version == before.version == 0
    assert all(torch.equal(after.tensors[name], t) for name, t in before.tensors.items())


def test_gradients_that_are_not_finite_skip_the_step_and_are_counted(folder: Path) -> None:
    trainer = _trainer(folder)
    trainer.step(samples(4))
    before = trainer.weights()
    broken = [
        replace(sample, advantages=tuple(a * float("inf") if a else 0.0 for a in sample.advantages))
        for sample in samples(4)
    ]
    metrics = trainer.step(broken)
    after = trainer.weights()
    assert metrics["skipped_steps"] == 1.0
    assert after.version == before.version == 1
    assert all(torch.equal(after.tensors[name], t) for name, t in before.tensors.items())
    assert trainer.step(samples(4))["skipped_steps"] == 0.0


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "mistral"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_published_weights_are_what_the_canaries_say(
    tmp_path: Path, family: str, kind: str
) -> None:
    folder = tiny_model(tmp_path / "model", family)
    trainer = _trainer(folder, kind)
    for _ in range(2):
        trainer.step(samples(6))
    weights = trainer.weights()
    assert weights.version == trainer.steps_done == 2
    for canary in weights.canaries:
        plain = _plain_logprobs(folder, weights.tensors, canary.token_ids)
        torch.testing.assert_close(torch.tensor(canary.logprobs), plain, atol=1e-4, rtol=0)
    stale = _plain_logprobs(folder, {}, weights.canaries[0].token_ids)
    assert (torch.tensor(weights.canaries[0].logprobs) - stale).abs().mean() > 1e-3


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_published_weights_do_not_move_with_training(folder: Path, kind: str) -> None:
    trainer = _trainer(folder, kind)
    published = trainer.weights()
    before = {name: tensor.clone() for name, tensor in published.tensors.items()}
    trainer.step(samples(6))
    assert all(torch.equal(published.tensors[name], t) for name, t in before.items())
    after = trainer.weights().tensors
    assert any(not torch.equal(after[name], t) for name, t in before.items())


def test_bfloat16_masters_gather_steps_too_small_for_bfloat16(folder: Path) -> None:
    tiny_steps = config("full", dtype="bfloat16", optimizer=Optimizer(learning_rate=1e-6))
    trainer = _trainer(folder, config=tiny_steps)
    start = {name: master.detach().clone() for name, master in trainer.trainable.masters.items()}
    for _ in range(3):
        trainer.step(samples(6))
    for name, master in trainer.trainable.masters.items():
        assert not torch.equal(master, start[name]), name


@pytest.mark.parametrize(("kind", "threads"), [("lora", 2), ("full", 1)])
def test_four_steps_equal_two_a_checkpoint_a_new_process_and_two_more(
    tmp_path: Path, folder: Path, kind: str, threads: int
) -> None:
    settings = config(kind, deterministic=True, threads=threads)
    straight = _trainer(folder, config=settings)
    for step in range(4):
        straight.step(samples(5, seed=step))
    straight.save(tmp_path / "straight", {"step": 4})

    first = _trainer(folder, config=settings)
    for step in range(2):
        first.step(samples(5, seed=step))
    first.save(tmp_path / "half", {"step": 2})
    code = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from tiny_training import config, samples
from agentrft.training.trainer import LocalTrainer
trainer = LocalTrainer(
    Path({str(folder)!r}), config({kind!r}, deterministic=True, threads={threads}),
    loss="policy_gradient", canaries=[], seed=1, resume=Path({str(tmp_path / "half")!r}),
)
assert trainer.steps_done == trainer.cursor["step"] == 2
for step in range(2, 4):
    trainer.step(samples(5, seed=step))
trainer.save(Path({str(tmp_path / "resumed")!r}), {{"step": 4}})
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    for file in ("trainer_state.safetensors", _weight_file(kind)):
        expected = load_file(tmp_path / "straight" / file)
        resumed = load_file(tmp_path / "resumed" / file)
        assert expected.keys() == resumed.keys()
        for name, tensor in expected.items():
            if name != "rng.cpu":
                assert torch.equal(tensor, resumed[name]), name


def _weight_file(kind: str) -> str:
    return "adapter_model.safetensors" if kind == "lora" else "model.safetensors"


def test_an_adapter_loads_in_peft_and_computes_the_same(tmp_path: Path, folder: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    trainer = perturbed(_trainer(folder))
    trainer.save(tmp_path / "checkpoint", {})
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model = PeftModel.from_pretrained(base, tmp_path / "checkpoint")
    ids_1T = torch.tensor([CANARIES[0]])
    logprobs_TV = model(ids_1T).logits[0, :-1].log_softmax(-1)
    expected = logprobs_TV.gather(1, ids_1T[0, 1:, None])[:, 0].tolist()
    assert trainer.score([CANARIES[0]])[0] == pytest.approx(expected, abs=1e-5)


def test_full_weights_load_in_transformers_and_compute_the_same(
    tmp_path: Path, folder: Path
) -> None:
    trainer = _trainer(folder, "full")
    trainer.step(samples(5))
    trainer.save(tmp_path / "checkpoint", {})
    expected = _plain_logprobs(tmp_path / "checkpoint", {}, CANARIES[0]).tolist()
    assert trainer.score([CANARIES[0]])[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_a_checkpoint_is_served_without_a_trainer(tmp_path: Path, folder: Path, kind: str) -> None:
    trainer = _trainer(folder, kind)
    for _ in range(2):
        trainer.step(samples(5))
    trainer.save(tmp_path / "checkpoint", {})
    served = read_checkpoint(tmp_path / "checkpoint", folder).tensors
    published = trainer.weights().tensors
    assert served.keys() == published.keys()
    for name, tensor in published.items():
        torch.testing.assert_close(served[name], tensor, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_start_takes_weights_but_neither_optimizer_nor_steps(
    tmp_path: Path, folder: Path, kind: str
) -> None:
    warm = _trainer(folder, kind, loss="cross_entropy")
    for _ in range(3):
        warm.step(samples(5))
    warm.save(tmp_path / "warm", {"step": 3})
    trainer = _trainer(folder, kind, seed=9, start=tmp_path / "warm")
    assert (trainer.steps_done, dict(trainer.cursor)) == (0, {})
    assert trainer.score(CANARIES) == warm.score(CANARIES)
    assert trainer.step(samples(5))["learning_rate"] == pytest.approx(0.005)


def test_a_checkpoint_fits_only_its_own_model_and_settings(tmp_path: Path, folder: Path) -> None:
    _trainer(folder).save(tmp_path / "checkpoint", {})
    other = tiny_model(tmp_path / "other", "qwen2")
    with pytest.raises(ModelError, match="belongs to model 'model', not to 'other'"):
        _trainer(other, resume=tmp_path / "checkpoint")
    with pytest.raises(ModelError, match="'lora' weights but adapter.kind is 'full'"):
        _trainer(folder, "full", start=tmp_path / "checkpoint")
    wider = config(adapter=Adapter(rank=8))
    with pytest.raises(ModelError, match="trained with adapter.rank = 4, but it is 8 here"):
        _trainer(folder, config=wider, resume=tmp_path / "checkpoint")
    # Of the same shapes, yet other weights would come of it.
    for other, name in (
        (Adapter(rank=4, alpha=16.0), "alpha"),
        (Adapter(rank=4, alpha=8.0, targets=("q_proj", "v_proj")), "targets"),
    ):
        with pytest.raises(ModelError, match=f"was trained with adapter.{name} = "):
            _trainer(folder, config=config(adapter=other), start=tmp_path / "checkpoint")
    with pytest.raises(UserError, match="either resume or start"):
        _trainer(folder, resume=tmp_path / "checkpoint", start=tmp_path / "checkpoint")


def test_a_corrupt_checkpoint_names_the_file(tmp_path: Path, folder: Path) -> None:
    _trainer(folder).save(tmp_path / "checkpoint", {})
    weights = tmp_path / "checkpoint" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(StoreError, match=r"adapter_model\.safetensors.*corrupt"):
        _trainer(folder, resume=tmp_path / "checkpoint")


def test_the_record_says_where_training_stood(tmp_path: Path, folder: Path) -> None:
    trainer = _trainer(folder)
    trainer.step(samples(3))
    trainer.save(tmp_path / "checkpoint", {"epoch": 1, "row": 17})
    record = json.loads((tmp_path / "checkpoint" / "trainer.json").read_text())
    assert (record["steps_done"], record["cursor"]) == (1, {"epoch": 1, "row": 17})
    assert record["config"]["adapter"]["rank"] == 4


def test_a_model_that_does_not_fit_is_refused_with_numbers(folder: Path) -> None:
    with pytest.raises(ModelError, match=r"'model' does not fit: training \(full\) needs about"):
        check_memory(folder, config("full"), torch.float32, free_bytes=100_000)
    check_memory(folder, config("full"), torch.float32, free_bytes=1_000_000)


def test_a_folder_that_is_no_model_is_named(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ModelError, match="'empty'"):
        _trainer(empty)


def test_unknown_adapter_targets_are_refused_with_the_known_ones(folder: Path) -> None:
    with pytest.raises(ModelError, match="set adapter.targets to some of .*q_proj"):
        _trainer(folder, config=config(adapter=Adapter(targets=("c_attn",))))
