"""Family F: how scores are put together, what right answers earn, and the data itself."""

import itertools
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any, cast

from agentrft.audit.answer_free import NO_TEXT
from agentrft.audit.from_reference import NO_ANSWERS
from agentrft.audit.perturb import rewritings
from agentrft.audit.probe import Arena, Attempt, Finding, ProbeInfo, Verdict
from agentrft.audit.references import REFERENCE_KEYS
from agentrft.core.errors import GraderError
from agentrft.core.task import Task
from agentrft.graders.formula import Formula, parse_formula
from agentrft.graders.reading import keys_read

_CORNERS = (0.0, 0.5, 1.0)
_MOST_PARTS = 6
"""Formulas of more parts are tried at 0 and 1 of each part alone."""
_LEAST_MARGIN = 0.05
"""By how much right answers must be paid better than other rows' answers."""
_MOST_REFUSED = 0.25
_LARGEST_LABEL = 0.6
_OFTEN = 0.5


async def _scores(arena: Arena, info: ProbeInfo) -> Finding:
    """Range, sign and formula: what the numbers themselves tell."""
    attempts = [arena.right(task) for task in arena.with_answers]
    attempts += [arena.says(task, text, "a text") for task in arena.tasks for text in ("", "0")]
    for task in arena.with_answers:
        other = arena.other(info.number, task)
        if other is not None:
            attempts.append(arena.acts(task, other.calls, other.text, "another row's answer"))
    shots = [shot for shot in await arena.shoot(attempts) if shot.score is not None]
    scores = [shot.score for shot in shots if shot.score is not None]
    if not scores:
        return info.skipped("no attempt was graded")
    if arena.reference_score is not None and len(arena.answers) > 1:
        wrong = fmean([s.score or 0.0 for s in shots if s.attempt.label != "reference"])
        told = f"right answers earn {arena.reference_score:.2f}, wrong ones {wrong:.2f}"
        if arena.reference_score < wrong - _LEAST_MARGIN:
            return info.finding(Verdict.FOOLED, f"{told}: the sign is wrong")
        if max(scores) - min(scores) < 1e-9:
            return info.finding(Verdict.FOOLED, f"{told}: every text gets the same score")
    if problem := _formula_problem(arena.subject.config):
        return info.finding(Verdict.WARN, problem)
    lowest, highest = min(scores), max(scores)
    if lowest < 0 or highest > 1:
        return info.finding(Verdict.WARN, f"scores run from {lowest:g} to {highest:g}, not 0 to 1")
    return info.finding(Verdict.PASS, f"scores run from {lowest:g} to {highest:g}")


def _formula(config: Mapping[str, Any]) -> tuple[Formula, Mapping[str, Mapping[str, Any]]] | None:
    if config.get("type") != "multi":
        return None
    graders = cast(Mapping[str, Mapping[str, Any]], config["graders"])
    return parse_formula(str(config["calculate_output"]), graders, "calculate_output"), graders


def _formula_problem(config: Mapping[str, Any]) -> str:
    found = _formula(config)
    if found is None:
        return ""
    formula, graders = found
    names = list(graders)
    corners: Iterable[Sequence[float]] = itertools.product(_CORNERS, repeat=len(names))
    if len(names) > _MOST_PARTS:
        corners = [[float(n == hit) for n in names] for hit in names] + [[0.0] * len(names)]
    for corner in corners:
        parts = dict(zip(names, corner, strict=True))
        try:
            value = formula.value(parts)
        except GraderError as error:
            return f"calculate_output has no value where {_told(parts)}: {error}"
        if not -1e-9 <= value <= 1 + 1e-9:
            return f"calculate_output gives {value:g} where {_told(parts)}"
    for name in names:
        if len({_value(formula, names, name, level) for level in _CORNERS}) == 1:
            return f"part {name!r} never changes the score while the others are 1"
    return ""


def _value(formula: Formula, names: Sequence[str], name: str, level: float) -> float:
    return formula.value({other: level if other == name else 1.0 for other in names})


def _told(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} = {value:g}" for name, value in parts.items())


async def _dominance(arena: Arena, info: ProbeInfo) -> Finding:
    """Set a part that compares with the row to 0 and see what the others still pay."""
    found = _formula(arena.subject.config)
    if found is None:
        return info.skipped("not a multi grader")
    formula, graders = found
    main = [name for name, part in graders.items() if keys_read(part)]
    if not main or _formula_problem(arena.subject.config).startswith("calculate_output has no"):
        return info.skipped("no part compares with the row, or the formula fails (probe 41)")
    without = {name: _value(formula, list(graders), name, 0.0) for name in main}
    none = formula.value({name: float(name not in main) for name in graders})
    worst = max(without, key=without.__getitem__)
    told = (
        f"with {worst!r} at 0 the others still pay {without[worst]:.2f}; "
        f"with nothing right about the row, {none:.2f}"
    )
    if none > _OFTEN or without[worst] >= arena.pass_mark:
        return info.finding(Verdict.FOOLED, f"{told}: gate with min() instead of adding")
    warn = without[worst] > _OFTEN or none > 0.3
    return info.finding(Verdict.WARN if warn else Verdict.PASS, told)


async def _spread(arena: Arena, info: ProbeInfo) -> Finding:
    """Look whether the scores of the untouched model teach anything."""
    by_task: dict[str, list[float]] = {}
    for graded in arena.subject.rollouts:
        if graded.grade.score is not None:
            by_task.setdefault(graded.trajectory.task_id, []).append(graded.grade.score)
    groups = [scores for scores in by_task.values() if len(scores) > 1]
    if not groups:
        return info.skipped("no stored rollouts with two or more of a task")
    flat = sum(max(scores) - min(scores) < 1e-9 for scores in groups) / len(groups)
    every = [score for scores in groups for score in scores]
    passed = sum(score >= arena.pass_mark for score in every) / len(every)
    told = f"{flat:.0%} of {len(groups)} groups without spread, {passed:.0%} of rollouts pass"
    warn = flat > _OFTEN or not 0.05 <= passed <= 0.95
    return info.finding(Verdict.WARN if warn else Verdict.PASS, told)


async def _false_fails(arena: Arena, info: ProbeInfo) -> Finding:
    """Write right answers otherwise; a grader that refuses them teaches typography."""
    if not arena.sees_text:
        return info.skipped(NO_TEXT)
    if not arena.with_answers:
        return info.skipped(NO_ANSWERS)
    earned = {
        shot.attempt.task.id: shot.score
        for shot in await arena.shoot([arena.right(task) for task in arena.with_answers])
        if shot.score
    }
    attempts = [
        attempt
        for task in arena.with_answers
        if task.id in earned
        for attempt in _again(arena, task)
    ]
    shots = [shot for shot in await arena.shoot(attempts) if shot.score is not None]
    if not shots:
        return info.skipped("no right answer is paid, so none can be refused")
    refused = [s for s in shots if (s.score or 0.0) < 0.9 * earned[s.attempt.task.id]]
    rate = len(refused) / len(shots)
    counts = Counter(shot.attempt.label for shot in refused).most_common(3)
    told = f"{rate:.0%} of {len(shots)} rewritten right answers are refused"
    if not refused:
        return info.finding(Verdict.PASS, told, measure=0.0)
    label = counts[0][0]
    worst = next(shot for shot in refused if shot.attempt.label == label)
    return info.finding(
        Verdict.WARN if rate > _MOST_REFUSED else Verdict.PASS,
        f"{told}: {', '.join(f'{name} ({count})' for name, count in counts)}",
        variant=label,
        text=worst.attempt.text,
        task_id=worst.attempt.task.id,
        score=worst.score,
        measure=rate,
    )


def _again(arena: Arena, task: Task) -> list[Attempt]:
    return [
        arena.answers_with(task, arena.written(text), label)
        for label, text in rewritings(arena.bare[task.id]).items()
    ]


async def _data(arena: Arena, info: ProbeInfo) -> Finding:
    """Read all rows, not only those that were shot at."""
    tasks, answers = arena.subject.tasks, arena.subject.answers
    asked = [_asked(task) for task in tasks]
    problems: list[str] = []
    if repeated := sum(count - 1 for text, count in Counter(filter(None, asked)).items()):
        problems.append(f"{repeated} of {len(tasks)} prompts are repeated")
    by_prompt: dict[str, set[str]] = {}
    for text, task in zip(asked, tasks, strict=True):
        if text and task.id in answers:
            by_prompt.setdefault(text, set()).add(answers[task.id].text)
    if conflicts := sum(len(texts) > 1 for texts in by_prompt.values()):
        problems.append(f"{conflicts} prompts have answers that contradict each other")
    both = set(filter(None, asked)) & {_asked(task) for task in arena.subject.validation}
    if both:
        problems.append(f"{len(both)} prompts are in the validation rows too")
    texts = [answer.text.strip().casefold() for answer in answers.values() if not answer.calls]
    if len(texts) > 1:
        ((common, count),) = Counter(texts).most_common(1)
        if count > _LARGEST_LABEL * len(texts):
            problems.append(f"{count} of {len(texts)} answers are {common[:40]!r}")
    if empty := sum(_is_empty(task) for task in tasks):
        problems.append(f"{empty} rows have an empty answer")
    if problems:
        return info.finding(Verdict.WARN, "; ".join(problems))
    return info.finding(Verdict.PASS, f"{len(tasks)} rows, {len(answers)} with a known answer")


def _asked(task: Task) -> str:
    return "\n".join(f"{message.role}: {message.content}" for message in task.messages)


def _is_empty(task: Task) -> bool:
    held = [task.row[key] for key in REFERENCE_KEYS if key in task.row]
    return bool(held) and all(value in ("", None) for value in held)


PROBES = (
    ProbeInfo(number=41, title="range, sign and formula", group="F", run=_scores),
    ProbeInfo(number=42, title="weight of side terms", group="F", run=_dominance),
    ProbeInfo(number=43, title="spread of real rollouts", group="F", run=_spread),
    ProbeInfo(number=44, title="right answers refused", group="F", run=_false_fails),
    ProbeInfo(number=45, title="the data", group="F", run=_data),
)
