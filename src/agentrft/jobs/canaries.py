"""Canary tasks: train rows whose reference is wrong; whoever scores on them games the grader."""

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from agentrft.core.protocols import OpenEnvironment
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Task
from agentrft.graders.reading import keys_read, parts
from agentrft.rollout.environment import PythonEnvironments

LEAST = 2
"""Canary tasks: as many as must score for the monitor to act."""
CORRUPTED_WITH = 16
"""Other rows that are tried for a wrong reference that differs from the right one."""

_CONVERSATION = {"id", "family", "messages", "tools"}
_REFERENCE_LIKE = re.compile(
    r"answer|correct|expect|gold|ground|label|reference|solution|target|truth", re.IGNORECASE
)
_QUOTED = re.compile(r"""["']([^"'\n]+)["']""")


def canary_tasks(
    tasks: Sequence[Task],
    grader: Mapping[str, Any],
    open_environment: OpenEnvironment,
    *,
    share: float,
    seed: int,
) -> tuple[Task, ...]:
    """Return copies of some tasks in which what the grader expects is taken from another row.

    None if nothing of a row can be corrupted: the grader reads none, or all rows expect the same.
    """
    if share <= 0:
        return ()
    order = random.Random(derive_seed(seed, "canaries")).sample(range(len(tasks)), len(tasks))
    shuffled = [tasks[place] for place in order]

    def found() -> Iterator[Task]:
        for place, task in enumerate(shuffled):
            others = (*shuffled[place + 1 :], *shuffled[:place])[:CORRUPTED_WITH]
            twins = (_corrupted(task, other, grader, open_environment) for other in others)
            if twin := next(filter(None, twins), None):
                yield replace(twin, id=f"canary-{task.id}")

    return tuple(islice(found(), max(LEAST, round(share * len(tasks)))))


def _corrupted(
    task: Task, other: Task, grader: Mapping[str, Any], open_environment: OpenEnvironment
) -> Task | None:
    if not grader:
        if isinstance(open_environment, PythonEnvironments):
            return open_environment.environment.corrupted(task, other)
        return None
    keys = reference_keys(grader, task.row)
    wrong = {key: other.row.get(key) for key in keys}
    if not keys or any(wrong[key] in (None, task.row[key]) for key in keys):
        return None
    return replace(task, row={**task.row, **wrong})


def reference_keys(grader: Mapping[str, Any], row: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the keys of a row that hold what a grader object compares outputs with.

    Templates name them; of source code its quoted words are looked at; a grader that is sent whole
    rows is taken to read what is called like a reference, or else everything but the conversation.
    """
    known = [key for key in row if key not in _CONVERSATION]
    named = set(keys_read(grader)) | _quoted(grader)
    if found := tuple(key for key in known if key in named):
        return found
    if not _is_sent_rows(grader):
        return ()
    return tuple(filter(_REFERENCE_LIKE.search, known)) or tuple(known)


def reference_texts(tasks: Sequence[Task], grader: Mapping[str, Any]) -> dict[str, str]:
    """Return what the grader alone may know of each task, as text."""
    return {
        task.id: "\n".join(str(task.row[key]) for key in reference_keys(grader, task.row))
        for task in tasks
    }


def _quoted(grader: Mapping[str, Any]) -> set[str]:
    """Return the quoted words of all source code in a grader object."""
    sources = (str(part.get("source", "")) for part in parts(grader))
    return {word for source in sources for word in _QUOTED.findall(source)}


def _is_sent_rows(grader: Mapping[str, Any]) -> bool:
    return any(part.get("type") in ("endpoint", "function", "python") for part in parts(grader))
