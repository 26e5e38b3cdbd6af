"""Preference training as a stage: where pairs come from, what is stored, what resuming repeats."""

import asyncio
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import YesGrader, a_job, yes_or_no
from byte_chat import decode, says
from tuning import FakeModel, pairs, questions

from agentrft.core.config import DataFiles, Limits, Methods, ProjectConfig
from agentrft.core.errors import ConfigError, DataError, UserError
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import Event, Method, RolloutRecord, RunStatus, StepMetrics
from agentrft.core.sample import Sample
from agentrft.core.spec import AgentSpec
from agentrft.core.training_config import PreferenceConfig
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.preference import preference
from agentrft.jobs.project import Project
from agentrft.jobs.serving import begun_from
from agentrft.rollout.scripted import ScriptedEnvironment

CONFIG = PreferenceConfig(steps=4, batch_size=2, samples=4, checkpoint_interval=1)


def a_project(folder: Path, config: PreferenceConfig = CONFIG, **files: Any) -> Project:
    """A project with four train tasks, and files of these rows."""
    named = {"train": questions(4), **files}
    folder.mkdir(exist_ok=True)
    for name, rows in named.items():
        text = "\n".join(json.dumps(row) for row in rows)
        (folder / f"{name}.jsonl").write_text(text)
    limits = Limits(max_context_tokens=400)
    data = DataFiles(**{name: f"{name}.jsonl" for name in named})
    return Project(
        folder=folder,
        config=ProjectConfig(
            name="desk", limits=limits, data=data, methods=Methods(preference=config)
        ),
        spec=AgentSpec(limits=limits),
        open_environment=ScriptedEnvironment({}),
        grader=YesGrader(),
        tools=(),
    )


def trained(job: Job, project: Project, model: FakeModel | None = None) -> Checkpoint:
    with (model or FakeModel())(project, job.home, trained=True) as served:
        return asyncio.run(preference(job, served, None))


def test_pairs_of_a_file_are_learned_from_and_nothing_is_rolled_out(tmp_path: Path) -> None:
    job, model = a_job(tmp_path / "home", Method.PREFERENCE), FakeModel()
    checkpoint = trained(job, a_project(tmp_path / "desk", preferences=pairs(3)), model)
    assert checkpoint.step == 4
    assert job.run.status is RunStatus.SUCCEEDED
    assert job.read_all(RolloutRecord) == []
    assert [len(batch) for batch in model.batches] == [4] * 4, "two samples for each of two pairs"
    for batch in model.batches:
        assert [sample.pair for sample in batch[::2]] == [sample.pair for sample in batch[1::2]]
    # Three pairs in twos: each is learned from once before any comes back.
    order = [sample.trajectory_id for batch in model.batches for sample in batch[::2]]
    assert sorted(order[:3]) == sorted(order[3:6]) == sorted(set(order))


def test_a_pair_that_comes_twice_in_a_batch_counts_twice(tmp_path: Path) -> None:
    job, model = a_job(tmp_path / "home", Method.PREFERENCE), FakeModel()
    config = replace(CONFIG, steps=1, batch_size=3)
    trained(job, a_project(tmp_path / "desk", config, preferences=pairs(2)), model)
    (batch,) = model.batches
    assert len({sample.trajectory_id for sample in batch}) == 2
    assert sorted(Counter(sample.pair for sample in batch).values()) == [2, 2, 2]


def test_held_out_pairs_are_measured_after_each_epoch_and_never_learned_from(
    tmp_path: Path,
) -> None:
    job, model = a_job(tmp_path / "home", Method.PREFERENCE), FakeModel()
    held = [{**row, "id": f"held {n}"} for n, row in enumerate(pairs(2))]
    project = a_project(tmp_path / "desk", preferences=pairs(4), held_out_preferences=held)
    trained(job, project, model)
    looked = [s.step for s in job.read_all(StepMetrics) if "validation_loss" in s.values]
    assert looked == [2, 4]
    learned = {sample.trajectory_id for batch in model.batches for sample in batch}
    assert len(learned) == 4
    assert not [name for name in learned if name.startswith("held")]


def test_without_a_file_pairs_are_mined_from_rollouts_on_train_tasks(tmp_path: Path) -> None:
    job, model = a_job(tmp_path / "home", Method.PREFERENCE), FakeModel()
    trained(job, a_project(tmp_path / "desk"), model)
    records = job.read_all(RolloutRecord)
    assert {(r.stage, r.split, r.step) for r in records} == {("preference", "train", 0)}
    assert len(records) == 4 * 4
    for better, worse in (batch[n : n + 2] for batch in model.batches for n in (0, 2)):
        assert (said(better), said(worse)) == ("yes<|e|>", "no<|e|>")
    ways = {(r.graded.trajectory.task_id, r.graded.trajectory.output_text) for r in records}
    both = [task for task, answer in ways if answer == "yes" and (task, "no") in ways]
    assert job.run.result["pairs"] == len(both) == 3, "however often a task went both ways"


def said(sample: Sample) -> str:
    ids = zip(sample.token_ids, sample.action_mask, strict=True)
    return decode(token for token, action in ids if action)


def test_tasks_that_always_go_the_same_way_teach_nothing_and_the_error_says_what_to_do(
    tmp_path: Path,
) -> None:
    job = a_job(tmp_path / "home", Method.PREFERENCE)
    model = FakeModel(script=lambda request: says("no"))
    with pytest.raises(UserError, match=r"none of 4 tasks .* train PROJECT supervised"):
        trained(job, a_project(tmp_path / "desk"), model)
    assert job.run.status is RunStatus.FAILED
    assert not model.trainers


def test_pairs_without_a_difference_are_left_out_with_a_warning(tmp_path: Path) -> None:
    same = {**pairs(1)[0], "non_preferred_output": pairs(1)[0]["preferred_output"], "id": "same"}
    job = a_job(tmp_path / "home", Method.PREFERENCE)
    trained(job, a_project(tmp_path / "desk", preferences=[*pairs(2), same]))
    warned = [event.message for event in job.read_all(Event) if event.level == "warn"]
    assert [message.split(" pairs")[0] for message in warned] == ["1 of 3"]
    other = a_job(tmp_path / "home", Method.PREFERENCE, "run-2")
    with pytest.raises(DataError, match="in none of 1 pairs do the two outputs differ"):
        trained(other, a_project(tmp_path / "desk", preferences=[same]))


def test_a_run_stopped_while_it_rolls_out_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    straight = FakeModel()
    project = a_project(tmp_path / "desk")
    trained(a_job(tmp_path / "whole", Method.PREFERENCE), project, straight)

    job, model = a_job(tmp_path / "cut", Method.PREFERENCE), FakeModel()
    asked: list[SampleRequest] = []

    async def stop_amid(request: SampleRequest) -> None:
        asked.append(request)
        if len(asked) == 5:
            job.stop.set()
        await asyncio.sleep(0)

    model.before = stop_amid
    with pytest.raises(Stopped):
        trained(job, project, model)
    kept = len(job.read_all(RolloutRecord))
    assert 0 < kept < 16
    resumed = a_job(tmp_path / "cut", Method.PREFERENCE)
    again = FakeModel()
    trained(resumed, project, again)
    assert len(resumed.read_all(RolloutRecord)) == 16
    assert again.batches == straight.batches
    told = [event.message for event in resumed.read_all(Event) if " pairs from " in event.message]
    assert told == ["3 pairs from 16 rollouts; 3 of 4 tasks have rollouts that score 0.2 apart"]


def test_a_run_stopped_between_steps_ends_with_the_batches_of_a_whole_one(tmp_path: Path) -> None:
    straight = FakeModel()
    project = a_project(tmp_path / "desk", preferences=pairs(3))
    trained(a_job(tmp_path / "whole", Method.PREFERENCE), project, straight)

    job, model = a_job(tmp_path / "cut", Method.PREFERENCE), FakeModel()
    model.on_step = lambda done: job.stop.set() if done == 1 else None
    with pytest.raises(Stopped):
        trained(job, project, model)
    resumed, again = a_job(tmp_path / "cut", Method.PREFERENCE), FakeModel()
    trained(resumed, project, again)
    assert [*model.batches, *again.batches] == straight.batches
    assert [s.step for s in resumed.read_all(StepMetrics)] == [1, 2, 3, 4]
    # Done: nothing is done again.
    assert trained(resumed, project, FakeModel()).step == 4


def test_the_policy_that_rolls_out_is_the_one_that_training_begins_from(tmp_path: Path) -> None:
    model = FakeModel(script=yes_or_no)
    job = a_job(tmp_path / "home", Method.PREFERENCE)
    with model(a_project(tmp_path / "desk"), job.home, trained=True) as served:
        asyncio.run(preference(job, served, tmp_path / "earlier"))
    assert model.starts == [tmp_path / "earlier"] * 2, "to roll out, and to train"


def test_a_resumed_run_goes_on_from_the_start_it_began_with(tmp_path: Path) -> None:
    project, early = a_project(tmp_path / "desk"), FakeModel()
    job = a_job(tmp_path / "home", Method.PREFERENCE)
    job.stop.set()
    with early(project, job.home, trained=True) as served, pytest.raises(Stopped):
        asyncio.run(preference(job, served, begun_from(job, tmp_path / "earlier")))

    again, late = a_job(tmp_path / "home", Method.PREFERENCE), FakeModel()
    with pytest.raises(ConfigError, match="began from .*earlier, not from .*other"):
        begun_from(again, tmp_path / "other")
    with late(project, again.home, trained=True) as served:
        asyncio.run(preference(again, served, begun_from(again, None)))
    assert {*early.starts, *late.starts} == {tmp_path / "earlier"}
    assert again.run.result["start"] == str(tmp_path / "earlier")


def test_a_gap_that_no_task_reaches_is_named(tmp_path: Path) -> None:
    job = a_job(tmp_path / "home", Method.PREFERENCE)
    with pytest.raises(UserError, match="score 2 apart"):
        trained(job, a_project(tmp_path / "desk", replace(CONFIG, least_gap=2.0)))
