import asyncio
import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from byte_chat import says
from tuning import (
    GRADER,
    PREFERENCE,
    PROJECT,
    REINFORCEMENT,
    SUPERVISED,
    FakeModel,
    ObservedTrainer,
    a_home,
    callable_names,
    carried_out,
    conversations,
    events,
    finished,
    interrupt_in_step,
    messages,
    pairs,
    questions,
    submitted,
)

from agentrft.core.errors import LeaseLostError, SamplerError, StoreError
from agentrft.core.job import FineTuningMethod, JobStatus
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import RolloutRecord, RunStatus, StepMetrics
from agentrft.core.sample import Sample
from agentrft.jobs.fine_tuning import Interruption, LeasedJob

ALONE = replace(REINFORCEMENT, eval_interval=None, eval_samples=None)
"""The same without validation."""


def test_a_reinforcement_job_is_checked_given_back_trained_and_can_be_called(
    tmp_path: Path,
) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, suffix="desk")
    carried_out(home, model)
    checked = home.queue.get("ftjob-1").job
    assert checked.status is JobStatus.QUEUED
    assert checked.validated
    assert checked.hyperparameters["n_epochs"] == 2
    assert checked.preflight is not None

    carried_out(home, model)
    job = home.queue.get("ftjob-1").job
    assert job.status is JobStatus.SUCCEEDED
    assert job.fine_tuned_model == "ft:smollm2-135m:agentrft:desk:1"
    assert job.trained_tokens == sum(len(s.token_ids) for b in model.batches for s in b)
    assert messages(home)[-2:] == [
        "New fine-tuned model created: ft:smollm2-135m:agentrft:desk:1",
        "The job has successfully completed",
    ]
    assert "Files validated, moving job to queued state" in messages(home)
    steps = [event for event in events(home) if event.kind == "metrics"]
    assert [event.data["step"] for event in steps] == list(range(1, 11))
    assert steps[0].message.startswith("Step 1/10")
    assert steps[0].data["valid_reward_mean"] is None
    assert steps[1].data["valid_reward_mean"] is not None
    assert home.store.run("ftjob-1").status is RunStatus.SUCCEEDED
    final = home.catalogue.get(PROJECT, job.fine_tuned_model)
    assert (Path(final.path) / "trainer.json").is_file()


def test_the_result_file_has_a_line_per_step(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    submitted(home)
    job = finished(home, FakeModel()).job
    file = home.files.get(PROJECT, job.result_files[0])
    assert file.purpose == "fine-tune-results"
    with home.files.path(file).open() as lines:
        rows = list(csv.DictReader(lines))
    assert [row["step"] for row in rows] == [str(n) for n in range(1, 11)]
    assert rows[1]["full_valid_mean_reward"]
    assert not rows[0]["full_valid_mean_reward"]


def test_validation_rolls_out_every_task_as_often_as_asked(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    submitted(home)
    finished(home, FakeModel())
    records = home.store.read("ftjob-1", RolloutRecord, limit=1000).items
    validation = [record.step for record in records if record.split == "validation"]
    assert sorted(validation) == [step for step in (2, 4, 6, 8, 10) for _ in range(3 * 2)]


def test_the_three_best_checkpoints_and_the_last_can_be_called(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    submitted(home, replace(REINFORCEMENT, n_epochs=4, eval_interval=2))
    finished(home, FakeModel())
    rewards = {
        event.step: event.data["valid_reward_mean"]
        for event in events(home)
        if event.kind == "metrics" and event.data["valid_reward_mean"] is not None
    }
    best = sorted(rewards, key=lambda step: (rewards[step], step))[-3:]
    offered = {model.step for model in home.catalogue.of_job("ftjob-1") if not model.final}
    assert set(best) <= offered <= {*best, 18, 20}
    folders = {path.name for path in home.checkpoints("ftjob-1").iterdir()}
    assert folders == {Path(m.path).name for m in home.catalogue.of_job("ftjob-1")}


def test_a_supervised_job_offers_its_epochs_and_measures_the_held_out_rows(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, SUPERVISED)
    job = finished(home, model).job
    assert job.status is JobStatus.SUCCEEDED, messages(home)
    assert callable_names(home) == [
        "ft:smollm2-135m:agentrft::1:ckpt-step-3",
        "ft:smollm2-135m:agentrft::1:ckpt-step-6",
        "ft:smollm2-135m:agentrft::1",
    ]
    losses = {e.step: e.data["full_valid_loss"] for e in events(home) if e.kind == "metrics"}
    assert [step for step, loss in losses.items() if loss is not None] == [3, 6]


@pytest.mark.parametrize("method", [SUPERVISED, PREFERENCE, REINFORCEMENT])
def test_a_job_whose_weights_equal_the_base_fails_and_says_why(
    tmp_path: Path, method: FineTuningMethod
) -> None:
    home, model = a_home(tmp_path), FakeModel(changed=False)
    submitted(home, method)
    failed = finished(home, model).job
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == "weights_unchanged"
    assert f"method.{method.type}.hyperparameters" in failed.error.message
    assert failed.fine_tuned_model is None
    assert not [model for model in home.catalogue.of_job("ftjob-1") if model.final]


def test_a_job_that_never_found_spread_fails_whatever_weights_it_began_from(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, ALONE, validation=[])
    carried_out(home, model)
    model.script = lambda request: says("no")
    carried_out(home, model)
    failed = home.queue.get("ftjob-1").job
    assert failed.error is not None
    assert failed.error.code == "weights_unchanged"
    assert "nothing to reinforce" in failed.error.message


def silent(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same conversations, of which nothing is to be imitated."""
    asked = {"role": "user", "content": "hi"}
    return [{"messages": [asked, {**row["messages"][-1], "weight": 0}]} for row in rows]


def test_rows_without_anything_to_imitate_fail_the_job_by_their_file(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    alike = {**pairs(1)[0], "non_preferred_output": pairs(1)[0]["preferred_output"]}
    submitted(home, SUPERVISED, validation=silent(conversations(2)), job_id="ftjob-1")
    submitted(home, PREFERENCE, validation=[alike], job_id="ftjob-2")
    warned = {"preflight": "warn"}
    submitted(home, SUPERVISED, rows=silent(conversations(12)), metadata=warned, job_id="ftjob-3")
    for _ in range(3):
        carried_out(home, FakeModel())
    for job_id in ("ftjob-1", "ftjob-2"):
        failed = home.queue.get(job_id).job
        assert failed.error is not None, job_id
        assert (failed.error.code, failed.error.param) == (
            "invalid_validation_file",
            "validation_file",
        )
        assert "no row has anything to measure" in failed.error.message
    carried_out(home, FakeModel())
    failed = home.queue.get("ftjob-3").job
    assert failed.error is not None
    assert failed.error.code == "invalid_training_file"


def test_a_run_counts_as_running_while_its_job_trains(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    seen: list[RunStatus] = []
    model.on_step = lambda done: seen.append(home.store.run("ftjob-1").status)
    submitted(home, SUPERVISED)
    finished(home, model)
    assert set(seen) == {RunStatus.RUNNING}


def test_a_step_that_diverged_is_told_without_a_number(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, SUPERVISED)
    carried_out(home, model)

    class Diverging(ObservedTrainer):
        def step(self, samples: Sequence[Sample]) -> Mapping[str, float]:
            return {**super().step(samples), "loss": math.nan}

    model.trainer = Diverging
    carried_out(home, model)
    told = [event.data for event in events(home) if event.kind == "metrics"]
    assert [data["train_loss"] for data in told] == [None] * 6
    assert home.queue.get("ftjob-1").job.trained_tokens == sum(d["trained_tokens"] for d in told)


def test_messages_of_weight_zero_are_not_imitated(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    rows = conversations(12)
    for row in rows:
        row["messages"] = [
            {"role": "user", "content": "first"},
            {"role": "assistant", "content": "no", "weight": 0},
            *row["messages"],
        ]
    submitted(home, SUPERVISED, rows=rows)
    finished(home, model)
    imitated = {sum(sample.action_mask) for batch in model.batches for sample in batch}
    assert imitated == {len("yes") + 1}


def test_rows_may_repeat_and_call_their_fields_as_they_like(tmp_path: Path) -> None:
    home = a_home(tmp_path)
    rows = [{**row, "id": 5, "family": ["x"]} for row in questions(1) * 10]
    submitted(home, rows=rows)
    assert finished(home, FakeModel()).job.status is JobStatus.SUCCEEDED, messages(home)


def test_a_job_goes_on_from_the_weights_of_another(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    (tmp_path / "earlier").mkdir()
    submitted(home, start=str(tmp_path / "earlier"))
    finished(home, model)
    assert model.starts == [tmp_path / "earlier"] * 2, "checked and trained"


def test_a_job_whose_beginning_is_gone_fails_and_names_the_model(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, start=str(tmp_path / "earlier"))
    carried_out(home, model)
    failed = home.queue.get("ftjob-1").job
    assert failed.error is not None
    assert failed.error.code == "model_not_found"


def test_a_job_that_has_begun_needs_its_beginning_no_more(tmp_path: Path) -> None:
    beginning = tmp_path / "earlier"
    beginning.mkdir()
    home, model = a_home(tmp_path / "home"), FakeModel()
    submitted(home, start=str(beginning))
    carried_out(home, model)
    interrupt_in_rollouts(model, 3, Interruption.PAUSE)
    carried_out(home, model, model.held.append)
    beginning.rmdir()
    home.queue.resume("ftjob-1", PROJECT)
    carried_out(home, model)
    assert home.queue.get("ftjob-1").job.status is JobStatus.SUCCEEDED


def test_a_disk_that_is_full_pauses_the_job_and_what_is_committed_goes_on(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home)
    carried_out(home, model)

    def no_room(steps_done: int) -> None:
        if steps_done == 3:
            raise StoreError("no space left on the device")

    model.on_step = no_room
    carried_out(home, model)
    paused = home.queue.get("ftjob-1").job
    assert (paused.status, paused.estimated_finish) == (JobStatus.PAUSED, None)
    assert paused.error is not None
    assert (paused.error.code, paused.error.message) == (
        "storage_failing",
        "no space left on the device",
    )
    model.on_step = lambda steps_done: None
    half_written = home.checkpoints("ftjob-1") / ".step-000004.partial-1"
    half_written.mkdir()
    home.queue.resume("ftjob-1", PROJECT)
    carried_out(home, model)
    assert home.queue.get("ftjob-1").job.status is JobStatus.SUCCEEDED
    assert not half_written.exists()


def interrupt_in_rollouts(model: FakeModel, step: int, reason: Interruption) -> None:
    """Interrupt while the rollouts that follow a step are under way."""

    async def before(request: SampleRequest) -> None:
        if model.held and model.trainers and model.trainers[-1].steps_done == step:
            model.held.pop().interrupt(reason)
            await asyncio.sleep(0)

    model.before = before


def test_pause_leaves_a_model_that_can_be_called_and_resume_ends_as_if_nothing_happened(
    tmp_path: Path,
) -> None:
    whole, straight = a_home(tmp_path / "whole"), FakeModel()
    submitted(whole, ALONE, validation=[])
    finished(whole, straight)

    home, model = a_home(tmp_path / "cut"), FakeModel()
    submitted(home, ALONE, validation=[])
    carried_out(home, model)
    interrupt_in_rollouts(model, 3, Interruption.PAUSE)
    carried_out(home, model, model.held.append)
    paused = home.queue.get("ftjob-1")
    assert paused.job.status is JobStatus.PAUSED
    assert paused.worker is None
    assert "ft:smollm2-135m:agentrft::1:ckpt-step-3" in callable_names(home)
    assert messages(home)[-1] == "Fine-tuning job paused"
    assert home.store.run("ftjob-1").status is RunStatus.PAUSED

    home.queue.resume("ftjob-1", PROJECT)
    carried_out(home, model)
    assert home.queue.get("ftjob-1").job.status is JobStatus.SUCCEEDED
    assert model.batches == straight.batches
    assert [s.step for s in home.store.read("ftjob-1", StepMetrics).items] == list(range(1, 11))


def test_a_pause_within_a_validation_finishes_it_on_resume(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home)
    carried_out(home, model)

    async def before(request: SampleRequest) -> None:
        # Validation follows as soon as the second step is stored.
        if model.held and len(home.store.read("ftjob-1", StepMetrics).items) == 2:
            model.held.pop().interrupt(Interruption.PAUSE)
            await asyncio.Event().wait()  # the validation cannot end before the pause is heard

    model.before = before
    carried_out(home, model, model.held.append)
    assert home.queue.get("ftjob-1").job.status is JobStatus.PAUSED
    assert [e.step for e in events(home) if e.kind == "metrics"] == [1]

    created = [message for message in messages(home) if message.startswith("Checkpoint created")]
    assert created == ["Checkpoint created: ft:smollm2-135m:agentrft::1:ckpt-step-2"]

    home.queue.resume("ftjob-1", PROJECT)
    carried_out(home, model)
    reported = [e for e in events(home) if e.kind == "metrics"]
    assert [e.step for e in reported] == list(range(1, 11))
    assert reported[1].data["valid_reward_mean"] is not None
    assert reported[1].data["train_reward_mean"] is not None


def test_cancel_ends_the_job_within_a_step_and_keeps_its_checkpoints(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home)
    carried_out(home, model)
    interrupt_in_rollouts(model, 3, Interruption.CANCEL)
    carried_out(home, model, model.held.append)
    job = home.queue.get("ftjob-1").job
    assert job.status is JobStatus.CANCELLED
    assert job.finished_at is not None
    assert [s.step for s in home.store.read("ftjob-1", StepMetrics).items] == [1, 2, 3]
    assert callable_names(home) == ["ft:smollm2-135m:agentrft::1:ckpt-step-2"]


def test_cancel_in_the_last_step_still_cancels(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, SUPERVISED)
    carried_out(home, model)
    interrupt_in_step(model, 5, Interruption.CANCEL)
    carried_out(home, model, model.held.append)
    assert home.queue.get("ftjob-1").job.status is JobStatus.CANCELLED
    assert callable_names(home) == ["ft:smollm2-135m:agentrft::1:ckpt-step-3"]


def test_a_worker_asked_to_end_leaves_the_job_in_line_where_it_stands(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home)
    carried_out(home, model)
    interrupt_in_rollouts(model, 3, Interruption.LEAVE)
    carried_out(home, model, model.held.append)
    assert home.queue.get("ftjob-1").job.status is JobStatus.QUEUED
    carried_out(home, model, worker="w2")
    assert home.queue.get("ftjob-1").job.status is JobStatus.SUCCEEDED
    assert "Fine-tuning job goes on after step 3" in messages(home)


def test_a_worker_that_lost_its_lease_writes_nothing_more(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home)
    carried_out(home, model)
    interrupt_in_rollouts(model, 3, Interruption.LOST)
    with pytest.raises(LeaseLostError):
        carried_out(home, model, model.held.append)
    found = sorted(path.name for path in home.checkpoints("ftjob-1").iterdir())
    assert [name.rpartition("-")[0] for name in found] == ["step-000002", "step-000003"]
    assert home.queue.get("ftjob-1").job.status is JobStatus.RUNNING


def test_a_broken_row_fails_the_job_and_names_file_and_line(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    rows = [*questions(11), {"messages": [{"role": "user"}]}]
    job = submitted(home, rows=rows)
    carried_out(home, model)
    failed = home.queue.get("ftjob-1").job
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == "invalid_training_file"
    assert failed.error.param == "training_file"
    assert f"{job.training_file}: line 12" in failed.error.message
    assert str(tmp_path) not in failed.error.message
    assert home.store.run("ftjob-1").status is RunStatus.FAILED


def test_a_file_that_is_gone_fails_the_job(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    job = submitted(home)
    assert job.validation_file is not None
    home.files.delete(PROJECT, job.validation_file)
    carried_out(home, model)
    failed = home.queue.get("ftjob-1").job
    assert failed.error is not None
    assert failed.error.code == "invalid_validation_file"


def test_a_grader_that_says_the_same_of_everything_fails_before_any_step(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, rows=questions(10, answer="perhaps"))
    carried_out(home, model)
    failed = home.queue.get("ftjob-1").job
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == "grader_constant"
    assert failed.preflight is not None
    assert not model.trainers


def test_warnings_of_the_checks_may_be_all_that_happens(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, rows=questions(10, answer="perhaps"), metadata={"preflight": "warn"})
    carried_out(home, model)
    assert home.queue.get("ftjob-1").job.status is JobStatus.QUEUED
    assert any(event.level == "warn" for event in events(home))


def test_a_setting_that_does_not_fit_the_data_fails_with_its_path(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, replace(REINFORCEMENT, batch_size=99))
    carried_out(home, model)
    failed = home.queue.get("ftjob-1").job
    assert failed.error is not None
    assert failed.error.param == "method.reinforcement.hyperparameters.batch_size"


def test_an_endpoint_that_fails_in_training_pauses_the_job_with_the_reason(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home, ALONE, validation=[])
    carried_out(home, model)

    async def down_after_two_steps(request: SampleRequest) -> None:
        if model.trainers and model.trainers[-1].steps_done >= 2:
            raise SamplerError("the engine is out of memory")

    model.before = down_after_two_steps
    carried_out(home, model)
    paused = home.queue.get("ftjob-1").job
    assert paused.status is JobStatus.PAUSED
    assert paused.error is not None
    assert "out of memory" in paused.error.message
    assert "out of memory" in messages(home)[-1]

    model.before = None
    home.queue.resume("ftjob-1", PROJECT)
    carried_out(home, model)
    done = home.queue.get("ftjob-1").job
    assert done.status is JobStatus.SUCCEEDED
    assert done.error is None


def test_our_own_faults_are_server_errors_with_the_reason_in_an_event(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home)
    carried_out(home, model)

    def break_down(steps_done: int) -> None:
        raise ZeroDivisionError("no luck")

    model.on_step = break_down
    carried_out(home, model)
    failed = home.queue.get("ftjob-1").job
    assert failed.status is JobStatus.FAILED
    assert failed.error is not None
    assert failed.error.code == "server_error"
    assert "no luck" not in failed.error.message
    assert "no luck" in messages(home)[-1]


def test_a_pause_before_the_first_step_has_nothing_to_call(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home)
    carried_out(home, model, lambda job: job.interrupt(Interruption.PAUSE))
    paused = home.queue.get("ftjob-1").job
    assert paused.status is JobStatus.PAUSED
    assert not paused.validated
    assert callable_names(home) == []
    home.queue.resume("ftjob-1", PROJECT)
    assert finished(home, model).job.status is JobStatus.SUCCEEDED


def test_the_greater_wish_wins(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    submitted(home)

    def cancel_then_pause(job: LeasedJob) -> None:
        job.interrupt(Interruption.CANCEL)
        job.interrupt(Interruption.PAUSE)

    carried_out(home, model, cancel_then_pause)
    assert home.queue.get("ftjob-1").job.status is JobStatus.CANCELLED


def test_answers_that_do_not_fit_the_format_score_zero_as_parse_errors(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel(script=json_or_prose)
    schema = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
    method = replace(
        ALONE,
        grader={**GRADER, "input": "{{ sample.output_json.a }}"},
        response_format={"name": "answer", "schema": schema, "strict": True},
    )
    submitted(home, method, validation=[])
    assert finished(home, model).job.status is JobStatus.SUCCEEDED, messages(home)
    records = home.store.read("ftjob-1", RolloutRecord, limit=1000).items
    prose = [r.graded.grade for r in records if "prose" in r.graded.trajectory.output_text]
    assert prose
    assert {grade.score for grade in prose} == {0.0}
    assert {grade.failure.code for grade in prose if grade.failure} == {"sample_parse_error"}
    step = next(event for event in events(home) if event.kind == "metrics")
    assert step.data["errors"]["graders"][0]["train_sample_parse_error_count"] > 0


def json_or_prose(request: SampleRequest) -> tuple[int, ...]:
    return says('{"a": "yes"}') if request.seed % 2 else says("some prose")


CONTAINS = {
    "type": "string_check",
    "name": "contains",
    "input": "{{sample.output_text}}",
    "reference": "{{item.answer}}",
    "operation": "ilike",
}
"""Pays any text that mentions the answer among others."""


def different_questions(count: int) -> list[dict[str, Any]]:
    return [{**row, "answer": f"number {n}"} for n, row in enumerate(questions(count))]


def test_a_grader_that_pays_wrong_answers_stops_the_job_before_it_trains(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    method = replace(ALONE, grader=CONTAINS)
    submitted(home, method, rows=different_questions(12), metadata={"preflight": "warn"})
    carried_out(home, model)
    job = home.queue.get("ftjob-1").job
    assert job.status is JobStatus.FAILED
    assert job.error is not None
    assert (job.error.code, job.error.param) == (
        "grader_refused",
        "method.reinforcement.grader",
    )
    assert "metadata.audit" in job.error.message
    assert job.preflight is not None
    assert job.preflight["audit"]["blocked"]
    assert not job.preflight["audit"]["allowed"]
    assert model.batches == []


def test_a_refused_grader_may_train_where_the_user_says_so_and_the_job_keeps_it(
    tmp_path: Path,
) -> None:
    home, model = a_home(tmp_path), FakeModel()
    method = replace(ALONE, grader=CONTAINS)
    allowed = {"preflight": "warn", "audit": "allow"}
    submitted(home, method, rows=different_questions(12), metadata=allowed)
    carried_out(home, model)
    job = home.queue.get("ftjob-1").job
    assert job.status is JobStatus.QUEUED
    assert job.preflight is not None
    assert job.preflight["audit"]["blocked"]
    assert job.preflight["audit"]["allowed"]
    assert any(event.level == "warn" and "audit:" in event.message for event in events(home))
