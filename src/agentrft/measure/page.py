"""The report as one HTML file that loads nothing: style, charts and library inside.

Every string from a project, task or model passes `html.escape` or the JSON escape below.
"""

import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files

from agentrft.core.grade import GradedTrajectory
from agentrft.measure.advice_section import advice_section
from agentrft.measure.alarm_section import alarm_section
from agentrft.measure.comparison_section import Payoff, payoff_section
from agentrft.measure.figures import Figure, color, figures
from agentrft.measure.search_section import search_section
from agentrft.measure.statistics import Estimate, PairedDifference
from agentrft.measure.summary import (
    Comparison,
    Measured,
    ReportInput,
    Summary,
    measured_tasks,
    score_of,
)
from agentrft.measure.transcript import block, turn_blocks

_SAMPLES = 6

# Nothing may be fetched, whatever a transcript contains.
_POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; "
    "img-src data: blob:; base-uri 'none'; form-action 'none'"
)


def page(given: ReportInput, summary: Summary, paid: Payoff | None) -> str:
    """Return the whole document."""
    charts = figures(summary)
    body = "\n".join(
        (
            _header(given),
            *(f'<p class="warning">{escape(text)}</p>' for text in summary.warnings),
            _cards(given, summary) if given.stages else "",
            payoff_section(paid),
            _comparisons(summary.comparisons),
            search_section(given),
            advice_section(given),
            alarm_section(given),
            *figure_blocks(charts),
            _samples(given),
            _method(given, summary),
        )
    )
    return document(f"{given.project} - AgentRFT report", body, charts)


def document(title: str, body: str, charts: Sequence[Figure]) -> str:
    """Return a page that loads nothing; `body` is HTML and places the charts, see `figure_blocks`."""
    # Importing Plotly takes a third of a second; only a page with charts needs it.
    from plotly.offline import get_plotlyjs

    style = files("agentrft.measure").joinpath("page.css").read_text(encoding="utf-8")
    library = f"<script>{get_plotlyjs()}</script>" if charts else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>{style}</style>\n{library}</head>\n<body><main>\n{body}\n</main>"
        f"<script>{_drawing(charts)}</script></body></html>\n"
    )


def script_json(value: object) -> str:
    """Return JSON that cannot end or open a tag, a comment or a line inside a script."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _drawing(charts: Sequence[Figure]) -> str:
    options = script_json({"responsive": True, "displayModeBar": False})
    return "\n".join(
        f"Plotly.newPlot('figure-{i}',{script_json(figure.traces)},"
        f"{script_json(figure.layout)},{options});"
        for i, figure in enumerate(charts)
    )


def _header(given: ReportInput) -> str:
    facts = {
        "model": given.model,
        "run": given.run_id,
        "made": datetime.fromtimestamp(given.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
        if given.created_at
        else "",
        "seeds": ", ".join(map(str, given.seeds)),
        "solved from score": f"{given.pass_threshold:g}",
    }
    shown = "".join(
        f"<span>{escape(name)} {escape(value)}</span>" for name, value in facts.items() if value
    )
    return f'<h1>{escape(given.project)}</h1>\n<div class="facts soft">{shown}</div>'


def _cards(given: ReportInput, summary: Summary) -> str:
    cards = "".join(
        _card(index, stage.name, given.split, stage.measured)
        for index, stage in enumerate(summary.stages)
    )
    return f'<div class="cards">{cards}</div>'


def _card(index: int, name: str, split: str, seen: Measured | None) -> str:
    opening = f'<section class="panel card" style="--stage:{color(index)}"><h3>{escape(name)}</h3>'
    if seen is None:
        return f'{opening}<p class="soft">not measured</p></section>'
    rate = seen.pass_at_1
    repeats = (
        f"<br>pass@{seen.repeats} {seen.pass_at_k:.1%}, pass^{seen.repeats} {seen.pass_hat_k:.1%}"
        if seen.repeats > 1
        else ""
    )
    dropped = f"<br>{seen.dropped} rollouts dropped" if seen.dropped else ""
    return (
        f'{opening}<div class="rate">{rate.value:.1%}</div>{_interval_svg(rate, color(index))}'
        f'<div class="soft">pass@1 on {seen.tasks} {split} tasks, '
        f"95% interval {100 * rate.low:.1f} to {100 * rate.high:.1f}%{repeats}{dropped}<br>"
        f"score {seen.score.value:.3f} · {seen.tool_calls.value:.2f} tool calls · "
        f"{seen.sampled_tokens.value:.0f} tokens · {seen.seconds.value:.2f} s per task"
        "</div></section>"
    )


def _interval_svg(rate: Estimate, tint: str) -> str:
    return (
        '<svg viewBox="0 0 200 14" preserveAspectRatio="none" role="img" '
        f'aria-label="{rate.value:.1%}, from {rate.low:.1%} to {rate.high:.1%}">'
        '<rect x="0" y="6" width="200" height="2" fill="#8a919e" opacity="0.25"/>'
        f'<rect x="{200 * rate.low:.1f}" y="4" width="{200 * (rate.high - rate.low):.1f}" '
        f'height="6" rx="1" fill="{tint}" opacity="0.4"/>'
        f'<rect x="{200 * rate.value - 1.25:.1f}" y="1" width="2.5" height="12" fill="{tint}"/></svg>'
    )


def _comparisons(comparisons: Sequence[Comparison]) -> str:
    if not comparisons:
        return ""
    rows = "".join(
        f"<tr><td>{escape(c.first)} → {escape(c.second)}</td>"
        f"{_cell(c.pass_at_1, scale=100, digits=1, unit=' pp', judged=True)}"
        f"<td>{_p(c.adjusted_p)}</td><td>{c.pass_at_1.wins} / {c.pass_at_1.losses}</td>"
        f"{_cell(c.score, digits=3, judged=True)}{_cell(c.tool_calls, digits=2)}"
        f"{_cell(c.sampled_tokens, digits=1)}{_cell(c.seconds, digits=2)}</tr>"
        for c in comparisons
    )
    return (
        "<h2>Paired differences on the same tasks</h2>"
        '<p class="soft">Second minus first with 95% intervals. '
        f"p of pass@1: {escape(comparisons[0].pass_at_1.test)} test over tasks, Holm-adjusted.</p>"
        '<div class="panel wide"><table><tr><th></th><th>pass@1</th><th>p</th>'
        "<th>better / worse</th><th>score</th><th>tool calls</th><th>tokens</th>"
        f"<th>seconds</th></tr>{rows}</table></div>"
    )


def _cell(
    difference: PairedDifference,
    *,
    scale: float = 1,
    digits: int,
    unit: str = "",
    judged: bool = False,
) -> str:
    low, value, high = (scale * n for n in (difference.low, difference.value, difference.high))
    mark = ""
    if judged and (low > 0 or high < 0):
        mark = ' class="good"' if low > 0 else ' class="bad"'
    return (
        f"<td><span{mark}>{value:+.{digits}f}{unit}</span>"
        f"<small>{low:+.{digits}f} to {high:+.{digits}f}</small></td>"
    )


def _p(value: float) -> str:
    return "&lt; 0.001" if value < 0.001 else f"{value:.3f}"


def figure_blocks(charts: Sequence[Figure]) -> list[str]:
    """Return the places that a document draws its charts into, in order."""
    return [_figure(f"figure-{i}", figure) for i, figure in enumerate(charts)]


def _figure(name: str, figure: Figure) -> str:
    return (
        f"<figure><h2>{escape(figure.title)}</h2><figcaption>{escape(figure.caption)}</figcaption>"
        f'<div class="panel"><div id="{name}" style="height:{figure.height_px}px"></div></div>'
        "</figure>"
    )


def _samples(given: ReportInput) -> str:
    measured = [
        (index, stage.name, tasks)
        for index, stage in enumerate(given.stages)
        if (tasks := measured_tasks(stage, given.split))
    ]
    if not measured:
        return ""
    family = {r.graded.trajectory.task_id: r.family for s in given.stages for r in s.records}
    parts = ["<h2>The same tasks, stage by stage</h2>"]
    for task, verdict in _chosen([tasks for _, _, tasks in measured], given.pass_threshold):
        prompt = measured[0][2][task][0].trajectory.prompt
        asked = "".join(block(m.role, m.content) for m in prompt if m.role == "user")
        columns = "".join(
            _column(index, name, tasks[task][0], given.pass_threshold)
            for index, name, tasks in measured
        )
        opened = " open" if len(parts) == 1 else ""
        label = f"{family[task]} · {task}" if family[task] else task
        parts.append(
            f'<details class="panel sample"{opened}><summary>{escape(label)} '
            f'<span class="soft">{verdict}</span></summary><div class="body">{asked}'
            f'<div class="columns">{columns}</div></div></details>'
        )
    return "\n".join(parts)


def _chosen(
    stages: Sequence[dict[str, list[GradedTrajectory]]], threshold: float
) -> Iterable[tuple[str, str]]:
    """Pick tasks of every kind of change, gains first, spread over the file."""
    shared = [task for task in stages[0] if all(task in stage for stage in stages)]
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for task in shared:
        ends = (stages[0][task][0], stages[-1][task][0])
        before, after = (score_of(graded) >= threshold for graded in ends)
        kinds.setdefault((before, after), []).append(task)
    alone = len(stages) == 1
    wanted = (
        ((False, True), "now solved", 3),
        ((True, False), "no longer solved", 1),
        ((False, False), "not solved" if alone else "still not solved", 3 if alone else 1),
        ((True, True), "solved" if alone else "solved before and after", 3 if alone else 1),
    )
    picked = [
        (task, verdict)
        for kind, verdict, count in wanted
        for task in _spread_out(kinds.get(kind, []), count)
    ]
    return picked[:_SAMPLES]


def _spread_out(tasks: Sequence[str], count: int) -> list[str]:
    stride = max(1, len(tasks) // count)
    return list(tasks[::stride][:count])


def _column(index: int, name: str, graded: GradedTrajectory, threshold: float) -> str:
    trajectory, score = graded.trajectory, score_of(graded)
    mark = "good" if score >= threshold else "bad"
    parts = ", ".join(f"{part} {value:g}" for part, value in graded.grade.parts.items())
    told = " · ".join(text for text in (parts, graded.grade.explanation) if text)
    note = f'<div class="soft">{escape(told)}</div>' if told else ""
    return (
        f'<div class="column" style="--stage:{color(index)}"><h3>{escape(name)} '
        f'<span class="{mark}">{score:.2f}</span></h3>'
        f'<div class="soft">{escape(trajectory.stop_reason.value.replace("_", " "))} · '
        f"{len(trajectory.tool_calls)} tool calls · {trajectory.sampled_tokens} tokens · "
        f"{trajectory.duration_s:.1f} s</div>{note}"
        f"{''.join(turn_blocks(turn) for turn in trajectory.turns)}</div>"
    )


def _method(given: ReportInput, summary: Summary) -> str:
    seen = next((s.measured for s in summary.stages if s.measured is not None), None)
    intervals = seen.pass_at_1.method if seen else "none"
    total = sum(given.phase_s.values())
    phases = "".join(
        f"<tr><td>{escape(name)}</td><td>{seconds:.1f} s</td><td>{seconds / total:.0%}</td></tr>"
        for name, seconds in given.phase_s.items()
        if total
    )
    clock = f'<div class="panel wide"><table>{phases}</table></div>' if phases else ""
    settings = escape(json.dumps(given.config, indent=2, default=str, ensure_ascii=False))
    heading = "<h2>Where the time went</h2>" if phases else ""
    return (
        f"{heading}{clock}<h2>How to read this</h2>"
        f'<p class="soft">Rates: {escape(intervals)}. Means and differences: bootstrap over tasks. '
        "Repeats of a task are never counted as new tasks. Rollouts that failed for reasons "
        "outside the model are dropped and counted, never scored. Differences speak about more "
        "tasks of these families, not about new families. "
        "</p>"
        f'<details class="panel"><summary>Settings of this run</summary><pre>{settings}</pre>'
        "</details>"
    )
