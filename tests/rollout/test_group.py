import asyncio
import threading
from collections.abc import Sequence
from dataclasses import replace

import pytest
from byte_chat import Desk, a_policy, a_setup, a_task, calls, decode, says

from agentrft.core.errors import ToolError, UserError
from agentrft.core.grade import Grade, GradedTrajectory, Outcome
from agentrft.core.protocols import SampleRequest
from agentrft.core.spec import AgentSpec, ToolView
from agentrft.core.task import Message, Task
from agentrft.inference.scripted import ScriptedSampler
from agentrft.rollout.environment import python_environment
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.group import collect, run_group
from agentrft.rollout.scripted import Reply, ScriptedEnvironment


def look_then_answer(request: SampleRequest) -> tuple[int, ...]:
    looked = ord("X") in request.prompt_ids
    return says("done") if looked else calls(("get", {}))


def failing(count: int) -> Sequence[Reply]:
    return [*[ToolError("down")] * count, "X"]


def desk(faults: int) -> tuple[RolloutSetup, ScriptedEnvironment]:
    environment = ScriptedEnvironment({"get": failing(faults)}, score=1.0)
    return a_setup(look_then_answer, environment), environment


def test_a_group_with_enough_survivors_is_kept_without_a_refill() -> None:
    setup, environment = desk(faults=2)
    group = asyncio.run(run_group(setup, a_task(), group_size=8, seed=1))
    assert len(group.graded) == 8
    assert len(group.survivors) == 6
    assert group.dropped == ()
    assert len(environment.trace_ids) == 8


def test_too_few_survivors_are_refilled_once_with_fresh_seeds() -> None:
    setup, environment = desk(faults=3)
    group = asyncio.run(run_group(setup, a_task(), group_size=8, seed=1))
    assert len(group.graded) == len(group.survivors) == 8
    assert [g.outcome for g in group.dropped] == [Outcome.INFRASTRUCTURE_FAULT] * 3
    assert len(set(environment.trace_ids)) == 11


def test_a_group_that_stays_too_small_is_lost_and_the_others_count() -> None:
    class OneTaskDown(ScriptedEnvironment):
        def __call__(self, task: Task, trace_id: str) -> ScriptedEnvironment:
            replies: Sequence[Reply] = [ToolError("down")] if task.id == "b" else ["X"]
            return ScriptedEnvironment({"get": replies}, score=1.0)(task, trace_id)

    tasks = [
        Task(id=name, messages=(Message(role="user", content="hi"),)) for name in ("a", "b", "c")
    ]
    setup = a_setup(look_then_answer, OneTaskDown({}))
    collected = asyncio.run(collect(setup, tasks, group_size=4, seed=1, concurrency=3))
    assert [group.task.id for group in collected.groups] == ["a", "c"]
    (lost,) = collected.lost_groups
    assert lost.task.id == "b"
    assert (len(lost.graded), len(lost.dropped), len(lost.survivors)) == (4, 4, 0)


def test_a_fault_is_never_a_score_of_zero() -> None:
    setup, _ = desk(faults=1)
    group = asyncio.run(run_group(setup, a_task(), group_size=4, seed=1))
    assert group.scores == (1.0, 1.0, 1.0)
    assert not group.has_spread
    (fault,) = (g for g in group.graded if g.outcome is Outcome.INFRASTRUCTURE_FAULT)
    assert fault.grade.score is None


def test_a_fault_that_a_planted_grader_scores_zero_still_moves_no_baseline() -> None:
    setup, _ = desk(faults=1)
    group = asyncio.run(run_group(setup, a_task(), group_size=4, seed=1))
    planted = tuple(
        GradedTrajectory(trajectory=g.trajectory, grade=Grade(score=g.grade.score or 0.0))
        for g in group.graded
    )
    assert sorted(g.grade.score or 0.0 for g in planted) == [0.0, 1.0, 1.0, 1.0]
    spoiled = replace(group, graded=planted)
    assert spoiled.scores == (1.0, 1.0, 1.0)
    assert not spoiled.has_spread


def test_one_rollout_per_task_counts_by_itself() -> None:
    setup, _ = desk(faults=0)
    collected = asyncio.run(collect(setup, [a_task()], group_size=1, seed=1))
    assert len(collected.groups) == 1


def test_results_come_in_order_whatever_finishes_first() -> None:
    async def scenario() -> None:
        finished: list[int] = []
        arrived = 0
        release = [asyncio.Event() for _ in range(4)]

        async def last_first(request: SampleRequest) -> None:
            nonlocal arrived
            mine = arrived
            arrived += 1
            if arrived == 4:
                release[3].set()
            await release[mine].wait()
            if mine:
                release[mine - 1].set()
            finished.append(mine)

        sampler = ScriptedSampler(lambda request: says("hi"), before=last_first)
        setup = a_setup(sampler, ScriptedEnvironment({}))
        group = await run_group(setup, a_task(), group_size=4, seed=5)
        again = await run_group(
            a_setup(lambda request: says("hi"), ScriptedEnvironment({})),
            a_task(),
            group_size=4,
            seed=5,
        )
        assert finished == [3, 2, 1, 0]
        assert [g.trajectory.id for g in group.graded] == [g.trajectory.id for g in again.graded]

    asyncio.run(scenario())


def test_concurrency_bounds_the_rollouts_that_run_at_once() -> None:
    async def scenario() -> int:
        running = most = 0
        full = asyncio.Event()

        async def count(request: SampleRequest) -> None:
            nonlocal running, most
            running += 1
            most = max(most, running)
            if running == 3:
                full.set()
            await full.wait()
            running -= 1

        sampler = ScriptedSampler(lambda request: says("hi"), before=count)
        tasks = [Task(id=str(n), messages=()) for n in range(5)]
        setup = a_setup(sampler, ScriptedEnvironment({}))
        await collect(setup, tasks, group_size=4, seed=1, concurrency=3)
        return most

    assert asyncio.run(scenario()) == 3


def test_hundreds_of_rollouts_at_once_all_end_in_order_and_close_what_they_opened() -> None:
    opened: list[threading.Thread] = []
    closed: list[threading.Thread] = []
    at_once: list[int] = []

    class Counted(Desk):
        def __init__(self, task: Task) -> None:
            super().__init__(task)
            opened.append(threading.current_thread())
            at_once.append(len(opened) - len(closed))

        def teardown(self) -> None:
            closed.append(threading.current_thread())

    def look_twice(request: SampleRequest) -> tuple[int, ...]:
        looks = decode(request.prompt_ids).count("shipped")
        return says("It is shipped.") if looks == 2 else calls(("get_order", {"order_id": "W1"}))

    tasks = [Task(id=str(n), messages=(Message(role="user", content="hi"),)) for n in range(75)]
    setup = a_setup(look_twice, python_environment(Counted))
    collected = asyncio.run(collect(setup, tasks, group_size=4, seed=1, concurrency=200))
    assert [group.task.id for group in collected.groups] == [task.id for task in tasks]
    assert all(group.scores == (1.0,) * 4 for group in collected.groups)
    turns = [len(g.trajectory.turns) for group in collected.groups for g in group.graded]
    assert turns == [3] * 300
    assert max(at_once) <= 200
    assert len(opened) == 300
    assert set(opened) == set(closed)
    for thread in opened:
        thread.join(timeout=30)
        assert not thread.is_alive()


def test_every_rollout_is_reported_refills_included() -> None:
    setup, _ = desk(faults=3)
    seen: list[GradedTrajectory] = []
    asyncio.run(run_group(setup, a_task(), group_size=4, seed=1, on_trajectory=seen.append))
    assert len(seen) == 7


def test_a_wrong_project_stops_everything_with_its_message() -> None:
    policy = a_policy(AgentSpec(tools={"nope": ToolView(description="x")}))
    environment = ScriptedEnvironment({"get": ["X"]})
    setup = a_setup(look_then_answer, environment, policy=policy)
    with pytest.raises(UserError, match="the spec names a tool 'nope'"):
        asyncio.run(collect(setup, [a_task()], group_size=4, seed=1))
    assert environment.closed == len(environment.trace_ids) > 0
