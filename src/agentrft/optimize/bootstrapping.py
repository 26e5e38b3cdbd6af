"""Demonstrations to show: the user's own, and solved rollouts of feedback tasks cut to what decided.

Never of a dev or holdout task: what is shown must not be what is measured.
"""

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from agentrft.core.grade import GradedTrajectory
from agentrft.core.spec import AgentSpec, Shown
from agentrft.core.task import Demonstration, Message, Task
from agentrft.optimize.edits import decoding, roomier
from agentrft.optimize.evidence import OWN_FAILURES, answered, evidence
from agentrft.optimize.leaks import withheld
from agentrft.optimize.problem import Known
from agentrft.optimize.trials import BudgetSpentError, TrialRequest, passed
from agentrft.optimize.variants import Change, Knob, Level

POOL = 128
"""Demonstrations of a spec, at most: every variant hashes them all."""
ENOUGH = 8
"""Distinct demonstrations from which no rollout is spent on more."""
ROUND, ROUNDS = 32, 4
"""Rollouts of a round on failed feedback tasks, and rounds at most; one without a success ends it."""


@dataclass(frozen=True, slots=True)
class Bootstrapping:
    """Shows some of them before the task's own messages."""

    async def knobs(self, known: Known) -> Sequence[Knob]:
        """Return one knob, or none without a demonstration."""
        pool = own_pool(known)
        if len(pool) < ENOUGH:
            pool = (*pool, *await _more(known, pool))
        ordered = in_order(pool, known)[:POOL]
        levels = tuple(_levels(ordered))
        return (
            (
                Knob(
                    name="demonstrations",
                    levels=levels,
                    treats=OWN_FAILURES,
                    source="demonstrations",
                    costs=True,
                ),
            )
            if levels
            else ()
        )


def own_pool(known: Known) -> tuple[Demonstration, ...]:
    """Return the user's demonstrations, then the shortest success of each solved feedback task."""
    splits = known.problem.splits
    kept_back = withheld((*splits.dev, *splits.holdout))
    given = tuple(one for one in known.problem.demonstrations if not kept_back.holds(one))
    taken = {one.id for one in given}
    own = of_rollouts(evidence(known).solved, taken)
    return (*given, *(one for one in own if not kept_back.holds(one)))


def demonstration(task: Task, graded: GradedTrajectory) -> Demonstration:
    """Cut a solved rollout to its decisive steps: calls that were answered, each once, and the end."""
    trajectory = graded.trajectory
    messages = [message for message in task.messages if message.role not in ("system", "developer")]
    made: set[tuple[str, str]] = set()
    for place, turn in enumerate(trajectory.turns):
        kept = [
            (call, result)
            for call, result in answered(turn)
            if (call.name, call.arguments) not in made
        ]
        made.update((call.name, call.arguments) for call, _ in kept)
        if not kept and place < len(trajectory.turns) - 1:
            continue
        messages.append(replace(turn.message, tool_calls=tuple(call for call, _ in kept)))
        messages += (
            Message(role="tool", content=r.content, tool_call_id=r.call_id, name=r.name)
            for _, r in kept
        )
    return Demonstration(id=task.id, messages=tuple(messages), family=task.family)


def in_order(pool: Sequence[Demonstration], known: Known) -> tuple[Demonstration, ...]:
    """Take families in turn, those that fail most first, and of each its shortest first.

    So whatever takes the first few shows different things.
    """
    failures = Counter(task.family for task, _ in evidence(known).failed)
    families: dict[str, list[Demonstration]] = {}
    for one in sorted(pool, key=lambda d: (characters(d), d.id)):
        families.setdefault(one.family, []).append(one)
    names = sorted(families, key=lambda family: (-failures[family], family))
    turns = max((len(members) for members in families.values()), default=0)
    return tuple(
        families[name][turn]
        for turn in range(turns)
        for name in names
        if turn < len(families[name])
    )


def characters(one: Demonstration) -> int:
    """Return the length of a demonstration as the model reads it, marks around messages included."""
    return sum(
        len(m.content) + sum(len(json.dumps([c.name, c.arguments])) + 40 for c in m.tool_calls) + 40
        for m in one.messages
    )


def showing(shown: Shown) -> Change:
    """Return the change that shows these, with room for the longest that may be picked."""

    def change(spec: AgentSpec) -> AgentSpec:
        # What another change made room for already is there.
        more = max(0, _longest(shown) - _longest(spec.shown))
        return roomier(more)(replace(spec, shown=shown))

    return change


def _longest(shown: Shown) -> int:
    return sum(sorted((characters(one) for one in shown.pool), reverse=True)[: shown.count])


def _levels(pool: tuple[Demonstration, ...]) -> list[Level]:
    """Return levels, most promising first.

    Their names say how many there are to choose from: a later round with more is another level.
    """
    families, size = len({one.family for one in pool}), len(pool)
    covering = min(families, 6)
    wanted = [
        (size > 3, f"3 nearest of {size}", Shown(count=3, selection="nearest", pool=pool)),
        (size >= 12, f"6 nearest of {size}", Shown(count=6, selection="nearest", pool=pool)),
        (
            families > 3,
            f"{covering} families of {size}",
            Shown(count=covering, selection="covering", pool=pool),
        ),
        (size >= 3, "first 3", Shown(count=3, pool=pool[:3])),
        (3 <= size < 12, f"2 nearest of {size}", Shown(count=2, selection="nearest", pool=pool)),
        (2 <= size < 12, "first 2", Shown(count=2, pool=pool[:2])),
        (1 <= size < 12, "first 1", Shown(count=1, pool=pool[:1])),
    ]
    why = f"{size} demonstrations of {families} families"
    return [
        Level(name=name, change=showing(shown), why=why)
        for possible, name, shown in wanted
        if possible
    ]


async def _more(known: Known, pool: Sequence[Demonstration]) -> tuple[Demonstration, ...]:
    """Try failed feedback tasks again at temperature 1, families in turn, while that gets somewhere."""
    spec = decoding(temperature=1.0)(known.problem.baseline)
    tries = Counter(task.id for task, _ in known.rollouts)
    have = {one.id for one in pool}
    solved: list[tuple[Task, GradedTrajectory]] = []
    for _ in range(ROUNDS):
        waiting = [task for task in _failed_tasks(known) if task.id not in have][:ROUND]
        requests = [
            TrialRequest(
                spec=spec,
                split="feedback",
                task=task,
                sample=tries[task.id] + again,
                purpose="bootstrap",
            )
            for again in range(ROUND // max(1, len(waiting)))
            for task in waiting
        ]
        try:
            graded = await known.trials.roll_out(requests)
        except BudgetSpentError as spent:
            known.told(f"no more demonstrations: {spent}")
            break
        tries.update(request.task.id for request in requests)
        more = [
            (request.task, one)
            for request, one in zip(requests, graded, strict=True)
            if passed(one, known.problem.pass_threshold)
        ]
        solved += more
        have |= {task.id for task, _ in more}
        if not more or len(have) >= ENOUGH:
            break
    known.told(
        f"demonstrations: {len(solved)} of {tries.total() - len(known.rollouts)} more rollouts of "
        "failed feedback tasks solved theirs"
    )
    return of_rollouts(solved, {one.id for one in pool})


def _failed_tasks(known: Known) -> list[Task]:
    """Return feedback tasks that failed, families in turn."""
    families: dict[str, list[Task]] = {}
    for task in {task.id: task for task, _ in evidence(known).failed}.values():
        families.setdefault(task.family, []).append(task)
    return [t for turn in zip_longest(*families.values()) for t in turn if t is not None]


def of_rollouts(
    solved: Sequence[tuple[Task, GradedTrajectory]], without: Collection[str]
) -> tuple[Demonstration, ...]:
    """Return the shortest demonstration of each of these tasks."""
    shortest: dict[str, Demonstration] = {}
    for task, graded in solved:
        one = demonstration(task, graded)
        if characters(one) < characters(shortest.get(task.id, one)) or task.id not in shortest:
            shortest[task.id] = one
    return tuple(one for name, one in shortest.items() if name not in without)
