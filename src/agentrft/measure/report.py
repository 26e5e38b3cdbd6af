"""A report from the stages of a run: terminal tables, `report.json`, one self-contained HTML file.

`report.schema.json` beside this file documents the JSON.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agentrft.measure.advice_section import advice_lines
from agentrft.measure.comparison_section import Payoff, comparison_tables, payoff
from agentrft.measure.page import page
from agentrft.measure.search_section import figures_table, search_tables
from agentrft.measure.summary import (
    Comparison,
    ReportInput,
    StageResult,
    StageSummary,
    Summary,
    summarize,
)

__all__ = [
    "Report",
    "ReportFiles",
    "ReportInput",
    "StageResult",
    "build_report",
    "terminal",
    "write_report",
]

SCHEMA_FILE = Path(__file__).parent / "report.schema.json"
"""JSON Schema of `report.json`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured, and the numbers made of it."""

    given: ReportInput
    summary: Summary
    payoff: Payoff | None = None
    """Whether the weights paid; None where none were changed and nobody asked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportFiles:
    """Where a report was written."""

    json: Path
    html: Path


def build_report(given: ReportInput) -> Report:
    """Measure every stage and compare each with the one before."""
    shown = replace(given, config=cast(dict[str, Any], _without_secrets(given.config)))
    return Report(given=shown, summary=summarize(given), payoff=payoff(given))


def write_report(report: Report, folder: Path) -> ReportFiles:
    """Write `report.json` and `report.html` into a folder, made if missing."""
    folder.mkdir(parents=True, exist_ok=True)
    files = ReportFiles(json=folder / "report.json", html=folder / "report.html")
    text = json.dumps(as_json(report), indent=2, allow_nan=False)
    files.json.write_text(text + "\n", encoding="utf-8")
    # Half a surrogate pair, which JSON from a tool can contain, has no UTF-8 form.
    html = page(report.given, report.summary, report.payoff).encode("utf-8", errors="replace")
    files.html.write_bytes(html)
    return files


def as_json(report: Report) -> dict[str, Any]:
    """Return what `report.schema.json` describes; numbers that are not finite become null."""
    given = report.given
    document = {
        "schema": 1,
        "project": given.project,
        "model": given.model,
        "run_id": given.run_id,
        "created_at": given.created_at,
        "seeds": given.seeds,
        "pass_threshold": given.pass_threshold,
        "split": given.split,
        "holdout_looks": given.holdout_looks,
        "phase_s": given.phase_s,
        "config": given.config,
        "search": asdict(given.search) if given.search else None,
        "advice": [asdict(advice) for advice in given.advice],
        "retests": [asdict(retest) for retest in given.retests],
        "did_weights_pay": asdict(report.payoff) if report.payoff else None,
        **asdict(report.summary),
    }
    return cast(dict[str, Any], finite(document))


def terminal(report: Report) -> RenderableType:
    """Return the tables for a terminal: each stage, then each step up."""
    parts: list[RenderableType] = [_stages_table(report)] if report.given.stages else []
    if report.summary.comparisons:
        parts.append(_comparisons_table(report.summary.comparisons))
    if report.payoff:
        parts += comparison_tables(report.payoff)
    if report.given.search:
        parts += search_tables(report.given.search)
    parts += advice_lines(report.given)
    parts.extend(Text(f"! {warning}", style="yellow") for warning in report.summary.warnings)
    return Group(*parts)


def _stages_table(report: Report) -> Table:
    table = figures_table(
        f"{report.given.project} on the {report.given.split} tasks",
        ("stage", "tasks", "pass@1", "95%", "score", "tools", "tokens", "s/task"),
    )
    for stage in report.summary.stages:
        table.add_row(Text(stage.name), *_stage_cells(stage))
    return table


def _stage_cells(stage: StageSummary) -> list[str]:
    seen = stage.measured
    if seen is None:
        return ["0", *["-"] * 6]
    return [
        str(seen.tasks),
        f"{seen.pass_at_1.value:.1%}",
        f"{100 * seen.pass_at_1.low:.1f}-{100 * seen.pass_at_1.high:.1f}",
        f"{seen.score.value:.3f}",
        f"{seen.tool_calls.value:.2f}",
        f"{seen.sampled_tokens.value:.0f}",
        f"{seen.seconds.value:.2f}",
    ]


def _comparisons_table(comparisons: tuple[Comparison, ...]) -> Table:
    table = figures_table(
        "Paired differences on the same tasks",
        ("", "pass@1 (pp)", "95%", "p", "+/-", "score", "tools", "tokens"),
    )
    for c in comparisons:
        table.add_row(
            Text(f"{c.second}\n- {c.first}"),
            f"{100 * c.pass_at_1.value:+.1f}",
            f"{100 * c.pass_at_1.low:+.1f} {100 * c.pass_at_1.high:+.1f}",
            "<.001" if c.adjusted_p < 0.001 else f"{c.adjusted_p:.3f}",
            f"{c.pass_at_1.wins}/{c.pass_at_1.losses}",
            f"{c.score.value:+.3f}",
            f"{c.tool_calls.value:+.2f}",
            f"{c.sampled_tokens.value:+.0f}",
        )
    return table


def _without_secrets(value: object) -> object:
    """Blank the values of every `headers` table: tools get their tokens there."""
    if isinstance(value, Mapping):
        mapping = cast(Mapping[str, object], value)
        return {
            key: dict.fromkeys(cast(Mapping[str, object], item), "(hidden)")
            if key == "headers" and isinstance(item, Mapping)
            else _without_secrets(item)
            for key, item in mapping.items()
        }
    if isinstance(value, list | tuple):
        return [_without_secrets(item) for item in cast(list[object], value)]
    return value


def finite(value: object) -> object:
    """Make a value plain JSON; numbers that are not finite become null."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        mapping = cast(Mapping[object, object], value)
        return {str(key): finite(item) for key, item in mapping.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in cast(list[object], value)]
    if value is None or isinstance(value, str | int):
        return value
    return str(value)
