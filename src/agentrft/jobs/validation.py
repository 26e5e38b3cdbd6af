"""Evaluations beside training: validation tasks, a held-out grader's word on them, canary tasks."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from agentrft.core.config import EvaluationConfig
from agentrft.core.protocols import Grader
from agentrft.core.run import RolloutRecord, RolloutSplit
from agentrft.core.task import Task
from agentrft.core.training_config import ReinforcementConfig
from agentrft.jobs.checkpoints import ValidationScores
from agentrft.jobs.context import Job
from agentrft.jobs.evaluation import Measurement, evaluate, stored_records, stored_summaries
from agentrft.jobs.following import StepResult, mean_gold, mean_score
from agentrft.jobs.project import Project
from agentrft.rollout.episode import RolloutSetup

STAGE = "reinforcement"
EVALUATIONS = 5
"""Of a run whose config names no interval."""
CANARY_SAMPLES = 4
"""Rollouts of a canary task at each evaluation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSets:
    """What reinforcement reads: it learns from `train` and watches the rest."""

    train: Sequence[Task]
    validation: Sequence[Task] = ()
    validation_samples: int = 1
    """Rollouts per validation task."""
    grader: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """Grader object of the run; what it reads of a row is what canary tasks have wrong."""
    gold_grader: Grader | None = None
    """Held out: asked about validation rollouts, never about those that are trained on."""
    second_grader: Grader | None = None
    """The run's grader with another model behind it, likewise."""


def task_sets(project: Project, *, validation_samples: int = 1) -> TaskSets:
    """Return what a reinforcement run of a project reads; validation rows only if it looks at them."""
    watched = project.gold_grader or project.second_grader
    looks = project.config.methods.reinforcement.validation_interval or (
        watched and project.validation_rows == "validation"
    )
    return TaskSets(
        train=project.tasks("train"),
        validation=project.tasks("validation") if looks else (),
        validation_samples=validation_samples,
        grader=project.config.grader,
        gold_grader=project.gold_grader,
        second_grader=project.second_grader,
    )


class Validation:
    """Rolls out what is not trained on: every interval, after the last step, and before the first."""

    def __init__(
        self,
        job: Job,
        tasks: TaskSets,
        config: ReinforcementConfig,
        *,
        canaries: Sequence[Task],
        concurrency: int,
    ) -> None:
        self._job, self._concurrency = job, concurrency
        self._watchers = tasks.gold_grader, tasks.second_grader
        self._interval = config.validation_interval or every(config.steps)
        self._last = config.steps
        watched = any(self._watchers)
        # Rows of the train file can be watched too: their rollouts here carry no credit.
        pool = tasks.validation or (tasks.train if watched else ())
        looks = config.validation_interval or watched
        count = config.validation_tasks or len(pool)
        self._tasks = tuple(pool[:count]) if looks else ()
        self._canaries = tuple(canaries)
        self._evaluation = EvaluationConfig(
            samples_per_task=tasks.validation_samples, temperature=config.temperature
        )

    def scores(self) -> dict[int, ValidationScores]:
        """Return what came out of the steps whose validation is stored whole."""
        stored = stored_summaries(self._job, STAGE, "validation")
        steps = {summary.step for summary in stored if self.is_due(summary.step)}
        return {
            step: scores_of(self._stored("validation", step))
            for step in sorted(steps)
            if not self._missing("validation", step)
        }

    def is_unfinished(self, step: int) -> bool:
        """Whether this step was stored but its validation is not whole."""
        return self.is_due(step) and bool(
            self._missing("validation", step) or self._missing("canary", step)
        )

    def is_due(self, step: int) -> bool:
        """Whether a step is followed by an evaluation."""
        return step > 0 and (step % self._interval == 0 or step == self._last)

    async def before_training(self, setup: RolloutSetup) -> None:
        """Measure what monitors compare with: the canaries' base rate, and train against gold."""
        validation = self._missing("validation", 0) if any(self._watchers) else 0
        if not validation and not self._missing("canary", 0):
            return
        told: list[str] = []
        if self._canaries:
            score = mean_score(await self._canary_rollouts(0, setup))
            told.append(f"{len(self._canaries)} canary tasks score {_shown(score)}")
        if validation:
            found = scores_of(await self._validation_rollouts(0, setup))
            told.append(f"grader {_shown(found.score)}, held-out grader {_shown(found.gold)}")
        self._job.event(f"before step 1: {'; '.join(told)}")

    async def after(self, result: StepResult, setup: RolloutSetup) -> StepResult:
        """Evaluate if it is time and return the result with what came out."""
        if not self.is_due(result.step) or not (self._tasks or self._canaries):
            return result
        clock = Clock()
        validation = await self._validation_rollouts(result.step, setup) if self._tasks else None
        clock.mark("validation")
        return replace(
            result,
            metrics={**result.metrics, **clock.seconds} if self._tasks else result.metrics,
            validation=validation,
            canaries=await self._canary_rollouts(result.step, setup),
        )

    async def _validation_rollouts(self, step: int, setup: RolloutSetup) -> list[RolloutRecord]:
        gold, second = self._watchers
        return await evaluate(
            self._job,
            replace(setup, gold_grader=gold, second_grader=second),
            self._tasks,
            self._evaluation,
            self._measurement("validation", step),
            concurrency=self._concurrency,
        )

    async def _canary_rollouts(self, step: int, setup: RolloutSetup) -> list[RolloutRecord]:
        return await evaluate(
            self._job,
            setup,
            self._canaries,
            replace(self._evaluation, samples_per_task=CANARY_SAMPLES),
            self._measurement("canary", step),
            concurrency=self._concurrency,
        )

    def _missing(self, split: RolloutSplit, step: int) -> int:
        wanted = {
            "validation": len(self._tasks) * self._evaluation.samples_per_task,
            "canary": len(self._canaries) * CANARY_SAMPLES,
        }[split]
        stored = stored_summaries(self._job, STAGE, split)
        return max(0, wanted - sum(summary.step == step for summary in stored))

    def _stored(self, split: RolloutSplit, step: int) -> list[RolloutRecord]:
        return stored_records(self._job, self._measurement(split, step))

    def _measurement(self, split: RolloutSplit, step: int) -> Measurement:
        return Measurement(stage=STAGE, split=split, step=step, seed=self._job.run.seed)


def every(steps: int) -> int:
    """Return the interval of a run that names none."""
    return max(1, math.floor(steps / EVALUATIONS + 0.5))


def scores_of(records: Sequence[RolloutRecord]) -> ValidationScores:
    """Return the means of both graders."""
    return ValidationScores(score=mean_score(records), gold=mean_gold(records))


def _shown(score: float | None) -> str:
    return "unknown" if score is None else f"{score:.3f}"


class Clock:
    """Seconds by phase."""

    def __init__(self) -> None:
        self._last = time.monotonic()
        self.seconds: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        """End a stretch of a phase here; stretches of the same phase add up."""
        now = time.monotonic()
        name = f"seconds/{phase}"
        self.seconds[name] = self.seconds.get(name, 0.0) + now - self._last
        self._last = now
