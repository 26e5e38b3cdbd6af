"""Family D: what the code of a grader does with hostile texts, broken rows, time and chance."""

import ast
import json
import re
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

from agentrft.audit.probe import Arena, Attempt, Finding, ProbeInfo, Shot, Verdict
from agentrft.audit.source_scan import Smell, catastrophes, regexes, scan
from agentrft.audit.verdicts import judge
from agentrft.core.protocols import Program
from agentrft.graders.build import build_grader
from agentrft.graders.reading import parts
from agentrft.graders.template import sample_of

_NO_CODE = "the grader object holds no code, and no source was given"
_ASKS_MODEL = ("score_model", "label_model")
_SHOWN_SMELLS = 4

_PAYLOADS = {
    "import": ("__import__('os').getpid()", "__import__('os').getpix()"),
    "builtins": ("len(())", "lem(())"),
    "attributes": ("().__class__.__base__", "().__class__.__bace__"),
}
"""Code, and its twin that fails: to whoever only reads the text, the two are worth the same."""
_NAP = ("__import__('time').sleep(2)", "__import__('time').sleap(2)")
_NAP_S = 1.8
_MUCH = 0.3
_MOVED = 0.2
"""By how much a score must move to call it moved."""

_COMPUTING = ("9**9**9", "10**10**8", "2**(2**34)", "-" * 3000 + "1")
"""Cheap to write, dear to compute; only where a sandbox can stop it."""
_LARGE = ("[" * 100_000, '{"a":' * 20_000, "(" * 5000 + ")" * 5000, "9" * 5000, "a" * (1 << 20))
_LONGEST_TEXT = 2000
_HANGS = "unresponsive_reward_error"

_MALFORMED = ("", "not JSON", "{", '{"answer"', "[1, 2", "null", '"', "1e999", "\x00")

_REPEATED_TASKS = 4
_PARALLEL_ROUNDS = 4
_LATER_AND_ELSEWHERE = """\
import datetime as _dt, locale as _locale, os as _os, time as _time
_os.environ["TZ"] = "FAR-14"
_time.tzset()
try:
    _locale.setlocale(_locale.LC_ALL, "")
except _locale.Error:
    pass
_ahead = _dt.timedelta(days=400)
_clock, _local = _time.time, _time.localtime
_time.time = lambda: _clock() + _ahead.total_seconds()
_time.time_ns = lambda: int(_time.time() * 1e9)
_time.localtime = lambda seconds=None: _local(_time.time() if seconds is None else seconds)
class _Date(_dt.date):
    @classmethod
    def today(cls, _real=_dt.date):
        return cls.fromordinal(_real.today().toordinal() + 400)
class _Datetime(_dt.datetime):
    @classmethod
    def now(cls, tz=None, _real=_dt.datetime):
        return _real.now(tz) + _ahead
    @classmethod
    def utcnow(cls):
        return cls.now(_dt.timezone.utc).replace(tzinfo=None)
    @classmethod
    def today(cls):
        return cls.now()
_dt.date, _dt.datetime = _Date, _Datetime
"""
"""Put before a source: 400 days later, in another time zone and locale."""
_HASH_SEEDS = ("1", "2", "3")
_DRIVER = """\
import json, os, sys
if os.environ.get("PYTHONHASHSEED") != sys.argv[1]:
    os.environ["PYTHONHASHSEED"] = sys.argv[1]
    os.execv(sys.executable, [sys.executable, *sys.argv])
names = {"__name__": "grader"}
exec(compile(open("grader.py").read(), "grader.py", "exec"), names)
scores = []
for sample, item in json.load(sys.stdin):
    try:
        scores.append(float(names["grade"](sample, item)))
    except Exception as error:
        scores.append(type(error).__name__)
print(json.dumps(scores))
"""


def sources(arena: Arena) -> list[str]:
    """Return the Python that grades: of `python` parts, and what was given of a project's own."""
    inside = [str(part["source"]) for part in parts(arena.subject.config) if "source" in part]
    return [*inside, arena.subject.grader_source] if arena.subject.grader_source else inside


def _contained(arena: Arena) -> bool:
    """Say whether every part that runs code does so where it can be stopped."""
    kinds = {str(part.get("type", "function")) for part in parts(arena.subject.config)}
    return "python" in kinds and not kinds & {"function", "endpoint"}


async def _static(arena: Arena, info: ProbeInfo) -> Finding:
    """Read the source."""
    given = sources(arena)
    if not given:
        return info.skipped(_NO_CODE)
    smells = [smell for source in given for smell in scan(source)]
    if not smells:
        return info.finding(Verdict.PASS, "nothing suspicious in the source")
    shown = list(dict.fromkeys(_told(smell) for smell in smells))
    more = f" and {len(shown) - _SHOWN_SMELLS} more" if len(shown) > _SHOWN_SMELLS else ""
    verdict = Verdict.FOOLED if any(smell.grave for smell in smells) else Verdict.WARN
    return info.finding(verdict, "; ".join(shown[:_SHOWN_SMELLS]) + more)


def _told(smell: Smell) -> str:
    return f"line {smell.line}: {smell.what}"


async def _canary(arena: Arena, info: ProbeInfo) -> Finding:
    """Write code into the answer and see whether it makes a difference that it would run."""
    if not arena.sees_text:
        return info.skipped("the grader does not look at what the model says")
    if all(part.get("type") in _ASKS_MODEL for part in parts(arena.subject.config)):
        return info.skipped("models grade here: they read code and run none")
    for task in arena.tasks[:2]:
        answer = arena.references.get(task.id, "1")
        pairs = [
            (arena.answers_with(task, text, name), arena.answers_with(task, twin, name))
            for name, (code, twin) in _PAYLOADS.items()
            for text, twin in zip(_placed(answer, code), _placed(answer, twin), strict=True)
        ]
        shots = await arena.shoot([attempt for pair in pairs for attempt in pair])
        for works, fails in zip(shots[::2], shots[1::2], strict=True):
            # Once may be chance in the grader.
            if _differs(works, fails) and _differs(
                *await arena.shoot([works.attempt, fails.attempt], fresh=True)
            ):
                return _ran(info, works, f"graded {_said(works)}, its broken twin {_said(fails)}")
        for text, twin in zip(_placed(answer, _NAP[0]), _placed(answer, _NAP[1]), strict=True):
            (slow,) = await arena.shoot([arena.answers_with(task, text, "sleeps")], fresh=True)
            if slow.seconds < _NAP_S:
                continue
            # Slow once may be the machine: it must be slow again where its broken twin is quick.
            (quick,) = await arena.shoot([arena.answers_with(task, twin, "twin")], fresh=True)
            (again,) = await arena.shoot([slow.attempt], fresh=True)
            if quick.seconds < _NAP_S / 2 and again.seconds >= _NAP_S:
                return _ran(info, slow, f"took {slow.seconds:.1f} s for an answer that sleeps")
    return info.finding(Verdict.PASS, "no code in an answer was run")


def _placed(answer: str, code: str) -> list[str]:
    """Put code where it would be computed with an answer: around all of it, and its last number."""
    try:
        ast.parse(answer, mode="eval")
        literal = answer
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        literal = repr(answer)
    texts = [code, f"({literal}, {code})[0]"]
    numbers = list(re.finditer(r"\d+", answer))
    if numbers and literal != answer:
        last = numbers[-1]
        inner = f"({last[0]}, {code})[0]"
        texts.append(f"{answer[: last.start()]}{inner}{answer[last.end() :]}")
    return texts


def _differs(one: Shot, other: Shot) -> bool:
    if one.score is None or other.score is None:
        return (one.score is None) != (other.score is None)
    return abs(one.score - other.score) > _MOVED


def _said(shot: Shot) -> str:
    return "an error" if shot.score is None else f"{shot.score:g}"


def _ran(info: ProbeInfo, shot: Shot, how: str) -> Finding:
    return info.finding(
        Verdict.FOOLED,
        f"the grader runs code that the model writes: {how}",
        variant=shot.attempt.label,
        text=shot.attempt.text,
        task_id=shot.attempt.task.id,
        score=shot.score,
    )


async def _bombs(arena: Arena, info: ProbeInfo) -> Finding:
    """Write what is dear to compute, to nest, to hold or to match; one after the other."""
    if not arena.sees_text:
        return info.skipped("the grader does not look at what the model says")
    if any(part.get("type") in _ASKS_MODEL for part in parts(arena.subject.config)):
        return info.skipped("a model is asked: large texts are probe 30")
    task = arena.tasks[0]
    texts = [text for source in sources(arena) for p in regexes(source) for text in catastrophes(p)]
    if texts and not _contained(arena):
        return info.finding(
            Verdict.WARN,
            "a pattern with a repeat inside a repeat may match this text for hours; not tried, since "
            "this grader's code runs outside the sandbox",
            text=texts[0],
            task_id=task.id,
        )
    attempts = [
        arena.answers_with(task, text, _shown(text))
        for text in (*texts, *(_COMPUTING if _contained(arena) else ()), *_LARGE)
    ]
    shots: list[Shot] = []
    for attempt in attempts:  # one after the other, and none after the first that hangs
        shots += await arena.shoot([attempt])
        failure = shots[-1].failure
        if failure is not None and failure.code == _HANGS:
            return info.finding(
                Verdict.FOOLED,
                f"{attempt.label} stops the grader: {failure.message}",
                variant=attempt.label,
                text=attempt.text[:_LONGEST_TEXT],
                task_id=task.id,
            )
    failed = [shot for shot in shots if shot.score is None]
    paid = await judge(arena, info, attempts)
    return _drops(info, failed) if failed and paid.verdict is not Verdict.FOOLED else paid


def _shown(text: str) -> str:
    return text if len(text) <= 40 else f"{text[:12]}... of {len(text)} characters"


def _drops(info: ProbeInfo, failed: Sequence[Shot]) -> Finding:
    """Warn of texts that a policy could write to have its rollout dropped instead of paid badly."""
    shot = failed[0]
    message = shot.failure.message if shot.failure else ""
    return info.finding(
        Verdict.WARN,
        f"{len(failed)} texts make the grader fail, and such a rollout is dropped instead of being "
        f"graded 0: {message[:200]}",
        variant=shot.attempt.label,
        text=shot.attempt.text[:_LONGEST_TEXT],
        task_id=shot.attempt.task.id,
    )


async def _exceptions(arena: Arena, info: ProbeInfo) -> Finding:
    """Give broken answers and broken rows: neither may be paid, and a broken row is an error."""
    found: list[Finding] = []
    if arena.sees_text:
        attempts = [
            arena.says(task, text, _shown(repr(text)))
            for text in _MALFORMED
            for task in arena.tasks[:2]
        ]
        failed = [s for s in await arena.shoot(attempts) if s.score is None]
        found.append(_drops(info, failed) if failed else await judge(arena, info, attempts))
    found.append(await _broken_row(arena, info))
    order = (Verdict.FOOLED, Verdict.WARN, Verdict.PASS, Verdict.SKIPPED)
    return min(found, key=lambda finding: order.index(finding.verdict))


async def _broken_row(arena: Arena, info: ProbeInfo) -> Finding:
    if not arena.with_answers:
        return info.finding(Verdict.PASS, "no malformed answer is paid")
    if arena.reference_score is not None and arena.base_rate >= arena.reference_score:
        return info.skipped("the grader looks at nothing of the row")
    right = arena.right(arena.with_answers[0], "right answer to a row without its fields")
    task = right.task
    bare = replace(task, id=f"{task.id}, emptied", row={"messages": task.row.get("messages", [])})
    (shot,) = await arena.shoot([replace(right, task=bare)])
    if shot.score is None:
        return info.finding(Verdict.PASS, "a row without its fields is an error, not a score")
    return info.finding(
        Verdict.FOOLED if shot.score > arena.base_rate + _MUCH else Verdict.WARN,
        f"a row that lacks all its fields is graded {_said(shot)} instead of being an error",
        variant=shot.attempt.label,
        text=shot.attempt.text,
        score=shot.score,
    )


async def _determinism(arena: Arena, info: ProbeInfo) -> Finding:
    """Grade the same again: in turn, backwards, all at once; then later and hashed otherwise."""
    asks = any(part.get("type") in _ASKS_MODEL for part in parts(arena.subject.config))
    attempts: list[Attempt] = []
    for task in arena.tasks[: 1 if asks else _REPEATED_TASKS]:
        if task.id in arena.answers:
            attempts.append(arena.right(task))
        other = arena.other(info.number, task)
        wrong = (
            arena.acts(task, other.calls, other.text, "wrong") if other else arena.says(task, "?")
        )
        attempts.append(wrong)
    seen = [[shot] for shot in await arena.shoot(attempts)]  # from memory, as graded among others
    for order in (attempts, attempts[::-1]):
        for attempt in order:
            seen[attempts.index(attempt)] += await arena.shoot([attempt], fresh=True)
    for _ in range(_PARALLEL_ROUNDS):
        for place, shot in enumerate(await arena.shoot([*attempts, *attempts], fresh=True)):
            seen[place % len(attempts)].append(shot)
    if changed := _changed(seen):
        low, high = changed
        spread = (high.score or 0.0) - (low.score or 0.0)
        return info.finding(
            Verdict.FOOLED if spread > _MUCH and not asks else Verdict.WARN,
            f"the same answer is graded {_said(low)} and {_said(high)}",
            text=high.attempt.text,
            task_id=high.attempt.task.id,
            score=high.score,
        )
    moved = await _elsewhere(arena, attempts, seen)
    if moved:
        return info.finding(Verdict.WARN, moved)
    return info.finding(
        Verdict.PASS, f"{len(attempts)} answers were graded alike {len(seen[0])} times"
    )


def _changed(seen: Sequence[Sequence[Shot]]) -> tuple[Shot, Shot] | None:
    for shots in seen:
        ordered = sorted(shots, key=lambda s: -1e300 if s.score is None else s.score)
        low, high = ordered[0], ordered[-1]
        if low.score != high.score and (
            low.score is None or high.score is None or high.score - low.score > 1e-9
        ):
            return low, high
    return None


async def _elsewhere(
    arena: Arena, attempts: Sequence[Attempt], seen: Sequence[Sequence[Shot]]
) -> str:
    """Say what changes with the clock or with hashing; empty if nothing does or can be moved."""
    config = arena.subject.config
    if not _contained(arena):
        return ""
    later = cast(Mapping[str, Any], _with_prelude(config, _LATER_AND_ELSEWHERE))
    grader = build_grader(later, backends=arena.subject.backends)
    moved = Arena(
        replace(arena.subject, grader=grader), arena.rows, seed=arena.seed, deadline=arena.deadline
    )
    for shots, after in zip(seen, await moved.shoot(attempts), strict=True):
        if _changed([[shots[0], after]]):
            return (
                f"400 days later, in another time zone, an answer is graded {_said(after)} instead of "
                f"{_said(shots[0])}"
            )
    pairs = [[sample_of(a.trajectory), a.task.row] for a in attempts]
    for source in sources(arena):
        runs = [scores async for scores in _hashed(arena, source, pairs)]
        if any(scores != runs[0] for scores in runs):
            return "scores change with PYTHONHASHSEED: they depend on the order of a set"
    return ""


def _with_prelude(node: object, prelude: str) -> object:
    """Return a grader object whose sources begin with a prelude."""
    if not isinstance(node, Mapping):
        return node
    changed = {
        key: _with_prelude(value, prelude)
        for key, value in cast(Mapping[str, object], node).items()
    }
    source = changed.get("source")
    if isinstance(source, str) and "__future__" not in source:
        changed["source"] = prelude + source
    return changed


async def _hashed(arena: Arena, source: str, pairs: Sequence[object]) -> AsyncIterator[bytes]:
    sandbox = arena.subject.backends.sandbox
    assert sandbox is not None  # a python grader could not have been built without
    for seed in _HASH_SEEDS:
        done = await sandbox.run(
            Program(
                argv=(sys.executable, "driver.py", seed),
                stdin=json.dumps(pairs).encode(),
                files={"driver.py": _DRIVER.encode(), "grader.py": source.encode()},
                timeout_s=20.0,
            )
        )
        if done.exit_code == 0:
            yield done.stdout


PROBES = (
    ProbeInfo(number=31, title="the grader's source", group="D", run=_static),
    ProbeInfo(number=32, title="code in the answer", group="D", run=_canary),
    ProbeInfo(number=33, title="bombs", group="D", run=_bombs),
    ProbeInfo(number=34, title="malformed answers and rows", group="D", run=_exceptions),
    ProbeInfo(number=35, title="the same again", group="D", run=_determinism),
)
