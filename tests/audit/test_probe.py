import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import pytest
from subjects import Desk, check, of_desk, of_object, of_scores, sums

from agentrft.audit.probe import Arena, Shot, Subject, TimeIsUpError
from agentrft.core.config import Limits
from agentrft.core.errors import GraderError
from agentrft.core.task import Task, ToolCall
from agentrft.core.trajectory import FailureKind, StopReason


def arena_of(subject: Subject, timeout_s: float = 30.0) -> Arena:
    deadline = asyncio.get_running_loop().time() + timeout_s
    return Arena(subject, subject.tasks, seed=1, deadline=deadline)


def shots_of(
    subject: Subject, shooting: Callable[[Arena], Coroutine[Any, Any, list[Shot]]]
) -> list[Shot]:
    async def main() -> list[Shot]:
        return await shooting(arena_of(subject))

    return asyncio.run(main())


def test_calls_of_an_attempt_run_in_a_fresh_environment_before_it_is_graded():
    async def shooting(arena: Arena) -> list[Shot]:
        return await arena.shoot([arena.right(task) for task in arena.tasks])

    before = Desk.opened
    shots = shots_of(of_desk(Desk), shooting)
    assert {shot.score for shot in shots} == {1.0}
    assert shots[3].attempt.trajectory.tool_results[0].content == "ok W003"
    assert Desk.opened - before == len(shots)


def test_a_tool_that_acts_outside_is_not_called():
    async def shooting(arena: Arena) -> list[Shot]:
        task = arena.tasks[0]
        return await arena.shoot([arena.right(task), arena.says(task, "Hello.")])

    remote, plain = shots_of(of_desk(Desk, remote_tools=frozenset(("cancel",))), shooting)
    assert remote.score is None
    assert remote.failure is not None
    assert remote.failure.kind is FailureKind.INFRASTRUCTURE
    assert plain.score == 0.0


def test_calls_beyond_the_limits_of_a_rollout_are_cut_and_so_is_what_follows():
    async def shooting(arena: Arena) -> list[Shot]:
        call = ToolCall(id="", name="note", arguments="{}")
        return await arena.shoot([arena.acts(arena.tasks[0], [call] * 9, "Done.")])

    limits = Limits(max_turns=4, max_tool_calls=16)
    (shot,) = shots_of(of_desk(Desk, limits=limits), shooting)
    assert shot.attempt.trajectory.stop_reason is StopReason.MAX_TURNS
    assert len(shot.attempt.trajectory.tool_calls) == 3
    assert shot.attempt.trajectory.output_text == ""


def test_the_same_attempt_is_graded_once_unless_it_is_to_be_fresh():
    graded: list[str] = []

    def counted(task: Task, text: str) -> float:
        graded.append(text)
        return 0.0

    async def shooting(arena: Arena) -> list[Shot]:
        first = await arena.shoot([arena.says(arena.tasks[0], "a", "one")])
        again = await arena.shoot([arena.says(arena.tasks[0], "a", "two")])
        return [*first, *again, *await arena.shoot([again[0].attempt], fresh=True)]

    shots = shots_of(of_scores(counted, sums()), shooting)
    assert [shot.attempt.label for shot in shots] == ["one", "two", "two"]
    assert graded == ["a", "a"]


def test_a_grader_that_raises_gives_a_shot_without_a_score():
    def broken(task: Task, text: str) -> float:
        raise GraderError("no such row", code="invalid_variable_error")

    async def shooting(arena: Arena) -> list[Shot]:
        shots = await arena.shoot([arena.says(task, "a") for task in arena.tasks])
        assert arena.errors == len(shots)
        return shots

    shot, *_ = shots_of(of_scores(broken, sums()), shooting)
    assert shot.score is None
    assert shot.failure is not None
    assert shot.failure.code == "invalid_variable_error"


def test_past_the_deadline_nothing_is_graded():
    async def main() -> None:
        arena = arena_of(of_object(check("eq"), sums()), timeout_s=-1.0)
        await arena.shoot([arena.says(arena.tasks[0], "a")])

    with pytest.raises(TimeIsUpError):
        asyncio.run(main())


def test_randomness_of_a_probe_depends_on_seed_probe_and_row_alone():
    async def draws(seed: int) -> list[float]:
        subject = of_object(check("eq"), sums())
        deadline = asyncio.get_running_loop().time() + 5
        arena = Arena(subject, subject.tasks, seed=seed, deadline=deadline)
        first, second = arena.tasks[:2]
        return [
            arena.random(3, first).random(),
            arena.random(3, second).random(),
            arena.random(4, first).random(),
            arena.random(3, first).random(),
        ]

    one = asyncio.run(draws(1))
    assert one[0] == one[3]
    assert len(set(one)) == 3
    assert asyncio.run(draws(1)) == one
    assert set(asyncio.run(draws(2))).isdisjoint(one)


def test_the_prompt_of_an_attempt_is_what_a_rollout_shows():
    async def shooting(arena: Arena) -> list[Shot]:
        return await arena.shoot([arena.says(arena.tasks[0], "a")])

    subject = replace(of_object(check("eq"), sums()), system="Be brief.")
    (shot,) = shots_of(subject, shooting)
    assert [message.content for message in shot.attempt.trajectory.prompt] == [
        "Be brief.",
        "What is 1 plus 31?",
    ]
