"""One audit from the first probe to the verdict, within its wall clock."""

import asyncio
import json
import random
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from statistics import fmean

from agentrft.audit.catalogue import LLM_PROBES, PROBES
from agentrft.audit.probe import (
    TEXTS_PER_ROW,
    Arena,
    Attempt,
    Finding,
    ProbeInfo,
    Shot,
    Subject,
    TimeIsUpError,
)
from agentrft.audit.references import Answer, shared_slot
from agentrft.audit.report import AuditReport, headline, reasons
from agentrft.core.config import AuditConfig
from agentrft.core.errors import ConfigError
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Task
from agentrft.inference.grader_model import GraderModel

_FORMS = (
    "\\boxed{%s}",
    "#### %s",
    "Answer: %s",
    "Final answer: %s",
    "<answer>%s</answer>",
)
"""How answers are commonly asked for; tried if the bare reference is not paid."""
_TRIED_ROWS = 8
_OTHERS = 2
"""Other rows' answers that each row's base rate is measured with."""


async def audit(
    subject: Subject,
    config: AuditConfig,
    *,
    seed: int = 0,
    model: GraderModel | None = None,
    only: Collection[int] = (),
    task: str = "",
    command: str = "agentrft audit PROJECT",
    on_finding: Callable[[Finding], None] | None = None,
) -> AuditReport:
    """Attack a grader. `only` names probes, `task` one row of those chosen, as a replay does.

    Raises ConfigError for probes or tasks that do not exist.
    """
    if not subject.tasks:
        raise ConfigError("an audit needs at least one row")
    loop = asyncio.get_running_loop()
    started = loop.time()
    rows = chosen(subject, config.rows, seed)
    arena = Arena(subject, rows, seed=seed, deadline=started + config.timeout_s)
    probes = _wanted(only)
    findings: list[Finding] = []
    shots: list[Shot] = []
    with suppress(TimeIsUpError):  # every probe below then says that it was not reached
        await _calibrate(arena, config)
    if task:
        arena.tasks = tuple(row for row in rows if row.id == task)
        if not arena.tasks:
            raise ConfigError(
                f"task {task!r} is not among the {len(rows)} rows of seed {seed}; "
                "use the seed and rows of the audit that named it"
            )
    for info in probes:
        arena.latest.clear()
        finding = await _verdict(arena, info, model, config.timeout_s)
        if finding.task_id:
            replay = f"{command} --probe {info.number} --seed {seed} --task {finding.task_id}"
            finding = replace(finding, replay=replay)
        findings.append(finding)
        shots += arena.latest if task else ()
        if on_finding is not None:
            on_finding(finding)
    summed = headline(arena, findings)
    return AuditReport(
        findings=tuple(findings),
        headline=summed,
        blocked=reasons(summed, findings, config),
        seconds=loop.time() - started,
        seed=seed,
        rows=len(rows),
        answers=len(arena.answers),
        shots=tuple(shots),
    )


def chosen(subject: Subject, rows: int, seed: int) -> tuple[Task, ...]:
    """Return the rows that are audited, in file order; three in four have a known answer, if any do."""
    order = list(range(len(subject.tasks)))
    random.Random(derive_seed(seed, "audit", "rows")).shuffle(order)
    known = [place for place in order if subject.tasks[place].id in subject.answers]
    unknown = [place for place in order if subject.tasks[place].id not in subject.answers]
    taken = known[: max(rows - len(unknown), -(-3 * rows // 4))]
    taken += unknown[: rows - len(taken)]
    return tuple(subject.tasks[place] for place in sorted(taken))


def _wanted(only: Collection[int]) -> Sequence[ProbeInfo]:
    everything = (*PROBES, *LLM_PROBES)
    numbers = {info.number for info in everything}
    for number in only:
        if number not in numbers:
            raise ConfigError(f"there is no probe {number}; they are 1 to {max(numbers)}")
    return [info for info in everything if not only or info.number in only]


async def _verdict(
    arena: Arena, info: ProbeInfo, model: GraderModel | None, timeout_s: float
) -> Finding:
    if info.needs_model and model is None:
        return info.skipped("needs a model: name one with --model")
    if asyncio.get_running_loop().time() >= arena.deadline:
        return info.skipped(f"not reached in {timeout_s:g} s (audit.timeout_s)")
    arena.model = model
    try:
        return await info.run(arena, info)
    except TimeIsUpError:
        return info.skipped(f"cut off: {timeout_s:g} s are over (audit.timeout_s)")


async def _calibrate(arena: Arena, config: AuditConfig) -> None:
    """Measure what right answers and other rows' answers earn; find how answers are written."""
    if not arena.answers:
        return
    score = await _reference_score(arena, arena.with_answers)
    if score is not None and score < config.reference:
        score = await _reformatted(arena, score)
    elif not any(answer.calls for answer in arena.answers.values()):
        arena.form = shared_slot(arena.bare.values())
        start, _, end = arena.form.partition("%s")
        arena.bare = {
            row: text.removeprefix(start).removesuffix(end) for row, text in arena.bare.items()
        }
    arena.reference_score = score
    arena.base_rate = await _base_rate(arena, arena.with_answers) or 0.0


async def _base_rate(arena: Arena, tasks: Sequence[Task]) -> float | None:
    """Return what another row's answer earns: all of them if few differ, else some for each row."""
    pool = list(arena.answers.items())
    few = len({answer.text for _, answer in pool}) <= TEXTS_PER_ROW
    attempts: list[Attempt] = []
    for task in tasks:
        others = [answer for row, answer in pool if row != task.id]
        if not few:
            others = arena.random(0, task).sample(others, min(_OTHERS, len(others)))
        attempts += [arena.acts(task, answer.calls, answer.text, "other") for answer in others]
    scores = [shot.score for shot in await arena.shoot(attempts) if shot.score is not None]
    return fmean(scores) if scores else None


async def _reference_score(arena: Arena, tasks: Sequence[Task]) -> float | None:
    shots = await arena.shoot([arena.right(task) for task in tasks])
    scores = [shot.score for shot in shots if shot.score is not None]
    return fmean(scores) if scores else None


async def _reformatted(arena: Arena, bare: float) -> float:
    """Write the answers as the grader wants them, if one of the usual ways is paid better."""
    tried = arena.with_answers[:_TRIED_ROWS]
    plain = arena.answers
    best, best_margin = arena.form, max(0.0, await _margin(arena, tried))
    for form in (*_FORMS, *_json_forms(arena.subject)):
        arena.form = form
        arena.answers = _written(arena, plain)
        margin = await _margin(arena, tried)
        if margin > best_margin + 1e-9:
            best, best_margin = form, margin
    arena.form = best
    arena.answers = _written(arena, plain)
    score = await _reference_score(arena, arena.with_answers)
    return bare if score is None else score


async def _margin(arena: Arena, tasks: Sequence[Task]) -> float:
    """Return how much better right answers are paid than other rows' answers of the same form."""
    right = await _reference_score(arena, tasks)
    wrong = await _base_rate(arena, tasks)
    return (right or 0.0) - (wrong or 0.0)


def _written(arena: Arena, plain: Mapping[str, Answer]) -> dict[str, Answer]:
    return {
        row: answer if answer.calls else replace(answer, text=arena.written(answer.text))
        for row, answer in plain.items()
    }


def _json_forms(subject: Subject) -> list[str]:
    """Return JSON objects with one field, named as the grader's code reads them."""
    source = f"{subject.config.get('source', '')}\n{subject.grader_source}"
    named = re.findall(r"""(?:\.get\(|\[)\s*["'](\w+)["']""", source)
    return [f"{{{json.dumps(key)}: %s}}" for key in dict.fromkeys(["answer", *named])][:8]
