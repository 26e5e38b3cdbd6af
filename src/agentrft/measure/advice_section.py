"""What was advised after each measurement, and what a spec was worth after each training."""

from html import escape

from rich.console import RenderableType
from rich.text import Text

from agentrft.measure.advisor import Advice
from agentrft.measure.search_section import cell, figures_table, plain
from agentrft.measure.search_summary import DropOne, Retest
from agentrft.measure.summary import ReportInput


def advice_section(given: ReportInput) -> str:
    """Return the section; nothing if nobody advised and no spec was tested again."""
    cards = "".join(_card(number, one) for number, one in enumerate(given.advice, start=1))
    heading = "<h2>What was advised, and followed</h2>" if cards else ""
    return heading + cards + "".join(_retest(one) for one in given.retests)


def advice_lines(given: ReportInput) -> list[RenderableType]:
    """Return the same for a terminal."""
    parts: list[RenderableType] = []
    for one in given.retests:
        table = figures_table(
            f"After the {one.after}, on {one.tasks} tasks: what each change of the spec is worth",
            ("change", "with it (pp)", "95%", ""),
        )
        for drop in _drops(one):
            value, interval = plain(drop.difference)
            table.add_row(Text(drop.knob), value, interval, _fate(one, drop))
        parts.append(table)
    for number, one in enumerate(given.advice, start=1):
        parts.append(Text(f"advice {number}  {one.rule}: {one.method.value}", style="bold"))
        parts.append(Text(f"  {one.reason}"))
    if given.advice and given.advice[-1].would_flip:
        parts.append(Text(f"  would change with: {given.advice[-1].would_flip}"))
    return parts


def _card(number: int, one: Advice) -> str:
    told = {
        "because": one.reason,
        "next in line": one.runner_up,
        "would change with": one.would_flip,
        "would cost": f"{one.cost.minutes:.0f} minutes, {one.cost.tokens:,.0f} tokens "
        f"({one.cost.rule})"
        if one.cost
        else "",
        "passed over": "; ".join(one.not_taken),
    }
    lines = "".join(f"<p><b>{name}</b> {escape(text)}</p>" for name, text in told.items() if text)
    return (
        f'<section class="panel card"><h3>{number}. {escape(one.method.value)} '
        f'<span class="soft">{escape(one.rule)}</span></h3>{lines}</section>'
    )


def _retest(one: Retest) -> str:
    rows = "".join(
        f"<tr><td>{escape(drop.knob)}</td>{cell(drop.difference)}<td>{_fate(one, drop)}</td></tr>"
        for drop in _drops(one)
    )
    return (
        f"<h3>The spec after the {escape(one.after)}</h3>"
        f'<p class="soft">Each change taken back alone, with the new weights, on {one.tasks} '
        "validation tasks: how much the spec solves more than the same spec without it. Changes that "
        "no longer help are taken back.</p>"
        '<div class="panel wide"><table class="words"><tr><th>change</th><th>worth</th><th></th></tr>'
        f"{rows}</table></div>"
    )


def _drops(one: Retest) -> tuple[DropOne, ...]:
    return (*one.drop_one, one.together) if one.together else one.drop_one


def _fate(one: Retest, drop: DropOne) -> str:
    if drop is one.together:
        return ""
    return "taken back" if drop.knob in one.dropped else "kept"
