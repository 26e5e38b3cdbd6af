"""The search as a whole: baseline, screen, race, confirm. Deterministic given its trials' results."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agentrft.core.config import OptimizeConfig
from agentrft.core.grade import GradedTrajectory
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Task
from agentrft.measure.diagnosis import failure_mix
from agentrft.measure.power import minimum_detectable
from agentrft.measure.search_summary import (
    Confirmation,
    DropOne,
    KnobEffect,
    MixEntry,
    SearchSummary,
)
from agentrft.measure.statistics import Estimate, paired_difference, rate
from agentrft.optimize.confirm import Arm, confirmed, holdout_rate, rolled_out
from agentrft.optimize.design import screening_design
from agentrft.optimize.findings import Attempt, solved_conversations, tried
from agentrft.optimize.leaks import withheld
from agentrft.optimize.problem import Found, Known, Problem, Proposer
from agentrft.optimize.purse import Pair, Purse, interleaved, passes, requests, schedule
from agentrft.optimize.race import Placed, race
from agentrft.optimize.screen import screened
from agentrft.optimize.supply import Name, large_treatments, useful_knobs
from agentrft.optimize.trials import BudgetSpentError, TrialRequest, Trials, passed
from agentrft.optimize.variants import Knob, Level, Variant, variant


async def search(
    problem: Problem,
    trials: Trials,
    proposers: Sequence[Proposer],
    config: OptimizeConfig,
    *,
    seed: int,
    told: Callable[[str], None],
) -> Found:
    """Look for a better spec within the budget, and promote it only if the holdout shows it.

    The same seed and the same results of trials find the same.
    """
    run = _Search(problem, trials, config, seed, told)
    await run.measure_baseline()
    if run.small:
        finalists = await run.treat_large_classes(proposers)
    else:
        finalists = await run.improve(proposers)
        finalists = await run.without_idle_costs(finalists)
    return await run.found(await run.confirm(finalists))


LEAST_PAIRS = 4
"""Pairs that a screen or an ablation needs to say anything."""
LARGE_CLASS = 0.2
"""Share of rollouts from which a failure class is treated without a search."""
SMALL_HOLDOUT = 80
"""Rollouts per arm that small data is confirmed with, by repeats."""
BASELINE_SHARE, PROPOSERS_SHARE = 0.4, 0.5
"""Of what is left then and not kept back, at most; or a slow machine would search nothing."""
CHANGES = 3
"""Changes of a promoted spec whose own effects the budget is sure to hold."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A variant with the changes it was made of."""

    variant: Variant
    hash: str
    changes: Mapping[Knob, Level]


class _Search:
    """The state between stages; each stage reads what the earlier ones left."""

    def __init__(
        self,
        problem: Problem,
        trials: Trials,
        config: OptimizeConfig,
        seed: int,
        told: Callable[[str], None],
    ) -> None:
        self.problem, self.config, self.seed = problem, config, seed
        splits = problem.splits
        self.small = len(splits.feedback) + len(splits.dev) < config.small_data
        self.feedback = self._shuffled("feedback", splits.feedback)[: config.baseline_tasks]
        self.dev = self._shuffled("dev", splits.dev)
        self.withheld = withheld([*splits.dev, *splits.holdout])
        self.notes: list[str] = []
        if shown := self.withheld.shown_by(problem.baseline):
            self.notes.append(
                f"the project's own spec shows {len(shown)} dev or holdout tasks; what is measured "
                "on them says little"
            )
        self.effects: list[KnobEffect] = []
        self.attempts: dict[str, Attempt] = {}
        self.made: dict[str, _Made] = {}
        """By variant name."""
        self.baseline = self._make({}, verdict="what all others are compared with")
        self.ranking: list[Placed] = []
        self.predicted: list[_Made] = []
        """The best of a screen that no race could follow."""
        self.cursor = 0
        """Next place in the round through dev tasks."""
        self.race_start = 0
        self.plateau = False
        self._told = told
        self.most = min(3, max(1, config.finalists))
        """Finalists."""
        self.pairs = self._holdout_pairs()
        self.purse = Purse(
            trials,
            rollouts=config.rollouts,
            minutes=config.minutes,
            kept=(1 + self.most) * len(self.pairs) + self._afterwards,
            holdout=splits.holdout,
        )

    async def measure_baseline(self) -> None:
        """Roll the baseline out on feedback and dev."""
        wanted: list[TrialRequest] = []
        for sample in range(self.config.baseline_samples):
            feedback, dev = ([(task, sample) for task in of] for of in (self.feedback, self.dev))
            wanted += requests(self.baseline.variant, "feedback", feedback, "baseline")
            wanted += requests(self.baseline.variant, "dev", dev, "baseline")
        with self.purse.allowing(BASELINE_SHARE):
            graded = await self.purse.afford(wanted)
        if len(graded) < len(wanted):
            self._note(
                f"the budget held {len(graded)} of the {len(wanted)} rollouts of the baseline"
            )
        solved = self._rate(self.baseline)
        if solved:
            self._told(f"baseline: {_percent(solved)} of feedback and dev rollouts solved")

    async def improve(self, proposers: Sequence[Proposer]) -> list[_Made]:
        """Screen and race, each time from the best so far; return who shall meet the holdout."""
        base = self.baseline
        used: set[Name] = set()
        for number in range(1, self.config.rounds + 1):
            knobs = (await self._knobs(proposers, base, used, f"round {number}"))[
                : self.config.knobs
            ]
            if not knobs:
                self._note(f"round {number} had nothing new to try")
                self.plateau = True
                break
            used |= {(knob.name, level.name) for knob in knobs for level in knob.levels}
            candidates = await self._screen(base, knobs, number)
            if not candidates:
                break
            placed = await self._race(base, candidates, number)
            if not placed:
                # The holdout judges for itself: without a race the best predicted may meet it.
                self.predicted = candidates[: self.most]
                break
            self.ranking = placed
            best = self.made[placed[0].variant.name]
            self.plateau = best.variant.name in {base.variant.name, self.baseline.variant.name}
            if self.plateau:
                self._told(f"round {number}: nothing did better than {base.variant.name}")
                break
            self._told(f"round {number}: best on dev is {best.variant.name}")
            base = best
        return self._finalists()

    async def treat_large_classes(self, proposers: Sequence[Proposer]) -> list[_Made]:
        """Search nothing: return the treatments of frequent failures, untried."""
        self._note(
            f"small data: {len(self.feedback) + len(self.dev)} tasks, so only treatments of "
            "frequent failures were confirmed, and effects under 20 points cannot be shown"
        )
        knobs = await self._knobs(proposers, self.baseline, set(), "small data")
        return [
            self._make(changes, ended="confirm")
            for changes in large_treatments(
                knobs,
                self._mix(self.baseline),
                least=LARGE_CLASS,
                most=self.most,
            )
        ]

    async def without_idle_costs(self, finalists: Sequence[_Made]) -> list[_Made]:
        """Take changes out of finalists that make rollouts dearer and do no good on dev."""
        kept: dict[str, _Made] = {}
        for finalist in finalists:
            made = finalist
            while dear := [knob for knob in made.changes if knob.costs]:
                drops = await self._drop_one(made, dear, "ablation")
                idle = [drop for drop in drops if drop[0].difference.value <= 0]
                if not idle:
                    break
                found, made = min(idle, key=lambda drop: drop[0].difference.value)
                self._note(
                    f"{found.knob}: {found.level} was taken out before the confirmation: "
                    "it makes rollouts dearer and did no good on dev"
                )
            if made.changes:
                kept[made.hash] = made
        return list(kept.values())

    async def confirm(self, finalists: Sequence[_Made]) -> tuple[list[Confirmation], list[Arm]]:
        """Let finalists meet the baseline on the holdout; the baseline's arm comes first."""
        self.purse.keep(self._afterwards)
        if not finalists:
            self._note("nothing did better than the baseline on dev; the holdout was not touched")
            return [], []
        try:
            arms = await rolled_out(
                [one.variant for one in (self.baseline, *finalists)], self.pairs, self.purse
            )
        except BudgetSpentError as error:
            self._note(f"nothing was confirmed: {error}")
            return [], []
        for made in finalists:
            self.attempts[made.hash].ended = "confirm"
        threshold = self.problem.pass_threshold
        tasks = [task for task, _ in self.pairs]
        graded = [passes(tasks, arm.graded, threshold).keys() for arm in arms]
        if not set.intersection(*map(set, graded)):
            self._note("infrastructure spoiled the confirmation; nothing was decided")
            return [], []
        found = confirmed(
            arms[0],
            arms[1:],
            self.pairs,
            threshold=threshold,
            alpha=self.config.alpha,
            alpha_costly=self.config.alpha_costly,
            seed=self.seed,
        )
        for one in found:
            self._told(f"{one.verdict}: {one.name} ({one.reason})")
        return list(found), list(arms)

    async def found(self, confirmed: tuple[list[Confirmation], list[Arm]]) -> Found:
        """Look once more at what was promoted, and gather what the search leaves."""
        confirmations, arms = confirmed
        self.purse.keep(len(self.feedback))
        winner = next((one for one in confirmations if one.verdict == "promoted"), None)
        chosen = self.made[winner.name] if winner else self.baseline
        drops: list[DropOne] = []
        mix_after: tuple[MixEntry, ...] = ()
        if winner:
            drops = [
                drop for drop, _ in await self._drop_one(chosen, [*chosen.changes], "drop one")
            ]
            self.purse.keep(0)
            again = [(task, 0) for task in self.feedback]
            await self.purse.afford(requests(chosen.variant, "feedback", again, "after"))
            mix_after = self._mix(chosen)
        for one in confirmations:
            self.attempts[one.spec_hash].verdict = f"{one.verdict}: {one.reason}"
        threshold = self.problem.pass_threshold
        seen = self.purse.rollouts
        before = self._rate(self.baseline)
        summary = SearchSummary(
            baseline_hash=self.baseline.hash,
            chosen_hash=chosen.hash,
            promoted=winner is not None,
            chosen=chosen.variant.settings,
            baseline_holdout=holdout_rate(arms[0], self.pairs, threshold) if arms else None,
            chosen_holdout=self._holdout_rate(arms, chosen),
            effects=tuple(self.effects),
            tried=tried(self.attempts, seen, threshold),
            confirmations=tuple(confirmations),
            drop_one=tuple(drops),
            mix_before=self._mix(self.baseline),
            mix_after=mix_after,
            spent=asdict(self.purse.spent),
            minimum_detectable=self._detectable(before),
            plateau=self.plateau or (bool(self.ranking) and winner is None),
            notes=tuple(self.notes),
        )
        return Found(
            chosen=chosen.variant.spec,
            summary=summary,
            demonstrations=solved_conversations(seen, self.problem.tools, chosen.hash, threshold),
        )

    async def _knobs(
        self, proposers: Sequence[Proposer], base: _Made, used: set[Name], purpose: str
    ) -> list[Knob]:
        """Ask proposers what might help this spec; those for frequent failures first."""
        pairs = [(task, 0) for task in self.feedback]
        if base is not self.baseline:
            await self.purse.afford(requests(base.variant, "feedback", pairs, purpose))
        mix = self._mix(base)
        if not mix:
            seen = "failed" if self._rollouts(base) else "was paid for"
            self._note(f"no feedback rollout {seen}; there is nothing to treat")
            return []
        known = Known(
            problem=replace(
                self.problem,
                baseline=base.variant.spec,
                demonstrations=tuple(
                    one for one in self.problem.demonstrations if not self.withheld.holds(one)
                ),
            ),
            rollouts=self._rollouts(base),
            trials=self.purse,
            seed=derive_seed(self.seed, "proposers", purpose),
            told=self._told,
        )
        offers: list[Sequence[Knob]] = []
        with self.purse.allowing(PROPOSERS_SHARE):
            for proposer in proposers:
                try:
                    offers.append(await proposer.knobs(known))
                except BudgetSpentError as error:
                    self._note(f"{type(proposer).__name__} had no budget left: {error}")
        knobs, leaking = useful_knobs(
            offers, base.variant.spec, mix, tried=used, withheld=self.withheld
        )
        for knob, level in leaking:
            self._note(f"{knob}: {level} shows a dev or holdout task and was left out")
        return knobs

    async def _screen(self, base: _Made, knobs: Sequence[Knob], number: int) -> list[_Made]:
        """Roll a balanced design out on shared dev tasks; return combinations worth a race."""
        config = self.config
        design = screening_design(
            [len(knob.levels) + 1 for knob in knobs],
            config.configurations,
            seed=derive_seed(self.seed, "design", number),
        )
        purpose = f"screen {number}"
        rows = [self._changed(base, knobs, row, purpose) for row in design.tolist()]
        # Few knobs need few configurations; the rollouts then go into more tasks.
        each = config.configurations * config.screen_rollouts // len(rows)
        each = max(1, min(each, 4 * config.screen_rollouts))
        pairs = schedule(self.dev, self.cursor, each)
        self.cursor += each
        wanted = interleaved([row.variant for row in rows], "dev", pairs, purpose)
        graded = await self.purse.afford(wanted, unit=len(rows))
        complete = len(graded) // len(rows)
        self._told(f"{purpose}: {len(rows)} combinations of {len(knobs)} knobs, {complete} tasks")
        if complete < min(LEAST_PAIRS, each):
            self._note(f"{purpose}: the budget held too little of it")
            return []
        solved, scores = self._observed(graded, len(rows))
        if np.isnan(solved).all():
            self._note(f"{purpose}: infrastructure spoiled it")
            return []
        tasks = [task.id for task, _ in pairs[:complete]]
        result = screened(design, knobs, solved, scores, tasks)
        self.effects.extend(result.effects)
        if result.by_score:
            self._note(
                f"{purpose}: {np.nanmean(solved):.0%} of its rollouts passed, too few to tell "
                "settings apart, so it went by the mean score"
            )
        made = [self._changed(base, knobs, row, f"race {number}") for row in result.candidates]
        others = {one.hash: one for one in made if one.hash not in {base.hash, self.baseline.hash}}
        return list(others.values())[: config.race]

    def _observed(
        self, graded: Sequence[GradedTrajectory], rows: int
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return passes and scores as (configurations, pairs), NaN where nothing was graded."""
        solved = [passed(one, self.problem.pass_threshold) for one in graded]
        scores = [
            one.grade.score if seen is not None else None
            for one, seen in zip(graded, solved, strict=True)
        ]
        as_table = [
            np.array(values, dtype=float).reshape(-1, rows).T for values in (solved, scores)
        ]
        return as_table[0], as_table[1]

    async def _race(self, base: _Made, candidates: Sequence[_Made], number: int) -> list[Placed]:
        """Halve the field on dev tasks the screen did not use; the baseline and `base` stay in."""
        always = list({one.hash: one for one in (self.baseline, base)}.values())
        start = self.race_start = self.cursor
        placed = await race(
            [one.variant for one in (*always, *candidates)],
            len(always),
            self.purse,
            lambda count: schedule(self.dev, start, count),
            tasks=self.config.race_tasks,
            finish=self.most,
            threshold=self.problem.pass_threshold,
            name=f"race {number}",
        )
        if not placed:
            self._note(f"race {number}: the budget did not hold its first round")
        for one in placed:
            self.attempts[self.made[one.variant.name].hash].ended = one.ended
        self.cursor += max((one.pairs for one in placed), default=0)
        return placed

    def _finalists(self) -> list[_Made]:
        """Return the best of the last race that did better than the baseline there.

        Without any race, those that the screen predicts to be best.
        """
        baseline = next((one for one in self.ranking if one.variant.is_baseline), None)
        if baseline is None:
            return self.predicted
        better = [
            one for one in self.ranking if one.ended == baseline.ended and one.rank > baseline.rank
        ]
        by_score = [one for one in better if one.pass_rate <= baseline.pass_rate]
        for one in by_score:
            attempt = self.attempts[self.made[one.variant.name].hash]
            attempt.verdict = "promising: better by mean score only"
        if by_score:
            self._note(
                f"{len(by_score)} specs did better by mean score only; a confirmation counts "
                "solved tasks, so they wait as promising"
            )
        finalists = [one for one in better if one.pass_rate > baseline.pass_rate]
        return [self.made[one.variant.name] for one in finalists[: self.most]]

    async def _drop_one(
        self, made: _Made, knobs: Sequence[Knob], purpose: str
    ) -> list[tuple[DropOne, _Made]]:
        """Return what each of these changes is worth on dev where it is used, and the spec without."""
        without = [
            self._make({k: v for k, v in made.changes.items() if k != knob}, ended=purpose)
            for knob in knobs
        ]
        pairs = schedule(self.dev, self.race_start, 2 * self.config.race_tasks)
        arms = [made.variant, *(one.variant for one in without)]
        graded = await self.purse.afford(interleaved(arms, "dev", pairs, purpose), unit=len(arms))
        complete = len(graded) // len(arms)
        if complete < LEAST_PAIRS:
            self._note(f"{purpose}: the budget did not hold it for {made.variant.name}")
            return []
        tasks = [task for task, _ in pairs[:complete]]
        values = [
            passes(tasks, graded[place :: len(arms)], self.problem.pass_threshold)
            for place in range(len(arms))
        ]
        return [
            (
                DropOne(
                    knob=knob.name,
                    level=made.changes[knob].name,
                    difference=paired_difference(others, values[0], seed=self.seed),
                ),
                one,
            )
            for knob, one, others in zip(knobs, without, values[1:], strict=True)
            if values[0].keys() & others.keys()
        ]

    def _changed(
        self, base: _Made, knobs: Sequence[Knob], levels: Sequence[int], ended: str
    ) -> _Made:
        """Return `base` with levels by knob; 0 leaves what it has."""
        new = {knob: knob.levels[n - 1] for knob, n in zip(knobs, levels, strict=True) if n}
        # A later round may offer other levels of a knob; they take the place of the earlier one.
        names = {knob.name for knob in new}
        kept = {knob: level for knob, level in base.changes.items() if knob.name not in names}
        return self._make({**kept, **new}, ended=ended)

    def _make(
        self,
        changes: Mapping[Knob, Level],
        *,
        ended: str = "baseline",
        verdict: str = "not among the best",
    ) -> _Made:
        """Return the spec with these changes; the same changes are the same spec."""
        made = variant(self.problem.baseline, changes)
        if made.name not in self.made:
            held = _Made(variant=made, hash=made.spec.hash, changes=dict(changes))
            self.made[made.name] = held
            self.attempts.setdefault(
                held.hash,
                Attempt(name=made.name, settings=made.settings, ended=ended, verdict=verdict),
            )
        return self.made[made.name]

    @property
    def _afterwards(self) -> int:
        """Rollouts kept for what the report owes of a promoted spec: its failures, each change."""
        return len(self.feedback) + CHANGES * self.config.race_tasks

    def _rollouts(self, made: _Made) -> tuple[tuple[Task, GradedTrajectory], ...]:
        return tuple(
            (one.task, one.graded)
            for one in self.purse.rollouts
            if one.split == "feedback" and one.graded.trajectory.spec_hash == made.hash
        )

    def _mix(self, made: _Made) -> tuple[MixEntry, ...]:
        return failure_mix(
            self._rollouts(made), self.problem.tools, pass_threshold=self.problem.pass_threshold
        )

    def _rate(self, made: _Made) -> Estimate | None:
        """Return pass@1 of a spec on feedback and dev; None if nothing was graded."""
        seen = [s for s in self.purse.rollouts if s.graded.trajectory.spec_hash == made.hash]
        solved = passes(
            [one.task for one in seen], [one.graded for one in seen], self.problem.pass_threshold
        )
        return rate(solved) if solved else None

    def _holdout_rate(self, arms: Sequence[Arm], chosen: _Made) -> Estimate | None:
        arm = next((arm for arm in arms if arm.variant.name == chosen.variant.name), None)
        return holdout_rate(arm, self.pairs, self.problem.pass_threshold) if arm else None

    def _detectable(self, before: Estimate | None) -> float | None:
        tasks = len({task.id for task, _ in self.pairs})
        if before is None or tasks < 2:
            return None
        p = min(max(before.value, 0.01), 0.99)
        return minimum_detectable(tasks, len(self.pairs) // tasks, p=p, alpha=self.config.alpha)

    def _holdout_pairs(self) -> list[Pair]:
        """Return the pairs of the confirmation, no more than half the budget holds."""
        config, holdout = self.config, self.problem.splits.holdout
        tasks = holdout[: config.confirm_tasks or len(holdout)]
        samples = config.confirm_samples
        if self.small:
            samples = max(samples, math.ceil(SMALL_HOLDOUT / len(tasks)))
        pairs = [(task, sample) for sample in range(samples) for task in tasks]
        most = config.rollouts // 2 // (1 + self.most)
        if len(pairs) > most:
            self._note(f"the budget holds {most} of the confirmation's {len(pairs)} pairs")
        return pairs[:most]

    def _shuffled(self, name: str, tasks: Sequence[Task]) -> list[Task]:
        """Return tasks in an order that says nothing of how their file was written."""
        return sorted(tasks, key=lambda task: derive_seed(self.seed, name, task.id))

    def _note(self, text: str) -> None:
        self.notes.append(text)
        self._told(text)


def _percent(estimate: Estimate) -> str:
    return f"{estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%})"
