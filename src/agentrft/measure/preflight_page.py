"""What preflight found, for people: `preflight.html`, `preflight.json` and tables for a terminal.

The page loads nothing. Every string from a project, task or model is escaped.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, cast

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from agentrft.measure.figures import Figure, color, plain_layout, whiskers
from agentrft.measure.next_steps import Cost
from agentrft.measure.page import document, figure_blocks
from agentrft.measure.preflight_result import PreflightResult
from agentrft.measure.standing import Standing, TaskStanding
from agentrft.measure.statistics import Estimate

STYLES = {"go": "green", "fix": "yellow", "no-go": "red"}
Row = tuple[str, str, str]
"""A number's name, its value and its interval or a remark."""


def write_preflight(result: PreflightResult, folder: Path) -> None:
    """Write `preflight.json` and `preflight.html` into a folder that exists."""
    text = json.dumps(as_json(result), indent=2, allow_nan=False)
    (folder / "preflight.json").write_text(text + "\n", encoding="utf-8")
    (folder / "preflight.html").write_bytes(page(result).encode("utf-8", errors="replace"))


def as_json(result: PreflightResult) -> dict[str, Any]:
    """Return everything in JSON types, the verdict first."""
    return {"schema": 1, "verdict": result.verdict, **asdict(result)}


def rows(found: Standing) -> tuple[Row, ...]:
    """Return every number of a standing as a reader sees it."""
    k, size = found.samples, found.group_size
    flips = _share("grades that change when given again", found.flips)
    gold = found.gold_agreement
    cut = f"{found.failures} of {found.rollouts} rollouts failed"
    return (
        _share("pass@1", found.pass_1),
        _share(f"pass@{k}", found.pass_k),
        _share(f"pass^{k}", found.pass_hat_k),
        ("score", f"{found.score.value:.3f}", f"{found.score.low:.3f} to {found.score.high:.3f}"),
        _share("tasks never solved", found.zero),
        _share("tasks always solved", found.full),
        _share(f"informative groups of {size}", found.informative),
        _share("tasks whose scores differ", found.spread),
        _share("cut by tokens, context or clock", found.truncated),
        _share("lost to infrastructure", found.infrastructure),
        _share("grader failed", found.grader_errors),
        flips,
        (
            "rank correlation with held-out grader",
            "-" if gold is None else f"{gold:.2f}",
            "not measured" if gold is None else "",
        ),
        (
            "smallest gain the holdout shows",
            f"{100 * found.detectable:.1f} pp",
            f"80% power, {found.holdout_tasks} holdout tasks",
        ),
        ("tasks rolled out", str(found.tasks), f"{found.families} families, {cut}"),
        ("train tasks", str(found.train_tasks), "distinct prompts"),
        ("prompt tokens", f"{found.prompt_tokens:.0f}", "system, tools, demonstrations, task"),
        (
            "tokens per rollout",
            f"{found.observed_tokens + found.sampled_tokens:.0f}",
            "read and sampled",
        ),
        ("tool calls per rollout", f"{found.tool_calls:.2f}", ""),
        ("seconds per rollout", f"{found.seconds:.3f}", "wall clock, many at once"),
    )


def terminal(result: PreflightResult) -> RenderableType:
    """Return verdict, advice and tables for a terminal."""
    found = result.standing
    numbers = _table(f"{result.project}: where the agent stands", ("", "", "95%"))
    for row in rows(found):
        numbers.add_row(*map(Text, row))
    parts: list[RenderableType] = [numbers]
    if found.mix:
        mix = _table("Why rollouts fail, by first decisive error", ("class", "share", "evidence"))
        for entry in found.mix:
            mix.add_row(
                entry.failure_class, f"{entry.share.value:.1%}", Text(_short(entry.evidence))
            )
        parts.append(mix)
    if found.tools:
        tools = _table("Tools", ("tool", "calls", "complaints", "lost rollouts", "p95 s"))
        for tool in found.tools:
            tools.add_row(
                Text(tool.name),
                str(tool.calls),
                str(tool.complaints),
                str(tool.lost),
                _seconds(tool.p95_s),
            )
        parts.append(tools)
    parts += [Text(f"! {note}", style="yellow") for note in _remarks(result)]
    parts.append(
        Text(f"\n{result.verdict}: {result.advice.method}", style=f"bold {STYLES[result.verdict]}")
    )
    parts += [Text(f"{name:13} {told}") for name, told in _advice_lines(result)]
    return Group(*parts)


def _advice_lines(result: PreflightResult) -> list[tuple[str, str]]:
    advice = result.advice
    told = [
        (f"rule {advice.rule}", advice.reason),
        ("runner-up", advice.runner_up or "none"),
        ("would flip", advice.would_flip or "nothing that was measured"),
        ("expected cost", _cost(advice.cost)),
    ]
    return told + [("not taken", line) for line in advice.not_taken]


def _remarks(result: PreflightResult) -> list[str]:
    blocked: Sequence[str] = result.audit.get("blocked", ())
    return [*result.notes, *(f"the grader's audit: {reason}" for reason in blocked)]


def _cost(cost: Cost | None) -> str:
    if cost is None:
        return "not known; nothing that this machine does by itself"
    rollouts = f"{cost.rollouts:,} rollouts, " if cost.rollouts else ""
    money = f", {cost.money:,.2f} in the endpoint's currency" if cost.money else ""
    return (
        f"{rollouts}{cost.tokens / 1e6:.2f} million tokens, about {cost.minutes:.1f} minutes{money} "
        f"(estimate: {cost.rule})"
    )


def page(result: PreflightResult) -> str:
    """Return the whole document."""
    found = result.standing
    charts = (*variance_plot(found), *_mix_plot(found))
    body = "\n".join(
        (
            _header(result),
            *(f'<p class="warning">{escape(text)}</p>' for text in _remarks(result)),
            _verdict(result),
            *figure_blocks(charts),
            "<h2>Numbers</h2>",
            _html_table(("", "", "95% interval or remark"), rows(found)),
            _evidence(found),
            _tools(found),
            _costs(result),
        )
    )
    return document(f"{result.project} - AgentRFT preflight", body, charts)


def _header(result: PreflightResult) -> str:
    made = datetime.fromtimestamp(result.created_at, UTC).strftime("%Y-%m-%d %H:%M UTC")
    facts = {"model": result.model, "run": result.run_id, "made": made}
    shown = "".join(f"<span>{name} {escape(value)}</span>" for name, value in facts.items())
    return f'<h1>{escape(result.project)}: preflight</h1>\n<div class="facts soft">{shown}</div>'


def _verdict(result: PreflightResult) -> str:
    mark = "good" if result.verdict == "go" else "bad"
    lines = "".join(
        f"<p><b>{escape(name)}</b> {escape(told)}</p>" for name, told in _advice_lines(result)
    )
    return (
        f'<section class="panel card" style="--stage:{color(2)}">'
        f'<div class="rate"><span class="{mark}">{result.verdict}</span>: '
        f"{escape(result.advice.method)}</div>{lines}</section>"
    )


def variance_plot(found: Standing) -> tuple[Figure, ...]:
    """Draw each task's mean score against the spread of its scores, by how often it was solved."""
    kinds = {
        "never solved": (5, [t for t in found.by_task if t.solved == 0]),
        "sometimes solved: informative": (
            2,
            [t for t in found.by_task if 0 < t.solved < t.rollouts],
        ),
        "always solved": (3, [t for t in found.by_task if t.solved == t.rollouts]),
    }
    traces = [
        _points(f"{name}, {len(tasks)} tasks", tasks, color(tint))
        for name, (tint, tasks) in kinds.items()
        if tasks
    ]
    means = [0.0, 1.0, *(task.mean for task in found.by_task)]
    most = max(0.5, *(task.sd for task in found.by_task))
    layout = plain_layout(
        xaxis={"title": {"text": "mean score"}, "range": [min(means) - 0.05, max(means) + 0.05]},
        yaxis={
            "title": {"text": "standard deviation over repeats"},
            "range": [-0.08 * most, 1.1 * most],
        },
        showlegend=True,
    )
    return (
        Figure(
            title="Spread of scores, task by task",
            caption=f"Each circle stands for the tasks of that mean and spread over "
            f"{found.samples} rollouts; its size for how many. Reinforcement learns from tasks with "
            "spread only: those on the floor of the chart, left and right, teach nothing.",
            traces=traces,
            layout=layout,
            height_px=380,
        ),
    )


def _points(name: str, tasks: Sequence[TaskStanding], tint: str) -> dict[str, Any]:
    """Tasks at the same place become one circle that names some of them."""
    places: dict[tuple[float, float], list[str]] = {}
    for task in tasks:
        key = round(task.mean, 3), round(task.sd, 3)
        places.setdefault(key, []).append(escape(task.task_id))
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": [mean for mean, _ in places],
        "y": [sd for _, sd in places],
        "marker": {
            "color": tint,
            "opacity": 0.75,
            "size": [7 + 4 * len(ids) ** 0.5 for ids in places.values()],
        },
        "text": [
            f"{len(ids)} tasks: {', '.join(ids[:4])}{', ...' if len(ids) > 4 else ''}"
            for ids in places.values()
        ],
        "hovertemplate": "%{text}<br>mean %{x:.3f}, sd %{y:.3f}<extra></extra>",
    }


def _mix_plot(found: Standing) -> tuple[Figure, ...]:
    if not found.mix:
        return ()
    shown = found.mix[::-1]  # Plotly draws from the bottom
    shares = [entry.share for entry in shown]
    bars = {
        "type": "bar",
        "orientation": "h",
        "x": [share.value for share in shares],
        "y": [entry.failure_class for entry in shown],
        "marker": {"color": color(5)},
        "error_x": whiskers(shares, "#444"),
        "hovertemplate": "%{y}: %{x:.1%}<extra></extra>",
    }
    layout = plain_layout(
        xaxis={"tickformat": ".0%", "rangemode": "tozero", "title": {"text": "of all rollouts"}},
        yaxis={"automargin": True},
    )
    return (
        Figure(
            title="Why rollouts fail",
            caption="Class of the first decisive error, with 95% intervals clustered by task.",
            traces=[bars],
            layout=layout,
            height_px=110 + 30 * len(shown),
        ),
    )


def _evidence(found: Standing) -> str:
    if not found.mix:
        return ""
    shown = [
        (entry.failure_class, str(entry.rollouts), f"{entry.evidence} ({entry.example})")
        for entry in found.mix
    ]
    return "<h2>An example of each class</h2>" + _html_table(
        ("class", "rollouts", "seen"), shown, kind="prose"
    )


def _tools(found: Standing) -> str:
    if not found.tools:
        return ""
    shown = [
        (tool.name, str(tool.calls), str(tool.complaints), str(tool.lost), _seconds(tool.p95_s))
        for tool in found.tools
    ]
    heads = ("tool", "calls", "complaints", "lost rollouts", "p95 s")
    return "<h2>Tools</h2>" + _html_table(heads, shown)


def _costs(result: PreflightResult) -> str:
    shown = [(step.value, _cost(cost)) for step, cost in result.costs.items()]
    audit = cast(Mapping[str, float | None], result.audit.get("headline", {}))
    graded = [(name.replace("_", " "), _plain(value)) for name, value in audit.items()]
    heading = "<h2>Audit of the grader</h2>" if graded else ""
    return (
        "<h2>What each next step would cost here</h2>"
        + _html_table(("step", "estimate"), shown, kind="prose")
        + heading
        + (_html_table(("", ""), graded) if graded else "")
    )


def _html_table(heads: Sequence[str], lines: Sequence[Sequence[str]], *, kind: str = "") -> str:
    top = "".join(f"<th>{escape(head)}</th>" for head in heads)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in line) + "</tr>" for line in lines
    )
    return f'<div class="panel wide {kind}"><table><tr>{top}</tr>{body}</table></div>'


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=Text(title), title_justify="left", box=box.SIMPLE_HEAD)
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place in (0, 2) else "right")
    return table


def _share(name: str, value: Estimate | None) -> Row:
    if value is None:
        return name, "-", "not measured"
    return name, f"{value.value:.1%}", f"{value.low:.1%} to {value.high:.1%}"


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _plain(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _short(text: str) -> str:
    return text if len(text) <= 70 else f"{text[:69]}…"
