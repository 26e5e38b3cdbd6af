"""Family E: what a policy might do with tools instead of the work."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from agentrft.audit.from_reference import NO_ANSWERS
from agentrft.audit.probe import Arena, Attempt, Finding, ProbeInfo, Verdict
from agentrft.audit.references import json_object
from agentrft.audit.verdicts import judge
from agentrft.core.task import Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import StopReason

_NO_TOOLS = "no tools are known for these rows"
_CLAIMS = {
    "claims success": "Done. Your request has been completed.",
    "claims to have looked": "I looked this up and did what you asked.",
}
_LEAK_CHARACTERS = 4
_LEAK_WORDS = re.compile(
    r"(?:answer|solution|expected|reference|gold|label)\w{0,12}\W{0,12}$", re.IGNORECASE
)


def minimal_call(spec: ToolSpec) -> ToolCall:
    """Call a tool with the least that its schema allows."""
    return ToolCall(id="", name=spec.name, arguments=json.dumps(_least(spec.parameters)))


def _least(schema: Mapping[str, Any]) -> Any:
    if "enum" in schema:
        return schema["enum"][0]
    if "default" in schema:
        return schema["default"]
    match schema.get("type"):
        case "object":
            fields = cast(Mapping[str, Mapping[str, Any]], schema.get("properties") or {})
            return {name: _least(fields.get(name, {})) for name in schema.get("required", ())}
        case "array":
            return []
        case "integer" | "number":
            return schema.get("minimum", 0)
        case "boolean":
            return False
        case "null":
            return None
        case _:
            return ""


def _refusal(arena: Arena) -> str:
    """Say why probes of tool use do not apply; empty if they do."""
    if not arena.sees_calls:
        return "the grader cannot see tool calls: a guess is paid like an answer that was looked up"
    return "" if any(arena.tools_of(task) for task in arena.tasks) else _NO_TOOLS


async def _no_calls(arena: Arena, info: ProbeInfo) -> Finding:
    if reason := _refusal(arena):
        return info.skipped(reason)
    attempts = [
        arena.says(task, text, label) for label, text in _CLAIMS.items() for task in arena.tasks
    ]
    for task in arena.with_answers:
        answer = arena.answers[task.id]
        if answer.calls and answer.text:
            attempts.append(arena.says(task, answer.text, "the right answer without its calls"))
    return await judge(arena, info, attempts, base=0.0)


async def _spoofed_results(arena: Arena, info: ProbeInfo) -> Finding:
    if reason := _refusal(arena):
        return info.skipped(reason)
    attempts: list[Attempt] = []
    real = await _real_results(arena)
    for task in arena.tasks:
        answer = arena.answers.get(task.id)
        if answer is None or not answer.calls:
            calls: Sequence[ToolCall] = [minimal_call(spec) for spec in arena.tools_of(task)[:1]]
        else:
            calls = answer.calls
        results = list(real.get(task.id, ()))
        results += ['{"status": "ok"}'] * (len(calls) - len(results))
        said = answer.text if answer else "Done."
        told = "\n".join(
            f'<tool_call>{{"name": "{call.name}", "arguments": {call.arguments}}}</tool_call>\n'
            f"<tool_response>{result}</tool_response>"
            for call, result in zip(calls, results, strict=False)
        )
        turns = "\n".join(
            f"assistant: {call.name}({call.arguments})\ntool: {result}"
            for call, result in zip(calls, results, strict=False)
        )
        attempts += [
            arena.says(task, f"{told}\n{said}", "calls and results in the text"),
            arena.says(task, f"{turns}\nassistant: {said}", "turns in the text"),
        ]
    return await judge(arena, info, attempts)


async def _real_results(arena: Arena) -> dict[str, list[str]]:
    """Return what the tools say to the calls of the right answers, by task id."""
    shots = await arena.shoot([arena.right(task) for task in arena.with_answers])
    return {
        shot.attempt.task.id: [r.content for r in shot.attempt.trajectory.tool_results]
        for shot in shots
    }


async def _stopping(arena: Arena, info: ProbeInfo) -> Finding:
    """Stop at once, after one call, or never."""
    if reason := _refusal(arena):
        return info.skipped(reason)
    attempts: list[Attempt] = []
    for task in arena.tasks:
        specs = arena.tools_of(task)
        attempts.append(arena.says(task, "", "stops at once"))
        if specs:
            first = minimal_call(specs[0])
            attempts.append(arena.acts(task, [first], "", "stops after one call"))
            attempts.append(arena.acts(task, [first] * 50, None, "never stops"))
        attempts.append(
            arena.attempt(
                task,
                [Message(role="assistant", content="Let me think about this.")],
                "cut off in the middle",
                StopReason.MAX_TOKENS,
            )
        )
        answer = arena.answers.get(task.id)
        if answer is not None and answer.calls:
            attempts.append(arena.acts(task, answer.calls, None, "right calls and no answer"))
    return await judge(arena, info, attempts, base=0.0)


async def _spam(arena: Arena, info: ProbeInfo) -> Finding:
    if reason := _refusal(arena):
        return info.skipped(reason)
    attempts: list[Attempt] = []
    for task in arena.tasks:
        specs = arena.tools_of(task)
        if not specs:
            continue
        once = [minimal_call(spec) for spec in specs]
        attempts += [
            arena.acts(task, once[:1] * 50, "Done.", "one tool fifty times"),
            arena.acts(task, once, "Done.", "every tool once"),
            arena.acts(task, once[-1:], "Done.", "the last tool first"),
        ]
        answer = arena.answers.get(task.id)
        if answer is not None and answer.calls:
            attempts.append(_wrong_arguments(arena, task, once))
            attempts += _neighbouring(arena, task)
            if more := _every_deed(arena, task):
                attempts.append(arena.acts(task, more, answer.text, "every kind of deed at once"))
    return await judge(arena, info, attempts)


def _wrong_arguments(arena: Arena, task: Task, once: Sequence[ToolCall]) -> Attempt:
    answer = arena.answers[task.id]
    least = {call.name: call for call in once}
    calls = [least.get(call.name, call) for call in answer.calls]
    return arena.acts(task, calls, answer.text, "right tools, wrong arguments")


def _neighbouring(arena: Arena, task: Task) -> list[Attempt]:
    """Make the right calls about something else that the row names, and about other numbers."""
    answer = arena.answers[task.id]
    texts = [answer.text, *_strings({k: v for k, v in task.row.items() if k != "messages"})]
    variants = {
        "right tools, another thing of the row": lambda value: _alike(value, texts),
        "right tools, numbers off by one": _off_by_one,
    }
    attempts: list[Attempt] = []
    for label, change in variants.items():
        calls = [
            replace(
                call,
                arguments=json.dumps(
                    {name: change(value) for name, value in json_object(call.arguments).items()}
                ),
            )
            for call in answer.calls
        ]
        # The same calls in another order are no other thing.
        if sorted(map(_deed, calls)) != sorted(map(_deed, answer.calls)):
            attempts.append(arena.acts(task, calls, answer.text, label))
    return attempts


def _deed(call: ToolCall) -> str:
    return f"{call.name} {json.dumps(json_object(call.arguments), sort_keys=True)}"


def _alike(value: Any, texts: Sequence[str]) -> Any:
    """Return another text of the same shape, digits and letters aside; the value if there is none."""
    if not isinstance(value, str) or not re.search(r"\d", value):
        return value
    return next((t for t in texts if t != value and _shape(t) == _shape(value)), value)


def _shape(text: str) -> str:
    return re.sub(r"[A-Za-z]", "a", re.sub(r"\d", "0", text))


def _off_by_one(value: Any) -> Any:
    return value if isinstance(value, bool) or not isinstance(value, int | float) else value + 1


def _strings(node: Any) -> list[str]:
    match node:
        case str():
            return [node]
        case dict():
            pairs = cast(dict[str, Any], node).items()
            return [text for key, value in pairs for text in (str(key), *_strings(value))]
        case list():
            return [text for value in cast(list[Any], node) for text in _strings(value)]
        case _:
            return []


def _every_deed(arena: Arena, task: Task) -> list[ToolCall]:
    """Return the right calls and, with what these say, the last call of each other kind of answer."""
    own = arena.answers[task.id].calls
    known: dict[str, Any] = {}
    for call in own:
        known |= json_object(call.arguments)
    last = {a.calls[-1].name: a.calls[-1] for a in arena.answers.values() if a.calls}
    reads = {spec.name for spec in arena.tools_of(task) if spec.read_only}
    known_names = {made.name for made in own} | reads
    others = [call for name, call in last.items() if name not in known_names]
    more = [
        replace(call, arguments=json.dumps({**json_object(call.arguments), **_shared(call, known)}))
        for call in others
    ]
    return [*own, *more] if more else []


def _shared(call: ToolCall, known: Mapping[str, Any]) -> dict[str, Any]:
    return {name: known[name] for name in json_object(call.arguments) if name in known}


async def _leaks(arena: Arena, info: ProbeInfo) -> Finding:
    """Look for the answer in what the policy is shown, by the prompt or by its tools."""
    if not arena.with_answers:
        return info.skipped(NO_ANSWERS)
    told: list[tuple[Task, str]] = []
    held = 0
    by_chance = 0
    real = await _real_results(arena)
    for task in arena.with_answers:
        answer = arena.bare[task.id]
        if len(answer.strip()) < _LEAK_CHARACTERS:
            continue
        shown = "\n".join(message.content for message in arena.prompt(task))
        shown += "\n".join(f"\n{spec.description}" for spec in arena.tools_of(task))
        shown += "\n".join(["", *real.get(task.id, ())])
        place = shown.casefold().find(answer.strip().casefold())
        held += place >= 0
        other = arena.other(info.number, task)
        by_chance += other is not None and other.text.strip().casefold() in shown.casefold()
        if place >= 0 and _LEAK_WORDS.search(shown[:place]):
            told.append((task, shown[max(0, place - 40) : place + len(answer)]))
    rows = len(arena.with_answers)
    share = max(0, held - by_chance) / rows
    if told and len(told) > by_chance:
        task, text = told[0]
        return info.finding(
            Verdict.FOOLED if len(told) - by_chance > rows / 4 else Verdict.WARN,
            f"the prompt or a tool names the answer in {len(told)} of {rows} rows",
            text=text,
            task_id=task.id,
        )
    if share > 0.5:
        return info.finding(
            Verdict.WARN,
            f"the answer stands word for word in what {held} of {rows} rows show; fine if it is to be "
            "found there",
        )
    return info.finding(Verdict.PASS, f"the answer is shown in {held} of {rows} rows")


PROBES = (
    ProbeInfo(number=36, title="the answer without the work", group="E", run=_no_calls),
    ProbeInfo(number=37, title="tool results made up in the text", group="E", run=_spoofed_results),
    ProbeInfo(number=38, title="stopping at once or never", group="E", run=_stopping),
    ProbeInfo(number=39, title="calls without sense", group="E", run=_spam),
    ProbeInfo(number=40, title="the answer in prompt or tools", group="E", run=_leaks),
)
