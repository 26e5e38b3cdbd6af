"""Which rollouts make a pair, where they part, and what carries loss then."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from builders import YesGrader, a_setup, some_tasks
from byte_chat import Desk, a_task, calls, decode, encode, play, says
from byte_chat import a_setup as a_desk
from tuning import DemonstrationChat

from agentrft.core.config import Limits, ProjectConfig
from agentrft.core.errors import DataError
from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.sample import Sample
from agentrft.core.spec import AgentSpec, Section
from agentrft.core.task import Message, Preference, ToolSpec
from agentrft.core.trajectory import Failure, FailureKind
from agentrft.jobs.pairs import Mined, comparable, mined, parting, rendered_pair
from agentrft.jobs.project import Project
from agentrft.rollout.environment import python_environment
from agentrft.rollout.scripted import ScriptedEnvironment
from agentrft.training.credit import NothingToCompareError

LOOK_UP = calls(("get_order", {"order_id": "W1"}))


def tried(score: float, *said: tuple[int, ...], name: str = "") -> GradedTrajectory:
    """Roll the desk's task out with these completions and grade it so."""
    graded = play(a_desk(list(said), python_environment(Desk)), a_task())
    named = replace(graded.trajectory, id=name or f"trace_{score}_{len(said)}_{hash(said)}")
    return replace(graded, trajectory=named, grade=Grade(score=score))


def pairs_of(*rollouts: GradedTrajectory, gap: float = 0.2, most: int = 4, seed: int = 0) -> Mined:
    return mined(rollouts, least_gap=gap, most_per_task=most, seed=seed)


def counted(sample: Sample) -> str:
    """Return the text that carries loss."""
    ids = zip(sample.token_ids, sample.action_mask, strict=True)
    return decode(token for token, action in ids if action)


def test_only_what_follows_the_parting_carries_loss() -> None:
    found = pairs_of(
        tried(1.0, LOOK_UP, says("it is shipped")), tried(0.0, LOOK_UP, says("it is lost"))
    )
    ((better, worse),) = found.pairs
    assert (counted(better), counted(worse)) == ("shipped<|e|>", "lost<|e|>")
    assert "shipped" in decode(better.token_ids)
    assert {a for a in better.advantages if a} == {1.0}
    assert {a for a in worse.advantages if a} == {-1.0}
    assert better.pair == worse.pair
    assert (found.tasks, found.tasks_with_gap) == (1, 1)


def test_a_pairs_tokens_are_those_of_the_rollouts() -> None:
    better, worse = tried(1.0, LOOK_UP, says("shipped")), tried(0.0, says("no idea"))
    ((preferred, rejected),) = pairs_of(better, worse).pairs
    for graded, sample in ((better, preferred), (worse, rejected)):
        turns = graded.trajectory.turns
        own = [token for t in turns for token in (*t.observation_ids, *t.action_ids)]
        assert list(sample.token_ids) == own
    # Tool results after the parting are in the context and carry no loss.
    assert counted(preferred) == decode((*LOOK_UP, *says("shipped")))


def test_rollouts_that_part_late_come_first_and_the_others_are_left_at_the_most() -> None:
    early, late = tried(0.0, says("no idea")), tried(0.0, LOOK_UP, says("lost"))
    better = tried(1.0, LOOK_UP, says("shipped"))
    ((_, worse),) = pairs_of(early, late, better, most=1).pairs
    assert counted(worse) == "lost<|e|>"
    assert len(pairs_of(early, late, better, most=4).pairs) == 2


def test_the_same_texts_make_one_pair() -> None:
    twins = [tried(0.0, says("no"), name=f"twin-{n}") for n in range(3)]
    assert len(pairs_of(tried(1.0, says("yes")), *twins).pairs) == 1


def test_a_gap_is_needed_and_the_least_one_is_enough() -> None:
    some, more = tried(0.4, says("yes")), tried(0.6, says("no"))
    assert len(pairs_of(some, more, gap=0.2).pairs) == 1
    assert pairs_of(some, more, gap=0.3).pairs == ()
    same = tried(0.4, says("no"))
    assert pairs_of(some, same, gap=0.0).pairs == ()


def test_rollouts_of_different_tasks_are_never_compared() -> None:
    one, other = tried(1.0, says("yes")), tried(0.0, says("no"))
    elsewhere = replace(other, trajectory=replace(other.trajectory, task_id="task-2"))
    assert pairs_of(one, elsewhere).pairs == ()


def test_what_infrastructure_spoiled_and_what_a_monitor_screened_is_no_side_of_a_pair() -> None:
    better, worse = tried(1.0, says("yes")), tried(0.0, says("no"))
    down = Failure(kind=FailureKind.INFRASTRUCTURE, where="tool 'x'", message="down")
    for spoiled in (
        replace(worse, trajectory=replace(worse.trajectory, failure=down)),
        replace(worse, grade=Grade(score=None, failure=down)),
        replace(worse, screened="canary"),
    ):
        assert pairs_of(better, spoiled).pairs == ()


def test_rollouts_that_the_world_tells_apart_have_no_parting() -> None:
    one, other = tried(1.0, LOOK_UP, says("yes")), tried(0.0, LOOK_UP, says("no"))
    first, second = other.trajectory.turns
    later = replace(second, observation_ids=(*second.observation_ids, *encode("10:05")))
    changed = replace(other.trajectory, turns=(first, later))
    assert parting(one.trajectory, other.trajectory) is not None
    assert parting(one.trajectory, changed) is None
    found = pairs_of(one, replace(other, trajectory=changed))
    assert (found.pairs, found.tasks_with_gap) == ((), 1)


def test_an_answer_that_was_cut_off_within_the_other_has_nothing_of_its_own() -> None:
    whole, cut = tried(1.0, says("yes, sent")), tried(0.0, encode("yes"))
    assert parting(whole.trajectory, cut.trajectory) is None


def test_after_a_rewritten_history_the_loss_stays_in_the_context_of_the_parting() -> None:
    one, other = tried(1.0, LOOK_UP, says("yes")), tried(0.0, LOOK_UP, says("no"))
    moved = [
        replace(g, trajectory=replace(g.trajectory, turns=(first, replace(second, context=1))))
        for g in (one, other)
        for first, second in [g.trajectory.turns]
    ]
    ((better, _),) = pairs_of(*moved).pairs
    second = one.trajectory.turns[1]
    assert better.token_ids == (*second.observation_ids, *second.action_ids)


def test_pairs_depend_on_seed_and_rollouts_and_not_on_their_order() -> None:
    rollouts = [tried(float(n % 2), says(f"{'yes' if n % 2 else 'no'} {n}")) for n in range(12)]
    found = pairs_of(*rollouts, seed=1)
    assert len(found.pairs) == 4
    assert pairs_of(*rollouts[::-1], seed=1) == found
    assert pairs_of(*rollouts, seed=2) != found


def test_every_action_token_of_real_rollouts_is_accounted_for() -> None:
    setup = a_setup()
    rollouts = [play(setup, task, seed) for task in some_tasks(3) for seed in range(4)]
    found = pairs_of(*rollouts)
    assert found.tasks == found.tasks_with_gap == 3
    assert [(counted(b), counted(w)) for b, w in found.pairs] == [("yes<|e|>", "no<|e|>")] * 3


def a_project(folder: Path) -> Project:
    limits = Limits(max_context_tokens=1000)
    return Project(
        folder=folder,
        config=ProjectConfig(name="desk", limits=limits),
        spec=AgentSpec(sections=(Section(name="role", text="Be kind."),), limits=limits),
        open_environment=ScriptedEnvironment({}),
        grader=YesGrader(),
        tools=(),
    )


def a_preference(preferred: str, rejected: str, before: Sequence[Message] = ()) -> Preference:
    return Preference(
        id="p",
        messages=(*before, Message(role="user", content="where?")),
        preferred=(Message(role="assistant", content=preferred),),
        rejected=(Message(role="assistant", content=rejected),),
    )


def test_conversations_are_rendered_under_the_spec_and_parted_like_rollouts(tmp_path: Path) -> None:
    before = (Message(role="user", content="hi"), Message(role="assistant", content="hello"))
    given = a_preference("it is sent", "it is lost", before)
    better, worse = rendered_pair(given, a_project(tmp_path), DemonstrationChat())
    assert (counted(better), counted(worse)) == ("sent<|e|>", "lost<|e|>")
    assert "hello" in decode(better.token_ids)


def test_outputs_that_say_the_same_are_refused_and_left_out(tmp_path: Path) -> None:
    project, chat = a_project(tmp_path), DemonstrationChat()
    same, good = a_preference("yes", "yes"), a_preference("yes", "no")
    with pytest.raises(NothingToCompareError, match="pair 'p'"):
        rendered_pair(same, project, chat)
    assert len(comparable([same, good], project, chat)) == 1


def test_what_the_chat_format_cannot_express_is_told_and_not_taken_for_outputs_alike(
    tmp_path: Path,
) -> None:
    class Rewriting(DemonstrationChat):
        def demonstration(
            self, messages: Sequence[Message], tools: Sequence[ToolSpec]
        ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
            raise DataError("this model's chat template rewrites earlier turns")

    with pytest.raises(DataError, match="rewrites earlier turns"):
        comparable([a_preference("yes", "no")], a_project(tmp_path), Rewriting())


def test_what_is_cut_at_the_end_is_left_out_if_nothing_remains_to_compare(tmp_path: Path) -> None:
    project, chat = a_project(tmp_path), DemonstrationChat()
    given = a_preference("the same for long, then yes", "the same for long, then no")
    ((better, _),) = comparable([given], project, chat)
    parted = better.action_mask.index(True)
    assert comparable([given], project, chat, longest=parted) == []
    ((cut, _),) = comparable([given], project, chat, longest=parted + 2)
    assert (len(cut.token_ids), cut.action_tokens) == (parted + 2, 2)
