"""A search over planted effects, ready to run."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from agentrft.core.config import OptimizeConfig
from agentrft.core.spec import AgentSpec
from agentrft.measure.diagnosis import FailureClass
from agentrft.optimize.planted import (
    TOOLS,
    Planted,
    PlantedTrials,
    planted_knobs,
    planted_tasks,
)
from agentrft.optimize.problem import Found, Known, Problem, TaskSplits
from agentrft.optimize.search import search
from agentrft.optimize.variants import Knob

CONFIG = OptimizeConfig(minutes=1e6)
"""The default, without a clock."""
QUICK = replace(CONFIG, configurations=8, screen_rollouts=6, race=4, race_tasks=8, rounds=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Offering:
    """Proposes what it was given."""

    offers: Sequence[Knob]

    async def knobs(self, known: Known) -> Sequence[Knob]:
        return self.offers


@dataclass(slots=True, kw_only=True)
class Planting:
    """One world."""

    effects: Sequence[Planted]
    failures: Mapping[FailureClass, float] = field(default_factory=dict[FailureClass, float])
    seed: int = 0
    sizes: tuple[int, int, int] = (100, 100, 150)
    """Tasks of feedback, dev and holdout."""
    mean: float = 0.4
    partial: float = 0.0
    config: OptimizeConfig = CONFIG

    @property
    def problem(self) -> Problem:
        feedback, dev, holdout = (
            planted_tasks(name, count, mean=self.mean, seed=self.seed)
            for name, count in zip(("feedback", "dev", "holdout"), self.sizes, strict=True)
        )
        return Problem(
            baseline=AgentSpec(),
            splits=TaskSplits(feedback=feedback, dev=dev, holdout=holdout),
            tools=TOOLS,
            pass_threshold=1.0,
        )

    def trials(
        self,
        *,
        dies_after: int | None = None,
        after: PlantedTrials | None = None,
        seconds: float = 0.0,
    ) -> PlantedTrials:
        """`after` is an earlier process of the same search."""
        return PlantedTrials(
            effects=self.effects,
            failures=self.failures,
            seed=self.seed,
            partial=self.partial,
            rollouts=self.config.rollouts,
            seconds=seconds,
            dies_after=dies_after,
            kept=after.kept if after else {},
            decisions=after.decisions if after else {},
        )

    def found(self, trials: PlantedTrials, knobs: Sequence[Knob] | None = None) -> Found:
        offers = planted_knobs(self.effects) if knobs is None else knobs
        return asyncio.run(
            search(
                self.problem,
                trials,
                [Offering(offers=offers)],
                self.config,
                seed=self.seed,
                told=lambda line: None,
            )
        )

    def true_gain(self, found: Found) -> float:
        """What the chosen spec really gains on the holdout's tasks."""
        trials, problem = self.trials(), self.problem
        return float(
            np.mean(
                [
                    trials.chance(found.chosen, task) - trials.chance(problem.baseline, task)
                    for task in problem.splits.holdout
                ]
            )
        )


def null_effects(count: int) -> list[Planted]:
    """Return knobs that do nothing, with one and two levels in turn."""
    return [
        Planted(knob=f"idle {number}", level=level)
        for number in range(count)
        for level in ("a", "b")[: 1 + number % 2]
    ]
