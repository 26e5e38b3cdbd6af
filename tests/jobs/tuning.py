"""Builders of fine-tuning jobs on shipped fakes: whole lives run in milliseconds."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builders import CANARIES, yes_or_no
from byte_chat import END, ByteChat

from agentrft.core.config import AuditConfig
from agentrft.core.job import (
    FineTuningJob,
    FineTuningMethod,
    JobState,
    PreferenceMethod,
    ReinforcementMethod,
    SupervisedMethod,
)
from agentrft.core.protocols import SampleRequest, Trainer
from agentrft.core.run import Event
from agentrft.core.sample import Sample
from agentrft.core.task import Message, ToolSpec
from agentrft.core.training_config import TrainerConfig
from agentrft.graders.backends import Backends
from agentrft.inference.scripted import ScriptedSampler
from agentrft.jobs.fine_tuning import Interruption, LeasedJob
from agentrft.jobs.project import Project
from agentrft.jobs.serving import OpenWeights, ServedModel
from agentrft.store.home import Home
from agentrft.training.credit import LossName
from agentrft.training.recording import RecordingTrainer

PROJECT = "proj_1"
GRADER: Mapping[str, Any] = {
    "type": "string_check",
    "name": "says_yes",
    "input": "{{ sample.output_text }}",
    "reference": "{{ item.answer }}",
    "operation": "eq",
}


class DemonstrationChat(ByteChat):
    """The character chat with whole conversations to imitate."""

    def demonstration(
        self, messages: Sequence[Message], tools: Sequence[ToolSpec]
    ) -> tuple[tuple[int, ...], tuple[bool, ...]]:
        ids: list[int] = []
        mask: list[bool] = []
        for place, message in enumerate(messages):
            if message.role != "assistant":
                continue
            seen = [m for m in messages[:place] if m.role != "assistant"][-1:]
            prompt = self.start(seen, tools) if not ids else self._messages(seen)
            said = (*(ord(character) for character in message.content), END)
            ids += (*prompt, *said)
            mask += [False] * len(prompt) + [True] * len(said)
        return tuple(ids), tuple(mask)


class ObservedTrainer(RecordingTrainer):
    """Tells of every step before it is made."""

    on_step: Callable[[int], None] = staticmethod(lambda steps_done: None)

    def step(self, samples: Sequence[Sample]) -> Mapping[str, float]:
        self.on_step(self.steps_done)
        return super().step(samples)


@dataclass
class FakeModel:
    """Opens scripted samplers and recording trainers, and keeps them."""

    before: Callable[[SampleRequest], Awaitable[None]] | None = None
    script: Callable[[SampleRequest], Sequence[int]] = yes_or_no
    trainer: type[ObservedTrainer] = ObservedTrainer
    trainers: list[ObservedTrainer] = field(default_factory=list[ObservedTrainer])
    starts: list[Path | None] = field(default_factory=list[Path | None])
    held: list[LeasedJob] = field(default_factory=list[LeasedJob])
    """Jobs that a test may interrupt."""
    loop: asyncio.AbstractEventLoop | None = None
    """The one that carries the job out."""
    on_step: Callable[[int], None] = lambda steps_done: None
    """Called on the trainer's thread."""
    changed: bool = True
    """Whether training changes anything that would be served."""

    @contextmanager
    def __call__(self, project: Project, home: Home, *, trained: bool) -> Iterator[ServedModel]:
        yield OpenWeights(
            renderer=DemonstrationChat(),
            sampler=ScriptedSampler(self.script, before=self.before),
            project=project,
            open_trainer=self.open_trainer,
            verify=lambda folder: None,
            changed=lambda folder: self.changed,
        )

    def open_trainer(
        self,
        config: TrainerConfig,
        *,
        loss: LossName,
        canaries: Sequence[Sequence[int]],
        seed: int,
        resume: Path | None,
        start: Path | None,
    ) -> Trainer:
        trainer = self.trainer(canaries=CANARIES)
        if resume is not None:
            saved = RecordingTrainer.resumed(resume)
            trainer.steps_done, trainer.cursor = saved.steps_done, saved.cursor
        trainer.on_step = self.on_step
        self.trainers.append(trainer)
        self.starts.append(start)
        return trainer

    @property
    def batches(self) -> list[tuple[Any, ...]]:
        """Every batch of every trainer, in order."""
        return [batch for trainer in self.trainers for batch in trainer.batches]


def a_home(folder: Path) -> Home:
    home = Home.open(folder)
    home.access.create_project(PROJECT)
    return home


def stored(home: Home, rows: Sequence[Mapping[str, Any]], name: str = "rows.jsonl") -> str:
    """Upload rows; return the file's id."""
    with home.files.receive(PROJECT, name, "fine-tune") as incoming:
        incoming.write("\n".join(json.dumps(row) for row in rows).encode())
        return incoming.commit().id


def questions(count: int, answer: str = "yes") -> list[dict[str, Any]]:
    return [
        {"messages": [{"role": "user", "content": f"question {n}"}], "answer": answer}
        for n in range(count)
    ]


def conversations(count: int) -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"question {n}"},
                {"role": "assistant", "content": "yes"},
            ]
        }
        for n in range(count)
    ]


def pairs(count: int) -> list[dict[str, Any]]:
    """Rows for preference training: yes over no."""
    return [
        {
            "input": {"messages": [{"role": "user", "content": f"question {n}"}]},
            "preferred_output": [{"role": "assistant", "content": "yes"}],
            "non_preferred_output": [{"role": "assistant", "content": "no"}],
        }
        for n in range(count)
    ]


REINFORCEMENT = ReinforcementMethod(
    grader=GRADER, batch_size=2, n_epochs=2, eval_interval=2, eval_samples=2
)
"""Ten steps over ten rows, validated after each second one."""
SUPERVISED = SupervisedMethod(batch_size=4, n_epochs=2)
"""Six steps over twelve rows."""
PREFERENCE = PreferenceMethod(batch_size=4, n_epochs=2)
"""Six steps over twelve pairs."""


def submitted(
    home: Home,
    method: FineTuningMethod = REINFORCEMENT,
    *,
    rows: Sequence[Mapping[str, Any]] | None = None,
    validation: Sequence[Mapping[str, Any]] | None = None,
    job_id: str = "ftjob-1",
    base: str = "smollm2-135m",
    secrets: Mapping[str, str] | None = None,
    **fields: Any,
) -> FineTuningJob:
    """Upload rows and put a job in line."""
    match method:
        case SupervisedMethod():
            own, unseen = conversations(12), conversations(3)
        case PreferenceMethod():
            own, unseen = pairs(12), pairs(3)
        case ReinforcementMethod():
            own, unseen = questions(10), questions(3)
    rows = own if rows is None else rows
    validation = unseen if validation is None else validation
    return home.queue.submit(
        FineTuningJob(
            id=job_id,
            project=PROJECT,
            model=base,
            base=base,
            method=method,
            training_file=stored(home, rows),
            validation_file=stored(home, validation) if validation else None,
            seed=7,
            created_at=time.time(),
            **fields,
        ),
        secrets or {},
    )


Prepare = Callable[[LeasedJob], None]


def carried_out(
    home: Home, model: FakeModel, prepare: Prepare = lambda job: None, *, worker: str = "w1"
) -> None:
    """Claim the oldest waiting job and carry it out once, on one worker."""

    async def main() -> None:
        model.loop = asyncio.get_running_loop()
        lease = home.queue.claim(worker, 60.0)
        assert lease is not None
        job = LeasedJob(home, lease, open_model=model, backends=Backends(), audit=AuditConfig())
        prepare(job)
        await job.carry_out()

    asyncio.run(main())


def finished(home: Home, model: FakeModel, job_id: str = "ftjob-1") -> JobState:
    """Check the job and train it to its end."""
    carried_out(home, model)
    carried_out(home, model)
    return home.queue.get(job_id)


def events(home: Home, job_id: str = "ftjob-1") -> list[Event]:
    return list(home.store.read(job_id, Event, limit=1000).items)


def messages(home: Home, job_id: str = "ftjob-1") -> list[str]:
    """Events that are told in words, oldest first."""
    return [event.message for event in events(home, job_id) if event.kind == "message"]


def callable_names(home: Home, job_id: str = "ftjob-1") -> list[str]:
    return [model.id for model in home.catalogue.of_job(job_id)]


def interrupt_in_step(model: FakeModel, step: int, reason: Interruption) -> None:
    """Interrupt while the trainer makes the step after so many."""

    def on_step(steps_done: int) -> None:
        if model.held and model.loop and steps_done == step:
            job = model.held.pop()
            model.loop.call_soon_threadsafe(job.interrupt, reason)

    model.on_step = on_step
