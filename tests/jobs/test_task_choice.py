"""Choosing tasks: today's order by default, a curriculum that starves nobody, exact after a resume."""

from collections import Counter
from dataclasses import replace

from builders import some_tasks

from agentrft.core.training_config import TaskChoice
from agentrft.jobs.supervised import shuffled_batch
from agentrft.jobs.task_choice import TaskStream

CURRICULUM = TaskChoice(curriculum=True, revisited=0.0)


def taken(stream: TaskStream, count: int) -> list[str]:
    return [task.id for task in stream.take(count)]


def test_every_task_has_its_turn_once_an_epoch_unless_something_else_is_asked_for() -> None:
    tasks = some_tasks(5)
    stream = TaskStream(tasks, TaskChoice(), seed=3)
    stream.note([(task.id, 1.0) for task in tasks])
    for step in range(7):
        assert stream.take(2) == shuffled_batch(tasks, step, 2, 3)


def test_tasks_outside_the_range_are_passed_over_until_their_last_rollouts_differ() -> None:
    stream = TaskStream(some_tasks(4), CURRICULUM, seed=1)
    stream.note([("task-0", 1.0), ("task-1", 0.0), ("task-2", 0.0), ("task-2", 1.0)])
    assert {*taken(stream, 8)} == {"task-2", "task-3"}
    stream.note([("task-0", 0.5), ("task-2", 1.0), ("task-3", None)])
    assert {*taken(stream, 8)} == {"task-0", "task-3"}


def test_when_no_task_is_worth_its_turn_they_come_in_turn_again() -> None:
    tasks = some_tasks(4)
    stream = TaskStream(tasks, CURRICULUM, seed=1)
    stream.note([(task.id, 1.0) for task in tasks])
    assert taken(stream, 3) == [task.id for task in shuffled_batch(tasks, 0, 3, 1)]
    assert Counter(taken(stream, 40)).keys() == {task.id for task in tasks}


def test_a_share_of_the_turns_of_tasks_outside_the_range_is_given() -> None:
    stream = TaskStream(some_tasks(10), replace(CURRICULUM, revisited=0.25), seed=5)
    stream.note([(f"task-{n}", 1.0) for n in range(5)])
    counts = Counter(taken(stream, 1000))
    solved = sum(counts[f"task-{n}"] for n in range(5))
    # Of a quarter of one half against the whole other half: a fifth.
    assert 0.16 < solved / 1000 < 0.24


def test_a_stream_goes_on_from_its_position_and_the_scores_seen() -> None:
    tasks, choice = some_tasks(6), replace(CURRICULUM, revisited=0.3)
    whole = TaskStream(tasks, choice, seed=2)
    notes: list[list[tuple[str, float | None]]] = []
    for step in range(4):
        batch = taken(whole, 3)
        notes.append([(name, (step + int(name[-1])) % 3 / 2) for name in batch])
        whole.note(notes[-1])
    resumed = TaskStream(tasks, choice, seed=2, position=whole.position)
    for note in notes:
        resumed.note(note)
    assert [taken(whole, 3) for _ in range(5)] == [taken(resumed, 3) for _ in range(5)]
