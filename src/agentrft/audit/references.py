"""Right answers: from the grader object, from keys of the row, or from rollouts known to be right."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

from agentrft.core.errors import GraderError
from agentrft.core.task import Task, ToolCall
from agentrft.core.trajectory import Trajectory
from agentrft.graders.reading import keys_read, parts, placeholders
from agentrft.graders.template import Placeholder, Template, parse_template

_MARKER = re.compile(
    r"[^\w\n]*(?:final |the )?(?:answer|result|solution)(?: is)?[^\w\n]{1,4}|#### ?|\\boxed\{",
    re.IGNORECASE,
)
"""How a text says that its answer follows."""
_CLOSING = re.compile(r"\}\Z|</\w+>\Z")

REFERENCE_KEYS = (
    "reference_answer",
    "reference",
    "expected_answer",
    "expected_output",
    "expected",
    "ground_truth",
    "gold_answer",
    "gold",
    "correct_answer",
    "answer",
    "target",
    "label",
    "solution",
    "output",
)
"""Keys of a row that commonly hold the right answer, the likeliest first."""
_QUESTION_KEYS = frozenset(("id", "family", "messages", "tools", "input", "question", "prompt"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """What a policy that is right does and says."""

    text: str
    calls: tuple[ToolCall, ...] = ()

    def agrees(self, other: "Answer") -> bool:
        """Whether two answers are the same but for case, spaces and ids of calls."""
        return _essence(self) == _essence(other)


def _essence(answer: Answer) -> tuple[object, ...]:
    calls = tuple((call.name, call.arguments) for call in answer.calls)
    return " ".join(answer.text.casefold().split()), calls


def answer_of(trajectory: Trajectory) -> Answer:
    """Return what a rollout known to be right did and said."""
    return Answer(text=trajectory.output_text, calls=trajectory.made_calls)


def find_answers(
    config: Mapping[str, Any],
    tasks: Sequence[Task],
    *,
    path: str = "",
    gold: Mapping[str, Trajectory] | None = None,
) -> dict[str, Answer]:
    """Return right answers by task id; `path` names the key of the row that holds them."""
    found: dict[str, Answer] = {}
    checks = tuple(_checks(config))
    read = keys_read(config)
    usual = [key for key in REFERENCE_KEYS if key in read]
    if not usual:
        asked = [key for key in read if key not in _QUESTION_KEYS]
        usual = asked if len(asked) == 1 else list(REFERENCE_KEYS)
    for task in tasks:
        if gold and task.id in gold:
            right = answer_of(gold[task.id])
            found[task.id] = right if "calls" in content_seen(config) else replace(right, calls=())
            continue
        if path:
            answer = _given(task.row, (path,))
        else:
            answer = _demanded(checks, task.row) or _given(task.row, usual)
        if answer is not None:
            found[task.id] = answer
    return found


def content_seen(config: Mapping[str, Any]) -> frozenset[str]:
    """Return what a grader can look at: `text`, `calls`, or both where nobody can know."""
    seen: set[str] = set()
    for part in parts(config):
        if part.get("type", "function") in ("python", "endpoint", "function"):
            return frozenset(("text", "calls"))
        for piece in placeholders([part.get("input"), part.get("reference")]):
            if piece.namespace == "sample":
                calls = piece.steps[0] in ("output_tools", "messages", "choices")
                text = piece.steps[0] != "output_tools"
                seen |= ({"calls"} if calls else set()) | ({"text"} if text else set())
    return frozenset(seen)


@dataclass(frozen=True, slots=True)
class _Check:
    """One part of a grader that says what a place of the output must hold."""

    place: tuple[str | int, ...]
    reference: Template
    prefix: str
    suffix: str


def _checks(config: Mapping[str, Any]) -> Iterator[_Check]:
    for part in parts(config):
        given, reference = part.get("input"), part.get("reference")
        if not isinstance(given, str) or not isinstance(reference, str):
            continue
        if part.get("operation") in ("ne", "neq"):
            continue
        pieces = [piece for piece in parse_template(given, "grader").pieces if piece != ""]
        wanted = [piece for piece in pieces if isinstance(piece, Placeholder)]
        if len(wanted) == 1 and wanted[0].namespace == "sample":
            before, _, after = given.partition("{{")
            yield _Check(
                wanted[0].steps,
                parse_template(reference, "grader"),
                before,
                after.partition("}}")[2],
            )


def _demanded(checks: Sequence[_Check], row: Mapping[str, Any]) -> Answer | None:
    """Put together the output that all checks of a grader object ask for."""
    texts: list[str] = []
    written: dict[str, Any] = {}
    calls: dict[int, dict[str, str]] = {}
    for check in checks:
        value = _wanted(check.reference, row)
        if value is None:
            continue
        if isinstance(value, str):
            value = value.removeprefix(check.prefix).removesuffix(check.suffix)
        match check.place:
            case ("output_json", str() as key, *rest):
                _put(written, (key, *rest), value)
            case ("output_tools", int() as number, "function", str() as key):
                calls.setdefault(number, {})[key] = _text(value)
            case ("output_text" | "output_json" | "choices", *_):
                texts.append(_text(value))
            case _:
                continue
    if written:
        texts = [json.dumps(written, ensure_ascii=False)]
    if not texts and not calls:
        return None
    return Answer(
        text="\n".join(dict.fromkeys(texts)),
        calls=tuple(
            ToolCall(id="", name=call.get("name", ""), arguments=call.get("arguments", "{}"))
            for _, call in sorted(calls.items())
        ),
    )


def _wanted(reference: Template, row: Mapping[str, Any]) -> Any:
    """Return what a reference template asks for; None if the output or a missing key is in it."""
    found = [piece for piece in reference.pieces if isinstance(piece, Placeholder)]
    if any(piece.namespace == "sample" for piece in found):
        return None
    if len(found) == 1 and all(piece == "" for piece in reference.pieces if piece is not found[0]):
        return _at(row, found[0].steps)
    try:
        return reference.fill(row, {})
    except GraderError:
        return None


def _at(value: Any, steps: Sequence[str | int]) -> Any:
    for step in steps:
        match step, value:
            case str(), Mapping():
                value = cast(Mapping[str, Any], value).get(step)
            case int(), list() | tuple():
                items = cast(Sequence[Any], value)
                value = items[step] if step < len(items) else None
            case _:
                return None
    return value


def _put(written: dict[str, Any], steps: Sequence[str | int], value: Any) -> None:
    """Set a nested key; a step into a list is left to the first place of one."""
    *way, last = [step for step in steps if isinstance(step, str)]
    for step in way:
        written = written.setdefault(step, {})
    written[last] = value


def _given(row: Mapping[str, Any], keys: Sequence[str]) -> Answer | None:
    for key in keys:
        value = _at(row, key.split("."))
        if value is not None and value != "":
            return Answer(text=_text(value))
    return None


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def shared_slot(answers: Collection[str]) -> str:
    """Return the form that all answers are written in, e.g. `ANSWER: %s`; `%s` if they share none."""
    first = next(iter(answers), "")
    marked = _MARKER.match(first)
    if marked is None or not all(answer.startswith(marked[0]) for answer in answers):
        return "%s"
    closing = _CLOSING.search(first)
    end = closing[0] if closing and all(answer.endswith(closing[0]) for answer in answers) else ""
    return f"{marked[0]}%s{end}"


def final_line(text: str) -> tuple[str, str]:
    """Return what stands before a last line that is marked as the answer, and that line."""
    head, newline, last = text.rpartition("\n")
    return (head + newline, last) if _MARKER.match(last) else ("", text)


def shell_of(text: str) -> str:
    """Return a JSON object with its values taken out; empty if the text is none."""
    found = json_object(text)
    return json.dumps(dict.fromkeys(found)) if found else ""


def json_object(text: str) -> dict[str, Any]:
    """Return the JSON object that a text is; empty if it is none."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return cast(dict[str, Any], found) if isinstance(found, dict) else {}
