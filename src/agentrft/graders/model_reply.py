"""What a grader model replied: one JSON object of the asked form, or an error. Never a guess."""

import json
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any, cast

from agentrft.core.errors import GraderError
from agentrft.inference.grader_model import GradingReply

_MOST_STEPS = 8
_FENCED = re.compile(r"\A```(?:json)?[ \t]*\n(.*)\n```\Z", re.DOTALL)
"""Servers that cannot force a form answer so; the whole reply must be the one block."""
_SHOWN = 200
_STEPS: Mapping[str, Any] = {
    "type": "array",
    "maxItems": _MOST_STEPS,
    "items": {
        "type": "object",
        "properties": {"description": {"type": "string"}, "conclusion": {"type": "string"}},
        "required": ["description", "conclusion"],
        "additionalProperties": False,
    },
}


def reply_schema(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema of a reply whose `result` is this."""
    return {
        "type": "object",
        "properties": {"steps": _STEPS, "result": result},
        "required": ["steps", "result"],
        "additionalProperties": False,
    }


def read_reply(reply: GradingReply, where: str) -> tuple[object, str]:
    """Return `result` and what the steps conclude.

    Raises GraderError of the family that says what is wrong: refused, cut, or unreadable.
    """
    if reply.finish_reason == "refusal":
        reason = f": {reply.refusal[:_SHOWN]}" if reply.refusal else ""
        raise GraderError(f"{where} refused to grade{reason}", code="model_grader_refusal_error")
    if reply.finish_reason == "length":
        raise GraderError(
            f"{where} was cut after {reply.usage.completion_tokens} tokens; raise "
            "sampling_params.max_completions_tokens",
            code="model_grader_exceeded_max_tokens_error",
        )
    text = reply.text.strip()
    if fenced := _FENCED.match(text):
        text = fenced[1]
    try:
        value: object = json.loads(
            text, object_pairs_hook=_without_repeats, parse_constant=_no_number
        )
    except (ValueError, RecursionError) as error:
        raise unreadable(where, reply.text, f"it is not one JSON object ({error})") from None
    if not isinstance(value, dict) or "result" not in value:
        raise unreadable(where, reply.text, "it is not an object with `result`")
    fields = cast(Mapping[str, object], value)
    if others := fields.keys() - {"steps", "result"}:
        raise unreadable(where, reply.text, f"nobody asked for {', '.join(sorted(others))}")
    return fields["result"], _conclusions(fields.get("steps"))


def read_number(result: object, text: str, where: str) -> float:
    """Return a result that is a finite number. Raises GraderError."""
    if isinstance(result, bool) or not isinstance(result, int | float):
        raise unreadable(where, text, "`result` is not a number")
    # False for NaN too; an integer may have more digits than a float can hold.
    if not abs(result) <= sys.float_info.max:
        raise unreadable(where, text, "`result` is not a finite number")
    return float(result)


def unreadable(where: str, text: str, reason: str) -> GraderError:
    """Return the error for a reply that says no score."""
    return GraderError(
        f"{where} gave no readable answer, {reason}: {text[:_SHOWN]!r}",
        code="model_grader_parse_error",
    )


def _conclusions(steps: object) -> str:
    if not isinstance(steps, Sequence) or isinstance(steps, str):
        return ""
    found = (
        cast(Mapping[str, object], step).get("conclusion") if isinstance(step, dict) else None
        for step in cast(Sequence[object], steps)[:_MOST_STEPS]
    )
    return "; ".join(one[:_SHOWN] for one in found if isinstance(one, str) and one)


def _without_repeats(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands twice")
    return fields


def _no_number(word: str) -> float:
    raise ValueError(f"{word} is no JSON")
