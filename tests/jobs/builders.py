"""Small builders: a job in a temporary home, tasks, and a setup made of shipped fakes."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from byte_chat import ByteChat, a_policy, says

from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment, Sampler, SampleRequest
from agentrft.core.run import Method
from agentrft.core.task import Message, Task
from agentrft.core.trajectory import Trajectory
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.context import Job
from agentrft.jobs.progress import SilentProgress
from agentrft.rollout.dialogue import TokenSpeaker
from agentrft.rollout.episode import RolloutSetup
from agentrft.rollout.scripted import ScriptedEnvironment
from agentrft.store.home import Home
from agentrft.training.recording import RecordingTrainer

CANARIES = ((1, 2, 3),)


def a_job(
    folder: Path,
    method: Method = Method.REINFORCEMENT,
    run_id: str = "run-1",
    config: Mapping[str, Any] = MappingProxyType({}),
) -> Job:
    return Job.start(
        Home.open(folder),
        "project",
        method,
        config=dict(config),
        seed=7,
        progress=SilentProgress(),
        stop=asyncio.Event(),
        run_id=run_id,
    )


def some_tasks(count: int) -> list[Task]:
    return [
        Task(id=f"task-{n}", messages=(Message(role="user", content=f"hello {n}"),), family="f")
        for n in range(count)
    ]


def a_trainer() -> RecordingTrainer:
    return RecordingTrainer(canaries=CANARIES)


def yes_or_no(request: SampleRequest) -> tuple[int, ...]:
    return says("yes") if request.seed % 2 else says("no")


class YesGrader:
    """Scores a yes with 1, anything else with 0."""

    name = "yes"

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        return Grade(score=float(trajectory.output_text == "yes"), grader=self.name)


def a_setup(sampler: Sampler | None = None) -> RolloutSetup:
    return RolloutSetup(
        policy=a_policy(),
        speaker=TokenSpeaker(sampler or ScriptedSampler(yes_or_no), ByteChat()),
        open_environment=ScriptedEnvironment({}),
        grader=YesGrader(),
    )
