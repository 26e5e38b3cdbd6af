import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import CANARIES, YesGrader, a_job, a_setup, a_trainer, some_tasks, yes_or_no
from byte_chat import calls, decode, says

from agentrft.core.config import Allowance, Decoding, RewardTerms
from agentrft.core.errors import ConfigError, IdentityError, StoreError, ToolError, UserError
from agentrft.core.grade import Grade
from agentrft.core.policy import Checkpoint, Weights
from agentrft.core.protocols import Environment, SampleRequest
from agentrft.core.run import Event, RolloutRecord, RunStatus, StepMetrics
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Task
from agentrft.core.training_config import Credit, ReinforcementConfig, TaskChoice
from agentrft.core.trajectory import Trajectory
from agentrft.graders.reward_terms import with_terms
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.checkpoints import Retention, resume_point
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.reinforcement import StormError, reinforce
from agentrft.jobs.validation import TaskSets
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.scripted import ScriptedEnvironment
from agentrft.training.recording import RecordingTrainer

CONFIG = ReinforcementConfig(steps=4, tasks_per_step=2, group_size=4, checkpoint_interval=2)


def run(
    job: Job,
    trainer: RecordingTrainer,
    setup: RolloutSetup | None = None,
    *,
    config: ReinforcementConfig = CONFIG,
    first_step: int = 0,
) -> Checkpoint:
    async def main() -> Checkpoint:
        async with job.running():
            return await reinforce(
                job,
                setup or a_setup(),
                trainer,
                TaskSets(train=some_tasks(5), validation=some_tasks(3)),
                config,
                first_step=first_step,
                concurrency=8,
            )

    return asyncio.run(main())


def test_every_step_commits_its_metrics_and_all_rollouts(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    checkpoint = run(job, a_trainer())
    steps = job.read_all(StepMetrics)
    assert [step.step for step in steps] == [1, 2, 3, 4]
    records = job.read_all(RolloutRecord)
    assert [record.step for record in records] == [s for s in (1, 2, 3, 4) for _ in range(8)]
    rewards = [r.graded.grade.score for r in records if r.step == 1]
    assert steps[0].values["reward"] == pytest.approx(sum(s or 0 for s in rewards) / 8)
    assert checkpoint.step == 4
    assert job.run.status is RunStatus.SUCCEEDED


def test_credit_is_the_distance_to_the_groups_mean(tmp_path: Path) -> None:
    trainer = a_trainer()
    job = a_job(tmp_path)
    run(job, trainer)
    scores = {
        r.graded.trajectory.id: r.graded.grade.score or 0.0 for r in job.read_all(RolloutRecord)
    }
    for batch in trainer.batches:
        for sample in batch:
            credit = {a for a, m in zip(sample.advantages, sample.action_mask, strict=True) if m}
            assert len(credit) == 1
            assert (credit.pop() > 0) == (scores[sample.trajectory_id] == 1.0)


def test_a_broken_tool_costs_rollouts_but_never_becomes_a_reward(tmp_path: Path) -> None:
    opened: list[str] = []

    def sometimes_broken(task: Task, trace_id: str) -> Environment:
        opened.append(trace_id)
        if len(opened) % 5 == 0:
            raise ToolError("tool 'shop' is down")
        return a_setup().open_environment(task, trace_id)

    job, trainer = a_job(tmp_path), a_trainer()
    run(job, trainer, replace(a_setup(), open_environment=sometimes_broken))
    spoiled = [
        r.graded.trajectory.id for r in job.read_all(RolloutRecord) if r.graded.grade.score is None
    ]
    assert spoiled
    trained = {sample.trajectory_id for batch in trainer.batches for sample in batch}
    assert not trained & set(spoiled)


def test_a_storm_of_broken_tools_stops_the_run_and_says_why(tmp_path: Path) -> None:
    def always_broken(task: Task, trace_id: str) -> Environment:
        raise ToolError("tool 'shop' is down")

    job, trainer = a_job(tmp_path), a_trainer()
    with pytest.raises(StormError, match="shop"):
        run(job, trainer, replace(a_setup(), open_environment=always_broken))
    assert not trainer.batches
    assert job.run.status is RunStatus.PAUSED
    assert "shop" in (job.run.error or "")
    assert any("shop" in event.message for event in job.read_all(Event))


CHOOSY = replace(
    CONFIG,
    group_size=2,
    tasks=TaskChoice(curriculum=True, revisited=0.5, rounds=3, oversampling=1.5),
)


@pytest.mark.parametrize("config", [CONFIG, CHOOSY], ids=["every task", "chosen tasks"])
def test_an_interrupted_run_resumes_and_ends_as_if_it_had_not_been(
    tmp_path: Path, config: ReinforcementConfig
) -> None:
    whole_job, straight = a_job(tmp_path / "whole"), a_trainer()
    run(whole_job, straight, config=config)

    job, first = a_job(tmp_path / "cut"), a_trainer()
    sampled: list[int] = []

    async def stop_late_in_third_step(request: SampleRequest) -> None:
        sampled.append(len(job.read_all(StepMetrics)))
        if sampled.count(2) == 6:
            job.stop.set()
            await asyncio.sleep(0)

    with pytest.raises(Stopped, match="--resume"):
        run(
            job,
            first,
            a_setup(ScriptedSampler(yes_or_no, before=stop_late_in_third_step)),
            config=config,
        )
    assert job.run.status is RunStatus.PAUSED
    assert [step.step for step in job.read_all(StepMetrics)] == [1, 2]

    again = a_job(tmp_path / "cut")
    folder = resume_point(again, whole)
    assert folder is not None
    second = RecordingTrainer.resumed(folder, canaries=CANARIES)
    run(again, second, config=config, first_step=second.cursor["step"])
    assert first.batches + second.batches == straight.batches
    assert [step.step for step in again.read_all(StepMetrics)] == [1, 2, 3, 4]


def test_rounds_go_on_until_enough_groups_teach_and_all_of_them_count(tmp_path: Path) -> None:
    job, trainer = a_job(tmp_path), a_trainer()
    config = replace(CONFIG, group_size=2, tasks=TaskChoice(rounds=8, oversampling=2.0))
    run(job, trainer, config=config)
    steps = [metrics.values for metrics in job.read_all(StepMetrics)]
    assert max(step["rounds"] for step in steps) > 1
    for step, samples in zip(steps, trainer.batches, strict=True):
        taught = step["groups"] - step["groups_without_spread"]
        assert taught >= config.tasks_per_step
        assert step["spread_share"] == pytest.approx(taught / step["groups"])
        assert len(samples) == 2 * taught
    records = job.read_all(RolloutRecord)
    assert len(records) == sum(2 * step["groups"] for step in steps)
    assert len({record.graded.trajectory.id for record in records}) == len(records)


def test_a_step_takes_what_it_has_when_its_rounds_are_used_up(tmp_path: Path) -> None:
    job, trainer = a_job(tmp_path), a_trainer()
    always = ScriptedSampler(lambda request: yes_or_no(replace(request, seed=1)))
    config = replace(CONFIG, steps=2, tasks=TaskChoice(rounds=3))
    run(job, trainer, a_setup(always), config=config)
    assert trainer.batches == []
    steps = [metrics.values for metrics in job.read_all(StepMetrics)]
    assert [(step["rounds"], step["groups"], step["spread_share"]) for step in steps] == [
        (3.0, 6.0, 0.0)
    ] * 2


def test_a_round_that_infrastructure_spoils_is_the_last_of_its_step(tmp_path: Path) -> None:
    opened: list[str] = []

    def always_broken(task: Task, trace_id: str) -> Environment:
        opened.append(trace_id)
        raise ToolError("tool 'shop' is down")

    config = replace(CONFIG, max_storm_steps=1, tasks=TaskChoice(rounds=5))
    with pytest.raises(StormError, match="shop"):
        run(
            a_job(tmp_path),
            a_trainer(),
            replace(a_setup(), open_environment=always_broken),
            config=config,
        )
    assert len(opened) == 2 * CONFIG.tasks_per_step * CONFIG.group_size  # each refilled once


def test_a_curriculum_gives_turns_to_tasks_that_are_neither_solved_nor_hopeless(
    tmp_path: Path,
) -> None:
    def knows_some(request: SampleRequest) -> tuple[int, ...]:
        asked = decode(request.prompt_ids)
        return yes_or_no(request) if "hello 3" in asked or "hello 4" in asked else says("no")

    job = a_job(tmp_path)
    config = replace(CONFIG, steps=8, group_size=8, tasks=TaskChoice(curriculum=True, revisited=0))
    run(job, a_trainer(), a_setup(ScriptedSampler(knows_some)), config=config)
    later = {r.graded.trajectory.task_id for r in job.read_all(RolloutRecord) if r.step > 3}
    assert later == {"task-3", "task-4"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": TaskChoice(low=0.9, high=0.5)}, r"tasks\.low is 0\.9; .*tasks\.high, 0\.5"),
        ({"tasks": TaskChoice(revisited=1.5)}, r"tasks\.revisited is 1\.5; .*between 0 and 1"),
        ({"tasks": TaskChoice(rounds=0)}, r"tasks\.rounds is 0; it must be at least 1"),
        ({"tasks": TaskChoice(oversampling=0.5)}, r"tasks\.oversampling is 0\.5; .*at least 1"),
        ({"credit": Credit(turn_weight=-1.0)}, r"credit\.turn_weight is -1"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_before_anything_is_sampled(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    sampler = ScriptedSampler([])
    with pytest.raises(ConfigError, match=r"methods\.reinforcement\." + message):
        run(a_job(tmp_path), a_trainer(), a_setup(sampler), config=replace(CONFIG, **changes))
    assert sampler.requests == []


class TurnGrader(YesGrader):
    """Also scores every turn, all alike."""

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        grade = await super().grade(task, trajectory, environment)
        return replace(grade, turn_scores=(0.25,) * len(trajectory.turns))


def test_turn_scores_are_shown_and_a_grader_without_them_is_refused_where_they_count(
    tmp_path: Path,
) -> None:
    config = replace(CONFIG, credit=Credit(turn_weight=0.5))
    job = a_job(tmp_path / "with")
    run(job, a_trainer(), replace(a_setup(), grader=TurnGrader()), config=config)
    assert {step.values["turn_score"] for step in job.read_all(StepMetrics)} == {0.25}
    with pytest.raises(UserError, match="turn_weight"):
        run(a_job(tmp_path / "without"), a_trainer(), config=config)


EACH = Allowance(free=0, cost=0.01)


@pytest.mark.parametrize(
    ("terms", "used"),
    [
        (RewardTerms(tool_calls=EACH), lambda trajectory: len(trajectory.tool_calls)),
        (RewardTerms(sampled_tokens=EACH, most_penalty=1), lambda t: t.sampled_tokens),
        (RewardTerms(seconds=EACH, most_penalty=1), lambda trajectory: trajectory.duration_s),
    ],
)
def test_what_a_rollout_uses_reaches_the_gradient_through_its_penalty(
    tmp_path: Path, terms: RewardTerms, used: Callable[[Trajectory], float]
) -> None:
    def calls_sometimes(request: SampleRequest) -> tuple[int, ...]:
        if ord("X") in request.prompt_ids or not request.seed % 2:
            return says("yes")
        return calls(("get", {}))

    setup = replace(
        a_setup(ScriptedSampler(calls_sometimes)),
        open_environment=ScriptedEnvironment({"get": ["X"]}),
        grader=with_terms(YesGrader(), terms),
    )
    job, trainer = a_job(tmp_path), a_trainer()
    run(job, trainer, setup, config=replace(CONFIG, steps=1))
    credit = {
        sample.trajectory_id: max(sample.advantages, key=abs) for sample in trainer.batches[0]
    }
    credited = [r.graded.trajectory for r in job.read_all(RolloutRecord)]
    credited = [trajectory for trajectory in credited if trajectory.id in credit]
    assert credited
    for task_id in {trajectory.task_id for trajectory in credited}:
        ranked = sorted((t for t in credited if t.task_id == task_id), key=used)
        advantages = [credit[trajectory.id] for trajectory in ranked]
        assert advantages == sorted(advantages, reverse=True)
        assert advantages[0] > advantages[-1]


def test_a_run_stopped_between_checkpoints_keeps_its_last_step(tmp_path: Path) -> None:
    job, trainer = a_job(tmp_path), a_trainer()

    async def stop_in_fourth_step(request: SampleRequest) -> None:
        if trainer.steps_done == 3:
            job.stop.set()
            await asyncio.sleep(0)

    with pytest.raises(Stopped):
        run(job, trainer, a_setup(ScriptedSampler(yes_or_no, before=stop_in_fourth_step)))
    assert [c.step for c in job.read_all(Checkpoint)] == [2, 3]


def test_an_abandoned_run_writes_nothing_more(tmp_path: Path) -> None:
    job, trainer = a_job(tmp_path), a_trainer()

    async def abandon_in_fourth_step(request: SampleRequest) -> None:
        if trainer.steps_done == 3:
            job.abandon()
            await asyncio.sleep(0)

    with pytest.raises(Stopped):
        run(job, trainer, a_setup(ScriptedSampler(yes_or_no, before=abandon_in_fourth_step)))
    assert [c.step for c in job.read_all(Checkpoint)] == [2]


def test_a_validation_that_was_cut_short_is_finished_on_resume(tmp_path: Path) -> None:
    config = replace(CONFIG, validation_interval=2)
    job, trainer = a_job(tmp_path), a_trainer()

    async def stop_in_validation(request: SampleRequest) -> None:
        if len(job.read_all(StepMetrics)) == 2:
            job.stop.set()
            await asyncio.sleep(0)

    with pytest.raises(Stopped):
        run(
            job,
            trainer,
            a_setup(ScriptedSampler(yes_or_no, before=stop_in_validation)),
            config=config,
        )
    again = a_job(tmp_path)
    folder = resume_point(again, whole)
    assert folder is not None
    second = RecordingTrainer.resumed(folder, canaries=CANARIES)
    run(again, second, config=config, first_step=second.cursor["step"])
    validated = [r.step for r in again.read_all(RolloutRecord) if r.split == "validation"]
    assert sorted(validated) == [2, 2, 2, 4, 4, 4]
    told = [event.step for event in again.read_all(Event) if "validation score" in event.message]
    assert told == [2, 4]


def test_the_best_checkpoints_outlive_the_newest() -> None:
    checkpoints = [
        Checkpoint(run_id="r", step=step, path="", policy_version=step) for step in range(1, 9)
    ]
    scores = {2: 0.9, 4: 0.1, 6: 0.9}
    even = Retention(newest=2, best=2, best_of=lambda step: step % 2 == 0)
    assert [c.step for c in even.kept(checkpoints, scores)] == [2, 6, 7, 8]
    assert [c.step for c in Retention().kept(checkpoints, scores)] == [7, 8]
    assert [c.step for c in Retention(best=3).kept(checkpoints, {})] == [6, 7, 8]


def whole(folder: Path) -> None:
    """Find nothing wrong with a checkpoint."""


def test_a_damaged_checkpoint_sends_a_resumed_run_to_the_one_before(tmp_path: Path) -> None:
    def second_is_damaged(folder: Path) -> None:
        if folder.name.startswith("step-000004"):
            raise StoreError("checkpoint step-000004: file 'optimizer' is corrupt")

    def all_are_damaged(folder: Path) -> None:
        raise StoreError(f"checkpoint {folder.name} is corrupt")

    job = a_job(tmp_path)
    run(job, a_trainer())
    with pytest.raises(StoreError, match="start a new one.*step-000004"):
        resume_point(job, all_are_damaged)
    folder = resume_point(job, second_is_damaged)
    assert folder is not None
    assert folder.name.startswith("step-000002")
    assert [step.step for step in job.read_all(StepMetrics)] == [1, 2]
    assert "step-000004" in job.read_all(Event)[-1].message


def test_records_after_the_last_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    job = a_job(tmp_path)
    job.append([StepMetrics(step=1, values={}), StepMetrics(step=2, values={})])
    job.append(
        [Checkpoint(run_id=job.run.id, step=1, path=str(tmp_path / "step-1"), policy_version=1)]
    )
    assert resume_point(job, whole) == tmp_path / "step-1"
    assert [step.step for step in job.read_all(StepMetrics)] == [1]


class DeafSampler(ScriptedSampler):
    """Planted bug: new weights are taken note of nowhere."""

    async def load(self, weights: Weights) -> None:
        del weights


def test_rollouts_of_a_sampler_that_kept_old_weights_are_refused(tmp_path: Path) -> None:
    trainer = a_trainer()
    with pytest.raises(IdentityError, match="batch refused"):
        run(a_job(tmp_path), trainer, a_setup(DeafSampler(yes_or_no)))
    assert len(trainer.batches) <= 1


def test_steps_without_any_spread_are_counted_and_change_nothing(tmp_path: Path) -> None:
    job, trainer = a_job(tmp_path), a_trainer()
    always = ScriptedSampler(lambda request: yes_or_no(replace(request, seed=1)))
    run(job, trainer, a_setup(always))
    assert trainer.batches == []
    assert [s.values["groups_without_spread"] for s in job.read_all(StepMetrics)] == [2.0] * 4


def test_validation_is_measured_beside_training_and_never_trained_on(tmp_path: Path) -> None:
    job, trainer = a_job(tmp_path), a_trainer()
    run(job, trainer, config=replace(CONFIG, validation_interval=2, validation_tasks=3))
    validation = [r for r in job.read_all(RolloutRecord) if r.split == "validation"]
    assert [r.step for r in validation] == [2, 2, 2, 4, 4, 4]
    trained = {sample.trajectory_id for batch in trainer.batches for sample in batch}
    assert not trained & {r.graded.trajectory.id for r in validation}


def test_rollouts_under_a_grammar_are_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    sampler, trainer = ScriptedSampler([]), a_trainer()
    setup = a_setup(sampler)
    spec = AgentSpec(decoding=Decoding(grammar="calls"))
    setup = replace(setup, policy=replace(setup.policy, spec=spec))
    with pytest.raises(UserError, match=r"decoding\.grammar = 'calls'.*'off' for training"):
        run(a_job(tmp_path), trainer, setup)
    assert sampler.requests == []
    assert trainer.batches == []
