import asyncio

from fabricated import FakeTrials, Situation, cancelled, rollout, shown, task, tasks

from agentrft.core.config import OptimizeConfig
from agentrft.core.spec import AgentSpec, system_sections
from agentrft.optimize.problem import Problem, TaskSplits
from agentrft.optimize.proposers import PROPOSERS
from agentrft.optimize.search import search
from agentrft.optimize.trials import TrialRequest

ORDER = ("get_order", {"order_id": "W1"}, "status=pending")
MIXED = [
    *((one, cancelled(one)) for one in tasks(12)),
    *((one, rollout(one, "<call>{", answer="", score=0.0)) for one in tasks(4, start=50)),
    *((one, rollout(one, ORDER, answer="No.", score=0.0)) for one in tasks(4, start=60)),
]


def test_names_of_knobs_and_levels_are_unique_over_all_proposers() -> None:
    situation = Situation(
        MIXED, baseline=AgentSpec(sections=system_sections("Help the buyer. " * 40))
    )
    knobs = [k for one in PROPOSERS for k in asyncio.run(one.knobs(situation.known))]
    names = [(knob.name, level.name) for knob in knobs for level in knob.levels]
    assert len(set(names)) == len(names)
    assert len(knobs) >= 6


def test_nobody_fails_where_nothing_is_known() -> None:
    for one in PROPOSERS:
        assert list(asyncio.run(one.knobs(Situation(tools=()).known))) == []


def test_every_change_leaves_a_spec_that_differs_from_its_baseline() -> None:
    situation = Situation(MIXED, demonstrations=tuple(shown(n) for n in range(4)))
    for one in PROPOSERS:
        for knob in asyncio.run(one.knobs(situation.known)):
            for level in knob.levels:
                assert level.change(AgentSpec()).hash != AgentSpec().hash, (knob.name, level.name)


def test_a_search_finds_the_demonstrations_that_a_weak_agent_needs() -> None:
    def rule(request: TrialRequest):
        luck = (sum(map(ord, request.task.id)) + 3 * request.sample) % 10
        shown = request.spec.shown.count
        if luck < (8 if shown >= 3 else 2):
            return cancelled(request.task, spec=request.spec)
        return rollout(request.task, ORDER, answer="No.", score=0.0, spec=request.spec)

    problem = Problem(
        baseline=AgentSpec(),
        splits=TaskSplits(
            feedback=tasks(40), dev=tasks(60, "dev", 100), holdout=tasks(60, "holdout", 200)
        ),
        tools=Situation().tools,
        pass_threshold=0.5,
        demonstrations=tuple(shown(n, family=f"family {n % 4}") for n in range(16)),
    )
    told: list[str] = []
    found = asyncio.run(
        search(
            problem,
            FakeTrials(rule=rule),
            PROPOSERS,
            OptimizeConfig(rollouts=2400, rounds=1),
            seed=3,
            told=told.append,
        )
    )
    assert found.summary.promoted
    assert found.chosen.shown.count >= 3
    assert task(1).id not in {one.id for one in found.chosen.shown.pool}
