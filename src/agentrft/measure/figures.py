"""Figures of a report as plain Plotly data: no drawing here, no Plotly import.

Labels come from datasets and are escaped, since Plotly reads tags in labels. Colours of text and
grid lines come from the page's style sheet, so that light and dark both work.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from agentrft.measure.statistics import Estimate
from agentrft.measure.summary import StageSummary, StepPoint, Summary

STAGE_COLORS = ("#8a919e", "#c98f1d", "#2f7fe0", "#35a06d", "#a566c9", "#d4604f")
"""By position; the start is grey, so that later stages stand out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One chart with what to say about it."""

    title: str
    caption: str
    """Says what is drawn, in plain text."""
    traces: Sequence[dict[str, Any]]
    layout: dict[str, Any]
    height_px: int = 320


def figures(summary: Summary) -> tuple[Figure, ...]:
    """Return the charts that this summary has numbers for."""
    return (
        *_imitation(summary),
        *_reward(summary),
        *_effort(summary),
        *_waiting(summary),
        *_families(summary),
        *_spreads(summary),
    )


def color(index: int) -> str:
    """Return the colour of the stage at this position."""
    return STAGE_COLORS[index % len(STAGE_COLORS)]


def _reward(summary: Summary) -> Sequence[Figure]:
    traces: list[dict[str, Any]] = []
    for index, stage in enumerate(summary.stages):
        if len(stage.training) > 1:
            label = f"{escape(stage.name)}, training tasks"
            traces += _band(stage.training, color(index))
            traces.append(_line(stage.training, "score", label, color(index)))
        if stage.validation:
            label = f"{escape(stage.name)}, validation"
            traces.append(_validation(stage.validation, label))
        judged = [point for point in stage.validation if point.gold is not None]
        if judged:
            traces.append(_gold(judged, f"{escape(stage.name)}, held-out grader"))
    if not traces:
        return ()
    return (
        Figure(
            title="Reward over training",
            caption="Mean score of each step's rollouts. Bands and bars are 95% intervals, "
            "clustered by task. A held-out grader looks at the validation rollouts; if it falls "
            "behind, the policy learns what only the grader pays for.",
            traces=traces,
            layout=plain_layout(xaxis={"title": {"text": "optimizer step"}}, yaxis=_score_axis()),
        ),
    )


def _imitation(summary: Summary) -> Sequence[Figure]:
    """Loss of stages that train without rollouts."""
    traces = [
        {
            "type": "scatter",
            "mode": "lines",
            "name": escape(stage.name),
            "x": [metrics.step for metrics in stage.metrics],
            "y": [_drawable(metrics.values["loss"]) for metrics in stage.metrics],
            "line": {"color": color(index), "width": 2},
            "showlegend": True,
            "hovertemplate": "step %{x}: %{y:.3f}<extra></extra>",
        }
        for index, stage in enumerate(summary.stages)
        if not stage.training
        and len(stage.metrics) > 1
        and all("loss" in metrics.values for metrics in stage.metrics)
    ]
    if not traces:
        return ()
    axes = {"xaxis": {"title": {"text": "optimizer step"}}, "yaxis": {"title": {"text": "loss"}}}
    return (
        Figure(
            title="Imitation loss",
            caption="Loss of each step's demonstrations.",
            traces=traces,
            layout=plain_layout(**axes),
            height_px=240,
        ),
    )


def _drawable(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _effort(summary: Summary) -> Sequence[Figure]:
    traces: list[dict[str, Any]] = []
    for index, stage in enumerate(summary.stages):
        if len(stage.training) > 1:
            calls = _line(stage.training, "tool_calls", escape(stage.name), color(index))
            tokens = _line(stage.training, "sampled_tokens", escape(stage.name), color(index))
            traces += [calls, tokens | {"yaxis": "y2", "showlegend": False}]
    if not traces:
        return ()
    layout = plain_layout(
        xaxis={"title": {"text": "optimizer step"}, "anchor": "y2"},
        yaxis={"title": {"text": "tool calls"}, "domain": [0.56, 1], "rangemode": "tozero"},
        yaxis2={"title": {"text": "tokens"}, "domain": [0, 0.44], "rangemode": "tozero"},
    )
    return (
        Figure(
            title="Tool calls and sampled tokens per rollout",
            caption="Means over each step's training rollouts.",
            traces=traces,
            layout=layout,
            height_px=400,
        ),
    )


_PHASES = (
    ("seconds/rollout", "waiting for rollouts", "y"),
    ("seconds/training", "training", "y"),
    ("seconds/publication", "publishing weights", "y"),
    ("rollout_s/line", "in the engine's line", "y2"),
    ("rollout_s/sampling", "sampling", "y2"),
    ("rollout_s/tools", "tools", "y2"),
)


def _waiting(summary: Summary) -> Sequence[Figure]:
    """Who waits for whom: phases of each step, and of its mean rollout."""
    measured = [
        (escape(stage.name), metrics)
        for stage in summary.stages
        for metrics in stage.metrics
        if "seconds/rollout" in metrics.values
    ]
    if len(measured) < 2:
        return ()
    steps = [[name for name, _ in measured], [metrics.step for _, metrics in measured]]
    traces = [
        {
            "type": "bar",
            "name": label,
            "x": steps,
            "y": [_drawable(metrics.values.get(name, 0.0)) for _, metrics in measured],
            "yaxis": axis,
            "legend": axis.replace("y", "legend"),
            "marker": {"color": color(index)},
            "hovertemplate": f"%{{x}}: %{{y:.1f}} s {label}<extra></extra>",
        }
        for index, (name, label, axis) in enumerate(_PHASES)
    ]
    legend = {"orientation": "h", "x": 0, "yanchor": "bottom", "traceorder": "normal"}
    layout = plain_layout(
        barmode="stack",
        # Few of many steps are named: all names would cover each other.
        xaxis={
            "title": {"text": "optimizer step"},
            "anchor": "y2",
            "nticks": 20,
            "tickangle": 0,
            "dividercolor": STAGE_COLORS[0],
        },
        yaxis={"title": {"text": "seconds of a step"}, "domain": [0.58, 1]},
        yaxis2={"title": {"text": "of a rollout"}, "domain": [0, 0.42]},
    )
    layout |= {"legend": legend | {"y": 1.02}, "legend2": legend | {"y": 0.43}}
    layout["margin"] |= {"b": 60}
    return (
        Figure(
            title="Who waits for whom",
            caption="Above, the phases of each step: while it waits for rollouts the trainer is idle, "
            "while it trains the sampler is, unless rollouts run one version behind. Below, where a "
            "rollout of the step spent its time, on average.",
            traces=traces,
            layout=layout,
            height_px=440,
        ),
    )


def _families(summary: Summary) -> Sequence[Figure]:
    stages = [(i, s, s.measured) for i, s in enumerate(summary.stages) if s.measured is not None]
    names = sorted({family.name for _, _, seen in stages for family in seen.families})
    if len(names) < 2:
        return ()
    row = {name: position for position, name in enumerate(reversed(names))}
    traces: list[dict[str, Any]] = []
    for place, (index, stage, seen) in enumerate(stages):
        offset = 0.0 if len(stages) == 1 else 0.25 - 0.5 * place / (len(stages) - 1)
        rates = [family.pass_at_1 for family in seen.families]
        traces.append(
            {
                "type": "scatter",
                "mode": "markers",
                "name": escape(stage.name),
                "x": [estimate.value for estimate in rates],
                "y": [row[family.name] + offset for family in seen.families],
                "error_x": whiskers(rates, color(index)),
                "marker": {"color": color(index), "size": 9},
                "text": [f"{escape(f.name)}, {f.tasks} tasks" for f in seen.families],
                "hovertemplate": "%{text}<br>pass@1 %{x:.1%}<extra></extra>",
            }
        )
    ticks = {
        "tickvals": list(row.values()),
        "ticktext": [escape(name or "(no family)") for name in row],
        "range": [-0.6, len(names) - 0.4],
        "automargin": True,
    }
    return (
        Figure(
            title="Before and after, by task family",
            caption="pass@1 with 95% Wilson intervals. Small families have wide "
            "intervals; compare them with care.",
            traces=traces,
            layout=plain_layout(xaxis={"range": [-0.02, 1.02], "tickformat": ".0%"}, yaxis=ticks),
            height_px=130 + 44 * len(names),
        ),
    )


def _spreads(summary: Summary) -> Sequence[Figure]:
    """First and last stage that has repeated rollouts."""
    stages = [(i, stage) for i, stage in enumerate(summary.stages) if stage.spread]
    return [_spread(index, stage) for index, stage in (stages[:1] + stages[1:][-1:])]


def _spread(index: int, stage: StageSummary) -> Figure:
    names = [f"{escape(task.task_id)} ({task.rollouts} rollouts)" for task in stage.spread]
    places = list(range(1, len(names) + 1))
    bars = {
        "type": "bar",
        "name": "mean ± 1 standard deviation",
        "x": places,
        "y": [task.mean for task in stage.spread],
        "error_y": {
            "type": "data",
            "array": [task.sd for task in stage.spread],
            "color": "#8a919e",
            "thickness": 1,
            "width": 2,
        },
        "marker": {"color": color(index), "opacity": 0.75},
        "text": names,
        "textposition": "none",
        "hovertemplate": "%{text}<br>mean %{y:.2f}<extra></extra>",
    }
    best = {
        "type": "scatter",
        "mode": "markers",
        "name": "best",
        "x": places,
        "y": [task.best for task in stage.spread],
        "marker": {"symbol": "x-thin", "size": 7, "line": {"width": 1.5, "color": "#d4604f"}},
        "text": names,
        "hovertemplate": "%{text}<br>best %{y:.2f}<extra></extra>",
    }
    return Figure(
        title=f"Spread per task: {stage.name}",
        caption=f"Each bar is the last group of one task ({stage.spread_split}). A cross far above "
        "its bar is success that the policy can reach but does not yet repeat.",
        traces=[bars, best],
        layout=plain_layout(
            xaxis={"title": {"text": "tasks, sorted by mean score"}},
            yaxis=_score_axis(),
            bargap=0.15,
        ),
    )


def _line(points: Sequence[StepPoint], field: str, name: str, tint: str) -> dict[str, Any]:
    numbers = {
        "score": [point.score for point in points],
        "tool_calls": [point.tool_calls for point in points],
        "sampled_tokens": [point.sampled_tokens for point in points],
    }
    return {
        "type": "scatter",
        "mode": "lines",
        "name": name,
        "x": [point.step for point in points],
        "y": numbers[field],
        "line": {"color": tint, "width": 2},
        "hovertemplate": "step %{x}: %{y:.3g}<extra></extra>",
    }


def _band(points: Sequence[StepPoint], tint: str) -> list[dict[str, Any]]:
    edge = {
        "type": "scatter",
        "mode": "lines",
        "x": [point.step for point in points],
        "line": {"width": 0},
        "hoverinfo": "skip",
        "showlegend": False,
    }
    red, green, blue = (int(tint[i : i + 2], 16) for i in (1, 3, 5))
    fill = {"fill": "tonexty", "fillcolor": f"rgba({red},{green},{blue},0.18)"}
    return [
        edge | {"y": [point.low for point in points]},
        edge | fill | {"y": [point.high for point in points]},
    ]


def _validation(points: Sequence[StepPoint], name: str) -> dict[str, Any]:
    estimates = [
        Estimate(value=p.score, low=p.low, high=p.high, method="bootstrap") for p in points
    ]
    tint = STAGE_COLORS[3]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [point.step for point in points],
        "y": [point.score for point in points],
        "error_y": whiskers(estimates, tint),
        "line": {"color": tint, "width": 1.5, "dash": "dot"},
        "marker": {"size": 7},
        "hovertemplate": "step %{x}: %{y:.3f}<extra></extra>",
    }


def _gold(points: Sequence[StepPoint], name: str) -> dict[str, Any]:
    tint = STAGE_COLORS[1]
    return {
        "type": "scatter",
        "mode": "lines+markers",
        "name": name,
        "x": [point.step for point in points],
        "y": [point.gold for point in points],
        "line": {"color": tint, "width": 2},
        "marker": {"size": 7, "symbol": "diamond"},
        "hovertemplate": "step %{x}: %{y:.3f}<extra></extra>",
    }


def whiskers(estimates: Sequence[Estimate], tint: str) -> dict[str, Any]:
    """Return the error bars of these estimates."""
    return {
        "type": "data",
        "symmetric": False,
        "array": [estimate.high - estimate.value for estimate in estimates],
        "arrayminus": [estimate.value - estimate.low for estimate in estimates],
        "color": tint,
        "thickness": 1.5,
        "width": 0,
    }


def _score_axis() -> dict[str, Any]:
    return {"title": {"text": "score"}, "rangemode": "tozero"}


def plain_layout(**axes: Any) -> dict[str, Any]:
    """Return the layout all charts share, with these axes."""
    return {
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": "#7b828e"},
        "margin": {"l": 52, "r": 12, "t": 8, "b": 44},
        "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom"},
        "hovermode": "closest",
        **axes,
    }
