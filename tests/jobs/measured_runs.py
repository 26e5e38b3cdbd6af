"""Runs that measured a holdout, trained, or rolled out train tasks, made with fakes."""

import asyncio
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from byte_chat import says
from search_project import TOML, a_project
from tuning import FakeModel

from agentrft.core.protocols import SampleRequest
from agentrft.core.run import Method, Split
from agentrft.core.task import Demonstration, Message
from agentrft.jobs.comparison import compare_runs
from agentrft.jobs.context import Job
from agentrft.jobs.control import best_of
from agentrft.jobs.evaluation import Measurement
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import Project
from agentrft.jobs.stages import BASE, WARM, evaluation, warm_start
from agentrft.jobs.stages import measured as stage_measured
from agentrft.measure.comparison import Comparison
from agentrft.store.home import Home

TASKS = 24
SHOWN = Demonstration(
    id="d",
    messages=(Message(role="user", content="hi"), Message(role="assistant", content="yes")),
)


def a_desk(folder: Path, more: str = "") -> Project:
    return a_project(folder, toml=TOML + more, rows=TASKS)


def a_run(home: Home, project: Project, method: Method, run_id: str) -> Job:
    return Job.start(
        home,
        project.config.name,
        method,
        config=dataclasses.asdict(project.config),
        seed=3,
        progress=SilentProgress(),
        stop=asyncio.Event(),
        run_id=run_id,
    )


def measured(
    home: Home,
    project: Project,
    run_id: str,
    *,
    chance: int,
    samples: int = 1,
    checkpoint: Path | None = None,
    split: Split = "holdout",
) -> None:
    """Measure a policy that says yes in `chance` of 100 rollouts."""
    job = a_run(home, project, Method.EVALUATION, run_id)
    methods = project.config.methods
    drawn = dataclasses.replace(methods.evaluation, samples_per_task=samples)
    methods = dataclasses.replace(methods, evaluation=drawn)
    config = dataclasses.replace(project.config, methods=methods)
    stage = "checkpoint" if checkpoint else BASE
    with willing(chance)(dataclasses.replace(project, config=config), home, trained=True) as model:
        measurement = Measurement(stage=stage, split=split, seed=job.run.seed)
        asyncio.run(evaluation(job, model, project.tasks(split), measurement, checkpoint))


def willing(chance: int) -> FakeModel:
    def script(request: SampleRequest) -> Sequence[int]:
        return says("yes" if request.seed % 100 < chance else "no")

    return FakeModel(script=script)


def imitated(home: Home, project: Project, run_id: str, start: Path | None = None) -> Path:
    """Train on one conversation; return the checkpoint."""
    job = a_run(home, project, Method.SUPERVISED, run_id)
    with FakeModel()(project, home, trained=True) as model:
        return Path(asyncio.run(warm_start(job, model, start, [SHOWN])).path)


def climbed(home: Home, project: Project, run_id: str) -> None:
    """Leave behind what an improvement does: a base, the control, and a stage that trained."""
    job = a_run(home, project, Method.IMPROVE, run_id)

    async def main() -> None:
        with willing(30)(project, home, trained=True) as model:
            base = await stage_measured(job, model, BASE, None)
            await best_of(job, model, base.records)
            child = job.child(WARM, Method.SUPERVISED)
            checkpoint = await warm_start(child, model, None, [SHOWN])
        with willing(90)(project, home, trained=True) as model:
            await stage_measured(job, model, WARM, checkpoint)

    asyncio.run(main())


def compared(
    home: Home, project: Project, *runs: str, run_id: str = "comparison", **kwargs: Any
) -> Comparison:
    return asyncio.run(compare_runs(a_comparison(home, project, run_id), project, runs, **kwargs))


def a_comparison(home: Home, project: Project, run_id: str) -> Job:
    return Job.start(
        home,
        project.config.name,
        Method.COMPARISON,
        config={},
        seed=3,
        progress=SilentProgress(),
        stop=asyncio.Event(),
        run_id=run_id,
    )
