"""Rollouts and reports to show, what a browser makes of a page, and a check of its JSON."""

from collections.abc import Iterator, Sequence
from html.parser import HTMLParser
from typing import Any

from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.run import RolloutRecord, Split
from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import (
    Failure,
    FailureKind,
    ParseFailure,
    StopReason,
    ToolResult,
    Trajectory,
    Turn,
)
from agentrft.measure.report import ReportInput, StageResult

FAULT = Failure(kind=FailureKind.INFRASTRUCTURE, where="tool 'get'", message="down")


def rollout(
    task: str,
    score: float | None,
    *,
    split: Split = "holdout",
    step: int = 0,
    family: str = "lookup",
    text: str = "Sent.",
    calls: int = 1,
    gold: float | None = None,
    trace: str = "trace_1",
) -> RolloutRecord:
    turn = Turn(
        observation_ids=(1, 2),
        action_ids=(3, 4, 5),
        behavior_logprobs=(-0.5, -0.5, -0.5),
        first_version=0,
        last_version=0,
        message=Message(
            role="assistant",
            content=text,
            tool_calls=tuple(ToolCall(id=f"c{i}", name=text, arguments=text) for i in range(calls)),
        ),
        tool_results=(ToolResult(call_id="c0", name="get", content=text, is_error=True),),
        parse_failures=(ParseFailure(raw=text, reason=text),),
    )
    trajectory = Trajectory(
        id=trace,
        task_id=task,
        model="m",
        spec_hash="s",
        seed=0,
        prompt=(Message(role="system", content="secret"), Message(role="user", content=text)),
        turns=(turn,),
        stop_reason=StopReason.FINISHED,
        duration_s=2.0,
    )
    grade = Grade(
        score=score,
        parts={text: 0.5},
        explanation=text,
        failure=FAULT if score is None else None,
    )
    graded = GradedTrajectory(
        trajectory=trajectory, grade=grade, gold=None if gold is None else Grade(score=gold)
    )
    return RolloutRecord(stage="x", split=split, step=step, family=family, graded=graded)


def stage(name: str, scores: Sequence[float | None], **kwargs: Any) -> StageResult:
    records = [rollout(f"t{i}", score, **kwargs) for i, score in enumerate(scores)]
    return StageResult(name=name, records=records)


def given(*stages: StageResult, **changes: Any) -> ReportInput:
    fields: dict[str, Any] = {"project": "desk", "stages": stages, "pass_threshold": 0.999}
    return ReportInput(**(fields | changes))


class Page(HTMLParser):
    """What a browser would make of a page: tags with attributes, and the text outside scripts."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.scripts: list[str] = []
        self._inside = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._inside = tag
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self._inside = ""

    def handle_data(self, data: str) -> None:
        (self.scripts if self._inside == "script" else self.text).append(data)


def fits(value: Any, schema: dict[str, Any], root: dict[str, Any], at: str = "$") -> Iterator[str]:
    """Yield where a value departs from the part of JSON Schema that our schema uses."""
    if "$ref" in schema:
        yield from fits(value, root["$defs"][schema["$ref"].split("/")[-1]], root, at)
    if "anyOf" in schema and all(list(fits(value, one, root, at)) for one in schema["anyOf"]):
        yield f"{at}: fits none of anyOf"
    if "const" in schema and value != schema["const"]:
        yield f"{at}: is {value!r}, not {schema['const']!r}"
    if "enum" in schema and value not in schema["enum"]:
        yield f"{at}: {value!r} is not in {schema['enum']}"
    kinds = schema.get("type", [])
    python = {
        "object": dict,
        "array": list,
        "string": str,
        "number": (int, float),
        "integer": int,
        "boolean": bool,
        "null": type(None),
    }
    names = [kinds] if isinstance(kinds, str) else kinds
    if names and not any(isinstance(value, python[name]) for name in names):
        yield f"{at}: {value!r} is not {kinds}"
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from fits(item, schema.get("items", {}), root, f"{at}[{index}]")
    if isinstance(value, dict):
        known = schema.get("properties", {})
        yield from (
            f"{at}.{key}: missing" for key in schema.get("required", ()) if key not in value
        )
        for key, item in value.items():
            rest = schema.get("additionalProperties", {})
            if key not in known and rest is False:
                yield f"{at}.{key}: not in the schema"
            else:
                yield from fits(item, known.get(key, rest), root, f"{at}.{key}")
