"""Patched grader objects: tried in a full audit of their own, and kept only if right answers pass.

Every patch is mechanical; which of them means what the owner means, only the owner can say.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

from agentrft.audit.probe import Subject
from agentrft.audit.report import AuditReport, Headline, Suggestion
from agentrft.audit.run import audit
from agentrft.core.config import AuditConfig
from agentrft.graders.build import build_grader
from agentrft.graders.reading import parts
from agentrft.graders.template import Placeholder, parse_template

Config = dict[str, Any]
_STRICTER = ("rouge_l", "gleu", "bleu")
_SHOWN = 3
_LEAST_GAIN = 0.05
_MOST_NEW_FALSE_FAILS = 0.25
_NORMALISED = """\
def grade(sample, item):
    def plain(value):
        return " ".join(str(value).casefold().split())

    return float(plain(sample["output_text"]) == plain(item[{key}]))
"""
_BRIEF = """\
def grade(sample, item):
    return float(len(sample["output_text"]) <= {most})
"""


async def suggestions(
    subject: Subject, config: AuditConfig, report: AuditReport
) -> tuple[Suggestion, ...]:
    """Return patches that do better, the best first; each was audited like the original."""
    kept: list[tuple[int, float, Suggestion]] = []
    for change, patched in _patches(subject):
        tried = replace(
            subject, config=patched, grader=build_grader(patched, backends=subject.backends)
        )
        after = await audit(tried, config, seed=report.seed)
        if _is_better(report, after, config):
            suggestion = Suggestion(
                change=change, config=patched, before=report.headline, after=after.headline
            )
            kept.append((len(after.blocked), _badness(after.headline), suggestion))
    kept.sort(key=lambda entry: entry[:2])
    return tuple(suggestion for _, _, suggestion in kept[:_SHOWN])


def _badness(summed: Headline) -> float:
    return summed.false_pass_ceiling + summed.lazy_excess + (summed.false_fail_rate or 0.0) / 4


def _is_better(before: AuditReport, after: AuditReport, config: AuditConfig) -> bool:
    reference = after.headline.reference_score
    if reference is None or reference < config.reference:
        return False
    new_false_fails = (after.headline.false_fail_rate or 0.0) - (
        before.headline.false_fail_rate or 0.0
    )
    gain = before.headline.false_pass_ceiling - after.headline.false_pass_ceiling
    strict = new_false_fails > _MOST_NEW_FALSE_FAILS
    return gain > _LEAST_GAIN and (not strict or bool(before.blocked and not after.blocked))


def _patches(subject: Subject) -> Iterator[tuple[str, Config]]:
    config = dict(subject.config)
    can_run_code = subject.backends.sandbox is not None
    if not config or any(part.get("type") == "function" for part in parts(config)):
        return
    if config["type"] == "multi":
        graders = cast(Mapping[str, Mapping[str, Any]], config["graders"])
        together = f"min({', '.join(graders)})" if len(graders) > 1 else next(iter(graders))
        yield "gate: the least of all parts", {**config, "calculate_output": together}
        for key, part in graders.items():
            for change, patched in _stricter(dict(part), can_run_code=can_run_code):
                yield f"{key}: {change}", {**config, "graders": {**graders, key: patched}}
    else:
        yield from _stricter(config, can_run_code=can_run_code)
    if can_run_code:
        yield _with_length_gate(subject, config)


def _stricter(part: Config, *, can_run_code: bool) -> Iterator[tuple[str, Config]]:
    match part["type"]:
        case "string_check" if part["operation"] in ("like", "ilike"):
            if can_run_code and (key := _row_key(part)):
                yield (
                    "equal but for case and spaces instead of contained",
                    {"type": "python", "source": _NORMALISED.format(key=json.dumps(key))},
                )
            yield "eq instead of " + part["operation"], {**part, "operation": "eq"}
        case "text_similarity":
            given, reference = part["input"], part["reference"]
            for metric in _STRICTER:
                if metric != part["evaluation_metric"]:
                    yield f"{metric} as the metric", {**part, "evaluation_metric": metric}
            exact = {"type": "string_check", "operation": "eq", "input": given}
            yield "an exact check instead of similarity", {**exact, "reference": reference}
        case _:
            return


def _row_key(part: Config) -> str:
    """Return the key of the row that a check of the whole output text compares with."""
    given = [p for p in parse_template(part["input"], "input").pieces if p != ""]
    wanted = [p for p in parse_template(part["reference"], "reference").pieces if p != ""]
    match given, wanted:
        case [Placeholder(steps=("output_text",))], [Placeholder("item", steps=(str() as key,))]:
            return key
        case _:
            return ""


def _with_length_gate(subject: Subject, config: Config) -> tuple[str, Config]:
    longest = max((len(answer.text) for answer in subject.answers.values()), default=200)
    most = 2 * longest + 20
    gate = {"type": "python", "source": _BRIEF.format(most=most)}
    change = f"gate: at most {most} characters"
    if config["type"] == "multi":
        graders = {**config["graders"], "brief": gate}
        formula = f"min({config['calculate_output']}, brief)"
        return change, {**config, "graders": graders, "calculate_output": formula}
    inner = {"score": config, "brief": gate}
    return change, {"type": "multi", "graders": inner, "calculate_output": "min(score, brief)"}
