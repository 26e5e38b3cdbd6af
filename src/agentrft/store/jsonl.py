"""JSON Lines, one line in memory at a time: what a line may be, and how problems are told.

Stricter than the standard library, so that no two readers of a file see different rows.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn, TypeVar, cast

from agentrft.core.errors import DataError

MAX_LINE_BYTES = 1 << 20
MAX_LINES = 2_000_000
MAX_DEPTH = 64
MAX_DIGITS = 4300
_SHOWN_PROBLEMS = 5
_LONGEST_PROBLEM = 400

_HALF_ESCAPED = re.compile(r"\\u[dD][89a-fA-F]")
_HALF = re.compile("[\ud800-\udfff]")
_NO_BRACKETS = re.compile(r'"(?:[^"\\]++|\\.)*+"|[^\[\]{}"]++')

T = TypeVar("T")


class RowError(Exception):
    """What is wrong with one row; the reader adds the line."""


def check_upload(path: Path) -> int:
    """Check that every line is a JSON object within the limits; return how many there are.

    Raises DataError with line and column of the first problems.
    """
    rows = sum(1 for _ in parsed(path, lambda row, line: None))
    if not rows:
        raise DataError("the file is empty; it needs one JSON object per line")
    return rows


def parsed(
    path: Path, parse: Callable[[Mapping[str, Any], int], T], where: str = ""
) -> Iterator[T]:
    """Yield what `parse` makes of every row and its line number; blank lines are none.

    Goes on after a problem and raises DataError at the end, with `where` before each line number.
    """
    shown: list[str] = []
    problems = 0
    for number, line in _lines(path, where):
        try:
            row = parse(_json_object(line), number)
        except RowError as problem:
            problems += 1
            if problems <= _SHOWN_PROBLEMS:
                shown.append(f"{where}line {number}: {_clipped(str(problem))}")
        else:
            yield row
    if problems > _SHOWN_PROBLEMS:
        shown.append(f"and {problems - _SHOWN_PROBLEMS} more lines with problems")
    if shown:
        raise DataError("\n".join(shown))


def strict_json(text: str) -> Any:
    """Return the value of JSON text. Raises RowError for what the limits at the top forbid."""
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowError(f"column {error.pos + 1}: not valid JSON: {error.msg}") from None
    except RecursionError:
        raise RowError(f"nested deeper than {MAX_DEPTH}") from None
    if text.count("[") + text.count("{") > MAX_DEPTH and _depth(text) > MAX_DEPTH:
        raise RowError(f"nested deeper than {MAX_DEPTH}")
    if _HALF_ESCAPED.search(text) and _HALF.search(json.dumps(value, ensure_ascii=False)):
        raise RowError("has half of a surrogate pair (\\ud800 to \\udfff), which is not text")
    return value


def kind_of(value: object) -> str:
    """Say in words what kind of JSON a value is."""
    match value:
        case None:
            return "missing or null"
        case bool():
            return "a boolean"
        case int() | float():
            return "a number"
        case str():
            return "text" if value else "empty text"
        case list():
            return "a list"
        case _:
            return "an object"


def _lines(path: Path, where: str) -> Iterator[tuple[int, bytes]]:
    """Yield numbered lines that are not blank; of one over the limit, little more than the limit."""
    try:
        with path.open("rb") as file:
            number = 0
            # Room for a line break, and for one byte that gives a longer line away.
            while line := file.readline(MAX_LINE_BYTES + 3):
                number += 1
                if number > MAX_LINES:
                    raise DataError(f"{where}line {number}: a file has at most {MAX_LINES} lines")
                rest = line
                while len(rest) == MAX_LINE_BYTES + 3 and not rest.endswith(b"\n"):
                    rest = file.readline(MAX_LINE_BYTES + 3)
                if number == 1 and line.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
                    raise DataError(
                        f"{where}line 1: starts with a byte order mark; "
                        "save the file as UTF-8 without one"
                    )
                if line.strip() or len(line) > MAX_LINE_BYTES:
                    yield number, line
    except FileNotFoundError:
        raise DataError(f"{path} does not exist; check the [data] table of agent.toml") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _json_object(line: bytes) -> Mapping[str, Any]:
    if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
        raise RowError(f"is longer than {MAX_LINE_BYTES >> 20} MiB; a row must fit into that")
    try:
        text = line.decode("utf-8").strip("\r\n")
    except UnicodeDecodeError as error:
        raise RowError(f"column {error.start + 1}: not UTF-8; save the file as UTF-8") from None
    row = strict_json(text)
    if not isinstance(row, dict):
        raise RowError(f"is {kind_of(row)}; each line must be a JSON object")
    return cast(dict[str, Any], row)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        seen = set[str]()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))
        raise RowError(f"key {_clipped(twice)!r} appears twice in one object")
    return result


def _integer(digits: str) -> int:
    if len(digits.lstrip("-")) >= MAX_DIGITS:
        raise RowError(f"has a number of {len(digits)} digits; write it as text")
    return int(digits)


def _fraction(digits: str) -> float:
    value = float(digits)
    if math.isinf(value):
        raise RowError(f"the number {digits[:20]} is too large; write it as text")
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise RowError(f"{name} is not JSON; use null or a number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_object,
    parse_int=_integer,
    parse_float=_fraction,
    parse_constant=_refuse_constant,
)


def _depth(text: str) -> int:
    """Return how deep valid JSON is nested."""
    depth = deepest = 0
    for bracket in _NO_BRACKETS.sub("", text):
        depth += 1 if bracket in "[{" else -1
        deepest = max(deepest, depth)
    return deepest


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST_PROBLEM else f"{text[:_LONGEST_PROBLEM]}..."
