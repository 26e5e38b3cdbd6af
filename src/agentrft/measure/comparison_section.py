"""Did the weights pay? The table of a comparison for a report, a terminal and a page of its own.

Everything from a project is escaped.
"""

from dataclasses import dataclass, replace
from html import escape

from rich.console import RenderableType
from rich.text import Text

from agentrft.core.config import PriceList
from agentrft.core.errors import UserError
from agentrft.measure.arms import rollout_key, spent_on_training
from agentrft.measure.comparison import (
    Arm,
    Comparison,
    Row,
    Spending,
    best_of,
    compare,
    samples,
)
from agentrft.measure.search_section import cell, figures_table, plain
from agentrft.measure.search_summary import SearchSummary
from agentrft.measure.summary import ReportInput, StageResult, by_task

TITLE = "Did the weights pay?"
_COLUMNS = ("", "pass@1", "to reference", "pass^4", "s/task", "tools", "tokens/task")
_LATER = ("made with", "break-even")


@dataclass(frozen=True, slots=True, kw_only=True)
class Payoff:
    """What a report says of changed weights."""

    answer: str
    comparison: Comparison | None
    """None where stages cannot be compared, which the answer then says."""
    question: str = TITLE


def payoff(given: ReportInput) -> Payoff | None:
    """Hold trained stages against the best prompt and best-of-k; None where nobody asked."""
    if not given.advice and given.control is None and not any(s.metrics for s in given.stages):
        return None
    arms = arms_of(given)
    if not arms:
        return None
    choices = [best_of(arm, most) for arm in arms if not arm.trained and (most := samples(arm)) > 1]
    try:
        comparison = compare(
            [*arms, *choices],
            pass_threshold=given.pass_threshold,
            prices=PriceList(**given.config.get("prices", {})),
        )
    except UserError as error:
        return Payoff(answer=f"Cannot tell whether weights paid: {error}.", comparison=None)
    return Payoff(answer=comparison.answer, comparison=comparison)


def arms_of(given: ReportInput) -> list[Arm]:
    """Return the stages, each with everything taken up to it; the control with the stage it repeats."""
    arms: list[Arm] = []
    taken, trained = Spending(), False
    for place, stage in enumerate(given.stages):
        holdout = [record for record in stage.records if record.split == given.split]
        if place == 1 and given.search:  # between the project's own spec and whatever follows
            taken += spent_on_search(given.search)
        taken += spent_on_training(
            stage.records,
            stage.metrics,
            seconds=given.phase_s.get(stage.name, 0.0),
        )
        if by_task(holdout):
            trained = trained or bool(stage.metrics)
            arms.append(Arm(name=stage.name, records=holdout, training=taken, trained=trained))
    control = given.control
    return _with_control(arms, control) if control and by_task(control.records) else arms


def _with_control(arms: list[Arm], control: StageResult) -> list[Arm]:
    """Add several rollouts per task of the best spec to the stage that measured it, or beside it."""
    drawn = control.records
    spec = drawn[0].graded.trajectory.spec_hash
    policy = next(
        (
            arm
            for arm in reversed(arms)
            if not arm.trained and arm.records[0].graded.trajectory.spec_hash == spec
        ),
        Arm(name="best spec", records=()),
    )
    kept = {rollout_key(record.graded.trajectory) for record in drawn}
    if {rollout_key(record.graded.trajectory) for record in policy.records} <= kept:
        # The stage's own rollouts are among them: more of the same policy.
        return [*(arm for arm in arms if arm is not policy), replace(policy, records=drawn)]
    return [*arms, replace(policy, name=f"{policy.name} {control.name}", records=drawn)]


def spent_on_search(search: SearchSummary) -> Spending:
    """Return what a search took."""
    used = search.spent
    return Spending(
        rollouts=used.get("rollouts", 0),
        prompt_tokens=used.get("observed_tokens", 0),
        sampled_tokens=used.get("sampled_tokens", 0),
        tool_calls=used.get("tool_calls", 0),
        seconds=used.get("seconds", 0.0),
    )


def payoff_section(found: Payoff | None) -> str:
    """Return the section of a report; nothing where nobody asked."""
    if found is None:
        return ""
    told = f'<h2>{escape(found.question)}</h2><p class="outcome">{escape(found.answer)}</p>'
    return told + (comparison_table(found.comparison) if found.comparison else "")


def comparison_table(comparison: Comparison) -> str:
    """Return notes, how to read them, and the table as HTML."""
    notes = "".join(f'<p class="warning">{escape(note)}</p>' for note in comparison.notes)
    priced = comparison.unit == "money"
    heads = "".join(f"<th>{name}</th>" for name in _COLUMNS)
    rows = "".join(_html_row(row, priced=priced) for row in comparison.rows)
    later = "".join(f"<th>{name}</th>" for name in _LATER)
    return (
        f'{notes}<p class="soft">{escape(_reading(comparison))}</p>'
        f'<div class="panel wide"><table class="words"><tr>{heads}{later}</tr>{rows}'
        "</table></div>"
    )


def comparison_tables(found: Payoff) -> list[RenderableType]:
    """Return the same for a terminal, as much of it as eighty columns hold."""
    parts: list[RenderableType] = [Text(found.answer, style="bold")]
    comparison = found.comparison
    if comparison is None:
        return parts
    table = figures_table(
        found.question, ("", "pass@1", "to ref. (pp)", *_COLUMNS[3:6], "cost", "even")
    )
    for row in comparison.rows:
        low, high = 100 * row.pass_at_1.low, 100 * row.pass_at_1.high
        table.add_row(
            Text(row.name),
            "\n".join((f"{row.pass_at_1.value:.1%}", f"{low:.1f}-{high:.1f}", *_seeds(row))),
            "\n".join((*plain(row.difference), f"p {_p(row.adjusted_p)}"))
            if row.difference
            else "reference",
            _rate(row.pass_hat_4),
            f"{row.seconds_p50:.2f}\n{row.seconds_p95:.2f}",
            f"{row.per_task.tool_calls:.2f}",
            f"{row.cost_per_task:.4g}",
            _break_even(row).removesuffix(" tasks"),
        )
    return [*parts, table, *(Text(f"! {note}", style="yellow") for note in comparison.notes)]


def markdown(comparison: Comparison) -> str:
    """Return the answer and the table, to paste."""
    priced = comparison.unit == "money"
    names = ["policy", *_COLUMNS[1:], *(["money/task"] if priced else []), *_LATER]
    lines = [names, ["---"] * len(names)]
    for row in comparison.rows:
        difference, interval = plain(row.difference)
        p50, p95 = row.seconds_p50, row.seconds_p95
        low, high = 100 * row.pass_at_1.low, 100 * row.pass_at_1.high
        lines.append(
            [
                row.name.replace("|", "\\|"),
                f"{row.pass_at_1.value:.1%} ({'; '.join((f'{low:.1f} to {high:.1f}', *_seeds(row)))})",
                f"{difference} ({' to '.join(interval.split())}, p {_p(row.adjusted_p)})"
                if row.difference
                else "reference",
                _rate(row.pass_hat_4),
                f"{p50:.2f} / {p95:.2f}",
                f"{row.per_task.tool_calls:.2f}",
                f"{row.per_task.prompt_tokens:.0f} + {row.per_task.sampled_tokens:.0f}",
                *([f"{row.money_per_task:.4g}"] if priced else []),
                ", ".join(_made_with(row)),
                _break_even(row),
            ]
        )
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    notes = "".join(f"\n\n{note}" for note in comparison.notes)
    return f"{comparison.answer}\n\n{table}\n\n{_reading(comparison)}{notes}\n"


def _html_row(row: Row, *, priced: bool) -> str:
    low, high = 100 * row.pass_at_1.low, 100 * row.pass_at_1.high
    p = f"<small>p {escape(_p(row.adjusted_p))}</small></td>" if row.difference else ""
    difference = cell(row.difference).removesuffix("</td>") + p if p else "<td>reference</td>"
    money = f"<br>money {row.money_per_task:.4g}" if priced else ""
    made, *more = _made_with(row)
    dropped = f", {row.dropped} dropped" if row.dropped else ""
    return (
        f"<tr><td>{escape(row.name)}<small>{row.rollouts} rollouts of {row.tasks} tasks{dropped}"
        f"</small></td><td>{row.pass_at_1.value:.1%}"
        f"<small>{'<br>'.join((f'{low:.1f} to {high:.1f}%', *_seeds(row)))}</small></td>"
        f"{difference}<td>{_rate(row.pass_hat_4)}</td>"
        f"<td>{row.seconds_p50:.2f}<small>95%: {row.seconds_p95:.2f}</small></td>"
        f"<td>{row.per_task.tool_calls:.2f}</td>"
        f"<td>{row.per_task.prompt_tokens + row.per_task.sampled_tokens:.0f}"
        f"<small>{row.per_task.prompt_tokens:.0f} read<br>{row.per_task.sampled_tokens:.0f} written"
        f"{money}</small></td><td>{made}<small>{'<br>'.join(more)}</small></td>"
        f"<td>{_break_even(row).replace(' tasks', '<small>tasks</small>')}</td></tr>"
    )


def _seeds(row: Row) -> tuple[str, ...]:
    """Say how far the seeds of a policy lie apart."""
    if row.seeds == 1:
        return ()
    return (f"{row.seeds} seeds {100 * row.lowest:.1f}-{100 * row.highest:.1f}",)


def _made_with(row: Row) -> tuple[str, ...]:
    """Say what came before the first task, money too where it has a price."""
    took = row.training
    if took == Spending():
        return ("-",)
    tokens = took.prompt_tokens + took.sampled_tokens + took.trained_tokens
    parts = (f"{took.rollouts:,.0f} rollouts", f"{tokens:,.0f} tokens", f"{took.seconds:,.0f} s")
    return (*parts, f"money {row.money_training:.4g}") if row.money_training else parts


def _break_even(row: Row) -> str:
    if not row.trained or row.k > 1:
        return ""
    return "never" if row.break_even is None else f"{row.break_even:,} tasks"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _p(value: float | None) -> str:
    return "" if value is None else "<.001" if value < 0.001 else f"{value:.3f}"


def _reading(comparison: Comparison) -> str:
    """Say what the columns mean."""
    unit = (
        "money at the project's prices"
        if comparison.unit == "money"
        else "tokens through the model, since nothing has a price"
    )
    even = (
        f" Break-even: tasks served from which a solved one costs less than by {comparison.rival}."
        if comparison.rival
        else ""
    )
    several = any(row.seeds > 1 for row in comparison.rows)
    clusters = "tasks and seeds" if several else "tasks"
    seeds = (
        " Each seed is measured, and chosen from, by itself, and a row is their mean; the least and "
        "the greatest stand in it, and p is over tasks, given these seeds."
        if several
        else ""
    )
    return (
        f"Differences are to {comparison.reference}, with 95% intervals over {clusters} and "
        f"Holm-corrected p.{seeds} A choice among k rollouts costs k times, its verifier besides; a "
        f"tie takes the first rollout. Costs are {unit}.{even}"
    )
