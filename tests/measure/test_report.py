import io
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from report_builders import Page, fits, given, rollout, stage
from rich.console import Console

from agentrft.core.run import StepMetrics
from agentrft.measure.monitors import Alarm, Level
from agentrft.measure.page import script_json
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


def trained() -> ReportInput:
    """Three stages with everything a report can show."""
    training = [
        rollout(f"train-{t}", float((t + g + step) % 3 == 0), split="train", step=step)
        for step in (1, 2, 3)
        for t in range(2)
        for g in range(4)
    ]
    validation = [
        rollout(f"v{t}", 0.5, split="validation", step=step, gold=0.25, trace=f"trace_v{t}")
        for step in (1, 3)
        for t in range(3)
    ]
    families = ["lookup", "refund"]
    holdout = [
        [rollout(f"t{i}", float(i < solved), family=families[i % 2]) for i in range(10)]
        for solved in (1, 4, 9)
    ]
    return given(
        StageResult(name="base", records=holdout[0]),
        StageResult(
            name="warm start",
            records=holdout[1],
            metrics=[StepMetrics(step=s, values={"loss": 1.0 / s}) for s in (1, 2)],
        ),
        StageResult(
            name="reinforcement",
            records=[*holdout[2], *training, *validation],
            metrics=[StepMetrics(step=1, values={"kl": math.nan})],
            alarms=[an_alarm("warn", 1), an_alarm("act", 3)],
        ),
        config={"tools": [{"name": "get", "headers": {"Authorization": "Bearer s3cret"}}]},
        phase_s={"base": 2.0, "reinforcement": 6.0},
        seeds=(0, 1),
        model="m",
        created_at=1_000_000.0,
    )


def an_alarm(level: Level, step: int, text: str = "train minus gold is 0.25") -> Alarm:
    return Alarm(
        step=step,
        monitor="train_minus_gold",
        level=level,
        value=0.25,
        threshold=0.1,
        message=text,
        evidence=("trace_v1", "trace_v0", "trace_gone"),
    )


def printed(report: Report) -> str:
    console = Console(file=io.StringIO(), width=100, force_terminal=False)
    console.print(terminal(report))
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def drawn(page: Page) -> list[list[dict[str, Any]]]:
    """Traces of every chart, as the page hands them to Plotly."""
    calls = [script for script in page.scripts if "Plotly.newPlot('figure-" in script][-1]
    decode = json.JSONDecoder().raw_decode
    starts = [match.end() for match in re.finditer(r"Plotly\.newPlot\('figure-\d+',", calls)]
    return [decode(calls, start)[0] for start in starts]


def test_each_stage_is_measured_and_compared_with_the_one_before() -> None:
    summary = build_report(trained()).summary
    rates = [stage.measured.pass_at_1.value for stage in summary.stages if stage.measured]
    assert rates == [0.1, 0.4, 0.9]
    first, second = summary.comparisons
    assert (first.first, first.second) == ("base", "warm start")
    assert first.pass_at_1.value == pytest.approx(0.3)
    assert (second.pass_at_1.wins, second.pass_at_1.losses) == (5, 0)
    # Exact McNemar: 2 / 2^5, the smaller of two p-values, so Holm doubles it.
    assert second.pass_at_1.p_value == pytest.approx(0.0625)
    assert second.adjusted_p == pytest.approx(0.125)


def test_the_last_stage_is_also_compared_with_a_better_one_than_the_one_before() -> None:
    stages = (
        stage("base", [0.0, 0.0, 0.0, 0.0]),
        stage("spec", [1.0, 1.0, 0.0, 0.0]),
        stage("warm start", [1.0, 0.0, 0.0, 0.0]),
        stage("reinforcement", [1.0, 1.0, 1.0, 0.0]),
    )
    *steps, last = build_report(given(*stages)).summary.comparisons
    assert [(one.first, one.second) for one in steps] == [
        ("base", "spec"),
        ("spec", "warm start"),
        ("warm start", "reinforcement"),
    ]
    assert (last.first, last.second) == ("spec", "reinforcement")
    assert last.pass_at_1.value == pytest.approx(0.25)


def test_dropped_rollouts_count_for_nothing_but_the_warning() -> None:
    report = build_report(given(stage("base", [1.0, None, 0.0, 1.0])))
    measured = report.summary.stages[0].measured
    assert measured is not None
    assert (measured.tasks, measured.rollouts, measured.dropped) == (3, 3, 1)
    assert measured.pass_at_1.value == pytest.approx(2 / 3)
    assert report.summary.warnings == (
        (
            "base: 1 of 4 holdout rollouts were dropped for infrastructure faults; "
            "the rest may not be a fair sample."
        ),
    )


def test_a_stage_without_rollouts_is_shown_as_not_measured() -> None:
    report = build_report(given(stage("base", [None]), stage("after", [1.0])))
    assert report.summary.stages[0].measured is None
    assert report.summary.comparisons == ()
    assert "base" in printed(report)


def test_stages_on_different_tasks_are_compared_on_the_shared_ones_with_a_warning() -> None:
    report = build_report(given(stage("base", [0.0, 0.0, 1.0]), stage("after", [1.0, 1.0])))
    (comparison,) = report.summary.comparisons
    assert (comparison.pass_at_1.tasks, comparison.pass_at_1.value) == (2, 1.0)
    assert report.summary.warnings == (
        (
            "after was measured on other tasks than the stage before; "
            "the comparison uses the 2 they share."
        ),
    )


def test_looking_too_often_at_one_holdout_warns() -> None:
    assert build_report(given(stage("b", [1.0]), holdout_looks=5)).summary.warnings == ()
    (warning,) = build_report(given(stage("b", [1.0]), holdout_looks=6)).summary.warnings
    assert "measured 6 times" in warning


def test_another_split_can_be_the_measure() -> None:
    base = stage("base", [1.0, 0.0], split="validation")
    report = build_report(given(base, split="validation"))
    measured = report.summary.stages[0].measured
    assert measured is not None
    assert measured.tasks == 2
    assert "desk on the validation tasks" in printed(report)
    assert build_report(given(base)).summary.stages[0].measured is None


def test_repeats_are_reported_as_at_least_one_and_all_of_them() -> None:
    records = [rollout(f"t{i % 2}", float(i < 3)) for i in range(4)]
    measured = (
        build_report(given(StageResult(name="b", records=records))).summary.stages[0].measured
    )
    assert measured is not None
    assert (measured.repeats, measured.pass_at_1.value) == (2, 0.75)
    assert (measured.pass_at_k, measured.pass_hat_k) == (1.0, 0.5)


def test_spread_is_taken_within_one_group_not_over_policies() -> None:
    records = [
        rollout("a", score, split="train", step=step)
        for step, scores in ((1, (0.0, 0.0)), (2, (1.0, 0.5)))
        for score in scores
    ]
    # Validation meets each task once per step: no repeat of one policy.
    records += [rollout("v", 0.5, split="validation", step=step) for step in (1, 2)]
    found = build_report(given(StageResult(name="b", records=records))).summary.stages[0]
    assert found.spread_split == "train"
    (spread,) = found.spread
    assert (spread.mean, spread.sd, spread.best, spread.rollouts) == (0.75, 0.25, 1.0, 2)


def test_the_terminal_shows_rates_with_intervals_and_differences() -> None:
    text = printed(build_report(trained()))
    assert re.search(r"warm start +10 +40\.0% +16\.8-68\.7 +0\.400 +1\.00 +3 +2\.00", text)
    assert re.search(r"reinforcement +\+50\.0 +\+20\.0 \+80\.0 +0\.125 +5/0 +\+0\.500", text)


def test_markup_in_names_stays_text_in_the_terminal() -> None:
    report = build_report(given(stage("[red]base[/red]", [1.0]), project="[bold]desk"))
    text = printed(report)
    assert "[red]base[/red]" in text
    assert "[bold]desk" in text


@pytest.mark.parametrize("of", [trained(), given(stage("base", [None]), stage("after", [1.0]))])
def test_the_json_is_what_its_schema_says(tmp_path: Path, of: ReportInput) -> None:
    files = write_report(build_report(of), tmp_path / "report")
    schema = json.loads(SCHEMA_FILE.read_text())
    document = json.loads(files.json.read_text())
    assert list(fits(document, schema, schema)) == []
    assert len(document["stages"]) == len(of.stages)


def test_the_schema_check_can_fail() -> None:
    schema = json.loads(SCHEMA_FILE.read_text())
    document = as_json(build_report(trained()))
    document["stages"][0]["measured"]["pass_at_1"]["value"] = "high"
    document["comparisons"][0]["surprise"] = 1
    del document["project"]
    assert set(fits(document, schema, schema)) == {
        "$.stages[0].measured: fits none of anyOf",
        "$.comparisons[0].surprise: not in the schema",
        "$.project: missing",
    }


def test_numbers_that_are_not_finite_become_null_and_headers_are_hidden(tmp_path: Path) -> None:
    files = write_report(build_report(trained()), tmp_path)
    document = json.loads(files.json.read_text())
    assert document["stages"][2]["metrics"][0]["values"] == {"kl": None}
    assert document["config"]["tools"][0]["headers"] == {"Authorization": "(hidden)"}
    assert "s3cret" not in files.json.read_text() + files.html.read_text()


def test_the_page_shows_every_chart_and_loads_nothing(tmp_path: Path) -> None:
    html = write_report(build_report(trained()), tmp_path).html.read_text()
    page = Page(html)
    headings = "".join(page.text)
    for title in (
        "Imitation loss",
        "Reward over training",
        "Tool calls and sampled tokens per rollout",
        "Before and after, by task family",
        "Spread per task: reinforcement",
        "The same tasks, stage by stage",
    ):
        assert title in headings
    assert len(drawn(page)) == 5
    assert {tag for tag, _ in page.tags} & {"link", "img", "iframe", "object", "embed"} == set()
    assert [attributes for _, attributes in page.tags if "src" in attributes] == []
    (policy,) = [a["content"] for t, a in page.tags if t == "meta" and "http-equiv" in a]
    assert policy is not None
    assert policy.startswith("default-src 'none'")


def test_the_charts_hold_the_numbers_of_the_summary(tmp_path: Path) -> None:
    report = build_report(trained())
    charts = drawn(Page(write_report(report, tmp_path).html.read_text()))
    _, reward, effort, families, spread = charts
    tuned = report.summary.stages[2]
    assert [t["name"] for t in reward if "name" in t] == [
        "reinforcement, training tasks",
        "reinforcement, validation",
        "reinforcement, held-out grader",
    ]
    assert reward[2]["y"] == [point.score for point in tuned.training]
    assert reward[0]["y"] == [point.low for point in tuned.training]
    assert effort[0]["y"] == [1.0, 1.0, 1.0]
    assert effort[1]["y"] == [3.0, 3.0, 3.0]
    # Both families have one of five more than the other: t0, t2, ... and t1, t3, ...
    assert [trace["x"] for trace in families] == [[0.2, 0.0], [0.4, 0.4], [1.0, 0.8]]
    assert spread[0]["y"] == [task.mean for task in tuned.spread]
    assert spread[1]["y"] == [task.best for task in tuned.spread]


def test_a_chart_shows_what_each_step_and_its_rollouts_waited_for(tmp_path: Path) -> None:
    values = {"seconds/rollout": 5.0, "seconds/training": 2.0, "rollout_s/tools": 0.5}
    steps = [StepMetrics(step=step, values=values) for step in (1, 2)]
    given = trained()
    tuned = replace(given.stages[2], metrics=steps)
    report = build_report(replace(given, stages=(*given.stages[:2], tuned)))
    page = Page(write_report(report, tmp_path).html.read_text())
    assert "Who waits for whom" in "".join(page.text)
    (bars,) = [chart for chart in drawn(page) if chart[0].get("name") == "waiting for rollouts"]
    assert {bar["name"]: bar["y"] for bar in bars} == {
        "waiting for rollouts": [5.0, 5.0],
        "training": [2.0, 2.0],
        "publishing weights": [0.0, 0.0],
        "in the engine's line": [0.0, 0.0],
        "sampling": [0.0, 0.0],
        "tools": [0.5, 0.5],
    }
    assert all(bar["x"] == [["reinforcement"] * 2, [1, 2]] for bar in bars)
    assert [bar["legend"] for bar in bars] == ["legend"] * 3 + ["legend2"] * 3


HOSTILE = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "<a href='javascript:alert(1)'>x</a>",
    "<!--<script>",
    "</title></style></pre><b>",
    "\ud800 half a pair \x00 \u2028",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_strings_stay_text(tmp_path: Path, text: str) -> None:
    harmless, hostile = (_everywhere(each) for each in ("plain", text))
    pages = [
        Page(write_report(build_report(of), tmp_path).html.read_text(encoding="utf-8"))
        for of in (harmless, hostile)
    ]
    shapes = [[(tag, sorted(attributes)) for tag, attributes in page.tags] for page in pages]
    assert shapes[0] == shapes[1]
    labels = json.dumps(drawn(pages[1]))
    assert not re.search(r"<(?!br>|extra>|/extra>)", labels)


def _everywhere(text: str) -> ReportInput:
    """A report whose every string is the given one."""
    records = [
        rollout(f"{text}{i}", float(i % 2), text=text, family=f"{text}{i % 2}") for i in range(4)
    ]
    records += [
        rollout(f"{text}{i % 2}", 0.5, split="train", step=1 + i // 4, family=text, text=text)
        for i in range(8)
    ]
    stages = [
        StageResult(
            name=f"{text}{i}",
            records=records,
            metrics=[StepMetrics(step=1, values={text: 1.0, "loss": 1.0})],
            alarms=[replace(an_alarm("act", 1, text), monitor=text, evidence=("trace_1",))],
        )
        for i in range(2)
    ]
    return given(
        *stages,
        project=text,
        model=text,
        run_id=text,
        config={text: [text, {text: text}]},
        phase_s={text: 1.0},
        holdout_looks=9,
    )


def test_alarms_lead_to_the_rollouts_that_show_them(tmp_path: Path) -> None:
    report = build_report(trained())
    assert "reinforcement, step 3: train minus gold is 0.25" in printed(report).replace("\n", " ")
    html = write_report(report, tmp_path).html.read_text(encoding="utf-8")
    assert html.count('<a href="#trace_v1">1</a> <a href="#trace_v0">2</a></td>') == 2
    assert html.count('id="trace_v1"') == html.count('id="trace_v0"') == 1
    assert "score 0.50, held out 0.25" in html
    assert "trace_gone" not in html
    assert "<h2>Alarms</h2>" not in write_report(
        build_report(given(stage("base", [1.0]))), tmp_path
    ).html.read_text(encoding="utf-8")


def test_the_held_out_grader_is_drawn_beside_validation(tmp_path: Path) -> None:
    html = write_report(build_report(trained()), tmp_path).html.read_text(encoding="utf-8")
    (held_out,) = [
        trace
        for traces in drawn(Page(html))
        for trace in traces
        if "held-out" in str(trace.get("name"))
    ]
    assert (held_out["x"], held_out["y"]) == ([1, 3], [0.25, 0.25])


def test_a_string_inside_a_script_cannot_leave_it() -> None:
    for text in HOSTILE:
        written = script_json({"x": text})
        assert not set("<>&\u2028") & set(written)
        assert json.loads(written) == {"x": text}


def test_samples_show_gains_first_and_every_stage_side_by_side(tmp_path: Path) -> None:
    html = write_report(build_report(trained()), tmp_path).html.read_text()
    details = html.split('<details class="panel sample"')[1:]
    verdicts = [re.search(r'<span class="soft">([^<]+)</span></summary>', d) for d in details]
    assert [v.group(1) for v in verdicts if v] == [
        *["now solved"] * 3,
        "still not solved",
        "solved before and after",
    ]
    assert details[0].count('<div class="column"') == 3
    # The system text is the project's own and the same everywhere.
    assert "secret" not in details[0]


def test_a_long_report_keeps_its_size_in_the_samples(tmp_path: Path) -> None:
    few, many = (given(stage("a", [1.0] * n), stage("b", [1.0] * n)) for n in (10, 400))
    sizes = [
        len(Page(write_report(build_report(of), tmp_path).html.read_text()).tags)
        for of in (few, many)
    ]
    assert sizes[0] == sizes[1]
