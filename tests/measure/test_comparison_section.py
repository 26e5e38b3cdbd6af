"""What reports, terminals and pages show of a comparison."""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from policies import policy, sampled, solving
from report_builders import Page, fits, given
from rich.console import Console

from agentrft.core.run import StepMetrics
from agentrft.measure.comparison import Spending, best_of, compare
from agentrft.measure.comparison_section import markdown
from agentrft.measure.report import (
    SCHEMA_FILE,
    Report,
    ReportInput,
    StageResult,
    as_json,
    build_report,
    terminal,
    write_report,
)
from agentrft.measure.search_summary import SearchSummary


def climbed(*, control: bool = True, name: str = "reinforcement") -> ReportInput:
    """A base, a stage that trained, and four rollouts of the base for each task."""
    base = policy("base", solving(0.25))
    drawn = policy("base", solving(0.3, samples=4))
    drawn_records = [
        *base.records,
        *(r for r in drawn.records if "-0" not in r.graded.trajectory.id),
    ]
    tuned = policy(name, solving(0.95), spec="s")
    training = [sampled(f"train-{n}", 1.0, n, name="train", duration=1.0) for n in range(10)]
    rollouts = [
        type(record)(stage=name, split="train", step=1, family=record.family, graded=record.graded)
        for record in training
    ]
    steps = [StepMetrics(step=s, values={"computed_tokens": 500.0}) for s in (1, 2)]
    return given(
        StageResult(name="base", records=base.records),
        StageResult(name=name, records=[*tuned.records, *rollouts], metrics=steps),
        phase_s={name: 30.0, "search": 99.0},
        control=StageResult(name="best of", records=drawn_records) if control else None,
    )


def reported(given: ReportInput) -> tuple[Report, dict[str, Any]]:
    report = build_report(given)
    told = as_json(report)
    schema = json.loads(SCHEMA_FILE.read_text())
    assert list(fits(told, schema, schema)) == []
    return report, told


def shown(report: Report, width: int = 160) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(terminal(report))
    return out.getvalue()


def test_a_report_answers_whether_the_weights_paid(tmp_path: Path) -> None:
    report, told = reported(climbed())
    assert report.payoff is not None
    answer = report.payoff.answer
    assert answer.startswith("Weights beat the best prompt: reinforcement")
    assert "base, best of 4 by grader" in answer
    assert told["did_weights_pay"]["answer"] == answer
    html = write_report(report, tmp_path).html.read_text()
    page = Page(html)
    assert "Did the weights pay?" in page.text
    assert answer in page.text
    assert answer[:60] in shown(report)


def test_training_is_charged_to_the_stage_that_trained_and_to_none_before() -> None:
    report, _ = reported(climbed())
    assert report.payoff is not None
    assert report.payoff.comparison is not None
    took = {row.name: row.training for row in report.payoff.comparison.rows}
    assert took["base"] == Spending()
    assert took["reinforcement"] == Spending(
        rollouts=10,
        prompt_tokens=600,
        sampled_tokens=400,
        tool_calls=10,
        trained_tokens=1000,
        seconds=30.0,
    )


def test_a_search_is_charged_once_to_all_that_follow_it_even_if_it_promoted_nothing() -> None:
    first, tuned = climbed().stages
    again = replace(tuned, name="again")
    search = SearchSummary(
        baseline_hash="s",
        chosen_hash="s",
        promoted=False,
        chosen={},
        spent={"rollouts": 100},
    )
    report, _ = reported(replace(climbed(), stages=(first, tuned, again), search=search))
    assert report.payoff is not None
    assert report.payoff.comparison is not None
    took = {row.name: row.training.rollouts for row in report.payoff.comparison.rows if row.k == 1}
    assert took == {"base": 0, "reinforcement": 100 + 10, "again": 100 + 20}


def test_a_control_that_holds_the_stages_own_rollouts_widens_that_stage() -> None:
    report, _ = reported(climbed())
    assert report.payoff is not None
    assert report.payoff.comparison is not None
    rows = {row.name: row for row in report.payoff.comparison.rows}
    assert rows.keys() == {"base", "base, best of 4 by grader", "reinforcement"}
    assert rows["base"].rollouts == 160
    assert rows["base"].pass_hat_4 is not None


def test_a_narrow_terminal_still_names_every_policy() -> None:
    report, _ = reported(climbed())
    table = shown(report, 80).partition("Did the weights pay?")[2]
    assert [line.split()[0] for line in table.splitlines() if "%" in line and line[:3].strip()] == [
        "base",
        "base,",
        "reinforcement",
    ]


def test_without_a_control_the_report_says_how_to_measure_one() -> None:
    report, _ = reported(climbed(control=False))
    assert "methods.evaluation.best_of" in " ".join(shown(report).split())


def test_stages_on_other_tasks_are_not_held_against_each_other() -> None:
    first = StageResult(name="base", records=policy("base", solving(0.2)).records)
    other = StageResult(
        name="tuned",
        records=policy("tuned", solving(0.2, tasks=39)).records,
        metrics=[StepMetrics(step=1, values={"loss": 1.0})],
    )
    report, _ = reported(given(first, other))
    assert report.payoff is not None
    assert report.payoff.comparison is None
    assert "other holdout tasks" in report.payoff.answer


def test_a_measurement_alone_asks_nothing_of_weights() -> None:
    stage = StageResult(name="base", records=policy("base", solving(0.2)).records)
    report, told = reported(given(stage))
    assert report.payoff is None
    assert told["did_weights_pay"] is None


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "a|b"])
def test_names_stay_text(tmp_path: Path, name: str) -> None:
    report, _ = reported(climbed(name=name))
    page = Page(write_report(report, tmp_path).html.read_text())
    assert any(name in text for text in page.text)
    assert not any("alert(1)" in script for script in page.scripts)
    assert report.payoff is not None
    assert report.payoff.comparison is not None
    lines = markdown(report.payoff.comparison).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len({line.replace("\\|", "").count("|") for line in table}) == 1


def test_the_markdown_table_can_be_pasted() -> None:
    spec = policy("spec", solving(0.5, samples=4))
    tuned = policy("tuned", solving(0.9), trained=True, training=Spending(rollouts=5))
    comparison = compare([spec, best_of(spec, 4), tuned], pass_threshold=0.999)
    text = markdown(comparison)
    assert text.startswith(comparison.answer)
    assert "| spec | 50.0%" in text
    assert "| reference |" in text
    assert "5 rollouts" in text
