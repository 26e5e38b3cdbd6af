"""Our reinforcement on the desk, as `agentrft train` runs it, from weights that lie in a folder."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from worker import Handler, serve

from agentrft.core.policy import Checkpoint
from agentrft.core.run import Method
from agentrft.jobs.checkpoints import Retention
from agentrft.jobs.context import Job
from agentrft.jobs.following import StepResult
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import Project, open_project
from agentrft.jobs.reinforcement import reinforce
from agentrft.jobs.serving import served_model
from agentrft.jobs.validation import task_sets
from agentrft.store.home import Home


class _Watch:
    """Looks at the clock whenever a step is done."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self.steps: dict[int, dict[str, Any]] = {}

    def stepped(self, result: StepResult) -> None:
        self.steps[result.step] = {
            "step": result.step,
            "seconds": time.perf_counter() - self._began,
            "reward": result.metrics.get("reward"),
            "adapter": "",
        }

    def has_told(self, step: int) -> bool:
        return step >= 0

    def kept(self, checkpoints: Sequence[Checkpoint]) -> None:
        for checkpoint in checkpoints:
            self.steps[checkpoint.step]["adapter"] = checkpoint.path


def prepare(settings: Mapping[str, Any]) -> Mapping[str, Handler]:
    project = _project(settings)
    config = project.config.methods.reinforcement

    def learn(folder: str, seed: int, most_seconds: float) -> Mapping[str, Any]:
        home = Home.open(Path(folder))
        job = Job.start(
            home,
            project.config.name,
            Method.REINFORCEMENT,
            config={},
            seed=seed,
            progress=SilentProgress(),
            stop=asyncio.Event(),
        )

        async def run() -> list[dict[str, Any]]:
            with served_model(project, home, trained=True) as model:
                trainer = model.trainer(config.trainer, "policy_gradient", seed=seed)
                watch = _Watch()
                async with job.running():
                    await reinforce(
                        job,
                        model.setup(),
                        trainer,
                        task_sets(project),
                        config,
                        first_step=0,
                        concurrency=model.concurrency,
                        retention=Retention(newest=config.steps),
                        follower=watch,
                    )
                return list(watch.steps.values())

        return {"steps": asyncio.run(run())}

    return {"learn": learn}


def _project(settings: Mapping[str, Any]) -> Project:
    project = open_project(Path(settings["project"]))
    before = project.config.methods.reinforcement
    config = replace(
        before,
        steps=settings["steps"],
        checkpoint_interval=settings["every"],
        tasks_per_step=settings["tasks_per_step"],
        group_size=settings["group_size"],
        trainer=replace(before.trainer, threads=settings["threads"]),
    )
    return replace(
        project,
        config=replace(
            project.config,
            model=settings["model"],
            engine=replace(project.config.engine, threads=settings["threads"]),
            methods=replace(project.config.methods, reinforcement=config),
        ),
    )


serve(prepare)
