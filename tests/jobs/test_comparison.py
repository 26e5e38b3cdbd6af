"""Runs compared from what they stored: who becomes a row, what training took, what is refused."""

import dataclasses
import json
from pathlib import Path

import pytest
from measured_runs import TASKS, a_desk, a_run, climbed, compared, imitated, measured

from agentrft.core.config import Decoding
from agentrft.core.errors import ConfigError, StoreError, UserError
from agentrft.core.run import Method, RolloutRecord, RunStatus, StepMetrics
from agentrft.jobs.comparison import write_comparison
from agentrft.jobs.improvement_report import rebuilt
from agentrft.jobs.optimize import SUMMARY
from agentrft.measure.arms import spent
from agentrft.measure.comparison import Comparison, Row
from agentrft.measure.comparison_section import arms_of
from agentrft.measure.search_summary import SearchSummary
from agentrft.store.codec import to_json
from agentrft.store.home import Home


def row(comparison: Comparison, name: str) -> Row:
    return next(row for row in comparison.rows if row.name == name)


def test_measurements_of_base_and_checkpoint_become_a_table_with_an_answer(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    measured(home, project, "run-base", chance=30, samples=4)
    checkpoint = imitated(home, project, "run-sft")
    measured(home, project, "run-sft-measured", chance=100, checkpoint=checkpoint)
    found = compared(home, project, "prompt=run-base", "sft=run-sft-measured")
    assert [(row.name, row.trained, row.k) for row in found.rows] == [
        ("prompt", False, 1),
        ("prompt, best of 4 by grader", False, 4),
        ("sft", True, 1),
    ]
    assert found.answer.startswith("Weights beat the best prompt: sft solves 100.0% of 24 holdout")
    assert row(found, "prompt").pass_hat_4 is not None
    assert home.store.run("comparison").result["answer"] == found.answer


def test_training_is_charged_with_what_its_start_took(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    measured(home, project, "run-base", chance=30)
    first = imitated(home, project, "run-1")
    second = imitated(home, project, "run-2", first)
    measured(home, project, "run-2-measured", chance=60, checkpoint=second)
    made = a_run(home, project, Method.SUPERVISED, "run-1")
    assert made.run.result["start"] == ""
    assert home.store.run("run-2").result["start"] == str(first)
    rolled = home.store.read("run-base", RolloutRecord).items[:3]
    made.append([dataclasses.replace(record, split="train") for record in rolled])
    # Steps 1 to 30 have no such number, since the trainer is a fake. What came after the checkpoint
    # that was gone on from had to be seen before that one could be chosen.
    made.append([StepMetrics(step=31, values={"computed_tokens": 1e6})])
    made.note_result(seconds=100.0)
    a_run(home, project, Method.SUPERVISED, "run-2").note_result(seconds=7.0)
    took = row(compared(home, project, "run-base", "run-2-measured"), "run-2-measured").training
    assert took.rollouts == 3
    assert took.sampled_tokens == spent(rolled).sampled_tokens > 0
    assert took.seconds == 107.0
    assert took.trained_tokens == 1e6


def test_a_training_that_is_passed_over_is_charged_even_if_it_rolled_nothing_out(
    tmp_path: Path,
) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    climbed(home, project, "run-1")
    before = row(compared(home, project, "run-1"), "warm start").training
    # A preference training that left the weights as they were, after the warm start.
    idle = a_run(home, project, Method.IMPROVE, "run-1").child("preference", Method.PREFERENCE)
    idle.append([StepMetrics(step=1, values={"computed_tokens": 1e6})])
    report = rebuilt(home, "run-1").given
    assert [stage.name for stage in report.stages] == ["base", "warm start", "preference"]
    again = row(compared(home, project, "run-1", run_id="again"), "warm start").training
    assert again == before, "what came later is not charged to what came before"
    last = dataclasses.replace(report.stages[1], name="last")
    arms = arms_of(dataclasses.replace(report, stages=(*report.stages, last)))
    took = next(arm for arm in arms if arm.name == "last").training
    assert took.trained_tokens == 2 * before.trained_tokens + 1e6


def test_a_search_is_charged_to_whatever_acts_under_the_spec_that_it_found(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    measured(home, project, "run-spec", chance=30)
    checkpoint = imitated(home, project, "run-sft")
    measured(home, project, "run-sft-measured", chance=60, checkpoint=checkpoint)
    for run_id, rollouts in (("run-first", 100), ("run-second", 7)):
        search = a_run(home, project, Method.OPTIMIZE, run_id)
        spec = project.spec.hash
        search.note_result(spec=spec, promoted=True)
        home.store.put_run(dataclasses.replace(search.run, status=RunStatus.SUCCEEDED))
        summary = SearchSummary(
            baseline_hash="b",
            chosen_hash=spec,
            promoted=True,
            chosen={},
            spent={"rollouts": rollouts},
        )
        search.folder.mkdir(parents=True, exist_ok=True)
        (search.folder / SUMMARY).write_bytes(to_json(summary))
    found = compared(home, project, "run-spec", "run-sft-measured")
    assert row(found, "run-spec").training.rollouts == 100
    assert row(found, "run-sft-measured").training.rollouts == 100
    other = dataclasses.replace(project.spec, decoding=Decoding(temperature=0.5))
    measured(home, dataclasses.replace(project, spec=other), "run-other", chance=30)
    found = compared(home, project, "run-spec", "run-other", run_id="other")
    assert row(found, "run-other").training.rollouts == 0


def test_files_that_changed_between_the_runs_are_told(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    for run_id, digest in (("run-1", "a"), ("run-2", "a"), ("run-3", "b")):
        measured(home, project, run_id, chance=30)
        files = {"environment": {"name": "tools.py", "sha256": digest}}
        a_run(home, project, Method.EVALUATION, run_id).note_result(files=files)
    told = "tools.py (environment) changed between run-1 and run-3"
    assert not any("changed" in note for note in compared(home, project, "run-1", "run-2").notes)
    found = compared(home, project, "run-1", "run-3", run_id="other")
    assert any(told in note for note in found.notes)


def test_every_stage_of_an_improvement_becomes_a_row(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    climbed(home, project, "run-1")
    found = compared(home, project, "run-1")
    names = [row.name for row in found.rows]
    assert names == ["base", "base, best of 4 by grader", "warm start"]
    assert row(found, "base").rollouts == 4 * TASKS, "the control goes on from the first sample"
    reported = rebuilt(home, "run-1").payoff
    assert reported is not None
    assert reported.comparison == found, "a comparison of one improvement is what its report says"
    stage = compared(home, project, "run-1.warm-start", run_id="other")
    assert stage.rows == found.rows, "a training stands for the run that measured it"


def test_a_greedy_policy_is_held_against_rollouts_that_differ(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk", "[methods.evaluation]\ntemperature = 0.0\n")
    home = Home.open(tmp_path / "home")
    climbed(home, project, "run-1")
    found = compared(home, project, "run-1")
    assert {row.name: row.rollouts // TASKS for row in found.rows} == {
        "base": 1,
        "base at temperature 1": 4,
        "base at temperature 1, best of 4 by grader": 4,
        "warm start": 1,
    }
    assert found.rival == "base at temperature 1, best of 4 by grader"


def test_stages_of_several_improvements_pool_by_name(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    for run in ("run-1", "run-2"):
        climbed(home, project, run)
    found = compared(home, project, "sft=run-1", "sft=run-2", run_id="pooled")
    assert [(row.name, row.seeds) for row in found.rows] == [
        ("sft base", 2),
        ("sft base, best of 4 by grader", 2),
        ("sft warm start", 2),
    ]
    with pytest.raises(UserError, match="names the same rollouts twice"):
        compared(home, project, "sft=run-1", "sft=run-1", run_id="twice")


def test_runs_that_say_nothing_of_the_holdout_are_refused(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    measured(home, project, "run-base", chance=30)
    measured(home, project, "run-train", chance=30, split="train")
    imitated(home, project, "run-sft")
    with pytest.raises(StoreError, match="run-9"):
        compared(home, project, "run-9", run_id="a")
    for run in ("run-train", "run-sft"):
        with pytest.raises(UserError, match=f"{run} has no rollouts on the holdout"):
            compared(home, project, "run-base", run, run_id=f"with-{run}")
    with pytest.raises(UserError, match="best of 3 needs 3 rollouts per task, and the most are 1"):
        compared(home, project, "run-base", best_of_k=3, run_id="b")
    with pytest.raises(ConfigError, match="no verifier 'me'"):
        compared(home, project, "run-base", verifier="me", run_id="c")


def test_runs_under_other_graders_are_refused(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    measured(home, project, "run-1", chance=30)
    easier = dataclasses.replace(project.config, pass_threshold=0.5)
    measured(home, dataclasses.replace(project, config=easier), "run-2", chance=30)
    with pytest.raises(UserError, match="other graders"):
        compared(home, project, "run-1", "run-2")


def test_a_comparison_goes_on_only_with_what_it_was_begun_with(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    measured(home, project, "run-1", chance=30)
    measured(home, project, "run-2", chance=40)
    compared(home, project, "run-1", run_id="c")
    assert compared(home, project, "run-1", run_id="c").rows
    with pytest.raises(ConfigError, match="was begun with"):
        compared(home, project, "run-1", "run-2", run_id="c")


def test_a_comparison_is_written_as_page_json_and_table(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    measured(home, project, "run-1", chance=30, samples=4)
    found = compared(home, project, "run-1")
    page = write_comparison(found, tmp_path / "out", "desk <b>")
    assert found.answer in page.read_text()
    assert "<h1>desk &lt;b&gt;</h1>" in page.read_text()
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert told["answer"] == found.answer
    assert (tmp_path / "out" / "comparison.md").read_text().startswith(found.answer)


def test_weights_of_an_unknown_run_are_compared_without_their_cost(tmp_path: Path) -> None:
    project = a_desk(tmp_path / "desk")
    home = Home.open(tmp_path / "home")
    measured(home, project, "run-1", chance=30)
    stranger = imitated(Home.open(tmp_path / "other"), project, "run-far")
    measured(home, project, "run-2", chance=90, checkpoint=stranger)
    found = compared(home, project, "run-1", "run-2")
    assert any("is not known here in full" in note for note in found.notes)
