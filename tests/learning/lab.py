"""Trains a tiny model on a toy with the real engine and the real trainer, and measures it."""

import asyncio
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from recipes import Recipe
from symbol_chat import SymbolChat
from tiny_training import config, tiny_model
from toys import Problem, Toy, ToyGrader

from agentrft.core.config import EngineConfig, EvaluationConfig, Methods, ProjectConfig
from agentrft.core.policy import Checkpoint
from agentrft.core.run import Method, RolloutRecord
from agentrft.core.seeds import derive_seed
from agentrft.core.spec import AgentSpec
from agentrft.core.training_config import Optimizer
from agentrft.graders.reward_terms import with_terms
from agentrft.inference.embedded.engine import EmbeddedEngine
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement, evaluate
from agentrft.jobs.preference import preference
from agentrft.jobs.progress import SilentProgress
from agentrft.jobs.project import Project
from agentrft.jobs.reinforcement import reinforce, serving
from agentrft.jobs.rejection import rejection
from agentrft.jobs.serving import OpenWeights, first_step
from agentrft.jobs.trained import NothingLearnedError
from agentrft.jobs.validation import TaskSets
from agentrft.store.home import Home
from agentrft.training.checkpoint import verify_checkpoint
from agentrft.training.credit import imitation
from agentrft.training.trainer import LocalTrainer

WARM_STEPS = 60
OPTIMAL = 0.9
"""Share of rollouts, sampled as in training, that do the best there is."""
LOOKS = 16
"""Rollouts per task of a measurement."""


def warmed(problem: Problem, folder: Path, seed: int) -> Path:
    """Return a random model that was taught the format: every way of acting equally often."""
    base = tiny_model(folder / "random", seed=seed)
    chat = SymbolChat()
    samples = [
        imitation(*chat.demonstration(messages, ()), id=f"demonstration-{number}")
        for number, messages in enumerate(problem.demonstrations)
    ]
    trainer = LocalTrainer(
        base,
        config("full", optimizer=Optimizer(learning_rate=1e-2, warmup_steps=5)),
        loss="cross_entropy",
        canaries=[],
        seed=seed,
    )
    for _ in range(WARM_STEPS):
        trainer.step(samples)
    trainer.save(folder / "warm", {})
    return folder / "warm"


def a_project(problem: Problem, folder: Path, methods: Methods) -> Project:
    """Return the toy as a project whose rows lie in the folder."""
    rows = [
        {
            "id": f"{problem.name}-{n}",
            "messages": [{"role": "user", "content": row["context"]}],
            **row,
        }
        for n, row in enumerate(problem.rows)
    ]
    for name in ("train.jsonl", "holdout.jsonl"):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Project(
        folder=folder,
        config=ProjectConfig(name=problem.name, methods=methods),
        spec=AgentSpec(limits=problem.limits),
        open_environment=lambda task, trace_id: Toy(problem=problem, task=task),
        grader=with_terms(ToyGrader(rule=problem.rule), problem.reward),
        tools=problem.tools,
    )


@contextmanager
def served(problem: Problem, warm: Path, folder: Path, methods: Methods) -> Iterator[OpenWeights]:
    """Open the warm model on a project in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    engine = EmbeddedEngine(
        warm,
        EngineConfig(dtype="float32", threads=1),
        max_context_tokens=problem.limits.max_context_tokens,
    )
    try:
        yield OpenWeights(
            renderer=SymbolChat(),
            sampler=engine,
            project=a_project(problem, folder, methods),
            open_trainer=partial(LocalTrainer, warm),
            verify=verify_checkpoint,
            changed=lambda folder: True,
        )
    finally:
        engine.close()


def a_job(folder: Path, method: Method, seed: int) -> Job:
    return Job.start(
        Home.open(folder / "home"),
        "toy",
        method,
        config={},
        seed=seed,
        progress=SilentProgress(),
        stop=asyncio.Event(),
        run_id="run-1",
    )


async def reinforced(job: Job, model: OpenWeights, *, concurrency: int = 64) -> Checkpoint:
    """Reinforce the warm model as its project says."""
    settings = model.project.config.methods.reinforcement
    async with job.running():
        trainer = model.resumed_trainer(job, settings.trainer, "policy_gradient", None)
        tasks = model.project.tasks("train")
        return await reinforce(
            job,
            model.setup(),
            trainer,
            TaskSets(train=tasks),
            settings,
            first_step=first_step(trainer),
            concurrency=concurrency,
        )


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a training came to."""

    records: Sequence[RolloutRecord]
    """After training, or of the warm model."""
    samples: int | None = None
    """Training rollouts until `OPTIMAL` of them did the best there is; None if they never did."""
    rollouts: int = 0
    """Training rollouts altogether."""

    @property
    def share(self) -> float:
        """Share of rollouts after training that do the best there is."""
        return optimal_share(self.records)


def learned(recipe: Recipe, problem: Problem, folder: Path, seed: int, warm: Path) -> Outcome:
    """Train the warm model as the recipe says and measure it."""

    async def trained(job: Job, model: OpenWeights, start: Path | None) -> Checkpoint:
        match recipe.method:
            case Method.REJECTION:
                return await rejection(job, model, start)
            case Method.PREFERENCE:
                return await preference(job, model, start)
            case _:
                return await reinforced(job, model)

    async def main(model: OpenWeights) -> Outcome:
        start: Path | None = None
        train: list[RolloutRecord] = []
        share = 0.0
        for number in range(recipe.rounds):
            job = a_job(folder / str(number), recipe.method, derive_seed(seed, number))
            try:
                start = Path((await trained(job, model, start)).path)
            except NothingLearnedError:  # all succeed, so that nothing is left to prefer
                break
            finally:
                train += job.read_all(RolloutRecord)
            share = optimal_share(await measured(job, model, start))
            if share >= OPTIMAL:
                break
        job = a_job(folder / "after", Method.EVALUATION, seed)
        by_step = recipe.method is Method.REINFORCEMENT
        by_round = len(train) if share >= OPTIMAL else None
        return Outcome(
            records=await measured(job, model, start),
            rollouts=len(train),
            samples=samples_to_optimum(train) if by_step else by_round,
        )

    with served(problem, warm, folder, recipe.methods) as model:
        return asyncio.run(main(model))


def begun(problem: Problem, folder: Path, seed: int, warm: Path) -> Outcome:
    """Measure the warm model."""
    with served(problem, warm, folder, Methods()) as model:
        job = a_job(folder, Method.EVALUATION, seed)
        return Outcome(records=asyncio.run(measured(job, model, None)))


async def measured(job: Job, model: OpenWeights, checkpoint: Path | None) -> list[RolloutRecord]:
    """Roll out every task as in training."""
    return await evaluate(
        job,
        await serving(job, model, checkpoint),
        model.project.tasks("holdout"),
        EvaluationConfig(samples_per_task=LOOKS, temperature=1.0),
        Measurement(stage="after", split="holdout", seed=job.run.seed),
        concurrency=64,
    )


def samples_to_optimum(train: Sequence[RolloutRecord]) -> int | None:
    """Return the rollouts up to the first two steps in a row that do the best there is."""
    by_step: dict[int, list[RolloutRecord]] = {}
    for record in train:
        by_step.setdefault(record.step, []).append(record)
    for step in range(2, max(by_step) + 1):
        if optimal_share([*by_step[step - 1], *by_step[step]]) >= OPTIMAL:
            return sum(record.step <= step for record in train)
    return None


def optimal_share(records: Sequence[RolloutRecord]) -> float:
    best = [(record.graded.grade.score or 0.0) >= 0.999 for record in records]
    return sum(best) / len(best)
