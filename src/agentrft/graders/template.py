"""`{{ item.path }}` and `{{ sample.path }}` in grader texts, filled in one pass.

What is put in is never read again, so text of models or users cannot smuggle in a placeholder.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, cast

from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.grade import Grade
from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import Failure, FailureKind, StopReason, Trajectory

_STEP = re.compile(r"\.([A-Za-z_][\w-]*)|\[([0-9]{1,9})\]|\[\"([^\"]*)\"\]|\['([^']*)'\]")
MAX_NESTING = 100
"""Of an output that counts as JSON."""
_SAMPLE_FIELDS = (
    "output_text",
    "output_json",
    "output_tools",
    "output_audio",
    "choices",
    "messages",
)
_FINISH_REASONS = {
    StopReason.FINISHED: "stop",
    StopReason.MAX_TOKENS: "length",
    StopReason.CONTEXT_FULL: "length",
}
"""Words of chat completions; the other reasons have none there and keep their own."""


class AbsentFromOutput(Exception):
    """A placeholder asks for something that the model did not write; its own fault, graded 0."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code

    def grade(self, grader: str) -> Grade:
        """Return what this means to a grader: a zero that says why."""
        return model_fault(grader, str(self), self.code)


def model_fault(grader: str, message: str, code: str) -> Grade:
    """Return the zero of an output that this grader cannot read: the model's fault, no accident."""
    failure = Failure(
        kind=FailureKind.MODEL, where=f"grader {grader!r}", message=message, code=code
    )
    return Grade(score=0.0, explanation=message, failure=failure, grader=grader)


@dataclass(frozen=True, slots=True)
class Placeholder:
    """One path into the row or the model's output."""

    namespace: str
    steps: tuple[str | int, ...]
    text: str


@dataclass(frozen=True, slots=True)
class Template:
    """A parsed text: literals and placeholders in turn."""

    pieces: tuple[str | Placeholder, ...]

    @property
    def reads_output(self) -> bool:
        """Whether the model has a part in the text, and so may be at fault for it."""
        return any(
            isinstance(piece, Placeholder) and piece.namespace == "sample" for piece in self.pieces
        )

    def fill(self, item: Mapping[str, Any], sample: Mapping[str, Any]) -> str:
        """Return the text. Raises GraderError for a path the row lacks, AbsentFromOutput likewise."""
        return "".join(
            piece if isinstance(piece, str) else _shown(_find(piece, item, sample))
            for piece in self.pieces
        )


def parse_template(text: str, where: str) -> Template:
    """Read a text with placeholders. Raises ConfigError for a path that can never exist."""
    pieces: list[str | Placeholder] = []
    end = 0
    # A search with one pattern would look for the end of every `{{` that has none.
    while (begin := text.find("{{", end)) >= 0 and (close := text.find("}}", begin + 2)) >= 0:
        pieces += [text[end:begin], _placeholder(text[begin + 2 : close].strip(), where)]
        end = close + 2
    return Template((*pieces, text[end:]))


def sample_of(trajectory: Trajectory) -> dict[str, Any]:
    """Return what `sample` means: the model's output in the shape of chat completions.

    Beyond that shape, `messages` is the whole conversation with what each step took and what failed.
    """
    text = trajectory.output_text
    last = trajectory.turns[-1].message if trajectory.turns else Message(role="assistant")
    reason = trajectory.stop_reason
    sample: dict[str, Any] = {
        "output_text": text,
        "output_tools": [_call(call) for call in trajectory.made_calls],
        "output_audio": None,
        "choices": [
            {
                "index": 0,
                "message": _message(last),
                "finish_reason": _FINISH_REASONS.get(reason, reason.value),
            }
        ],
        "messages": list(_conversation(trajectory)),
    }
    with suppress(ValueError, RecursionError):
        value = json.loads(text, parse_constant=_finite, parse_float=_finite)
        _check_depth(value)
        # An escaped half of a surrogate pair is no text: it could be sent to nobody.
        json.dumps(value, ensure_ascii=False).encode()
        sample["output_json"] = value
    return sample


def _check_depth(value: object) -> None:
    """Raise ValueError for what can be read but not written again: that would look like our fault."""
    containers = _containers([value])
    for _ in range(MAX_NESTING):
        containers = [
            inner
            for outer in containers
            for inner in _containers(outer.values() if isinstance(outer, dict) else outer)
        ]
        if not containers:
            return
    raise ValueError("nested too deeply")


def _containers(values: Iterable[object]) -> list[dict[str, object] | list[object]]:
    return [cast(list[object], value) for value in values if isinstance(value, dict | list)]


def _finite(text: str) -> float:
    """Read a number. Raises ValueError for NaN and Infinity: JSON has none, and no check means them."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is not a finite number")
    return number


def _conversation(trajectory: Trajectory) -> Iterator[dict[str, Any]]:
    yield from (_message(message) for message in trajectory.prompt)
    for turn in trajectory.turns:
        yield {**_message(turn.message), "duration_s": turn.sampling_s}
        for result in turn.tool_results:
            yield {
                "role": "tool",
                "tool_call_id": result.call_id,
                "name": result.name,
                "content": result.content,
                "is_error": result.is_error,
                "duration_s": result.duration_s,
            }


def _message(message: Message) -> dict[str, Any]:
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        shown["tool_calls"] = [_call(call) for call in message.tool_calls]
    if message.tool_call_id is not None:
        shown["tool_call_id"] = message.tool_call_id
    return shown


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _placeholder(text: str, where: str) -> Placeholder:
    namespace = re.match(r"[A-Za-z_]\w*", text)
    if namespace is None or namespace[0] not in ("item", "sample"):
        raise ConfigError(
            f"{where}: {{{{ {text} }}}} must begin with `item.` (the row) or `sample.` (the output)"
        )
    steps: list[str | int] = []
    position = namespace.end()
    while position < len(text):
        step = _STEP.match(text, position)
        if step is None:
            raise ConfigError(f"{where}: cannot read {text[position:]!r} in {{{{ {text} }}}}")
        name, index, double, single = step.groups()
        steps.append(int(index) if index is not None else name or double or single or "")
        position = step.end()
    if namespace[0] == "sample" and (not steps or steps[0] not in _SAMPLE_FIELDS):
        raise ConfigError(
            f"{where}: {{{{ {text} }}}} is unknown; sample has {', '.join(_SAMPLE_FIELDS)}"
        )
    return Placeholder(namespace[0], tuple(steps), text)


def _find(placeholder: Placeholder, item: Mapping[str, Any], sample: Mapping[str, Any]) -> object:
    value: object = item if placeholder.namespace == "item" else sample
    for step in placeholder.steps:
        match step, value:
            case str(), Mapping() if step in value:
                value = cast(Mapping[str, object], value)[step]
            case int(), Sequence() if not isinstance(value, str) and step < len(value):
                value = cast(Sequence[object], value)[step]
            case _ if placeholder.namespace == "sample":
                if value is sample:  # all other fields are always there
                    raise AbsentFromOutput("the output is not JSON", "sample_parse_error")
                raise AbsentFromOutput(
                    f"the output has no {placeholder.text}", "invalid_variable_error"
                )
            case _:
                raise GraderError(
                    f"{{{{ {placeholder.text} }}}}: the row has no {step!r} there; "
                    "every row this grader sees needs it",
                    code="invalid_variable_error",
                )
    return value


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
