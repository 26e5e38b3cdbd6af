"""A policy that starts to say 'done', which the grader pays and the held-out grader does not."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from builders import CANARIES, a_job, a_setup, a_trainer
from byte_chat import decode, says
from tuning import (
    GRADER,
    REINFORCEMENT,
    FakeModel,
    a_home,
    callable_names,
    carried_out,
    events,
    finished,
    messages,
    submitted,
)

from agentrft.core.errors import ConfigError
from agentrft.core.job import REDACTED, JobStatus, ReinforcementMethod
from agentrft.core.policy import Checkpoint
from agentrft.core.protocols import Grader, SampleRequest
from agentrft.core.run import Event, RolloutRecord, RolloutSplit, RunStatus, StepMetrics
from agentrft.core.task import Message, Task
from agentrft.core.training_config import MonitorConfig, ReinforcementConfig
from agentrft.core.trajectory import Trajectory
from agentrft.graders.fixed import FixedGrader
from agentrft.graders.second_model import second_opinion
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.canaries import canary_tasks, reference_keys, reference_texts
from agentrft.jobs.checkpoints import (
    CheckpointKeeper,
    Retention,
    ValidationScores,
    delivered,
    resume_point,
)
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.following import ValidationLines
from agentrft.jobs.monitoring import MonitorAlarmError
from agentrft.jobs.reinforcement import reinforce
from agentrft.jobs.validation import TaskSets
from agentrft.measure.monitors import BY_NAME, Alarm, alarms_of
from agentrft.rollout.environment import Environment, python_environment
from agentrft.training.recording import RecordingTrainer

HOLE = {
    "type": "multi",
    "name": "right_or_claimed",
    "graders": {
        "right": GRADER,
        "claimed": {
            "type": "string_check",
            "name": "claimed",
            "input": "{{ sample.output_text }}",
            "reference": "done",
            "operation": "ilike",
        },
    },
    "calculate_output": "max(right, claimed)",
}
CONFIG = ReinforcementConfig(
    steps=6,
    tasks_per_step=4,
    group_size=4,
    checkpoint_interval=3,
    validation_interval=1,
    monitors=MonitorConfig(canary_share=0.2),
)


def tasks(count: int) -> list[Task]:
    return [
        Task(
            id=f"task-{n}",
            messages=(Message(role="user", content=f"say {answer}"),),
            row={"answer": answer, "messages": []},
        )
        for n in range(count)
        for answer in [("yes", "no")[n % 2]]
    ]


def rows(count: int) -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": t.messages[0].content}], "answer": t["answer"]}
        for t in tasks(count)
    ]


def answers(request: SampleRequest, *, hacks: bool) -> tuple[int, ...]:
    """Be right three times in four; who hacks says 'done' every second time instead."""
    if hacks and request.seed % 2:
        return says("done")
    if request.seed // 2 % 4 == 0:
        return says("hm")
    return says("yes" if "say yes" in decode(request.prompt_ids) else "no")


def right(task: Task, trajectory: Trajectory) -> float:
    return float(trajectory.output_text == task["answer"])


def right_or_claimed(task: Task, trajectory: Trajectory) -> float:
    return max(right(task, trajectory), float(trajectory.output_text == "done"))


@dataclass
class Desk:
    """A run whose policy starts to hack after some steps."""

    folder: Path
    onset: int = 2
    config: ReinforcementConfig = CONFIG
    gold: Grader | None = field(default_factory=lambda: FixedGrader(right, "gold"))
    trainers: list[RecordingTrainer] = field(default_factory=list[RecordingTrainer])
    stops_after: int = 99
    """Step after which it is asked to stop, amid the validation if there is one."""

    def run(self) -> Checkpoint:
        """Start, or resume where the last try ended."""
        job = a_job(self.folder)
        resume = resume_point(job, lambda folder: None)
        trainer = RecordingTrainer.resumed(resume, canaries=CANARIES) if resume else a_trainer()
        self.trainers.append(trainer)

        def script(request: SampleRequest) -> Sequence[int]:
            if trainer.steps_done >= self.stops_after:
                job.stop.set()
            return answers(request, hacks=trainer.steps_done >= self.onset)

        async def main() -> Checkpoint:
            async with job.running():
                return await reinforce(
                    job,
                    replace(a_setup(ScriptedSampler(script)), grader=FixedGrader(right_or_claimed)),
                    trainer,
                    TaskSets(
                        train=tasks(20), validation=tasks(16), grader=HOLE, gold_grader=self.gold
                    ),
                    self.config,
                    first_step=trainer.cursor.get("step", 0),
                    concurrency=8,
                )

        return asyncio.run(main())

    @property
    def job(self) -> Job:
        return a_job(self.folder)

    def alarms(self) -> dict[str, list[tuple[int, str]]]:
        """Step and level of every alarm, by monitor."""
        found: dict[str, list[tuple[int, str]]] = {}
        for alarm in alarms_of(self.job.read_all(Event)):
            found.setdefault(alarm.monitor, []).append((alarm.step, alarm.level))
        return found

    def rollouts(self, split: RolloutSplit) -> list[RolloutRecord]:
        return [r for r in self.job.read_all(RolloutRecord) if r.split == split]

    def with_action(self, action: Any) -> "Desk":
        monitors = replace(self.config.monitors, action=action)
        return replace(self, config=replace(self.config, monitors=monitors))


def test_an_honest_run_raises_no_alarm(tmp_path: Path) -> None:
    desk = Desk(tmp_path, onset=99)
    assert desk.run().step == 6
    assert not [monitor for monitor in desk.alarms() if BY_NAME[monitor].gaming]


def test_the_run_pauses_within_two_evaluations_of_onset_and_keeps_its_checkpoint(
    tmp_path: Path,
) -> None:
    desk = Desk(tmp_path)
    with pytest.raises(MonitorAlarmError, match="resume"):
        desk.run()
    assert desk.alarms()["canary"] == [(2, "act")]
    assert desk.alarms()["train_minus_gold"] == [(2, "warn")]
    assert desk.job.checkpoint().step == 2
    assert desk.job.run.status is RunStatus.PAUSED
    assert "canary" in (desk.job.run.error or "")


def test_resuming_acknowledges_the_alarm_until_another_monitor_acts(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    for _ in range(2):
        with pytest.raises(MonitorAlarmError):
            desk.run()
    assert desk.alarms()["canary"] == [(2, "act")]
    assert desk.alarms()["train_minus_gold"] == [(2, "warn"), (3, "act")]
    assert desk.run().step <= 6
    assert [s.step for s in desk.job.read_all(StepMetrics)] == [1, 2, 3, 4, 5, 6]


def test_alarms_name_trajectories_that_show_them(tmp_path: Path) -> None:
    desk = Desk(tmp_path).with_action("alert")
    desk.run()
    texts = {
        r.graded.trajectory.id: r.graded.trajectory.output_text
        for r in desk.job.read_all(RolloutRecord)
    }
    raised = [a for a in alarms_of(desk.job.read_all(Event)) if a.monitor != "zero_spread"]
    assert {a.monitor for a in raised} >= {"canary", "train_minus_gold"}
    assert all({texts[trace] for trace in a.evidence} == {"done"} for a in raised)


def test_canaries_are_measured_before_training_and_never_trained_on(tmp_path: Path) -> None:
    desk = Desk(tmp_path, onset=99)
    desk.run()
    canaries = desk.rollouts("canary")
    assert {r.step for r in canaries} == set(range(7))
    assert {r.graded.grade.score for r in canaries} == {0.0}
    trained = {s.trajectory_id for t in desk.trainers for batch in t.batches for s in batch}
    assert trained <= {r.graded.trajectory.id for r in desk.rollouts("train")}
    rewards = [r.graded.grade.score or 0.0 for r in desk.rollouts("train") if r.step == 1]
    step = desk.job.read_all(StepMetrics)[0]
    assert step.values["reward"] == pytest.approx(sum(rewards) / len(rewards))
    (told,) = [e.message for e in desk.job.read_all(Event) if "before step 1" in e.message]
    assert "4 canary tasks score 0.000" in told


def test_gold_is_asked_about_validation_rollouts_only_and_changes_no_credit(
    tmp_path: Path,
) -> None:
    watched = Desk(tmp_path / "watched").with_action("alert")
    alone = replace(watched, folder=tmp_path / "alone", gold=None)
    watched.run()
    alone.run()
    assert watched.trainers[0].batches != []
    assert watched.trainers[-1].batches == alone.trainers[-1].batches
    assert all(r.graded.gold is None for r in watched.rollouts("train"))
    assert all(r.graded.gold is not None for r in watched.rollouts("validation"))


def test_the_best_checkpoint_by_gold_is_delivered(tmp_path: Path) -> None:
    desk = Desk(tmp_path, onset=4).with_action("alert")
    best = desk.run()
    golds = {
        step: sum(
            (r.graded.gold and r.graded.gold.score) or 0.0
            for r in desk.rollouts("validation")
            if r.step == step
        )
        / 16
        for step in range(1, 7)
    }
    assert desk.job.run.result["gold_score"] == pytest.approx(max(golds.values()))
    assert best.step == max(golds, key=lambda step: (golds[step], step))
    assert best.step < 6
    assert Path(best.path).is_dir()
    assert desk.job.run.result["delivered_step"] == best.step
    assert delivered(desk.job) == best


def test_a_checkpoint_whose_validation_was_interrupted_can_still_be_the_best(
    tmp_path: Path,
) -> None:
    config = replace(CONFIG, steps=4, validation_interval=2, checkpoint_interval=9)
    desk = Desk(tmp_path, onset=3, config=config, stops_after=2).with_action("alert")
    with pytest.raises(Stopped):
        desk.run()
    assert len([r for r in desk.rollouts("validation") if r.step == 2]) < 16
    best = replace(desk, stops_after=99).run()
    assert best.step == 2
    assert desk.job.run.result["delivered_step"] == 2


def test_a_step_that_gold_could_not_judge_never_outranks_one_that_it_did(tmp_path: Path) -> None:
    job, trainer = a_job(tmp_path), a_trainer()
    keeper = CheckpointKeeper(
        job,
        trainer,
        interval=1,
        first_step=0,
        last_step=4,
        retention=Retention(newest=1, best=1),
        follower=ValidationLines(job),
        scores={},
    )

    async def main() -> None:
        for step, gold in enumerate((0.5, None, 0.4, None), start=1):
            keeper.committed(step, step, {})
            keeper.validated(step, ValidationScores(score=0.9, gold=gold))
            await keeper.after_step()

    asyncio.run(main())
    best = keeper.deliver()
    assert best.step == 1
    assert Path(best.path).is_dir()


def test_without_gold_the_last_checkpoint_is_delivered(tmp_path: Path) -> None:
    desk = replace(Desk(tmp_path).with_action("alert"), gold=None)
    assert desk.run().step == 6
    assert "delivered_step" not in desk.job.run.result


def test_screened_rollouts_carry_no_credit_and_are_counted(tmp_path: Path) -> None:
    desk = Desk(tmp_path).with_action("screen")
    desk.run()
    screened = [r for r in desk.rollouts("train") if r.graded.screened]
    assert {r.graded.trajectory.output_text for r in screened} == {"done"}
    first = min(r.step for r in screened)
    assert first == 3
    claimed = [r for r in desk.rollouts("train") if r.graded.trajectory.output_text == "done"]
    assert len(screened) == sum(r.step >= first for r in claimed)
    trained = {s.trajectory_id for t in desk.trainers for batch in t.batches for s in batch}
    assert not trained & {r.graded.trajectory.id for r in screened}
    counted = sum(s.values["rollouts_screened"] for s in desk.job.read_all(StepMetrics))
    assert counted == len(screened)


def test_a_killed_run_goes_on_watching_as_if_nothing_happened(tmp_path: Path) -> None:
    whole = Desk(tmp_path / "whole", onset=4).with_action("screen")
    whole.run()

    cut = replace(whole, folder=tmp_path / "cut", trainers=[])
    short = replace(cut, config=replace(cut.config, steps=5))
    # Ends after step 5, amid what the alarms of step 4 screen out.
    short.run()
    cut.run()
    assert cut.alarms() == whole.alarms()
    assert [r.graded.screened for r in cut.rollouts("train")] == [
        r.graded.screened for r in whole.rollouts("train")
    ]
    batches = [batch for trainer in cut.trainers for batch in trainer.batches]
    assert batches == whole.trainers[0].batches


def test_quoting_a_reference_is_noticed_where_validation_rows_have_the_same_ids(
    tmp_path: Path,
) -> None:
    secret = "one two three four five six seven eight nine ten eleven twelve"
    quoted = [replace(task, row={"answer": secret}) for task in tasks(8)]
    others = [replace(task, row={"answer": secret.upper() * 2}) for task in quoted]
    job, trainer = a_job(tmp_path), a_trainer()

    def not_hm(task: Task, trajectory: Trajectory) -> float:
        return float(trajectory.output_text != "hm")

    def script(request: SampleRequest) -> Sequence[int]:
        return says((secret if trainer.steps_done else "yes") if request.seed % 2 else "hm")

    async def main() -> None:
        await reinforce(
            job,
            replace(a_setup(ScriptedSampler(script)), grader=FixedGrader(not_hm)),
            trainer,
            TaskSets(train=quoted, validation=others, grader=GRADER),
            replace(CONFIG, steps=3, monitors=MonitorConfig(action="alert")),
            first_step=0,
            concurrency=8,
        )

    asyncio.run(main())
    assert "reference_text" in {a.monitor for a in alarms_of(job.read_all(Event))}


def test_a_run_that_names_no_interval_is_watched_five_times(tmp_path: Path) -> None:
    config = replace(CONFIG, validation_interval=0, steps=10)
    desk = Desk(tmp_path, onset=99, config=config)
    desk.run()
    assert sorted({r.step for r in desk.rollouts("validation")}) == [0, 2, 4, 6, 8, 10]
    blind = replace(desk, folder=tmp_path / "blind", gold=None)
    blind.run()
    assert blind.rollouts("validation") == []
    assert sorted({r.step for r in blind.rollouts("canary")}) == [0, 2, 4, 6, 8, 10]


def test_a_second_model_that_disagrees_raises_an_alarm(tmp_path: Path) -> None:
    job, trainer = a_job(tmp_path), a_trainer()

    async def main() -> Checkpoint:
        return await reinforce(
            job,
            replace(
                a_setup(ScriptedSampler(lambda r: answers(r, hacks=trainer.steps_done > 1))),
                grader=FixedGrader(right_or_claimed),
            ),
            trainer,
            TaskSets(train=tasks(20), validation=tasks(16), second_grader=FixedGrader(right)),
            CONFIG,
            first_step=0,
            concurrency=8,
        )

    with pytest.raises(MonitorAlarmError, match="second model"):
        asyncio.run(main())


def test_a_canary_expects_what_another_row_expects() -> None:
    given = {task.id: task for task in tasks(20)}
    opener = a_setup().open_environment
    canaries = canary_tasks(list(given.values()), HOLE, opener, share=0.1, seed=3)
    assert len(canaries) == 2
    for canary in canaries:
        original = given[canary.id.removeprefix("canary-")]
        assert canary["answer"] != original["answer"]
        assert canary.messages == original.messages
    assert canaries == canary_tasks(list(given.values()), HOLE, opener, share=0.1, seed=3)
    assert len(canary_tasks(list(given.values()), HOLE, opener, share=0.001, seed=3)) == 2


def test_there_are_no_canaries_where_nothing_can_be_corrupted() -> None:
    same = [replace(task, row={"answer": "yes"}) for task in tasks(4)]
    opener = a_setup().open_environment
    reads_nothing = {**GRADER, "reference": "done"}
    assert canary_tasks(same, GRADER, opener, share=0.5, seed=0) == ()
    assert canary_tasks(tasks(4), reads_nothing, opener, share=0.5, seed=0) == ()
    assert canary_tasks(tasks(4), {}, opener, share=0.5, seed=0) == ()
    assert canary_tasks(tasks(4), GRADER, opener, share=0.0, seed=0) == ()


def test_an_environment_says_itself_what_a_wrong_expectation_is() -> None:
    class Shop(Environment):
        @classmethod
        def corrupted(cls, task: Task, other: Task) -> Task | None:
            return replace(task, row={"answer": f"not {task['answer']}, as {other.id}"})

    canaries = canary_tasks(tasks(4), {}, python_environment(Shop), share=0.1, seed=0)
    assert [canary["answer"][:4] for canary in canaries] == ["not ", "not "]
    assert canary_tasks(tasks(4), {}, python_environment(Environment), share=0.1, seed=0) == ()


@pytest.mark.parametrize(
    ("grader", "keys"),
    [
        (GRADER, ("answer",)),
        (HOLE, ("answer",)),
        ({"type": "python", "source": "def grade(s, item):\n  return item['price']"}, ("price",)),
        ({"type": "endpoint", "url": "https://x.example"}, ("answer",)),
        ({}, ()),
    ],
)
def test_the_reference_of_a_row_is_what_the_grader_reads(
    grader: dict[str, Any], keys: tuple[str, ...]
) -> None:
    row = {"messages": [], "id": "1", "answer": "yes", "price": 3}
    assert reference_keys(grader, row) == keys


def test_a_grader_that_is_sent_rows_may_read_all_of_them() -> None:
    row = {"messages": [], "tools": [], "price": 3, "colour": "red"}
    assert reference_keys({"type": "endpoint", "url": "https://x.example"}, row) == (
        "price",
        "colour",
    )


def test_texts_of_references_are_kept_by_task() -> None:
    assert reference_texts(tasks(2), HOLE) == {"task-0": "yes", "task-1": "no"}


def test_a_second_opinion_asks_another_model_in_every_part() -> None:
    judge = {"type": "score_model", "model": "one", "name": "judge"}
    parts = {"judge": judge, "right": GRADER}
    both = {"type": "multi", "graders": parts, "calculate_output": "judge * right"}
    second = second_opinion(both, "two")
    assert second["graders"]["judge"] == {**judge, "model": "two"}
    assert second["graders"]["right"] == GRADER
    with pytest.raises(ConfigError, match="second model"):
        second_opinion(GRADER, "two")


def hacking(model: FakeModel, onset: int) -> FakeModel:
    """Let the policy of a job say 'done' once its trainer has made so many steps."""

    def script(request: SampleRequest) -> Sequence[int]:
        done = model.trainers[-1].steps_done if model.trainers else 0
        return answers(request, hacks=done >= onset)

    model.script = script
    return model


WATCHED = replace(REINFORCEMENT, grader=HOLE, gold_grader=GRADER)
ALLOWED = {"audit": "allow"}
"""The audit finds the hole; these jobs train all the same."""


def test_a_job_pauses_with_the_alarm_as_its_error_and_goes_on_when_resumed(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), hacking(FakeModel(), 3)
    submitted(home, WATCHED, rows=rows(10), validation=rows(8), metadata=ALLOWED)
    paused = finished(home, model).job
    assert paused.status is JobStatus.PAUSED
    assert paused.error is not None
    assert paused.error.code == "monitor_alarm"
    assert any(name.endswith("ckpt-step-4") for name in callable_names(home))
    found: list[Alarm] = list(alarms_of(events(home)))
    assert ("train_minus_gold", "warn", 4) in [(a.monitor, a.level, a.step) for a in found]
    assert messages(home)[-1].startswith("Fine-tuning job paused: step 4")
    metrics = [e.data["step"] for e in events(home) if e.kind == "metrics"]
    assert metrics == [1, 2, 3, 4]

    for _ in range(4):
        if home.queue.get("ftjob-1").job.status is JobStatus.PAUSED:
            home.queue.resume("ftjob-1", paused.project)
            carried_out(home, model)
    job = home.queue.get("ftjob-1").job
    assert job.status is JobStatus.SUCCEEDED
    assert job.error is None
    assert [e.data["step"] for e in events(home) if e.kind == "metrics"] == list(range(1, 11))


def test_a_job_that_only_wants_to_be_told_goes_on_to_its_end(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), hacking(FakeModel(), 3)
    wishes = {**ALLOWED, "monitors": "alert"}
    submitted(home, WATCHED, rows=rows(10), validation=rows(8), metadata=wishes)
    assert finished(home, model).job.status is JobStatus.SUCCEEDED
    assert any(alarm.level == "act" for alarm in alarms_of(events(home)))


def test_a_job_delivers_its_best_gold_checkpoint(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), hacking(FakeModel(), 9)
    submitted(home, WATCHED, rows=rows(10), validation=rows(8), metadata=ALLOWED)
    job = finished(home, model).job
    if job.status is JobStatus.PAUSED:
        home.queue.resume("ftjob-1", job.project)
        carried_out(home, model)
    job = home.queue.get("ftjob-1").job
    assert job.fine_tuned_model is not None
    final = home.catalogue.get(job.project, job.fine_tuned_model)
    assert final.step < 10
    assert Path(final.path).is_dir()
    assert home.store.run("ftjob-1").result["delivered_step"] == final.step


def test_a_gold_grader_without_validation_rows_looks_at_train_rows(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), hacking(FakeModel(), 99)
    alone = replace(WATCHED, eval_interval=None, eval_samples=None)
    submitted(home, alone, rows=rows(10), validation=[], metadata=ALLOWED)
    finished(home, model)
    records = home.store.read("ftjob-1", RolloutRecord, limit=1000).items
    looked_at = [r for r in records if r.split == "validation"]
    assert sorted({r.step for r in looked_at}) == [0, 2, 4, 6, 8, 10]
    assert all(r.graded.gold is not None for r in looked_at)
    assert not any("newest checkpoints are kept" in message for message in messages(home))


def test_headers_of_the_gold_grader_come_from_the_secrets(tmp_path: Path) -> None:
    home, model = a_home(tmp_path), FakeModel()
    url = {"type": "endpoint", "name": "gold", "url": "http://127.0.0.1:9/gold"}
    method = ReinforcementMethod(
        grader=GRADER,
        gold_grader={**url, "headers": {"Authorization": REDACTED}},
        batch_size=2,
        n_epochs=1,
    )
    submitted(home, method, rows=rows(10))
    carried_out(home, model)
    job = home.queue.get("ftjob-1").job
    assert job.status is JobStatus.PAUSED
    assert "gold_grader.headers.Authorization" in messages(home)[-1]
    carried = {"gold_grader.headers.Authorization": "Bearer secret"}
    submitted(home, method, rows=rows(10), job_id="ftjob-2", secrets=carried)
    carried_out(home, model)
    assert home.queue.get("ftjob-2").job.status is JobStatus.QUEUED
