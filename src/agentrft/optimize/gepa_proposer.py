"""GEPA as one more proposer: it writes texts, and never says which are better.

Its own evaluation cache, checkpoint, rollout counter and choice of the best stay unused: the cache
of 0.1.4 mixes up train and validation tasks, its counter leaves repeats out, and its best candidate
is the luckiest. Requests go through `Trials` like everything else, are counted here as distinct
rollouts, and what it finds races against the other variants. Run again, it finds its own past there.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, Protocol, TypeVar

from agentrft.core.call_thread import in_thread
from agentrft.core.errors import AgentRFTError, ConfigError
from agentrft.core.grade import GradedTrajectory
from agentrft.core.task import Task
from agentrft.measure.diagnosis import diagnose, successes
from agentrft.measure.statistics import sign_flip
from agentrft.optimize.evidence import OWN_FAILURES, evidence
from agentrft.optimize.problem import Known
from agentrft.optimize.reflection import (
    Seen,
    applied,
    censor,
    changed,
    components,
    concerned,
    prompt,
    records,
    spec_with,
    written,
)
from agentrft.optimize.trials import BudgetSpentError, SearchSplit, TrialRequest, passed
from agentrft.optimize.variants import Knob, Level

T = TypeVar("T")
MINIBATCH = 6
PATIENCE = 3
"""Iterations without a single proposal after which it is stopped: something is wrong."""
PLATEAU = 10
"""Iterations without a new candidate after which it is stopped; rollouts that are kept cost nothing,
so the budget alone would not end it."""


class Reflect(Protocol):
    """Asks a strong model, at whatever endpoint."""

    async def __call__(self, prompt: str) -> str:
        """Return its answer. Raises if it cannot be reached."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class GepaProposer:
    """Lets GEPA rewrite system sections and descriptions of tools.

    Raises ConfigError where the package is not installed.
    """

    reflect: Reflect
    rollouts: int = 600
    """Budget within the search's, over all its rounds."""
    samples: int = 2
    """Rollouts of a task per candidate; their mean is its score."""
    best: int = 3
    """Candidates that are handed on."""
    runs: list["_Run"] = field(default_factory=list["_Run"])
    """One per round of the search."""

    def __post_init__(self) -> None:
        _library()

    async def knobs(self, known: Known) -> Sequence[Knob]:
        """Return one knob with the best candidates as levels, or none."""
        left = self.rollouts - len(self.requested)
        tasks = _choice(known, left, self.samples)
        if not tasks:
            known.told(
                f"gepa: {left} rollouts are too few to compare candidates on dev tasks, "
                "or nothing failed; raise reflection_rollouts"
            )
            return ()
        run = _Run(proposer=self, known=known, tasks=tasks, loop=asyncio.get_running_loop())
        self.runs.append(run)
        try:
            await in_thread(run.optimize, name="gepa")
        except BudgetSpentError as spent:
            known.told(f"gepa: {spent}")
        finally:
            run.over = True
        return run.knobs("gepa" if len(self.runs) == 1 else f"gepa {len(self.runs)}")

    @property
    def requested(self) -> set["_Rollout"]:
        """Distinct rollouts that were asked for, also those that were already kept."""
        return set[_Rollout]().union(*(run.requested for run in self.runs))


def _library() -> Any:
    try:
        import gepa
    except ImportError as missing:
        raise ConfigError(
            "a reflection model is set, but GEPA is not installed: "
            'pip install "agentrft[gepa]", or leave reflection_model empty'
        ) from missing
    return gepa


_Rollout = tuple[str, str, str, int]
"""Hash of the spec, split, task and sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Case:
    """A task of one of GEPA's two lists."""

    split: SearchSplit
    task: Task


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tasks:
    feedback: tuple[_Case, ...]
    dev: tuple[_Case, ...]


def _choice(known: Known, rollouts: int, samples: int) -> _Tasks | None:
    """Return tasks to learn from, failed ones twice as often as solved ones, and some to compare on.

    About 20 times the comparison has to fit into the budget, its authors say; fewer than six tasks
    compare nothing.
    """
    rng = random.Random(known.seed)
    failed = list({task.id: task for task, _ in evidence(known).failed}.values())
    ids = {task.id for task in failed}
    others = [task for task in known.problem.splits.feedback if task.id not in ids]
    rng.shuffle(others)
    size = min(len(known.problem.splits.dev), 40, rollouts // (20 * samples))
    if size < 6 or not failed:
        return None
    dev = rng.sample(known.problem.splits.dev, size)
    feedback = (*failed, *others[: len(failed) // 2])
    return _Tasks(
        feedback=tuple(_Case(split="feedback", task=task) for task in feedback),
        dev=tuple(_Case(split="dev", task=task) for task in dev),
    )


@dataclass(kw_only=True)
class _Run:
    """One run of GEPA in a thread of its own; rollouts and questions happen on the loop."""

    proposer: GepaProposer
    known: Known
    tasks: _Tasks
    loop: asyncio.AbstractEventLoop
    over: bool = False
    """Nobody waits any more."""
    proposals: int = 0
    kept_in: int = 0
    """Iteration of the last candidate that was compared on the dev tasks."""
    requested: set[_Rollout] = field(default_factory=set[Any])
    proposed: set[tuple[tuple[str, str], ...]] = field(default_factory=set[Any])
    evaluated: dict[tuple[tuple[str, str], ...], float] = field(default_factory=dict[Any, float])
    """Candidate to mean score on the dev tasks."""

    def __post_init__(self) -> None:
        problem = self.known.problem
        self.first = components(problem)
        self.proposed.add(tuple(self.first.items()))
        self.censor = censor(self.first, problem.splits)
        solved = evidence(self.known).solved
        self.successes = successes(solved)
        self.solved = {task.id: graded for task, graded in solved}

    def optimize(self) -> None:
        """Run GEPA until its budget or patience ends."""
        from gepa.strategies.proposal_sampling import PxNSampling

        _library().optimize(
            seed_candidate=dict(self.first),
            trainset=list(self.tasks.feedback),
            valset=list(self.tasks.dev),
            adapter=_Adapter(self),
            reflection_strategy=_Reflector(self),
            module_selector=_Selector(self),
            reflection_minibatch_size=MINIBATCH,
            acceptance_criterion=_PairedGate(),
            sampling_strategy=PxNSampling(2, 2),
            frontier_type="hybrid",
            use_merge=True,
            cache_evaluation=False,
            stop_callbacks=[self.stop],
            callbacks=[_Events(self)],
            logger=_Quiet(),
            track_best_outputs=False,
            seed=self.known.seed,
        )

    def stop(self, state: Any) -> bool:
        """Whether GEPA is to end before its next iteration; `state.i` counts from 0."""
        if self.over:
            return True
        if state.i + 1 >= PATIENCE and not self.proposals:
            self.known.told(
                f"gepa: stopped, no proposal in {PATIENCE} iterations; either the reflection model "
                "gave no usable text, or the tasks drawn were all solved"
            )
            return True
        plateau = state.i + 1 >= self.kept_in + PLATEAU
        return plateau or len(self.proposer.requested) >= self.proposer.rollouts

    def on_loop(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run a coroutine where the search runs, and wait for it in GEPA's thread."""
        if self.over:
            raise AgentRFTError("the search has ended")
        return asyncio.run_coroutine_threadsafe(work(), self.loop).result()

    def roll_out(self, requests: Sequence[TrialRequest]) -> list[GradedTrajectory]:
        """Roll out within this run's share of the budget. Raises BudgetSpentError beyond it."""
        hashes = {
            place: spec.hash for place, spec in {id(r.spec): r.spec for r in requests}.items()
        }
        distinct = {(hashes[id(r.spec)], r.split, r.task.id, r.sample) for r in requests}
        if len(self.proposer.requested | distinct) > self.proposer.rollouts:
            raise BudgetSpentError(f"its {self.proposer.rollouts} rollouts are spent")
        self.requested |= distinct
        return self.on_loop(lambda: self.known.trials.roll_out(requests))

    def seen(self, case: _Case, graded: GradedTrajectory) -> Seen:
        """Return a rollout as reflection reads it."""
        problem = self.known.problem
        good = passed(graded, problem.pass_threshold)
        found = diagnose(case.task, graded, self.successes, problem.tools)
        return Seen(
            task=case.task,
            graded=graded,
            diagnosis=None if good else found,
            contrast=self.solved.get(case.task.id),
        )

    def knobs(self, name: str) -> tuple[Knob, ...]:
        """Return the candidates that did best on the dev tasks; the shorter of two equals."""
        ranked = sorted(
            (
                (mean, texts)
                for key, mean in self.evaluated.items()
                if (texts := changed(dict(key), self.first))
            ),
            key=lambda pair: (-pair[0], sum(len(text) for text in pair[1].values())),
        )
        start = self.evaluated.get(tuple(self.first.items()))
        levels = tuple(
            Level(
                name=f"candidate {number}",
                change=applied(texts),
                why=f"rewrites {', '.join(texts)}; mean score {mean:.2f}, before {start or 0:.2f}, "
                f"on {len(self.tasks.dev)} dev tasks that also chose it",
            )
            for number, (mean, texts) in enumerate(ranked[: self.proposer.best], 1)
        )
        knob = Knob(name=name, levels=levels, treats=OWN_FAILURES, source="gepa")
        self.known.told(
            f"gepa: {self.proposals} proposals, {len(ranked)} kept, "
            f"{len(self.requested)} rollouts asked for"
        )
        return (knob,) if levels else ()


@dataclass(kw_only=True)
class _Evaluation:
    """What GEPA reads of an evaluated batch, by these names."""

    outputs: list[list[GradedTrajectory]]
    scores: list[float]
    trajectories: list[list[Seen]]
    objective_scores: list[dict[str, float]]
    num_metric_calls: int


class _Adapter:
    """GEPA's way to rollouts."""

    propose_new_texts = None
    """Read by GEPA without a default: if it were missing, every proposal would fail silently."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def evaluate(
        self,
        batch: list[_Case],
        candidate: dict[str, str],
        capture_traces: bool = False,  # noqa: FBT001, FBT002 GEPA's signature
    ) -> _Evaluation:
        """Roll a candidate out on a batch."""
        return self.batch_evaluate([(candidate, batch)])[0]

    def batch_evaluate(self, items: list[tuple[dict[str, str], list[_Case]]]) -> list[_Evaluation]:
        """Roll all of them out together."""
        run = self._run
        samples = range(run.proposer.samples)
        baseline = run.known.problem.baseline
        specs = [spec_with(baseline, candidate, run.first) for candidate, _ in items]
        requests = [
            TrialRequest(spec=spec, split=case.split, task=case.task, sample=n, purpose="gepa")
            for spec, (_, batch) in zip(specs, items, strict=True)
            for case in batch
            for n in samples
        ]
        graded = iter(run.roll_out(requests))
        return [
            self._evaluation(batch, [[next(graded) for _ in samples] for _ in batch])
            for _, batch in items
        ]

    def _evaluation(
        self, batch: list[_Case], rollouts: list[list[GradedTrajectory]]
    ) -> _Evaluation:
        scores = [_mean_score(of_case) for of_case in rollouts]
        return _Evaluation(
            outputs=rollouts,
            scores=scores,
            trajectories=[
                [self._run.seen(case, graded) for graded in of_case]
                for case, of_case in zip(batch, rollouts, strict=True)
            ],
            objective_scores=[
                {
                    "score": score,
                    "fewer calls": -fmean(len(g.trajectory.tool_calls) for g in of_case),
                    "fewer tokens": -fmean(
                        g.trajectory.sampled_tokens + g.trajectory.observed_tokens for g in of_case
                    ),
                }
                for score, of_case in zip(scores, rollouts, strict=True)
            ],
            num_metric_calls=sum(len(of_case) for of_case in rollouts),
        )

    def make_reflective_dataset(
        self, candidate: dict[str, str], evaluated: _Evaluation, names: list[str]
    ) -> dict[str, list[dict[str, str]]]:
        """Return what went wrong for each of these components."""
        rollouts = [seen for of_case in evaluated.trajectories for seen in of_case]
        return {name: records(name, rollouts, candidate) for name in names}


def _mean_score(graded: Sequence[GradedTrajectory]) -> float:
    """Return the mean score; 0 if infrastructure spoiled all of them."""
    scores = [g.grade.score for g in graded if g.grade.score is not None]
    return fmean(scores) if scores else 0.0


class _Selector:
    """Chooses the component that most failures speak to, the more often chosen the less."""

    def __init__(self, run: _Run) -> None:
        self._chosen: Counter[str] = Counter()

    def __call__(
        self,
        state: Any,
        trajectories: list[list[Seen]],
        scores: list[float],
        index: int,
        candidate: dict[str, str],
    ) -> list[str]:
        failed = [seen for of_case in trajectories for seen in of_case if seen.diagnosis]
        votes = Counter(name for seen in failed for name in concerned(seen, candidate))
        name = max(candidate, key=lambda name: votes[name] / (1 + self._chosen[name]))
        self._chosen[name] += 1
        return [name]


class _Reflector:
    """Asks the reflection model, and keeps what may stand in a spec."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def reflect(
        self, candidate: dict[str, str], dataset: Mapping[str, Any], names: list[str]
    ) -> tuple[Any, "_Reflector"]:
        """Return new texts of one candidate."""
        return self.reflect_many([(candidate, dataset, names)])[0]

    def reflect_many(
        self, jobs: list[tuple[dict[str, str], Mapping[str, Any], list[str]]]
    ) -> list[tuple[Any, "_Reflector"]]:
        """Return new texts of several candidates, asked for at once."""
        from gepa.proposer.reflective_mutation.reflection_lm import ReflectionProposal

        tools = self._run.known.problem.tools
        asked = [
            (place, name, prompt(name, candidate[name], dataset[name], tools))
            for place, (candidate, dataset, names) in enumerate(jobs)
            for name in names
            if dataset[name]
        ]
        texts: list[dict[str, str]] = [{} for _ in jobs]
        replies = self._run.on_loop(lambda: self._ask([text for *_, text in asked]))
        for (place, name, _), reply in zip(asked, replies, strict=True):
            text = self._accepted(name, reply)
            candidate = tuple({**jobs[place][0], name: text}.items())
            # The same text again would be a second candidate, and paid for again.
            if text and candidate not in self._run.proposed:
                self._run.proposed.add(candidate)
                texts[place][name] = text
        return [(ReflectionProposal(new_texts=of_job), self) for of_job in texts]

    async def _ask(self, prompts: Sequence[str]) -> list[str | BaseException]:
        # GEPA hides what is raised here and asks again; so failures travel as values.
        return await asyncio.gather(
            *(self._run.proposer.reflect(text) for text in prompts), return_exceptions=True
        )

    def _accepted(self, name: str, reply: str | BaseException) -> str:
        told = self._run.known.told
        if isinstance(reply, BaseException):
            told(f"gepa: the reflection model failed: {type(reply).__name__}: {reply}")
            return ""
        text = written(reply)
        if refusal := self._run.censor.refusal(name, text):
            told(f"gepa: a text for {name} was refused: {refusal}")
            return ""
        return text


class _PairedGate:
    """Keeps a candidate that is better on the minibatch's tasks, one-sided p below 0.2.

    Without a test an equal candidate would pass in a third of all cases.
    """

    def should_accept(self, proposal: Any, state: Any) -> bool:
        """Compare task by task."""
        before, after = proposal.subsample_scores_before, proposal.subsample_scores_after
        gains = [new - old for old, new in zip(before, after, strict=True)]
        return sum(gains) > 0 and sign_flip(gains)[0] / 2 < 0.2


class _Events:
    """What GEPA tells while it runs."""

    def __init__(self, run: _Run) -> None:
        self._run = run

    def on_proposal_end(self, event: Mapping[str, Any]) -> None:
        """Count a proposal."""
        self._run.proposals += 1

    def on_valset_evaluated(self, event: Mapping[str, Any]) -> None:
        """Keep a candidate with its mean on the dev tasks."""
        key = tuple(event["candidate"].items())
        if key not in self._run.evaluated:
            self._run.kept_in = event["iteration"]
        self._run.evaluated[key] = fmean(event["scores_by_val_id"].values())


class _Quiet:
    """GEPA's log would be printed; what matters is told by us."""

    def log(self, message: str) -> None:
        """Drop it."""
