"""Trials over fakes, with an environment that counts its openings in a file. Run as a program, it
is a search that is killed in the middle: `python trial_builders.py HOME KILLED_AT`."""

import asyncio
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path

from builders import a_job, a_setup, some_tasks, yes_or_no

from agentrft.core.config import Decoding, Limits
from agentrft.core.protocols import Environment, Sampler, SampleRequest
from agentrft.core.run import Method
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Task
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.context import Job
from agentrft.jobs.trials import LEDGER, StoredTrials
from agentrft.optimize.trials import SearchSplit, TrialRequest
from agentrft.rollout.scripted import ScriptedEnvironment


class CountedEnvironment:
    """Opens environments that do nothing, and writes each opening down."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, task: Task, trace_id: str) -> Environment:
        with self.file.open("a") as file:
            file.write(f"{trace_id}\n")
        return ScriptedEnvironment({})(task, trace_id)

    @property
    def opened(self) -> list[str]:
        return self.file.read_text().split() if self.file.exists() else []


def a_search(folder: Path) -> Job:
    return a_job(folder, Method.OPTIMIZE, "run-search")


def counted(folder: Path) -> CountedEnvironment:
    return CountedEnvironment(folder / "opened.txt")


def some_trials(
    job: Job,
    sampler: Sampler | None = None,
    *,
    rollouts: int = 1000,
    minutes: float = 10.0,
    concurrency: int = 4,
) -> StoredTrials:
    setup = replace(a_setup(sampler), open_environment=counted(job.home.path))
    return StoredTrials(job, setup, rollouts=rollouts, minutes=minutes, concurrency=concurrency)


def a_spec(temperature: float = 1.0) -> AgentSpec:
    return AgentSpec(
        limits=Limits(max_context_tokens=100_000), decoding=Decoding(temperature=temperature)
    )


def wanted(
    *specs: AgentSpec,
    tasks: int = 10,
    samples: int = 1,
    split: SearchSplit = "dev",
    purpose: str = "race",
) -> list[TrialRequest]:
    """Arms interleaved task by task."""
    return [
        TrialRequest(spec=spec, split=split, task=task, sample=sample, purpose=purpose)
        for sample in range(samples)
        for task in some_tasks(tasks)
        for spec in specs
    ]


def killed_in_the_middle(folder: Path, killed_at: int) -> None:
    """Run a batch and die by SIGKILL in a sampler call, when all that began have opened."""
    job, environments = a_search(folder), counted(folder)
    ledger = job.folder / LEDGER

    async def die(request: SampleRequest) -> None:
        while len(environments.opened) >= killed_at:
            if len(environments.opened) == ledger.read_text().count('"begin"'):
                os.kill(os.getpid(), signal.SIGKILL)
            await asyncio.sleep(0.001)

    trials = some_trials(job, ScriptedSampler(yes_or_no, before=die))
    asyncio.run(trials.roll_out(wanted(a_spec(0.5), a_spec(1.0))))


if __name__ == "__main__":
    killed_in_the_middle(Path(sys.argv[1]), int(sys.argv[2]))
