import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trial_builders
from builders import yes_or_no
from trial_builders import a_search, a_spec, counted, some_trials, wanted

from agentrft.core.errors import PausedError, SamplerError, StoreError
from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import RolloutRecord
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Message
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.context import Stopped
from agentrft.jobs.trials import LEDGER, StoredTrials, spec_path
from agentrft.optimize.trials import BudgetSpentError, Question, TrialRequest
from agentrft.store.codec import from_json


def roll_out(trials: StoredTrials, requests: list[TrialRequest]) -> list[GradedTrajectory]:
    return asyncio.run(trials.roll_out(requests))


def ids(graded: list[GradedTrajectory]) -> list[str]:
    return [one.trajectory.id for one in graded]


def accounted(trials: StoredTrials) -> int:
    return trials.spent.rollouts + trials.spent.interrupted


def test_a_rollout_is_run_once_stored_and_answered_from_the_store(tmp_path: Path) -> None:
    job = a_search(tmp_path)
    trials = some_trials(job)
    first = roll_out(trials, wanted(a_spec(), samples=2))
    again = roll_out(trials, wanted(a_spec(), samples=2, purpose="confirm"))
    assert again == first
    assert len(set(ids(first))) == 20
    records = job.read_all(RolloutRecord)
    assert {record.graded.trajectory.id for record in records} == set(ids(first))
    assert {(record.stage, record.split) for record in records} == {("race", "validation")}
    spent = trials.spent
    assert (spent.rollouts, spent.reused, spent.interrupted) == (20, 20, 0)
    assert spent.by_purpose == {"race": 20}
    assert len(counted(tmp_path).opened) == 20


def test_equal_requests_of_one_batch_are_one_rollout(tmp_path: Path) -> None:
    trials = some_trials(a_search(tmp_path))
    requests = wanted(a_spec(), tasks=3)
    assert trials.missing([*requests, *requests]) == 3
    graded = roll_out(trials, [*requests, *requests])
    assert graded[:3] == graded[3:]
    assert trials.missing(requests) == 0
    assert len(counted(tmp_path).opened) == 3


def test_a_resumed_search_runs_nothing_again(tmp_path: Path) -> None:
    first = roll_out(some_trials(a_search(tmp_path)), wanted(a_spec()))
    sampler = ScriptedSampler(yes_or_no)
    trials = some_trials(a_search(tmp_path), sampler)
    assert ids(roll_out(trials, wanted(a_spec()))) == ids(first)
    assert sampler.requests == []
    assert trials.spent.rollouts == 10
    assert len(counted(tmp_path).opened) == 10


def test_specs_share_the_seed_of_a_task_and_arms_run_interleaved(tmp_path: Path) -> None:
    sampler = ScriptedSampler(yes_or_no)
    trials = some_trials(a_search(tmp_path), sampler, concurrency=1)
    roll_out(trials, wanted(a_spec(0.5), a_spec(1.5), tasks=4, samples=2))
    assert [request.temperature for request in sampler.requests] == [0.5, 1.5] * 8
    seeds = [request.seed for request in sampler.requests]
    assert seeds[::2] == seeds[1::2]
    assert len(set(seeds)) == 8


def test_a_killed_search_accounts_for_every_environment_and_goes_on(tmp_path: Path) -> None:
    program = [sys.executable, trial_builders.__file__, str(tmp_path), "9"]
    folders = {"PYTHONPATH": os.pathsep.join(sys.path)}
    child = subprocess.run(program, check=False, timeout=60, env=os.environ | folders)
    assert child.returncode == -signal.SIGKILL
    before = counted(tmp_path).opened
    trials = some_trials(a_search(tmp_path))
    assert 0 < trials.spent.rollouts < 20
    assert trials.spent.interrupted > 0
    assert accounted(trials) == len(before)
    finished = trials.spent.rollouts
    graded = roll_out(trials, wanted(a_spec(0.5), a_spec(1.0)))
    assert len(counted(tmp_path).opened) - len(before) == 20 - finished
    assert accounted(trials) == len(counted(tmp_path).opened)
    assert trials.spent.rollouts == 20
    untouched = some_trials(a_search(tmp_path / "untouched"))
    assert ids(graded) == ids(roll_out(untouched, wanted(a_spec(0.5), a_spec(1.0))))


def test_a_stopped_search_accounts_for_every_environment_and_goes_on(tmp_path: Path) -> None:
    job = a_search(tmp_path)

    async def stop_at_the_seventh(request: SampleRequest) -> None:
        if len(sampler.requests) > 6:
            job.stop.set()
            await asyncio.Event().wait()

    sampler = ScriptedSampler(yes_or_no, before=stop_at_the_seventh)
    trials = some_trials(job, sampler)
    with pytest.raises(Stopped):
        roll_out(trials, wanted(a_spec()))
    assert trials.spent.interrupted > 0
    assert accounted(trials) == len(counted(tmp_path).opened)
    resumed = some_trials(a_search(tmp_path))
    assert accounted(resumed) == accounted(trials)
    roll_out(resumed, wanted(a_spec()))
    assert resumed.spent.rollouts == 10
    assert accounted(resumed) == len(counted(tmp_path).opened)


def test_a_rollout_that_was_stored_but_not_entered_is_not_run_again(tmp_path: Path) -> None:
    job = a_search(tmp_path)
    roll_out(some_trials(job), wanted(a_spec(), tasks=3))
    ledger = job.folder / LEDGER
    lines = ledger.read_text().splitlines(keepends=True)
    last_end = max(n for n, line in enumerate(lines) if '"end"' in line)
    ledger.write_text("".join(lines[:last_end] + lines[last_end + 1 :]))
    resumed = some_trials(a_search(tmp_path))
    assert (resumed.spent.rollouts, resumed.spent.interrupted) == (3, 0)
    assert resumed.missing(wanted(a_spec(), tasks=3)) == 0


def test_a_torn_last_line_is_forgotten_and_a_broken_one_before_it_is_named(tmp_path: Path) -> None:
    job = a_search(tmp_path)
    roll_out(some_trials(job), wanted(a_spec(), tasks=2))
    ledger = job.folder / LEDGER
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + whole.splitlines()[0][:40])
    trials = some_trials(a_search(tmp_path))
    assert trials.spent.rollouts == 2
    roll_out(trials, wanted(a_spec(), tasks=3))
    assert some_trials(a_search(tmp_path)).spent.rollouts == 3
    ledger.write_bytes(b'{"line": "begin"}\n' + whole)
    with pytest.raises(StoreError, match=r"ledger\.jsonl line 1"):
        some_trials(a_search(tmp_path))


def test_a_rollout_lost_to_infrastructure_is_tried_once_more_and_both_are_counted(
    tmp_path: Path,
) -> None:
    failed: list[int] = []

    async def fail_once(request: SampleRequest) -> None:
        if not failed:
            failed.append(request.seed)
            raise SamplerError("engine restarted")

    trials = some_trials(a_search(tmp_path), ScriptedSampler(yes_or_no, before=fail_once))
    graded = roll_out(trials, wanted(a_spec(), tasks=3))
    assert [one.outcome for one in graded] == [Outcome.SCORED] * 3
    assert trials.spent.rollouts == 4
    assert accounted(trials) == len(counted(tmp_path).opened)


def test_a_rollout_that_infrastructure_spoils_twice_is_returned_as_it_is(tmp_path: Path) -> None:
    async def fail(request: SampleRequest) -> None:
        raise SamplerError("no engine")

    trials = some_trials(a_search(tmp_path), ScriptedSampler(yes_or_no, before=fail))
    (graded,) = roll_out(trials, wanted(a_spec(), tasks=1))
    assert graded.outcome is Outcome.INFRASTRUCTURE_FAULT
    resumed = some_trials(a_search(tmp_path))
    assert roll_out(resumed, wanted(a_spec(), tasks=1)) == [graded]
    assert resumed.spent.rollouts == 2


def test_a_search_pauses_when_a_whole_batch_is_lost_and_resuming_tries_it_again(
    tmp_path: Path,
) -> None:
    async def fail(request: SampleRequest) -> None:
        raise SamplerError("no engine")

    trials = some_trials(a_search(tmp_path), ScriptedSampler(yes_or_no, before=fail))
    with pytest.raises(PausedError, match=r"all 10 rollouts.*sampler.*no engine"):
        roll_out(trials, wanted(a_spec()))
    assert trials.spent.rollouts == 20
    resumed = some_trials(a_search(tmp_path))
    graded = roll_out(resumed, wanted(a_spec()))
    assert all(one.outcome is Outcome.SCORED for one in graded)
    assert resumed.spent.rollouts == 30
    assert accounted(resumed) == len(counted(tmp_path).opened)
    assert roll_out(some_trials(a_search(tmp_path)), wanted(a_spec())) == graded


def test_no_rollout_of_a_batch_that_exceeds_the_budget_is_begun(tmp_path: Path) -> None:
    roll_out(some_trials(a_search(tmp_path)), wanted(a_spec(), tasks=10))
    trials = some_trials(a_search(tmp_path), rollouts=12)
    with pytest.raises(BudgetSpentError, match=r"methods\.optimize\.rollouts"):
        roll_out(trials, wanted(a_spec(), tasks=10, samples=2))
    assert trials.spent.rollouts == 10
    assert len(roll_out(trials, wanted(a_spec(), tasks=12))) == 12


def test_after_the_time_is_over_only_the_holdout_is_rolled_out(tmp_path: Path) -> None:
    kept = roll_out(some_trials(a_search(tmp_path)), wanted(a_spec(), tasks=1))
    job = a_search(tmp_path)
    late = some_trials(job, minutes=0)
    with pytest.raises(BudgetSpentError, match=r"methods\.optimize\.minutes"):
        roll_out(late, wanted(a_spec(), tasks=2))
    assert roll_out(late, wanted(a_spec(), tasks=1)) == kept
    assert "split" not in job.run.result
    unseen = wanted(a_spec(), tasks=3, split="holdout")[2:]
    roll_out(late, unseen)
    assert job.run.result["split"] == "holdout"


def test_what_the_clock_decided_stands_when_a_search_is_resumed(tmp_path: Path) -> None:
    assert not some_trials(a_search(tmp_path)).decided(1, holds=False)
    resumed = some_trials(a_search(tmp_path))
    assert not resumed.decided(1, holds=True)
    assert resumed.decided(2, holds=True)
    assert resumed.spent.rollouts == 0


def test_every_spec_that_was_rolled_out_lies_in_the_runs_folder(tmp_path: Path) -> None:
    job, spec = a_search(tmp_path), a_spec(0.25)
    roll_out(some_trials(job), wanted(spec, a_spec(), tasks=1))
    assert from_json(AgentSpec, spec_path(job.folder, spec.hash).read_bytes()) == spec


def test_the_agents_own_model_answers_in_text_once_for_each_sample(tmp_path: Path) -> None:
    sampler = ScriptedSampler(yes_or_no)
    trials = some_trials(a_search(tmp_path), sampler)
    question = Question(messages=(Message(role="user", content="Name it."),), samples=3)
    answers = asyncio.run(trials.ask(question))
    assert set(answers) <= {"yes", "no"}
    assert len({request.seed for request in sampler.requests}) == 3
    resumed = some_trials(a_search(tmp_path), ScriptedSampler(yes_or_no))
    more = Question(messages=question.messages, samples=5)
    assert asyncio.run(resumed.ask(more))[:3] == answers
    assert (resumed.spent.questions, resumed.spent.reused) == (5, 3)
    assert resumed.spent.sampled_tokens > 0


def test_the_clock_goes_on_where_the_last_process_left_it(tmp_path: Path) -> None:
    trials = some_trials(a_search(tmp_path))
    roll_out(trials, wanted(a_spec(), tasks=1))
    ledger = a_search(tmp_path).folder / LEDGER
    ledger.write_text(ledger.read_text().replace('"clock_s":0', '"clock_s":500'))
    assert some_trials(a_search(tmp_path)).spent.seconds > 500
