"""Preference jobs of the API: checked, trained on pairs, paused, resumed, called."""

import csv
from pathlib import Path

from tuning import (
    PREFERENCE,
    PROJECT,
    FakeModel,
    a_home,
    callable_names,
    carried_out,
    events,
    finished,
    interrupt_in_step,
    messages,
    pairs,
    submitted,
)

from agentrft.core.job import JobStatus
from agentrft.jobs.fine_tuning import Interruption


def test_a_preference_job_learns_from_pairs_and_offers_its_epochs(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, PREFERENCE)
    carried_out(home, model)
    checked = home.queue.get("ftjob-1").job
    assert checked.hyperparameters == {
        "batch_size": 4,
        "n_epochs": 2,
        "learning_rate_multiplier": 1.0,
        "beta": 0.1,
    }
    assert checked.preflight is not None
    assert checked.preflight["lengths"]["rendered"] == 12
    carried_out(home, model)
    job = home.queue.get("ftjob-1").job
    assert job.status is JobStatus.SUCCEEDED, messages(home)
    assert callable_names(home) == [
        "ft:smollm2-135m:agentrft::1:ckpt-step-3",
        "ft:smollm2-135m:agentrft::1:ckpt-step-6",
        "ft:smollm2-135m:agentrft::1",
    ]
    assert [len(batch) for batch in model.batches] == [8] * 6
    assert job.trained_tokens == sum(len(s.token_ids) for b in model.batches for s in b)
    losses = {e.step: e.data["full_valid_loss"] for e in events(home) if e.kind == "metrics"}
    assert [step for step, loss in losses.items() if loss is not None] == [3, 6]
    with home.files.path(home.files.get(PROJECT, job.result_files[0])).open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["step"] for row in rows] == [str(n) for n in range(1, 7)]
    assert {"train_margin", "valid_margin", "train_kl", "valid_accuracy"} < rows[0].keys()


def test_a_preference_job_paused_and_resumed_learns_from_the_same_batches(tmp_path: Path) -> None:
    whole, straight = a_home(tmp_path / "whole"), FakeModel()
    submitted(whole, PREFERENCE)
    finished(whole, straight)

    home, model = a_home(tmp_path / "cut"), FakeModel()
    submitted(home, PREFERENCE)
    carried_out(home, model)
    interrupt_in_step(model, 2, Interruption.PAUSE)
    carried_out(home, model, model.held.append)
    assert home.queue.get("ftjob-1").job.status is JobStatus.PAUSED
    home.queue.resume("ftjob-1", PROJECT)
    carried_out(home, model)
    assert home.queue.get("ftjob-1").job.status is JobStatus.SUCCEEDED
    assert model.batches == straight.batches


def test_pairs_that_say_nothing_are_told_and_left_out_or_fail_the_job(tmp_path: Path) -> None:
    same = {**pairs(1)[0], "non_preferred_output": pairs(1)[0]["preferred_output"]}
    home, model = a_home(tmp_path / "some"), FakeModel()
    submitted(home, PREFERENCE, rows=[*pairs(11), same])
    assert finished(home, model).job.status is JobStatus.SUCCEEDED, messages(home)
    assert any("1 training rows prefer an output to itself" in text for text in messages(home))
    assert len({s.trajectory_id for b in model.batches for s in b}) == 11

    home = a_home(tmp_path / "all")
    submitted(home, PREFERENCE, rows=[same] * 12)
    carried_out(home, FakeModel())
    failed = home.queue.get("ftjob-1").job
    assert failed.error is not None
    assert failed.error.code == "invalid_training_file"
