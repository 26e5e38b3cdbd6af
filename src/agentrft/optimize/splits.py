"""Three sets of tasks for a search, by family, that share nothing. Pure."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from agentrft.core.errors import DataError
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Demonstration, Task
from agentrft.optimize.leaks import request_of, withheld
from agentrft.optimize.problem import TaskSplits

LEAST_FAMILIES = 12
"""With fewer, each side would know half of very few kinds of requests; then single requests are
divided instead."""
GRAM = 8
"""Words that two requests share in a row, digits masked, before they count as alike."""
ALIKE = 0.8
"""Share of a request's 8-grams that stand in one other request."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Splits with what may be shown, and what a reader must know of them."""

    splits: TaskSplits
    demonstrations: tuple[Demonstration, ...]
    notes: tuple[str, ...]


def prepare(
    train: Sequence[Task],
    validation: Sequence[Task],
    holdout: Sequence[Task],
    demonstrations: Sequence[Demonstration] = (),
    *,
    seed: int,
) -> Prepared:
    """Return feedback, dev and holdout, and the demonstrations of neither dev nor holdout.

    Validation tasks are dev if there are any; else train is halved by family, or by request where
    there are too few families. Raises DataError if a split is empty or two share a prompt or an id.
    """
    notes: list[str] = []
    feedback, dev = list(train), list(validation)
    if not dev:
        feedback, dev, how = _halved(train, seed)
        notes.append(f"no validation file: half of train, {how}, decides screens and races")
    named = {"train": feedback, "validation" if validation else "train (dev)": dev}
    named["holdout"] = list(holdout)
    for name, tasks in named.items():
        if not tasks:
            raise DataError(f"{name} has no rows; a search needs some of train and of holdout")
    _refuse_shared(named)
    notes.extend(_alike(named))
    forbidden = withheld([*dev, *holdout])
    shown = tuple(one for one in demonstrations if not forbidden.holds(one))
    if dropped := len(demonstrations) - len(shown):
        notes.append(f"{dropped} demonstrations are of dev or holdout tasks and are never shown")
    splits = TaskSplits(feedback=tuple(feedback), dev=tuple(dev), holdout=tuple(holdout))
    return Prepared(splits=splits, demonstrations=shown, notes=tuple(notes))


def _halved(train: Sequence[Task], seed: int) -> tuple[list[Task], list[Task], str]:
    """Divide so that dev gets whole groups, and a repeated prompt stays on one side."""
    families = {task.family for task in train}
    by_family = len(families - {""}) >= LEAST_FAMILIES and "" not in families
    group_of: dict[str, str] = {}
    for task in train:
        prompt = _prompt(task)
        group_of.setdefault(prompt, task.family if by_family else _digest(prompt))
    sizes = Counter(group_of[_prompt(task)] for task in train)
    chosen: set[str] = set()
    room = len(train) // 2
    for group in sorted(sizes, key=lambda group: derive_seed(seed, "dev", group)):
        if sizes[group] <= room:
            chosen.add(group)
            room -= sizes[group]
    dev = [task for task in train if group_of[_prompt(task)] in chosen]
    feedback = [task for task in train if group_of[_prompt(task)] not in chosen]
    return feedback, dev, "by family" if by_family else "by request"


def _refuse_shared(named: dict[str, list[Task]]) -> None:
    prompts: dict[str, tuple[str, int]] = {}
    ids: dict[str, tuple[str, int]] = {}
    for name, tasks in named.items():
        for row, task in enumerate(tasks, start=1):
            # Only across splits: a task may stand twice in one file.
            for what, key, seen in (("prompt", _prompt(task), prompts), ("id", task.id, ids)):
                other, other_row = seen.setdefault(key, (name, row))
                if other != name:
                    raise DataError(
                        f"row {row} of {name} (id {task.id!r}) has the {what} of row {other_row} of "
                        f"{other}; a task may be in one split only, remove it from the other"
                    )


def _alike(named: dict[str, list[Task]]) -> list[str]:
    """Say which splits hold near-duplicates of an earlier one, with an example each."""
    notes: list[str] = []
    owners: dict[str, list[tuple[str, Task]]] = {}
    for name, tasks in named.items():
        found = [(task, pair) for task in tasks if (pair := _nearest(task, owners))]
        if found:
            task, (other, near) = found[0]
            notes.append(
                f"{len(found)} of {len(tasks)} rows of {name} are nearly the same as a row of "
                f"another split, digits aside, e.g. {task.id!r} and {near.id!r} of {other}"
            )
        for task in tasks:
            for gram in _grams(task):
                owners.setdefault(gram, []).append((name, task))
    return notes


def _nearest(task: Task, owners: dict[str, list[tuple[str, Task]]]) -> tuple[str, Task] | None:
    grams = _grams(task)
    shared: Counter[str] = Counter()
    of: dict[str, tuple[str, Task]] = {}
    for gram in grams:
        # A phrase of many rows is a template; a few of them suffice to find the nearest.
        for name, other in owners.get(gram, ())[:_LOOKED_AT]:
            shared[other.id] += 1
            of[other.id] = (name, other)
    if not shared:
        return None
    nearest, count = shared.most_common(1)[0]
    return of[nearest] if count >= ALIKE * len(grams) else None


_LOOKED_AT = 20


def _grams(task: Task) -> set[str]:
    words = re.sub(r"\d", "0", request_of(task.messages).lower()).split()
    return {" ".join(words[i : i + GRAM]) for i in range(max(1, len(words) - GRAM + 1))} - {""}


def _prompt(task: Task) -> str:
    return "\x1f".join(f"{m.role}:{' '.join(m.content.split())}" for m in task.messages)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="replace")).hexdigest()[:16]
