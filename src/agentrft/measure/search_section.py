"""What a search before weights found, for the report's page and the terminal.

Shares are shown in percent, their changes in percentage points, each with its 95% interval.
"""

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from agentrft.core.run import RolloutRecord
from agentrft.measure.figures import color
from agentrft.measure.search_summary import Confirmation, KnobEffect, SearchSummary, Tried
from agentrft.measure.statistics import Estimate, PairedDifference
from agentrft.measure.summary import ReportInput
from agentrft.measure.transcript import evidence

Interval = Estimate | PairedDifference

_SCALE = 60.0
"""Percentage points at the ends of a drawn interval."""
_MANY = 6
"""Failure classes that a change is meant for, from which they are not listed."""
_BEFORE, _AFTER = color(0), color(1)
_VERDICTS = {"promoted": "good", "promising": "soft", "rejected": "bad"}


def search_section(given: ReportInput) -> str:
    """Return the section; nothing without a search."""
    summary = given.search
    if summary is None:
        return ""
    examples = {record.graded.trajectory.id: record for record in given.search_examples}
    return "\n".join(
        (
            "<h2>Prompt and structure</h2>",
            f'<p class="outcome">{_outcome(summary)}</p>',
            *(f'<p class="warning">{escape(note)}</p>' for note in summary.notes),
            _changes(summary),
            _confirmations(summary.confirmations),
            _effects(summary.effects),
            _mix(summary, examples),
            *_examples(summary, examples),
            _tried(summary.tried),
            _ledger(summary),
        )
    )


def search_tables(summary: SearchSummary) -> list[RenderableType]:
    """Return the tables for a terminal."""
    parts: list[RenderableType] = [Text(_plain_outcome(summary), style="bold")]
    if summary.chosen:
        table = figures_table(
            "What was promoted, and what each change is worth",
            ("change", "adds (pp)", "95%", "screened (pp)", "95%"),
        )
        for knob, level in summary.chosen.items():
            cells = [plain(one) for one in _worth(summary, knob, level)]
            table.add_row(Text(f"{knob}: {level}"), *(text for cell in cells for text in cell))
        parts.append(table)
    if summary.confirmations:
        table = figures_table(
            "On holdout tasks that the search never read",
            ("finalist", "pass@1 (pp)", "95%", "p", "alpha", "verdict"),
        )
        for one in summary.confirmations:
            p = "<.001" if one.adjusted_p < 0.001 else f"{one.adjusted_p:.3f}"
            difference = plain(one.difference)
            table.add_row(Text(one.name), *difference, p, f"{one.alpha:g}", one.verdict)
        parts.append(table)
    others = [effect for effect in summary.effects if not _is_chosen(summary, effect)]
    if others:
        table = figures_table(
            "What else was tried", ("change", "screened (pp)", "95%", "rollouts", "source")
        )
        for effect in _by_effect(others):
            name = Text(f"{effect.knob}: {effect.level}")
            table.add_row(name, *plain(effect.effect), str(effect.rollouts), effect.source)
        parts.append(table)
    parts.append(Text(_plain_ledger(summary)))
    parts.extend(Text(f"! {note}", style="yellow") for note in summary.notes)
    return parts


def figures_table(title: str, columns: tuple[str, ...]) -> Table:
    """Return an empty table of figures, its first column of words."""
    table = Table(
        title=Text(title), title_justify="left", box=box.SIMPLE_HEAD, collapse_padding=True
    )
    for column in columns:
        first = column == columns[0]
        table.add_column(column, justify="left" if first else "right", no_wrap=not first)
    return table


def _plain_outcome(summary: SearchSummary) -> str:
    before, after = summary.baseline_holdout, summary.chosen_holdout
    if summary.promoted and before and after:
        return f"Promoted: pass@1 on the holdout goes from {before.value:.1%} to {after.value:.1%}."
    if before:
        return (
            f"Nothing was promoted; the baseline stays, pass@1 {before.value:.1%} on the holdout."
        )
    return "Nothing was promoted; the baseline stays, and the holdout was not touched."


def _outcome(summary: SearchSummary) -> str:
    told = [escape(_plain_outcome(summary))]
    if summary.minimum_detectable is not None:
        told.append(
            f"The holdout shows gains of {100 * summary.minimum_detectable:.1f} points or more "
            "with 80% power."
        )
    if summary.plateau:
        told.append("The last round found nothing better: this stage has reached its plateau.")
    return " ".join(told)


def _changes(summary: SearchSummary) -> str:
    """Each promoted change with its own effect."""
    if not summary.chosen:
        return ""
    whys = {(effect.knob, effect.level): effect.why for effect in summary.effects}
    rows = "".join(
        f"<tr><td>{escape(knob)}: {escape(level)}"
        f"<small>{escape(whys.get((knob, level), ''))}</small></td>"
        f"{''.join(cell(one) for one in _worth(summary, knob, level))}</tr>"
        for knob, level in summary.chosen.items()
    )
    return (
        "<h3>What was promoted, and what each change is worth</h3>"
        '<p class="soft">Taken back alone, on dev tasks: how much the chosen spec solves more than '
        "the same spec without this change. In the screen: its effect averaged over many "
        "combinations, before the race.</p>"
        '<div class="panel wide"><table class="words"><tr><th>change</th><th>taken back alone</th>'
        f"<th>in the screen</th></tr>{rows}</table></div>"
    )


def _worth(
    summary: SearchSummary, knob: str, level: str
) -> tuple[Interval | None, Interval | None]:
    dropped = [d.difference for d in summary.drop_one if (d.knob, d.level) == (knob, level)]
    screened = [e.effect for e in summary.effects if (e.knob, e.level) == (knob, level)]
    return next(iter(dropped), None), next(iter(screened), None)


def _is_chosen(summary: SearchSummary, effect: KnobEffect) -> bool:
    return summary.chosen.get(effect.knob) == effect.level


def _confirmations(confirmations: Sequence[Confirmation]) -> str:
    if not confirmations:
        return ""
    rows = "".join(
        f"<tr><td>{escape(one.name)}<small>{escape(one.reason)}{_missing(one)}</small></td>"
        f"{cell(one.difference)}<td>{escape(_p(one.adjusted_p))}<small>level {one.alpha:g}</small></td>"
        f"{cell(one.sampled_tokens, points=False)}{cell(one.observed_tokens, points=False)}"
        f"{cell(one.tool_calls, points=False)}"
        f'<td><span class="{_VERDICTS[one.verdict]}">{one.verdict}</span></td></tr>'
        for one in confirmations
    )
    first = confirmations[0].difference
    return (
        "<h3>On holdout tasks that the search never read</h3>"
        f'<p class="soft">Finalist minus baseline on the same {first.tasks} tasks with the same '
        f"seeds; one-sided p of the {escape(first.test)} test, Holm over the finalists.</p>"
        '<div class="panel wide"><table class="words"><tr><th>finalist</th><th>pass@1</th><th>p</th>'
        "<th>sampled tokens</th><th>tokens fed in</th><th>tool calls</th><th></th></tr>"
        f"{rows}</table></div>"
    )


def _missing(one: Confirmation) -> str:
    if not one.missing_rollouts:
        return ""
    return f"; {one.missing_rollouts} rollouts per arm would show a difference of this size"


def _effects(effects: Sequence[KnobEffect]) -> str:
    if not effects:
        return ""
    rows = "".join(
        f"<tr><td>{escape(effect.knob)}: {escape(effect.level)}"
        f"<small>{escape(_meant_for(effect))}</small></td>"
        f"<td>{_drawn(effect.effect)}</td>{cell(effect.effect)}<td>{effect.rollouts}</td></tr>"
        for effect in _by_effect(effects)
    )
    return (
        "<h3>Every change that was screened</h3>"
        f'<p class="soft">Effect on the pass rate against the baseline\'s setting; the drawn axis goes '
        f"from {-_SCALE:.0f} to {_SCALE:+.0f} points.</p>"
        '<div class="panel wide"><table class="words"><tr><th>change</th><th></th><th>effect</th>'
        f"<th>rollouts</th></tr>{rows}</table></div>"
    )


def _meant_for(effect: KnobEffect) -> str:
    treats = effect.treats if len(effect.treats) < _MANY else ("most failures",)
    return " · ".join((effect.source, *treats))


def _by_effect(effects: Iterable[KnobEffect]) -> list[KnobEffect]:
    return sorted(effects, key=lambda effect: -effect.effect.value)


def _drawn(effect: Interval) -> str:
    low, value, high = (
        100 + 100 * max(-1.0, min(1.0, 100 * n / _SCALE))
        for n in (effect.low, effect.value, effect.high)
    )
    tint = "var(--good)" if effect.low > 0 else "var(--bad)" if effect.high < 0 else "var(--soft)"
    return (
        '<svg class="interval" viewBox="0 0 200 14" preserveAspectRatio="none" role="img" '
        f'aria-label="{_points(effect)}">'
        '<rect x="99.5" y="0" width="1" height="14" fill="#8a919e" opacity="0.5"/>'
        f'<rect x="{low:.1f}" y="5" width="{max(high - low, 0.5):.1f}" height="4" fill="{tint}" '
        f'opacity="0.45"/><rect x="{value - 1.25:.1f}" y="2" width="2.5" height="10" fill="{tint}"/>'
        "</svg>"
    )


def _mix(summary: SearchSummary, examples: Mapping[str, RolloutRecord]) -> str:
    """Failure classes before and after as bars, each with a link to its example."""
    before = {entry.failure_class: entry for entry in summary.mix_before}
    after = {entry.failure_class: entry for entry in summary.mix_after}
    if not before and not after:
        return ""
    rows: list[str] = []
    for name in dict.fromkeys((*before, *after)):
        entries = [entry for mix in (before, after) if (entry := mix.get(name))]
        evidence = next((entry.evidence for entry in entries if entry.evidence), "")
        shown = [entry.example for entry in entries if entry.example in examples]
        links = " ".join(f'<a href="#{escape(trace)}">example</a>' for trace in shown)
        bars = _bar(before[name].share.value if name in before else 0.0, _BEFORE)
        if after:
            bars += _bar(after[name].share.value if name in after else 0.0, _AFTER)
        rows.append(
            f"<tr><td>{escape(name)}<small>{escape(evidence)}</small></td>"
            f"<td>{bars}</td><td>{links}</td></tr>"
        )
    told = (
        f'Grey is the baseline, <span style="color:{_AFTER}">colour</span> the chosen spec.'
        if after
        else "Of the baseline."
    )
    return (
        "<h3>Why rollouts failed</h3>"
        f'<p class="soft">Share of all feedback rollouts by first decisive error. {told}</p>'
        f'<div class="panel wide"><table class="words mix">{"".join(rows)}</table></div>'
    )


def _bar(share: float, tint: str) -> str:
    return (
        f'<div class="bar"><i style="width:{100 * share:.1f}%;background:{tint}"></i>'
        f"<span>{share:.0%}</span></div>"
    )


def _examples(summary: SearchSummary, examples: Mapping[str, RolloutRecord]) -> Iterable[str]:
    for label, mix in (("baseline", summary.mix_before), ("chosen spec", summary.mix_after)):
        for entry in mix:
            if entry.example in examples:
                yield _example(f"{entry.failure_class} · {label}", examples[entry.example])


def _example(shows: str, record: RolloutRecord) -> str:
    trajectory, grade = record.graded.trajectory, record.graded.grade
    score = "not graded" if grade.score is None else f"score {grade.score:.2f}"
    return evidence(record, shows, f"{trajectory.task_id}, {score}")


def _tried(tried: Sequence[Tried]) -> str:
    if not tried:
        return ""
    rows = "".join(
        f"<tr><td>{escape(one.name)}<small>{escape(one.verdict)}</small></td>"
        f"<td>{escape(one.ended)}</td>{_rate_cell(one.pass_rate)}<td>{one.rollouts}</td>"
        f"<td><code>{escape(one.spec_hash)}</code></td></tr>"
        for one in tried
    )
    return (
        f'<details class="panel"><summary>All {len(tried)} specs that were rolled out, and where '
        'each ended</summary><div class="wide"><table class="words"><tr><th>spec</th><th>ended</th>'
        f"<th>pass@1 on dev</th><th>rollouts</th><th>hash</th></tr>{rows}</table></div></details>"
    )


def _ledger(summary: SearchSummary) -> str:
    purposes = summary.spent.get("by_purpose", {})
    rows = "".join(
        f"<tr><td>{escape(name)}</td><td>{count}</td></tr>" for name, count in purposes.items()
    )
    return (
        f'<h3>What it cost</h3><p class="soft">{escape(_plain_ledger(summary))}</p>'
        f'<div class="panel wide"><table>{rows}</table></div>'
    )


def _plain_ledger(summary: SearchSummary) -> str:
    spent = summary.spent
    parts = [
        f"{spent.get('rollouts', 0)} rollouts",
        f"{spent.get('interrupted', 0)} interrupted",
        f"{spent.get('reused', 0)} answered from what was kept",
        f"{spent.get('questions', 0)} questions",
        f"{spent.get('sampled_tokens', 0):,} tokens sampled",
        f"{spent.get('tool_calls', 0):,} tool calls",
        f"{spent.get('seconds', 0.0) / 60:.1f} minutes",
    ]
    looks = f"The holdout has been looked at {summary.holdout_looks} times."
    return f"{', '.join(parts)}. {looks}"


def _rate_cell(rate: Estimate | None) -> str:
    if rate is None:
        return "<td>-</td>"
    interval = f"{100 * rate.low:.0f} to {100 * rate.high:.0f}%"
    return f"<td>{rate.value:.0%}<small>{interval}</small></td>"


def cell(one: Interval | None, *, points: bool = True) -> str:
    """Return a cell with a difference and its interval, in points or as it is."""
    if one is None:
        return "<td>-</td>"
    if not points:
        return f"<td>{one.value:+.1f}<small>{one.low:+.1f} to {one.high:+.1f}</small></td>"
    mark = ' class="good"' if one.low > 0 else ' class="bad"' if one.high < 0 else ""
    interval = f"{100 * one.low:+.1f} to {100 * one.high:+.1f}"
    return f"<td><span{mark}>{100 * one.value:+.1f} pp</span><small>{interval}</small></td>"


def _p(value: float) -> str:
    return "<.001" if value < 0.001 else f"{value:.3f}"


def _points(one: Interval) -> str:
    return f"{100 * one.value:+.1f} points, from {100 * one.low:+.1f} to {100 * one.high:+.1f}"


def plain(one: Interval | None) -> tuple[str, str]:
    """Return a difference and its interval in points, for a terminal."""
    if one is None:
        return "-", "-"
    return f"{100 * one.value:+.1f}", f"{100 * one.low:+.1f} {100 * one.high:+.1f}"
