from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import binom

from agentrft.core.spec import AgentSpec, Section
from agentrft.measure.diagnosis import FailureClass
from agentrft.measure.search_summary import Confirmation
from agentrft.optimize.confirm import Arm, confirmed
from agentrft.optimize.planted import fabricated, planted_tasks
from agentrft.optimize.variants import Variant

TASKS = planted_tasks("holdout", 100, mean=0.5, seed=0)
PAIRS = [(task, 0) for task in TASKS]


def arm(name: str, solved: int, *, tokens: int = 20, costs: bool = False, skip: int = 0) -> Arm:
    """Solves the tasks from `skip` on, `solved` of them."""
    settings = {name: "on"} if name else {}
    spec = AgentSpec(sections=(Section(name=name, text=name),))
    return Arm(
        variant=Variant(name=name or "baseline", spec=spec, settings=settings, costs=costs),
        graded=tuple(
            fabricated(
                task,
                None if skip <= n < skip + solved else FailureClass.WRONG_PLAN,
                score=float(skip <= n < skip + solved),
                spec_hash=name,
                tokens=tokens,
            )
            for n, task in enumerate(TASKS)
        ),
    )


def judged(*finalists: Arm, alpha: float = 0.1, alpha_costly: float = 0.05) -> list[Confirmation]:
    return list(
        confirmed(
            arm("", 40),
            finalists,
            PAIRS,
            threshold=1.0,
            alpha=alpha,
            alpha_costly=alpha_costly,
            seed=0,
        )
    )


def test_a_clear_gain_is_promoted_and_a_loss_rejected() -> None:
    better, worse = judged(arm("better", 60), arm("worse", 30))
    assert (better.verdict, worse.verdict) == ("promoted", "rejected")
    assert better.difference.value == pytest.approx(0.2)
    assert worse.adjusted_p > 0.5


def test_a_gain_too_small_to_show_waits_with_the_number_of_rollouts_it_lacks() -> None:
    [one] = judged(arm("slightly", 42))
    assert one.verdict == "promising"
    assert one.missing_rollouts > 1000


def test_of_several_significant_finalists_the_best_is_promoted() -> None:
    good, best = judged(arm("good", 60), arm("best", 70))
    assert (good.verdict, best.verdict) == ("promising", "promoted")
    assert "less so than best" in good.reason


def test_several_finalists_need_stronger_evidence_each() -> None:
    # Four tasks changed, all for the better: p = 1/16 one-sided.
    [alone] = judged(arm("four", 44))
    assert alone.verdict == "promoted"
    assert alone.adjusted_p == pytest.approx(1 / 16)
    four, _ = judged(arm("four", 44), arm("other", 40))
    assert four.verdict == "promising"
    assert four.adjusted_p == pytest.approx(2 / 16)


def test_a_dearer_spec_needs_stronger_evidence() -> None:
    [said] = judged(arm("four", 44, costs=True))
    [measured] = judged(arm("four", 44, tokens=30))
    [cheap] = judged(arm("four", 44, tokens=21))
    assert (said.alpha, said.verdict) == (0.05, "promising")
    assert (measured.alpha, measured.verdict) == (0.05, "promising")
    assert "sampled tokens +50%" in measured.reason
    assert (cheap.alpha, cheap.verdict) == (0.1, "promoted")
    assert measured.sampled_tokens.value == pytest.approx(30)


def test_a_spec_that_makes_calls_where_the_baseline_gave_up_is_not_dearer_for_it() -> None:
    def idle(of: Arm) -> Arm:
        """Say nothing and call nothing where it fails."""
        graded = (
            one
            if one.grade.score
            else replace(one, trajectory=replace(one.trajectory, turns=one.trajectory.turns[-1:]))
            for one in of.graded
        )
        return replace(of, graded=tuple(graded))

    def held_to(finalist: Arm) -> Confirmation:
        return confirmed(
            idle(arm("", 40)),
            [finalist],
            PAIRS,
            threshold=1.0,
            alpha=0.1,
            alpha_costly=0.05,
            seed=0,
        )[0]

    same = held_to(idle(arm("better", 70)))
    assert same.tool_calls.low > 0
    assert (same.alpha, same.verdict) == (0.1, "promoted")
    assert held_to(idle(arm("dearer", 70, tokens=30))).alpha == 0.05


def test_identical_specs_are_promoted_at_most_at_alpha() -> None:
    random = np.random.default_rng(0)
    seeds, promoted = 100, 0
    chances = random.beta(0.6, 0.6, size=len(TASKS))
    for _ in range(seeds):
        arms = [
            Arm(
                variant=Variant(name=name, spec=AgentSpec(), settings={"x": name}),
                graded=tuple(
                    fabricated(task, None, score=float(random.random() < chance), spec_hash=name)
                    for task, chance in zip(TASKS, chances, strict=True)
                ),
            )
            for name in ("baseline", "first", "second")
        ]
        found = confirmed(
            arms[0], arms[1:], PAIRS, threshold=1.0, alpha=0.1, alpha_costly=0.05, seed=0
        )
        promoted += any(one.verdict == "promoted" for one in found)
    assert promoted <= binom.ppf(0.999, seeds, 0.1)
