"""Verifiers: what they are shown, what they learn from, and what their choice comes to."""

import asyncio
import dataclasses
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from byte_chat import decode
from measured_runs import TASKS, a_comparison, a_desk, compared, measured
from tuning import DemonstrationChat, FakeModel

from agentrft.core.errors import ConfigError, GraderError, UserError
from agentrft.core.policy import Checkpoint
from agentrft.core.run import RolloutRecord, StepMetrics
from agentrft.core.usage import TokenUsage
from agentrft.graders.backends import Backends
from agentrft.inference.grader_model import GradingReply, GradingRequest, ScriptedGraderModel
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.comparison import compare_runs
from agentrft.jobs.context import Stopped
from agentrft.jobs.project import Project
from agentrft.jobs.serving import OpenWeights, ServedModel
from agentrft.jobs.verifier import (
    LEAST,
    answers,
    balanced,
    ranked_right,
    split,
    transcript,
)
from agentrft.measure.comparison import Comparison, Row
from agentrft.store.home import Home


class Reader(ScriptedSampler):
    """Scores an answer by what the transcript ends with: it knows a yes when it reads one."""

    def __init__(self, *, right: bool = True) -> None:
        super().__init__(lambda request: ())
        self.right = right
        self.read: list[str] = []

    async def score(self, sequences: Sequence[Sequence[int]]) -> list[list[float]]:
        return [self._of(sequence) for sequence in sequences]

    def _of(self, sequence: Sequence[int]) -> list[float]:
        text = decode(sequence)
        self.read.append(text)
        if "[assistant]" not in text:  # a canary
            return [-0.5] * (len(sequence) - 1)
        solved = "[assistant] yes" in text
        says_yes = sequence[-4:-1] == tuple(map(ord, "yes"))
        likely = (solved == says_yes) == self.right
        return [-0.1 if likely else -3.0] * (len(sequence) - 1)


class Model(FakeModel):
    """A fake whose engine reads transcripts."""

    def __init__(self, sampler: Reader) -> None:
        super().__init__()
        self.sampler = sampler

    @contextmanager
    def __call__(self, project: Project, home: Home, *, trained: bool) -> Iterator[ServedModel]:
        with super().__call__(project, home, trained=trained) as opened:
            assert isinstance(opened, OpenWeights)
            yield dataclasses.replace(opened, sampler=self.sampler)


Stored = tuple[Home, Project]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Stored:
    """A home with rollouts on train tasks to learn from, and four on each holdout task."""
    folder = tmp_path_factory.mktemp("taught")
    project = a_desk(folder / "desk")
    home = Home.open(folder / "home")
    measured(home, project, "run-base", chance=40, samples=4)
    measured(home, project, "run-train", chance=50, samples=4, split="train")
    return home, project


def row(comparison: Comparison, name: str) -> Row:
    return next(row for row in comparison.rows if row.name == name)


def learned(home: Home, project: Project, model: FakeModel, run_id: str) -> Comparison:
    return compared(
        home,
        project,
        "prompt=run-base",
        "run-train",
        run_id=run_id,
        verifier="learned",
        open_model=model,
    )


def said(home: Home, run_id: str) -> dict[str, float | None]:
    records = home.store.read(run_id, RolloutRecord, limit=1000).items
    return {r.graded.trajectory.id: r.graded.grade.score for r in records}


def test_a_verifier_that_reads_well_chooses_as_the_grader_does(stored: Stored) -> None:
    home, project = stored
    model = Model(Reader())
    found = learned(home, project, model, "well")
    best = row(found, "prompt, best of 4 by grader")
    chosen = row(found, "prompt, best of 4 by learned")
    assert chosen.pass_at_1.value == best.pass_at_1.value > row(found, "prompt").pass_at_1.value
    assert found.rival == chosen.name, "it can be served"
    assert any("in 100% of cases" in note for note in found.notes)
    assert chosen.cost_per_task > best.cost_per_task, "its reading costs"
    assert chosen.training.rollouts == len({s.trajectory_id for b in model.batches for s in b})


def test_a_verifier_tells_seeds_apart_whose_rollouts_have_the_same_ids(stored: Stored) -> None:
    home, project = stored
    measured(home, project, "run-other", chance=5, samples=4)
    found = asyncio.run(
        compare_runs(
            a_comparison(home, project, "seeds"),
            project,
            ["prompt=run-base", "prompt=run-other", "run-train"],
            verifier="learned",
            open_model=Model(Reader()),
        )
    )
    best, chosen = (row(found, f"prompt, best of 4 by {who}") for who in ("grader", "learned"))
    assert chosen.seeds == 2
    assert chosen.highest == best.highest > best.lowest == chosen.lowest


def test_a_verifier_that_reads_the_wrong_way_finds_the_worst(stored: Stored) -> None:
    home, project = stored
    found = learned(home, project, Model(Reader(right=False)), "wrong")
    chosen = row(found, "prompt, best of 4 by learned")
    assert chosen.pass_at_1.value < row(found, "prompt").pass_at_1.value
    assert any("in 0% of cases" in note for note in found.notes)


def test_a_verifier_is_taught_train_rollouts_alone_half_of_them_solved(stored: Stored) -> None:
    home, project = stored
    model = Model(Reader())
    learned(home, project, model, "taught")
    train = {
        r.graded.trajectory.id: r.graded.grade.score
        for r in home.store.read("run-train", RolloutRecord, limit=1000).items
    }
    seen = {sample.trajectory_id: sample for batch in model.batches for sample in batch}
    assert seen.keys() <= train.keys()
    assert sum(train[name] or 0.0 for name in seen) * 2 == len(seen)
    for name, sample in seen.items():
        actions = [i for i, own in zip(sample.token_ids, sample.action_mask, strict=True) if own]
        assert decode(actions) == ("yes" if train[name] else "no")


def test_no_grade_of_the_holdout_reaches_a_verifier(stored: Stored, tmp_path: Path) -> None:
    home, project = stored
    learned(home, project, Model(Reader()), "blind")
    other = Home.open(tmp_path / "other")
    for run in ("run-base", "run-train"):
        other.store.put_run(home.store.run(run))
        for record in home.store.read(run, RolloutRecord, limit=1000).items:
            grade = record.graded.grade
            score = grade.score or 0.0
            turned = 1.0 - score if record.split == "holdout" else score
            graded = dataclasses.replace(
                record.graded, grade=dataclasses.replace(grade, score=turned)
            )
            other.store.append(run, [dataclasses.replace(record, graded=graded)])
    learned(other, project, Model(Reader()), "blind")
    assert said(home, "blind.verified") == said(other, "blind.verified")
    assert len(said(home, "blind.verified")) == 4 * TASKS


def test_too_few_failures_to_learn_from_are_an_error_with_the_counts(stored: Stored) -> None:
    home, project = stored
    measured(home, project, "run-good", chance=100, split="train")
    with pytest.raises(
        UserError, match=rf"at least {LEAST} solved and {LEAST} failed.*18 and 0 to"
    ):
        compared(
            home,
            project,
            "run-base",
            "run-good",
            run_id="few",
            verifier="learned",
            open_model=Model(Reader()),
        )


def test_an_interrupted_verifier_goes_on_where_it_was(stored: Stored) -> None:
    home, project = stored
    whole = learned(home, project, Model(Reader()), "whole")
    steps = len(home.store.read("whole.verifier", Checkpoint).items)
    assert steps

    async def stopped() -> None:
        job = a_comparison(home, project, "cut")
        model = Model(Reader())
        model.on_step = lambda done: job.stop.set() if done == 1 else None
        await compare_runs(
            job, project, ["prompt=run-base", "run-train"], verifier="learned", open_model=model
        )

    with pytest.raises(Stopped):
        asyncio.run(stopped())
    again = Model(Reader())
    found = learned(home, project, again, "cut")
    assert 0 < len(again.batches) < len(home.store.read("cut.verifier", StepMetrics).items)
    assert [one.pass_at_1 for one in found.rows] == [one.pass_at_1 for one in whole.rows]
    third = Model(Reader())
    learned(home, project, third, "cut")
    assert third.trainers == []


def test_a_judge_reads_the_transcript_and_nothing_of_the_row(stored: Stored) -> None:
    home, project = stored
    usage = TokenUsage(prompt_tokens=50, completion_tokens=5)
    model = Judge(usage)
    judging = dataclasses.replace(project, backends=Backends(models={"j": model}))
    found = compared(home, judging, "prompt=run-base", verifier="judge:j", run_id="judge")
    chosen = row(found, "prompt, best of 4 by judge:j")
    best = row(found, "prompt, best of 4 by grader")
    assert chosen.pass_at_1.value == best.pass_at_1.value
    assert chosen.cost_per_task == pytest.approx(best.cost_per_task + 4 * 55)
    asked = "".join(message.content for request in model.requests for message in request.messages)
    assert "[assistant] yes" in asked
    assert "family" not in asked
    assert len(model.requests) == 4 * TASKS
    compared(home, judging, "prompt=run-base", verifier="judge:j", run_id="judge")
    assert len(model.requests) == 4 * TASKS, "what was judged is kept"


def test_a_judge_that_nobody_set_up_is_refused(stored: Stored) -> None:
    home, project = stored
    with pytest.raises(ConfigError, match="'nobody' is no grader model here"):
        compared(home, project, "run-base", verifier="judge:nobody", run_id="nobody")


@pytest.mark.parametrize("silent", [10, 100])
def test_what_a_judge_said_nothing_of_is_told_and_asked_again(stored: Stored, silent: int) -> None:
    home, project = stored
    model = Judge(TokenUsage(prompt_tokens=50), silent=silent)
    judging = dataclasses.replace(project, backends=Backends(models={"j": model}))
    run_id = f"silent-{silent}"

    def judged() -> Comparison:
        return compared(home, judging, "prompt=run-base", verifier="judge:j", run_id=run_id)

    told = f"judge:j said nothing of {min(silent, 4 * TASKS)} of {4 * TASKS} rollouts"
    if silent == 10:
        assert any(told in note and "it is away" in note for note in judged().notes)
        return
    with pytest.raises(GraderError, match=told):
        judged()
    model.silent, asked = 0, len(model.requests)
    found = judged()
    assert len(model.requests) == asked + 4 * TASKS
    assert not any("said nothing" in note for note in found.notes)
    best, chosen = (row(found, f"prompt, best of 4 by {who}") for who in ("grader", "judge:j"))
    assert chosen.pass_at_1.value == best.pass_at_1.value


class Judge(ScriptedGraderModel):
    """Gives 1 where it reads a yes."""

    def __init__(self, usage: TokenUsage, *, silent: int = 0) -> None:
        super().__init__([])
        self.usage, self.silent = usage, silent

    async def ask(self, request: GradingRequest) -> GradingReply:
        self.requests.append(request)
        if self.silent:
            self.silent -= 1
            raise GraderError("it is away")
        result = float("[assistant] yes" in request.messages[-1].content)
        text = json.dumps({"steps": [], "result": result})
        return GradingReply(text=text, finish_reason="stop", usage=self.usage)


def test_held_out_tasks_are_learned_from_by_none(stored: Stored) -> None:
    home, _ = stored
    records = home.store.read("run-train", RolloutRecord, limit=1000).items
    fitted, held = split(records, seed=1)
    tasks = [{r.graded.trajectory.task_id for r in part} for part in (fitted, held)]
    assert len(fitted) + len(held) == len(records)
    assert not tasks[0] & tasks[1]
    assert len(tasks[1]) == TASKS / 4
    solved = [r for r in balanced(fitted, 0.5, seed=1) if r.graded.grade.score]
    assert len(solved) * 2 == len(balanced(fitted, 0.5, seed=1))


def test_ranking_counts_ties_half() -> None:
    assert ranked_right([2.0, 1.0], [1.0, 0.0]) == (1 + 1 + 0.5 + 1) / 4


def test_a_transcript_that_is_too_long_loses_its_beginning(stored: Stored) -> None:
    home, _ = stored
    made = home.store.read("run-train", RolloutRecord).items[0].graded.trajectory
    whole, _ = answers(DemonstrationChat(), made, 10_000)
    text = transcript(made, rules=False)
    assert text in decode(whole.token_ids)
    cut, no = answers(DemonstrationChat(), made, len(whole.token_ids) - 5)
    assert len(cut.token_ids) <= len(whole.token_ids) - 5
    assert text[-10:] in decode(cut.token_ids)
    assert (cut.action_tokens, no.action_tokens) == (3, 2)


@pytest.mark.slow
def test_the_default_model_learns_to_tell_a_yes(stored: Stored, smollm2_folder: Path) -> None:
    home, project = stored
    (home.models / smollm2_folder.name).symlink_to(smollm2_folder)
    limits = dataclasses.replace(project.spec.limits, max_context_tokens=512)
    small = dataclasses.replace(project, spec=dataclasses.replace(project.spec, limits=limits))
    found = compared(home, small, "prompt=run-base", "run-train", run_id="real", verifier="learned")
    chosen = row(found, "prompt, best of 4 by learned")
    best = row(found, "prompt, best of 4 by grader")
    assert chosen.pass_at_1.value >= best.pass_at_1.value - 0.05
    assert chosen.training.trained_tokens > 0
