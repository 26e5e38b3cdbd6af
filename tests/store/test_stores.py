"""One suite over every store: the fake has the semantics of the real one."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agentrft.core.errors import StoreError
from agentrft.core.grade import Grade, GradedTrajectory, Outcome
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Page
from agentrft.core.run import (
    Event,
    Method,
    Record,
    RolloutRecord,
    Run,
    RunStatus,
    Split,
    StepMetrics,
)
from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import Failure, FailureKind, StopReason, Trajectory, Turn
from agentrft.store.home import Home
from agentrft.store.listing import RunStore
from agentrft.store.memory import MemoryStore


@pytest.fixture(params=["memory", "sqlite", "postgres"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[RunStore]:
    where = cast(str, request.param)
    if where == "memory":
        yield MemoryStore()
        return
    url = cast(str, request.getfixturevalue("postgres_url")) if where == "postgres" else ""
    home = Home.open(tmp_path / "home", url)
    yield home.store
    home.close()


def run(run_id: str = "r1", **changes: object) -> Run:
    fields: dict[str, object] = {
        "id": run_id,
        "project": "desk",
        "method": Method.REINFORCEMENT,
        "status": RunStatus.RUNNING,
        "config": {"steps": 4},
        "created_at": 5.0,
    }
    return Run(**(fields | changes))  # pyright: ignore[reportArgumentType]


def rollout(
    task: str = "t1", *, step: int = 0, stage: str = "base", split: Split = "train"
) -> RolloutRecord:
    turn = Turn(
        observation_ids=(1, 2, 3),
        action_ids=(4, 5),
        behavior_logprobs=(-0.25, -1e-7),
        first_version=1,
        last_version=1,
        message=Message(role="assistant", tool_calls=(ToolCall(id="c", name="t", arguments=""),)),
    )
    trajectory = Trajectory(
        id=f"trace_{task}",
        task_id=task,
        model="m",
        spec_hash="s",
        seed=7,
        prompt=(Message(role="user", content="hi"),),
        turns=(turn, turn),
        stop_reason=StopReason.MAX_TURNS,
        duration_s=1.5,
    )
    graded = GradedTrajectory(trajectory=trajectory, grade=Grade(score=0.5))
    return RolloutRecord(stage=stage, split=split, step=step, family="lookup", graded=graded)


def event(step: int, message: str = "x") -> Event:
    return Event(level="info", message=message, created_at=1.0, step=step)


def metrics(step: int) -> StepMetrics:
    return StepMetrics(step=step, values={"reward": step / 10})


def checkpoint(step: int) -> Checkpoint:
    return Checkpoint(run_id="r1", step=step, path=f"/c/{step}", policy_version=step)


def test_a_run_comes_back_and_can_be_replaced(store: RunStore) -> None:
    store.put_run(run())
    assert store.run("r1") == store.find_run("r1") == run()
    done = run(status=RunStatus.SUCCEEDED, finished_at=9.0, result={"pass_at_1": 0.5})
    store.put_run(done)
    assert store.run("r1") == done
    assert store.runs().items == (done,)


def test_runs_are_listed_newest_first_by_project_and_page(store: RunStore) -> None:
    for number in range(5):
        store.put_run(run(f"r{number}", project="desk" if number % 2 == 0 else "shop"))
    # Replacing a run does not make it new.
    store.put_run(run("r0"))
    first = store.runs(limit=3)
    assert ([r.id for r in first.items], first.has_more) == (["r4", "r3", "r2"], True)
    rest = store.runs(after=first.last, limit=3)
    assert ([r.id for r in rest.items], rest.has_more) == (["r1", "r0"], False)
    assert [r.id for r in store.runs("shop").items] == ["r3", "r1"]


def test_records_come_back_by_kind_in_append_order(store: RunStore) -> None:
    store.put_run(run())
    given: list[Record] = [event(1), metrics(1), rollout(), checkpoint(1), event(2), rollout("t2")]
    store.append("r1", given)
    assert store.read("r1", Event).items == (given[0], given[4])
    assert store.read("r1", StepMetrics).items == (given[1],)
    assert store.read("r1", Checkpoint).items == (given[3],)
    assert store.read("r1", RolloutRecord).items == (given[2], given[5])


@pytest.mark.parametrize(
    ("kind", "make"), [(Event, event), (StepMetrics, metrics), (Checkpoint, checkpoint)]
)
def test_pages_join_without_gap_or_overlap(
    store: RunStore, kind: type[Record], make: Callable[[int], Record]
) -> None:
    store.put_run(run())
    store.put_run(run("other"))
    for step in range(7):
        store.append("r1", [make(step)])
        store.append("other", [make(step)])
    seen: list[Record] = []
    after, more = 0, True
    while more:
        page = store.read("r1", kind, after=after, limit=3)
        seen += page.items
        after, more = page.last, page.has_more
    assert seen == [make(step) for step in range(7)]
    assert store.read("r1", kind, after=after).items == ()
    assert store.read("r1", kind, after=after).last == after


def test_a_page_of_exactly_the_limit_is_the_last(store: RunStore) -> None:
    store.put_run(run())
    store.append("r1", [event(1), event(2)])
    assert not store.read("r1", Event, limit=2).has_more
    assert store.read("r1", Event, limit=1).has_more


def test_events_are_listed_newest_first_and_followed_in_order(store: RunStore) -> None:
    store.put_run(run())
    store.put_run(run("other"))
    for step in range(5):
        store.append("r1", [event(step)])
        store.append("other", [event(step)])
    newest = store.events("r1", limit=3)
    assert ([e.step for _, e in newest.items], newest.has_more) == ([4, 3, 2], True)
    oldest = store.events("r1", after=newest.last, limit=3)
    assert ([e.step for _, e in oldest.items], oldest.has_more) == ([1, 0], False)
    assert store.events("r1", after=oldest.last) == Page(items=(), last=oldest.last, has_more=False)
    first = store.events_since("r1", 0, limit=2)
    assert ([e.step for _, e in first.items], first.has_more) == ([0, 1], True)
    rest = store.events_since("r1", first.last)
    assert rest.items == newest.items[::-1]
    assert store.events_since("r1", rest.last).items == ()
    store.append("r1", [event(9)])
    assert [e.step for _, e in store.events_since("r1", rest.last).items] == [9]


def test_trajectories_are_listed_by_stage_and_split(store: RunStore) -> None:
    store.put_run(run())
    store.append("r1", [rollout("a"), rollout("b", split="holdout"), rollout("c", stage="rft")])
    assert [t.task_id for t in store.trajectories("r1").items] == ["a", "b", "c"]
    assert [t.task_id for t in store.trajectories("r1", stage="base").items] == ["a", "b"]
    assert [t.task_id for t in store.trajectories("r1", split="train").items] == ["a", "c"]
    both = store.trajectories("r1", stage="base", split="holdout").items
    assert [t.task_id for t in both] == ["b"]
    first = store.trajectories("r1", split="train", limit=1)
    rest = store.trajectories("r1", split="train", after=first.last, limit=1)
    assert ([t.task_id for t in rest.items], first.has_more, rest.has_more) == (["c"], True, False)


def test_a_summary_says_what_the_record_says_and_opens_it(store: RunStore) -> None:
    store.put_run(run())
    store.append("r1", [event(1), rollout("a", step=3)])
    (line,) = store.trajectories("r1").items
    assert (line.step, line.stage, line.split, line.family) == (3, "base", "train", "lookup")
    assert (line.score, line.outcome) == (0.5, Outcome.SCORED)
    assert (line.stop_reason, line.duration_s) == (StopReason.MAX_TURNS, 1.5)
    assert (line.tool_calls, line.sampled_tokens, line.observed_tokens) == (2, 4, 6)
    assert store.trajectory(line.record_id) == rollout("a", step=3)


def test_an_ungraded_rollout_has_no_score_rather_than_zero(store: RunStore) -> None:
    failure = Failure(kind=FailureKind.INFRASTRUCTURE, where="tool 'x'", message="down")
    graded = GradedTrajectory(
        trajectory=rollout().graded.trajectory, grade=Grade(score=None, failure=failure)
    )
    store.put_run(run())
    lost = RolloutRecord(stage="base", split="train", step=0, family="", graded=graded)
    store.append("r1", [lost])
    (line,) = store.trajectories("r1").items
    assert line.score is None
    assert line.outcome is Outcome.INFRASTRUCTURE_FAULT


@pytest.mark.parametrize("second", [metrics(1), checkpoint(1)])
def test_a_step_has_one_result_and_a_refused_append_leaves_nothing(
    store: RunStore, second: Record
) -> None:
    store.put_run(run())
    store.append("r1", [metrics(1), checkpoint(1)])
    with pytest.raises(StoreError, match=r"'r1' already has a \w+ of step 1; each step has one"):
        store.append("r1", [event(2), rollout(step=2), second])
    assert store.read("r1", Event).items == ()
    assert store.trajectories("r1").items == ()


def test_two_results_of_a_step_in_one_append_are_refused(store: RunStore) -> None:
    store.put_run(run())
    with pytest.raises(StoreError, match="already has a StepMetrics of step 3"):
        store.append("r1", [metrics(3), metrics(3)])
    assert store.read("r1", StepMetrics).items == ()


def test_other_runs_have_their_own_steps(store: RunStore) -> None:
    store.put_run(run())
    store.put_run(run("r2"))
    store.append("r1", [metrics(1)])
    store.append("r2", [metrics(1)])
    assert len(store.read("r2", StepMetrics).items) == 1


def test_what_is_not_there_is_named(store: RunStore) -> None:
    with pytest.raises(StoreError, match="no run 'r9'"):
        store.append("r9", [event(1)])
    with pytest.raises(StoreError, match="no run 'r9'"):
        store.run("r9")
    with pytest.raises(StoreError, match="no trajectory 41"):
        store.trajectory(41)
    assert store.find_run("r9") is None
    assert store.latest_checkpoint("r9") is None
    assert store.read("r9", Event).items == ()


def test_rewinding_removes_later_steps_of_one_run_only(store: RunStore) -> None:
    for run_id in ("r1", "r2"):
        store.put_run(run(run_id))
        for step in range(1, 5):
            store.append(run_id, [event(step), metrics(step), rollout(step=step)])
        store.append(run_id, [checkpoint(2), checkpoint(4)])
    assert store.latest_checkpoint("r1") == checkpoint(4)
    late = store.trajectories("r1").items[-1].record_id
    removed = store.rewind("r1", 2)
    assert removed == {"events": 2, "metrics": 2, "checkpoints": 1, "trajectories": 2}
    assert [m.step for m in store.read("r1", StepMetrics).items] == [1, 2]
    assert [t.step for t in store.trajectories("r1").items] == [1, 2]
    assert store.latest_checkpoint("r1") == checkpoint(2)
    assert len(store.read("r2", Event).items) == 4
    with pytest.raises(StoreError, match="no trajectory"):
        store.trajectory(late)
    store.append("r1", [metrics(3)])


def test_a_cursor_from_before_a_rewind_still_finds_what_follows(store: RunStore) -> None:
    store.put_run(run())
    store.append("r1", [event(1), event(2)])
    cursor = store.read("r1", Event).last
    store.rewind("r1", 1)
    store.append("r1", [event(2, "again")])
    assert [e.message for e in store.read("r1", Event, after=cursor).items] == ["again"]


ACTIONS = st.lists(
    st.tuples(st.sampled_from(["metrics", "event", "rollout", "rewind"]), st.integers(0, 4)),
    max_size=12,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=ACTIONS)
def test_a_database_tells_the_same_story_as_memory(
    home: Home, actions: list[tuple[str, int]]
) -> None:
    run_id = f"r{len(home.store.runs(limit=10_000).items)}"
    told: list[list[object]] = []
    for each in (MemoryStore(), home.store):
        each.put_run(run(run_id))
        story: list[object] = [_act(each, run_id, verb, step) for verb, step in actions]
        story += [each.read(run_id, kind).items for kind in (Event, StepMetrics, RolloutRecord)]
        told.append(story)
    assert told[0] == told[1]


def _act(store: RunStore, run_id: str, verb: str, step: int) -> object:
    made: dict[str, Record] = {
        "metrics": metrics(step),
        "event": event(step),
        "rollout": rollout(step=step),
    }
    try:
        if verb == "rewind":
            return store.rewind(run_id, step)
        return store.append(run_id, [event(step), made[verb]])
    except StoreError as error:
        return str(error)
