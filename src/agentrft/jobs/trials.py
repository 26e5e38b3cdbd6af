"""Trials that are kept: what a search asks for is rolled out once, stored, and answered from there."""

import asyncio
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from agentrft.core.errors import PausedError
from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.run import RolloutRecord, RolloutSplit
from agentrft.core.seeds import derive_seed
from agentrft.core.spec import AgentSpec
from agentrft.core.usage import TokenUsage
from agentrft.jobs.context import Job
from agentrft.jobs.ledger import Ledger, RolloutKey
from agentrft.optimize.trials import (
    BudgetSpentError,
    Question,
    SearchSplit,
    Spent,
    TrialRequest,
)
from agentrft.rollout.dialogue import TurnRequest, begun
from agentrft.rollout.episode import RolloutSetup, in_order, run_episode, trace_id
from agentrft.store.codec import to_json

LEDGER, SPECS = "ledger.jsonl", "specs"
"""In the run's folder."""
STORED_AS: Mapping[SearchSplit, RolloutSplit] = {
    "feedback": "train",
    "dev": "validation",
    "holdout": "holdout",
}
QUESTION_TIMEOUT_S = 120.0
STORM = 8
"""Rollouts of a batch that are all lost from which the search pauses."""


class StoredTrials:
    """Fills `Trials`: rollouts of one run, in its store and its ledger."""

    def __init__(
        self, job: Job, setup: RolloutSetup, *, rollouts: float, minutes: float, concurrency: int
    ) -> None:
        """Find what earlier processes of this run have done.

        `setup` gives model, tools and grader; each request brings its own spec. No batch that
        needs more than `rollouts` in all is begun; none but the holdout's after `minutes`.
        """
        self._job, self._setup = job, setup
        self._rollouts, self._seconds = rollouts, minutes * 60
        self._concurrency = concurrency
        self.ledger = Ledger(job.folder / LEDGER)
        self._reused = 0
        self._setups: dict[str, RolloutSetup] = {}
        self._places: dict[str, int] = {}
        """Trajectory id to its place in the store."""
        self._last_place = 0
        self._recover()

    async def roll_out(self, requests: Sequence[TrialRequest]) -> list[GradedTrajectory]:
        """Run what is not kept, in the order given, and return the results in that order.

        Raises BudgetSpentError before anything runs, Stopped if the user asks to stop, PausedError
        if infrastructure spoils all of it.
        """
        keys = self._keys(requests)
        missing = self._not_kept(keys, requests)
        self._reused += len(requests) - len(missing)
        fresh = await self._run(missing) if missing else {}
        return [fresh[key] if key in fresh else self._kept(key) for key in keys]

    def missing(self, requests: Sequence[TrialRequest]) -> int:
        """Return how many rollouts these would cost."""
        return len(self._not_kept(self._keys(requests), requests))

    async def ask(self, question: Question) -> list[str]:
        """Return completions of the agent's own model, without tools and without a spec."""
        name = hashlib.sha256(to_json(replace(question, samples=0))).hexdigest()[:16]
        line = asyncio.Semaphore(self._concurrency)

        async def completion(sample: int) -> str:
            if (kept := self.ledger.completion(name, sample)) is not None:
                self._reused += 1
                return kept
            async with line:
                return await self._complete(question, name, sample)

        answers = in_order([completion(sample) for sample in range(question.samples)])
        return await self._job.unless_stopped(answers)

    def decided(self, number: int, *, holds: bool) -> bool:
        """Return what was decided at this place, by an earlier process if there was one."""
        return self.ledger.decide(number, holds=holds)

    @property
    def spent(self) -> Spent:
        """Return the ledger's totals, those of earlier processes included."""
        return self.ledger.spent(reused=self._reused)

    def _keys(self, requests: Sequence[TrialRequest]) -> list[RolloutKey]:
        # The hash reads the whole pool of demonstrations; a batch has few specs.
        specs = {id(request.spec): request.spec for request in requests}
        hashed = {number: spec.hash for number, spec in specs.items()}
        return [
            RolloutKey(
                spec=hashed[id(request.spec)],
                split=request.split,
                task=request.task.id,
                seed=self._job.run.seed,
                sample=request.sample,
            )
            for request in requests
        ]

    def _not_kept(
        self, keys: Sequence[RolloutKey], requests: Sequence[TrialRequest]
    ) -> dict[RolloutKey, TrialRequest]:
        pairs = zip(keys, requests, strict=True)
        return {key: request for key, request in pairs if self.ledger.answer(key) is None}

    async def _run(
        self, missing: Mapping[RolloutKey, TrialRequest]
    ) -> dict[RolloutKey, GradedTrajectory]:
        self._check_budget(missing)
        if any(key.split == "holdout" for key in missing):
            # Before the first of them runs: a look that was cut short is a look.
            self._job.note_result(split="holdout")
        line = asyncio.Semaphore(self._concurrency)
        label = f"search: {next(iter(missing.values())).purpose}"
        with self._job.progress.phase(label, len(missing)) as phase:

            async def one(key: RolloutKey, request: TrialRequest) -> GradedTrajectory:
                async with line:
                    graded = await self._roll_out(key, request)
                phase.rollout(graded)
                phase.advance()
                return graded

            work = in_order([one(key, request) for key, request in missing.items()])
            graded = await self._job.unless_stopped(work)
        self._check_storm(graded)
        return dict(zip(missing, graded, strict=True))

    async def _roll_out(self, key: RolloutKey, request: TrialRequest) -> GradedTrajectory:
        """Run one rollout, once more if infrastructure spoiled it."""
        setup, task = self._setup_of(key.spec, request.spec), request.task
        graded: GradedTrajectory | None = None
        for attempt in range(self.ledger.next_attempt(key), self.ledger.attempts):
            # Specs share seeds, with evaluations too, so that paired differences compare specs and
            # not luck, and a confirmed spec need not be measured again.
            seed = derive_seed(key.seed, "evaluation", task.id, key.sample, attempt)
            trace = trace_id(setup, task, seed)
            with self.ledger.rollout(key, attempt, trace, request.purpose) as end:
                graded = await run_episode(setup, task, seed=seed)
                self._job.append([_record(request, graded)])
                end(graded)
            if graded.outcome is not Outcome.INFRASTRUCTURE_FAULT:
                break
        assert graded is not None
        return graded

    async def _complete(self, question: Question, name: str, sample: int) -> str:
        what = f"question_{name}_{sample}"
        dialogue = begun(self._setup.speaker, question.messages, (), what, what)
        request = TurnRequest(
            max_tokens=question.max_tokens,
            temperature=question.temperature,
            top_p=1.0,
            seed=derive_seed(self._job.run.seed, "question", name, sample),
            left_s=QUESTION_TIMEOUT_S,
        )
        said = await dialogue.speak(request)
        counted = TokenUsage(
            prompt_tokens=len(said.observation_ids), completion_tokens=len(said.action_ids)
        )
        self.ledger.ask(name, sample, said.message.content, usage=said.usage or counted)
        return said.message.content

    def _check_budget(self, missing: Mapping[RolloutKey, TrialRequest]) -> None:
        spent = self.ledger.spent(reused=0)
        if spent.rollouts + len(missing) > self._rollouts:
            raise BudgetSpentError(
                f"{len(missing)} more rollouts do not fit into the budget of {self._rollouts}, "
                f"{spent.rollouts} of which are spent; raise methods.optimize.rollouts"
            )
        late = spent.seconds > self._seconds
        if late and any(key.split != "holdout" for key in missing):
            raise BudgetSpentError(
                f"{spent.seconds / 60:.1f} minutes are over, {self._seconds / 60:g} are the budget; "
                "raise methods.optimize.minutes"
            )

    def _check_storm(self, graded: Sequence[GradedTrajectory]) -> None:
        """Pause a search that would go on to decide upon nothing."""
        lost = [one for one in graded if one.outcome is Outcome.INFRASTRUCTURE_FAULT]
        if len(lost) < max(STORM, len(graded)):
            return
        self.ledger.storm()
        failure = lost[0].trajectory.failure or lost[0].grade.failure
        told = f"{failure.where}: {failure.message}" if failure else "nobody knows why"
        raise PausedError(
            f"all {len(lost)} rollouts of a batch were lost, the first to {told}; "
            "repair it and go on with --resume, which tries them again"
        )

    def _setup_of(self, name: str, spec: AgentSpec) -> RolloutSetup:
        if name not in self._setups:
            keep_spec(self._job.folder, spec)
            policy = replace(self._setup.policy, spec=spec)
            self._setups[name] = replace(self._setup, policy=policy)
        return self._setups[name]

    def _kept(self, key: RolloutKey) -> GradedTrajectory:
        trajectory = self.ledger.answer(key)
        assert trajectory is not None
        if trajectory not in self._places:
            self._list_stored()
        return self._job.home.store.trajectory(self._places[trajectory]).graded

    def _recover(self) -> None:
        """Enter what was stored just before the process died."""
        self._list_stored()
        for trajectory in self.ledger.unfinished:
            if (place := self._places.get(trajectory)) is not None:
                self.ledger.end(self._job.home.store.trajectory(place).graded)

    def _list_stored(self) -> None:
        more = True
        while more:
            page = self._job.home.store.trajectories(
                self._job.run.id, after=self._last_place, limit=1000
            )
            self._places |= {line.trajectory_id: line.record_id for line in page.items}
            self._last_place, more = page.last, page.has_more


def keep_spec(folder: Path, spec: AgentSpec) -> None:
    """Write a spec as JSON under its hash; what is there already is the same."""
    path = spec_path(folder, spec.hash)
    if path.exists():
        return
    path.parent.mkdir(exist_ok=True)
    draft = path.with_suffix(".draft")
    draft.write_bytes(to_json(spec))
    draft.replace(path)


def spec_path(folder: Path, name: str) -> Path:
    """Return where a run keeps the spec of this hash."""
    return folder / SPECS / f"{name}.json"


def _record(request: TrialRequest, graded: GradedTrajectory) -> RolloutRecord:
    return RolloutRecord(
        stage=request.purpose,
        split=STORED_AS[request.split],
        step=0,
        family=request.task.family,
        graded=graded,
    )
