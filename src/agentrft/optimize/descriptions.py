"""Texts about tools, written from what solutions called: when, when not, after what, with what."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from agentrft.core.task import ToolSpec
from agentrft.optimize.evidence import Solution, parameters_of
from agentrft.optimize.problem import Problem

SOLUTIONS = 3
"""Solutions that called a tool, below which nothing is said about it."""
WORDS = 5
"""Words of requests that a description names, at most."""
_WORD = re.compile(r"(?<![\w.@-])[^\W\d_]{4,}(?![\w@-])")
_BEGINS = re.compile(r"(?:^|[.!?:]\s+)\w")


def when_to_use(problem: Problem, solutions: Sequence[Solution]) -> dict[str, str]:
    """Return descriptions that say for which requests solutions called a tool, and after what."""
    texts = {
        tool.name: " ".join(filter(None, [_own(problem, tool), _when(tool, solutions)]))
        for tool in problem.tools
    }
    return {n: t for n, t in texts.items() if t != _own(problem, _tool(problem, n))}


def when_not_to_use(problem: Problem, solutions: Sequence[Solution]) -> dict[str, str]:
    """Return the same with the requests that belong to the tool it is most often confused with.

    Those are requests whose solutions call the other tool and not this one.
    """
    texts = when_to_use(problem, solutions)
    for tool in problem.tools:
        if tool.name in texts and (other := _nearest_other(tool, problem.tools, solutions)):
            apart = [s for s in solutions if other in s.tools and tool.name not in s.tools]
            words = _words_of(apart, [s for s in solutions if tool.name in s.tools])
            if words:
                texts[tool.name] += f" Not for requests about {', '.join(words)}: use {other}."
    return texts if texts != when_to_use(problem, solutions) else {}


def argument_notes(problem: Problem, solutions: Sequence[Solution]) -> dict[str, dict[str, str]]:
    """Return, by tool and parameter, what is told about the values that solutions wrote.

    Few different values that come back are listed; others give their shape. Whole values of tasks
    stay out of it.
    """
    notes: dict[str, dict[str, str]] = {}
    for tool in problem.tools:
        for parameter, schema in parameters_of(tool).items():
            # A task that was solved again repeats its own values, and those are nobody else's.
            of_requests = {
                (solution.request, str(value)): value
                for solution in solutions
                for step in solution.steps
                if step.tool == tool.name and (value := step.arguments.get(parameter)) is not None
            }
            values = list(of_requests.values())
            if len(values) >= SOLUTIONS and "enum" not in schema and (form := _form(values)):
                told = str(schema.get("description", "")).rstrip(".")
                notes.setdefault(tool.name, {})[parameter] = f"{told}. {form}" if told else form
    return notes


def _own(problem: Problem, tool: ToolSpec) -> str:
    view = problem.baseline.tools.get(tool.name)
    return (view.description if view else "") or tool.description


def _tool(problem: Problem, name: str) -> ToolSpec:
    return next(tool for tool in problem.tools if tool.name == name)


def _when(tool: ToolSpec, solutions: Sequence[Solution]) -> str:
    using = [solution for solution in solutions if tool.name in solution.tools]
    if len(using) < SOLUTIONS:
        return ""
    parts: list[str] = []
    if words := _words_of(using, [s for s in solutions if tool.name not in s.tools]):
        parts.append(f"Use it for requests about {', '.join(words)}.")
    if before := _always_before(tool.name, using):
        parts.append(f"Call {before} first.")
    return " ".join(parts)


def _words_of(those: Sequence[Solution], others: Sequence[Solution]) -> list[str]:
    """Return words that stand in many of those requests and in few of the others."""
    if not those or not others:
        return []
    outside = _shares(others)
    lift = {
        word: share - outside.get(word, 0.0)
        for word, share in _shares(those).items()
        if share >= 0.15 and share >= 3 * outside.get(word, 0.0)
    }
    return sorted(lift, key=lambda word: (-lift[word], word))[:WORDS]


def _shares(solutions: Sequence[Solution]) -> dict[str, float]:
    """Return the share of requests that hold a word; capitalised ones may be names and stay out."""
    counts: Counter[str] = Counter()
    for solution in solutions:
        text = _BEGINS.sub(lambda found: found[0].lower(), solution.request)
        counts.update({word for word in _WORD.findall(text) if word.islower()})
    return {word: count / len(solutions) for word, count in counts.items()}


def _always_before(name: str, using: Iterable[Solution]) -> str:
    """Return the tool that every solution called at some time before this one; empty if none."""
    before = [
        frozenset(step.tool for step in one.steps[: [s.tool for s in one.steps].index(name)])
        for one in using
    ]
    common = sorted(frozenset.intersection(*before) - {name})
    return common[0] if len(common) == 1 else ""


def _nearest_other(tool: ToolSpec, tools: Sequence[ToolSpec], solutions: Sequence[Solution]) -> str:
    """Return the tool that solutions call in its place: of those rarely called with it, the most
    alike in parameters, then the most used.
    """
    mine = set(parameters_of(tool))
    using = [solution for solution in solutions if tool.name in solution.tools]
    ranked = [
        (len(mine & set(parameters_of(other))), apart, other.name)
        for other in tools
        if 10 * sum(other.name in one.tools for one in using) <= len(using)
        and (apart := sum(other.name in one.tools for one in solutions)) >= SOLUTIONS
    ]
    return max(ranked)[-1] if ranked else ""


def _form(values: Sequence[object]) -> str:
    """Return what the values have in common: a short list, or the shape of texts."""
    texts = [value for value in values if isinstance(value, str)]
    if len(texts) < len(values):
        return ""
    common = [text for text, count in Counter(texts).most_common() if count >= 2]
    if len(set(texts)) <= 6 and len(common) == len(set(texts)) and len(values) >= 3 * len(common):
        return f"One of: {', '.join(sorted(common))}."
    shapes = Counter(_shape(text) for text in texts)
    shape, count = shapes.most_common(1)[0]
    return f"Written like {shape}." if count >= 0.9 * len(texts) and _telling(shape) else ""


def _shape(text: str) -> str:
    """Return a text with each digit a 9 and each run of small letters an x."""
    return re.sub(r"[a-z]+", "x", re.sub(r"\d", "9", text))


def _telling(shape: str) -> bool:
    return "9" in shape and len(shape) <= 24
