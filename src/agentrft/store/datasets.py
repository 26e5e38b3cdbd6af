"""Dataset files: JSON Lines to tasks, demonstrations and preferences.

Every complaint names file, line and field; the first five of a file come in one message.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from agentrft.core.errors import DataError
from agentrft.core.task import Demonstration, Preference, Task
from agentrft.store.jsonl import RowError, parsed
from agentrft.store.rows import demonstration_of, preference_of, task_of

Row = TypeVar("Row", Task, Demonstration, Preference)


def read_tasks(path: Path, *, numbered: bool = False) -> tuple[Task, ...]:
    """Return the tasks of a JSONL file; the last message of each is the user's.

    `numbered` names rows by their line, for files whose rows may repeat and in which `id` and
    `family` may be anything. Raises DataError with file, line and field of up to five problems.
    """
    return _read(path, task_of, numbered=numbered)


def read_demonstrations(path: Path, *, numbered: bool = False) -> tuple[Demonstration, ...]:
    """Return the conversations of a JSONL file; the last message of each is the assistant's.

    `numbered` as for tasks. Raises DataError with file, line and field of up to five problems.
    """
    return _read(path, demonstration_of, numbered=numbered)


def read_preferences(path: Path, *, numbered: bool = False) -> tuple[Preference, ...]:
    """Return the pairs of a JSONL file, in the form of the fine-tuning API.

    `numbered` as for tasks. Raises DataError with file, line and field of up to five problems.
    """
    return _read(path, preference_of, numbered=numbered)


def _read(
    path: Path, parse: Callable[[Mapping[str, Any], str], Row], *, numbered: bool
) -> tuple[Row, ...]:
    line_of: dict[str, int] = {}

    def with_new_id(row: Mapping[str, Any], line: int) -> Row:
        found = parse(row, f"row-{line}" if numbered else "")
        if found.id in line_of:
            raise RowError(
                f"field 'id': {found.id!r} is already the id of line {line_of[found.id]}; "
                "ids must differ (rows without one get the hash of their content)"
            )
        line_of[found.id] = line
        return found

    rows = tuple(parsed(path, with_new_id, f"{path} "))
    if not rows:
        raise DataError(f"{path} is empty; it needs at least one JSON object per line")
    return rows
