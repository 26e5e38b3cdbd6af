import asyncio
from pathlib import Path

import pytest
from builders import a_job, a_setup, some_tasks, yes_or_no

from agentrft.core.config import EvaluationConfig
from agentrft.core.errors import SamplerError
from agentrft.core.protocols import SampleRequest
from agentrft.core.run import Method, RolloutRecord
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.context import Job, Stopped
from agentrft.jobs.evaluation import Measurement, evaluate

HOLDOUT = Measurement(stage="base", split="holdout", seed=3)


def measure(
    job: Job, sampler: ScriptedSampler, config: EvaluationConfig | None = None
) -> list[RolloutRecord]:
    async def main() -> list[RolloutRecord]:
        async with job.running():
            return await evaluate(
                job,
                a_setup(sampler),
                some_tasks(6),
                config or EvaluationConfig(),
                HOLDOUT,
                concurrency=1,
            )

    return asyncio.run(main())


def test_every_task_is_measured_and_stored(tmp_path: Path) -> None:
    job = a_job(tmp_path, Method.EVALUATION)
    records = measure(job, ScriptedSampler(yes_or_no), EvaluationConfig(samples_per_task=2))
    assert len(records) == 12
    assert len(job.read_all(RolloutRecord)) == 12


def test_an_interrupted_evaluation_goes_on_where_it_stopped(tmp_path: Path) -> None:
    job = a_job(tmp_path, Method.EVALUATION)
    first = ScriptedSampler(yes_or_no)

    async def stop_after_three(request: SampleRequest) -> None:
        if len(first.requests) > 3:
            job.stop.set()
            await asyncio.Event().wait()

    first = ScriptedSampler(yes_or_no, before=stop_after_three)
    with pytest.raises(Stopped):
        measure(job, first)
    second = ScriptedSampler(yes_or_no)
    records = measure(a_job(tmp_path, Method.EVALUATION), second)
    assert len(second.requests) == 3
    assert {r.graded.trajectory.task_id for r in records} == {t.id for t in some_tasks(6)}


def test_a_rollout_spoiled_by_the_engine_is_tried_once_more(tmp_path: Path) -> None:
    failed: list[int] = []

    async def fail_once(request: SampleRequest) -> None:
        if not failed:
            failed.append(request.seed)
            raise SamplerError("engine restarted")

    records = measure(
        a_job(tmp_path, Method.EVALUATION), ScriptedSampler(yes_or_no, before=fail_once)
    )
    assert len(records) == 6
    assert all(record.graded.grade.score is not None for record in records)


def test_two_stages_draw_the_same_seeds(tmp_path: Path) -> None:
    one, other = ScriptedSampler(yes_or_no), ScriptedSampler(yes_or_no)
    measure(a_job(tmp_path / "a", Method.EVALUATION), one)
    measure(a_job(tmp_path / "b", Method.EVALUATION), other)
    assert [r.seed for r in one.requests] == [r.seed for r in other.requests]


def test_rollouts_that_ended_out_of_order_are_not_made_twice(tmp_path: Path) -> None:
    whole = measure(
        a_job(tmp_path / "a", Method.EVALUATION),
        ScriptedSampler(yes_or_no),
        EvaluationConfig(samples_per_task=2),
    )
    job = a_job(tmp_path / "b", Method.EVALUATION)
    overtook = [whole[-1]]  # the second rollout of the last task
    job.append(overtook)
    again = measure(job, ScriptedSampler(yes_or_no), EvaluationConfig(samples_per_task=2))
    seeds = [record.graded.trajectory.seed for record in again]
    assert sorted(seeds) == sorted(record.graded.trajectory.seed for record in whole)
