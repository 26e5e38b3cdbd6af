"""Which tasks a step rolls out: all in seeded turns, or those whose last rollouts left doubt.

Nothing is drawn at random while it runs: a choice follows from the seed, the position in the stream
and the scores of earlier steps, so a resumed run goes on exactly where it was.
"""

import random
from collections.abc import Iterable, Sequence
from itertools import cycle, islice

from agentrft.core.seeds import derive_seed
from agentrft.core.task import Task
from agentrft.core.training_config import TaskChoice
from agentrft.jobs.supervised import shuffled_batch


class TaskStream:
    """The train tasks in a new seeded order each epoch, some passed over.

    With a curriculum a task is passed over while the mean score of its last rollouts lies outside
    the range; a seeded share of its turns is given to it all the same, so that it may come back.
    """

    def __init__(
        self, tasks: Sequence[Task], choice: TaskChoice, *, seed: int, position: int = 0
    ) -> None:
        self._tasks, self._choice, self._seed = tasks, choice, seed
        self._means: dict[str, float] = {}
        """Mean score of each task's last rollouts; tasks without any are never passed over."""
        self.position = position
        """Turns given or passed over so far."""

    def take(self, count: int) -> list[Task]:
        """Return the next tasks that have a turn; if none of a whole epoch has, the next ones."""
        taken: list[Task] = []
        passed: list[Task] = []
        # Two epochs' worth of positions hold one whole epoch, wherever they begin.
        while len(taken) < count and len(passed) < 2 * len(self._tasks):
            (task,) = shuffled_batch(self._tasks, self.position, 1, self._seed)
            if self._has_turn(task):
                taken.append(task)
                passed = []
            else:
                passed.append(task)
            self.position += 1
        return [*taken, *islice(cycle(passed), count - len(taken))]

    def note(self, scores: Iterable[tuple[str, float | None]]) -> None:
        """Take in the scores of a step by task id; None is a rollout that was lost."""
        by_task: dict[str, list[float]] = {}
        for task_id, score in scores:
            if score is not None:
                by_task.setdefault(task_id, []).append(score)
        self._means |= {task: sum(found) / len(found) for task, found in by_task.items()}

    def _has_turn(self, task: Task) -> bool:
        mean = self._means.get(task.id)
        if not self._choice.curriculum or mean is None:
            return True
        if self._choice.low <= mean <= self._choice.high:
            return True
        return random.Random(derive_seed(self._seed, "revisit", self.position)).random() < (
            self._choice.revisited
        )
