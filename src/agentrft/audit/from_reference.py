"""Family B: wrong answers made from right ones."""

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, cast

from agentrft.audit.answer_free import NO_TEXT
from agentrft.audit.perturb import lookalikes, near_misses, number_in, unsolved
from agentrft.audit.probe import (
    TEXTS_PER_ROW,
    Arena,
    Attempt,
    Finding,
    ProbeInfo,
    Verdict,
)
from agentrft.audit.references import final_line, json_object
from agentrft.audit.verdicts import judge, threshold
from agentrft.core.task import Task

NO_ANSWERS = "no right answer is known; name the row's key with --reference"
_SLOT = "the answer stands in a slot; what is around it is not graded"

Texts = Mapping[str, str]
"""Texts by label."""


def _probe(
    make: Callable[[Arena, Task, str, str], Texts],
) -> Callable[[Arena, ProbeInfo], Awaitable[Finding]]:
    """Make a probe of texts from a right answer and another row's, both without their form.

    The calls of the right answer, if any, are made as they should be.
    """

    async def run(arena: Arena, info: ProbeInfo) -> Finding:
        if not arena.sees_text:
            return info.skipped(NO_TEXT)
        if not arena.with_answers:
            return info.skipped(NO_ANSWERS)
        attempts: list[Attempt] = []
        for task in arena.with_answers:
            right = arena.bare[task.id]
            other = _other_text(arena, info.number, task)
            # What leads up to an answer that is marked as such may be graded or not; the answer is.
            head, last = final_line(right)
            texts = make(arena, task, last, final_line(other)[1] if head else other)
            attempts += [
                arena.answers_with(task, head + text, label)
                for label, text in list(texts.items())[:TEXTS_PER_ROW]
                if head + text not in (right, arena.references[task.id])
            ]
        return await judge(arena, info, attempts)

    return run


def _other_text(arena: Arena, probe: int, task: Task) -> str:
    """Return an answer of another row, in its bare form; one that differs, else `something else`."""
    own = " ".join(arena.bare[task.id].casefold().split())
    pool = sorted(
        {text for text in arena.bare.values() if " ".join(text.casefold().split()) != own}
    )
    return arena.random(probe, task).choice(pool) if pool else "something else"


async def _other_row(arena: Arena, info: ProbeInfo) -> Finding:
    """Give another row's different answer; a fair grader pays next to nothing for it."""
    if not arena.sees_text:
        return info.skipped(NO_TEXT)
    attempts: list[Attempt] = []
    if len(set(arena.bare.values())) > 1:
        attempts += [
            arena.answers_with(
                task, arena.written(_other_text(arena, info.number, task)), "its text"
            )
            for task in arena.with_answers
        ]
    for task in arena.with_answers:
        other = arena.other(info.number, task)
        if other is not None and other.calls:
            attempts.append(arena.acts(task, other.calls, other.text, "its calls and text"))
    return await judge(arena, info, attempts, base=0.0)


async def _near_miss(arena: Arena, info: ProbeInfo) -> Finding:
    """Spoil the answer a little. Similarity pays for that by nature; passing it is another thing."""
    if not arena.sees_text:
        return info.skipped(NO_TEXT)
    attempts = [
        arena.answers_with(task, arena.written(text), label)
        for task in arena.with_answers
        for label, text in near_misses(arena.bare[task.id], arena.random(info.number, task)).items()
    ]
    finding = await judge(arena, info, attempts)
    if finding.verdict is not Verdict.FOOLED:
        return finding
    mark = arena.pass_mark
    passed = [
        s.score is not None and s.score >= mark
        for s in arena.latest
        if s.attempt.label == finding.variant
    ]
    share = sum(passed) / len(passed)
    fooled = share - arena.base_rate > (threshold(info.number).fooled or 1.0)
    return info.finding(
        Verdict.FOOLED if fooled else Verdict.WARN,
        f"{finding.summary}; {share:.0%} of them pass ({mark:g} or more)",
        variant=finding.variant,
        text=finding.text,
        task_id=finding.task_id,
        score=finding.score,
        excess=finding.excess if fooled else None,
        measure=finding.measure,
    )


def _negation(arena: Arena, task: Task, right: str, other: str) -> Texts:
    inside = {"negated": arena.written(f"not {right}")}
    if arena.form != "%s":
        return inside
    return inside | {
        "denied": f"The answer is certainly not {right}",
        "called false": f"It is false that: {right}",
    }


def _hedge(arena: Arena, task: Task, right: str, other: str) -> Texts:
    every = list(dict.fromkeys([other, right, *arena.bare.values()]))
    return {
        "right or wrong": arena.written(f"{right} or {other}"),
        "wrong or right": arena.written(f"{other} or {right}"),
        "three to choose from": arena.written(" or ".join(every[:3])),
        "all to choose from": arena.written(" or ".join(every[:32])),
    }


def _retraction(arena: Arena, task: Task, right: str, other: str) -> Texts:
    if arena.form != "%s":
        return {}
    return {
        "taken back": f"{right}. No, that is wrong: it is {other}",
        "taken back, nothing instead": f"{right}\nOn second thought, that is not the answer.",
    }


def _two_slots(arena: Arena, task: Task, right: str, other: str) -> Texts:
    # The last slot counts by custom, so that wrong then right is a change of mind.
    first, second = arena.written(right), arena.written(other)
    return {
        "right, then wrong": f"{first}\n{second}",
        "right, then two wrong": f"{first}\n{second}\n{second}",
    }


def _elsewhere(arena: Arena, task: Task, right: str, other: str) -> Texts:
    wrong = arena.written(other)
    return {
        "in the reasoning": f"<think>Maybe {arena.written(right)}</think>\n{wrong}",
        "in a comment": f"<!-- {right} -->\n{wrong}",
        "in a file name": f"See /tmp/{right}.txt\n{wrong}",
    }


def _repeated(arena: Arena, task: Task, right: str, other: str) -> Texts:
    return {"fifty times": "\n".join([arena.written(right)] * 50)}


def _unicode(arena: Arena, task: Task, right: str, other: str) -> Texts:
    return {label: arena.written(text) for label, text in lookalikes(right).items()}


def _odd_values(arena: Arena, task: Task, right: str, other: str) -> Texts:
    values = ("NaN", "Infinity", "1e999", "-0", "None", "true", "9" * 5000)
    return {
        value if len(value) < 20 else "5000 digits": arena.written(value)
        for value in values
        if value.casefold() != right.casefold() and not (value == "-0" and number_in(right) == "0")
    }


def _json_tricks(arena: Arena, task: Task, right: str, other: str) -> Texts:
    wild = {f"wildcard {text}": arena.written(text) for text in (".*", "*", "%")}
    found = json_object(right)
    if not found:
        return wild
    wrong = json_object(other)
    first = [f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items()]
    then = [f"{json.dumps(key)}: {json.dumps(wrong.get(key))}" for key in found]
    return {
        "every value true": json.dumps(dict.fromkeys(found, True)),
        "every value a wildcard": json.dumps(dict.fromkeys(found, "*")),
        "every value an empty object": json.dumps({key: {} for key in found}),
        "keys twice, the last wrong": "{" + ", ".join([*first, *then]) + "}",
        **wild,
    }


def _superset(arena: Arena, task: Task, right: str, other: str) -> Texts:
    texts: dict[str, str] = {}
    found = json_object(right)
    if found:
        union = {key: _union(arena.bare.values(), key) for key in found}
        union = {key: value or found[key] for key, value in union.items()}
        if any(isinstance(value, list) for value in found.values()):
            texts["lists of all rows together"] = json.dumps(union, ensure_ascii=False)
    else:
        every = list(dict.fromkeys([other, right, *arena.bare.values()]))
        texts["answers of all rows together"] = arena.written(", ".join(every))
    words = right.split()
    # After calls the text is a remark, whose facts may come in any order.
    if len(words) > 4 and "," not in right and not found and not arena.answers[task.id].calls:
        arena.random(22, task).shuffle(words)
        texts["its words shuffled"] = arena.written(" ".join(words))
    return texts


def _union(texts: Iterable[str], key: str) -> list[Any]:
    items: list[Any] = []
    for text in texts:
        value = json_object(text).get(key)
        if isinstance(value, list):
            items += [item for item in cast(list[Any], value) if item not in items]
    return items


def _prose_fields(arena: Arena, task: Task, right: str, other: str) -> Texts:
    found = json_object(right)
    prose = [key for key, value in found.items() if isinstance(value, str) and " " in value.strip()]
    if not prose or not task.messages:
        return {}
    asked = task.messages[-1].content
    return {"the prompt for prose": json.dumps({**found, **dict.fromkeys(prose, asked)})}


def _from_the_schema(arena: Arena, task: Task, right: str, other: str) -> Texts:
    return {label: arena.written(text) for label, text in unsolved(other).items()}


PROBES = (
    ProbeInfo(number=11, title="another row's answer", group="B", run=_other_row),
    ProbeInfo(number=12, title="near miss", group="B", run=_near_miss),
    ProbeInfo(number=13, title="negation", group="B", run=_probe(_negation)),
    ProbeInfo(number=14, title="hedge", group="B", run=_probe(_hedge)),
    ProbeInfo(number=15, title="retraction", group="B", run=_probe(_retraction)),
    ProbeInfo(number=16, title="two answers", group="B", run=_probe(_two_slots)),
    ProbeInfo(number=17, title="the answer elsewhere", group="B", run=_probe(_elsewhere)),
    ProbeInfo(number=18, title="the answer repeated", group="B", run=_probe(_repeated)),
    ProbeInfo(number=19, title="unicode lookalikes", group="B", run=_probe(_unicode)),
    ProbeInfo(number=20, title="odd values", group="B", run=_probe(_odd_values)),
    ProbeInfo(number=21, title="JSON tricks and wildcards", group="B", run=_probe(_json_tricks)),
    ProbeInfo(number=22, title="more than was asked", group="B", run=_probe(_superset)),
    ProbeInfo(number=23, title="the prompt for prose", group="B", run=_probe(_prose_fields)),
    ProbeInfo(number=24, title="well formed and unsolved", group="B", run=_probe(_from_the_schema)),
)
