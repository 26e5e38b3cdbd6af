"""Our search against the usual one, at equal rollouts, where the truth is planted.

    python benchmarks/search.py                 # 200 seeds of each world, about 6 minutes of one core
    python benchmarks/search.py --seeds 40

*Ours* is `optimize.search` as it ships: screen, race, confirmation. *Gate* is what prompt optimisers
commonly do: a changed spec that beats its parent on three tasks is rolled out on all of dev, and in
the end the spec with the best mean there is taken. Each changed spec sets one knob of the best so far,
or of any other, anew. It gets as many rollouts as ours spent on the same seed.
"""

import argparse
import asyncio
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from agentrft.core.config import OptimizeConfig
from agentrft.core.spec import AgentSpec
from agentrft.core.task import Task
from agentrft.measure.diagnosis import FailureClass
from agentrft.optimize.planted import (
    TOOLS,
    Planted,
    PlantedTrials,
    planted_knobs,
    planted_tasks,
)
from agentrft.optimize.problem import Known, Problem, TaskSplits
from agentrft.optimize.search import search
from agentrft.optimize.trials import TrialRequest, passed
from agentrft.optimize.variants import Knob, Level, variant

MINIBATCH = 3
CONFIG = OptimizeConfig(minutes=1e9)
TASKS = {"feedback": 100, "dev": 100, "holdout": 200}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What is planted."""

    name: str
    effects: Sequence[Planted]
    failures: Mapping[FailureClass, float]
    mean: float = 0.4


def idle(count: int) -> list[Planted]:
    return [Planted(knob=f"idle {n}", level=level) for n in range(count) for level in "ab"]


WORLDS = (
    World(name="nothing helps", effects=idle(8), failures={}),
    World(
        name="half does nothing, half does harm",
        effects=[*idle(4), *(Planted(knob=f"harm {n}", shift=-0.5) for n in range(4))],
        failures={},
    ),
    World(
        name="one change worth 15 points",
        effects=[Planted(knob="good", shift=1.2), *idle(7)],
        failures={},
    ),
    World(
        name="a mixed pool",
        effects=[
            Planted(knob="format", removes=(FailureClass.MALFORMED_CALL,)),
            Planted(knob="plan", shift=0.5),
            Planted(knob="demonstrations", level="one", shift=0.3),
            Planted(knob="demonstrations", level="three", shift=0.6),
            Planted(knob="guard", shift=-0.8),
            Planted(knob="wording", level="a", shift=-0.3),
            Planted(knob="wording", level="b", shift=0.2),
            *idle(3),
        ],
        failures={FailureClass.MALFORMED_CALL: 0.2},
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What one search of one seed came to."""

    changed: bool
    true: float
    """Gain of the spec that was taken, over all holdout tasks."""
    reported: float
    """The gain that the search itself states."""
    rollouts: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Offering:
    """Proposes the planted knobs."""

    offers: Sequence[Knob]

    async def knobs(self, known: Known) -> Sequence[Knob]:
        return self.offers


def problem(world: World, seed: int) -> Problem:
    parts = {
        name: planted_tasks(name, count, mean=world.mean, seed=seed)
        for name, count in TASKS.items()
    }
    splits = TaskSplits(feedback=parts["feedback"], dev=parts["dev"], holdout=parts["holdout"])
    return Problem(baseline=AgentSpec(), splits=splits, tools=TOOLS, pass_threshold=1.0)


def trials(world: World, seed: int) -> PlantedTrials:
    return PlantedTrials(effects=world.effects, failures=world.failures, seed=seed)


def gain(world: World, seed: int, chosen: AgentSpec) -> float:
    truth, given = trials(world, seed), problem(world, seed)
    return float(
        np.mean(
            [
                truth.chance(chosen, task) - truth.chance(given.baseline, task)
                for task in given.splits.holdout
            ]
        )
    )


def ours(world: World, seed: int, config: OptimizeConfig) -> Outcome:
    given, rolls = problem(world, seed), trials(world, seed)
    knobs = Offering(offers=planted_knobs(world.effects))
    found = asyncio.run(search(given, rolls, [knobs], config, seed=seed, told=lambda line: None))
    stated = [c.difference.value for c in found.summary.confirmations if c.verdict == "promoted"]
    return Outcome(
        changed=found.summary.promoted,
        true=gain(world, seed, found.chosen),
        reported=stated[0] if stated else 0.0,
        rollouts=rolls.executed,
    )


def gate(world: World, seed: int, rollouts: int) -> Outcome:
    """Accept on a minibatch, then take the best on validation."""
    given, rolls, draw = problem(world, seed), trials(world, seed), random.Random(seed)
    train, dev = given.splits.feedback, given.splits.dev
    knobs = planted_knobs(world.effects)

    def mean(spec: AgentSpec, tasks: Sequence[Task], sample: int) -> float:
        requests = [
            TrialRequest(spec=spec, split="dev", task=task, sample=sample, purpose="gate")
            for task in tasks
        ]
        return float(
            np.mean([bool(passed(one, 1.0)) for one in asyncio.run(rolls.roll_out(requests))])
        )

    pool = [variant(given.baseline, {})]
    chosen = [dict[Knob, Level]()]
    values = [mean(pool[0].spec, dev, 0)]
    for step in range(1, 100_000):
        # Both arms of a minibatch, and all of dev for whoever passes.
        if rolls.executed + 2 * MINIBATCH + len(dev) > rollouts:
            break
        # Half the time any of the pool, since the best one runs out of new children.
        place = int(np.argmax(values)) if draw.random() < 0.5 else draw.randrange(len(pool))
        knob = draw.choice(knobs)
        settings = {**chosen[place], knob: draw.choice(knob.levels)}
        child = variant(given.baseline, settings)
        if any(child.settings == one.settings for one in pool):
            continue
        batch = draw.sample(train, MINIBATCH)
        if mean(child.spec, batch, step) > mean(pool[place].spec, batch, step):
            pool.append(child)
            chosen.append(settings)
            values.append(mean(child.spec, dev, 0))
    best = int(np.argmax(values))
    return Outcome(
        changed=bool(pool[best].settings),
        true=gain(world, seed, pool[best].spec),
        reported=values[best] - values[0],
        rollouts=rolls.executed,
    )


def row(world: str, name: str, outcomes: Sequence[Outcome]) -> str:
    def of(read: Callable[[Outcome], float]) -> float:
        return float(np.mean([read(one) for one in outcomes]))

    wrong = of(lambda one: one.changed and one.true <= 1e-9)
    error = math.sqrt(wrong * (1 - wrong) / len(outcomes))
    return (
        f"| {world} | {name} | {of(lambda one: one.rollouts):,.0f} "
        f"| {of(lambda one: 100 * one.true):+.1f} | {of(lambda one: 100 * one.reported):+.1f} "
        f"| {wrong:.0%} ({error:.1%}) | {of(lambda one: not one.changed):.0%} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seeds", type=int, default=200)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--worlds", nargs="*", type=int, default=list(range(len(WORLDS))))
    parser.add_argument("--finalists", type=int, default=CONFIG.finalists)
    given = parser.parse_args()
    config = replace(CONFIG, finalists=given.finalists)
    print(
        "| world | procedure | rollouts | true gain | reported | wrong promotions (s.e.) | kept |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for number in given.worlds:
        world = WORLDS[number]
        mine, theirs = list[Outcome](), list[Outcome]()
        for seed in range(given.first, given.first + given.seeds):
            mine.append(ours(world, seed, config))
            theirs.append(gate(world, seed, mine[-1].rollouts))
        print(row(world.name, "ours", mine), flush=True)
        print(row(world.name, "gate", theirs), flush=True)


if __name__ == "__main__":
    main()
