import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from report_builders import Page, fits, given, rollout, stage
from rich.console import Console

from agentrft.measure.report import (
    SCHEMA_FILE,
    ReportInput,
    as_json,
    build_report,
    terminal,
    write_report,
)
from agentrft.measure.search_summary import (
    Confirmation,
    DropOne,
    KnobEffect,
    MixEntry,
    SearchSummary,
    Tried,
)
from agentrft.measure.statistics import Estimate, PairedDifference

NASTY = '</script><script>alert("1")</script><b a="\u2028">&amp;'


def estimate(value: float) -> Estimate:
    return Estimate(value=value, low=value - 0.1, high=value + 0.1, method="Wilson")


def paired(value: float) -> PairedDifference:
    return PairedDifference(
        value=value,
        low=value - 0.1,
        high=value + 0.1,
        p_value=0.01,
        test="exact sign-flip",
        tasks=80,
        clusters=80,
        wins=20,
        losses=4,
    )


def a_summary(text: str = "look first") -> SearchSummary:
    settings = {text: "on"}
    promoted = Confirmation(
        name=text,
        spec_hash="chosen",
        settings=settings,
        difference=paired(0.2),
        adjusted_p=0.0004,
        alpha=0.1,
        sampled_tokens=paired(-3.0),
        observed_tokens=paired(40.0),
        tool_calls=paired(0.5),
        verdict="promoted",
        reason=text,
    )
    effects = [
        KnobEffect(
            knob=knob,
            level="on",
            effect=estimate(value),
            rollouts=96,
            source="treatment",
            treats=(text,),
            why=f"why {text}",
        )
        for knob, value in ((text, 0.18), ("greeting", -0.3))
    ]
    return SearchSummary(
        baseline_hash="base",
        chosen_hash="chosen",
        promoted=True,
        chosen=settings,
        baseline_holdout=estimate(0.3),
        chosen_holdout=estimate(0.5),
        effects=tuple(effects),
        tried=tuple(
            Tried(
                name=f"{text} {n}",
                spec_hash=f"h{n}",
                settings=settings,
                ended="race 1",
                rollouts=24,
                pass_rate=estimate(0.4) if n else None,
                verdict=text,
            )
            for n in range(2)
        ),
        confirmations=(
            promoted,
            replace(promoted, name="second", verdict="promising", missing_rollouts=310),
        ),
        drop_one=(DropOne(knob=text, level="on", difference=paired(0.15)),),
        mix_before=(
            MixEntry(
                failure_class="wrong arguments",
                rollouts=30,
                share=estimate(0.42),
                example="trace_before",
                evidence=text,
            ),
        ),
        mix_after=(
            MixEntry(
                failure_class="wrong plan",
                rollouts=9,
                share=estimate(0.13),
                example="trace_after",
            ),
        ),
        spent={"rollouts": 812, "interrupted": 3, "seconds": 90.0, "by_purpose": {text: 812}},
        minimum_detectable=0.11,
        holdout_looks=2,
        notes=(text,),
    )


def searched(summary: SearchSummary, text: str = "hello") -> ReportInput:
    examples = [
        rollout("t1", 0.0, split="train", trace=trace, text=text)
        for trace in ("trace_before", "trace_after")
    ]
    return given(search=summary, search_examples=tuple(examples))


def page_of(summary: SearchSummary, folder: Path, text: str = "hello") -> str:
    report = build_report(searched(summary, text))
    return write_report(report, folder).html.read_text(encoding="utf-8")


def printed(summary: SearchSummary) -> str:
    file = io.StringIO()
    report = build_report(searched(summary))
    Console(file=file, width=120, force_terminal=False).print(terminal(report))
    return file.getvalue()


def test_every_promoted_change_is_shown_with_its_own_effect(tmp_path: Path) -> None:
    html = page_of(a_summary(), tmp_path)
    (changes,) = [part for part in html.split("<h3>") if part.startswith("What was promoted")]
    assert "look first: on" in changes
    assert "+15.0 pp" in changes
    assert "+18.0 pp" in changes
    assert "why look first" in changes
    assert "greeting" not in changes
    shown = printed(a_summary())
    assert "+15.0" in shown
    assert "greeting: on" in shown.split("What else was tried")[1]


def test_what_was_rejected_is_shown_with_its_reason(tmp_path: Path) -> None:
    html = page_of(a_summary(), tmp_path)
    assert "All 2 specs that were rolled out" in html
    assert "310 rollouts per arm would show" in html
    assert "-30.0 pp" in html
    assert "promising" in printed(a_summary())


def test_failure_classes_lead_to_their_examples(tmp_path: Path) -> None:
    html = page_of(a_summary(), tmp_path)
    for trace in ("trace_before", "trace_after"):
        assert html.count(f'href="#{trace}"') == 1
        assert html.count(f'id="{trace}"') == 1
    assert html.count('<div class="bar">') == 4


def test_a_search_that_promoted_nothing_says_so(tmp_path: Path) -> None:
    nothing = replace(
        a_summary(), promoted=False, chosen={}, drop_one=(), chosen_holdout=None, mix_after=()
    )
    assert "Nothing was promoted; the baseline stays, pass@1 30.0%" in printed(nothing)
    html = page_of(nothing, tmp_path)
    assert "What was promoted" not in html
    assert html.count('<div class="bar">') == 1
    untouched = replace(nothing, baseline_holdout=None, confirmations=())
    assert "the holdout was not touched" in printed(untouched)


@pytest.mark.parametrize("summary", [a_summary(), None])
def test_the_json_is_what_its_schema_says(summary: SearchSummary | None) -> None:
    report = given(stage("base", [1.0, 0.0]), search=summary)
    document = json.loads(json.dumps(as_json(build_report(report))))
    schema = json.loads(SCHEMA_FILE.read_text())
    assert list(fits(document, schema, schema)) == []
    assert (document["search"] is None) == (summary is None)


def test_nothing_of_a_search_becomes_markup(tmp_path: Path) -> None:
    page = Page(page_of(a_summary(NASTY), tmp_path, NASTY))
    assert not any("alert" in script for script in page.scripts)
    assert "alert" in "".join(page.text)


def test_a_report_without_a_search_has_no_such_section(tmp_path: Path) -> None:
    report = build_report(given(stage("base", [1.0])))
    html = write_report(report, tmp_path).html.read_text(encoding="utf-8")
    assert "Prompt and structure" not in html
