"""A shipped fake of `Trials`: effects that are known, so that a search can be held to them.

A rollout fails in a planted way first, each with its probability; otherwise its task's difficulty
and the settings of its spec decide, on the scale of logits. Draws of two specs are independent.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np

from agentrft.core.grade import Grade, GradedTrajectory
from agentrft.core.seeds import derive_seed
from agentrft.core.spec import AgentSpec, Section
from agentrft.core.task import Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import (
    Failure,
    FailureKind,
    FinishReason,
    ParseFailure,
    StopReason,
    ToolResult,
    Trajectory,
    Turn,
)
from agentrft.measure.diagnosis import FailureClass
from agentrft.optimize.trials import BudgetSpentError, Question, Spent, TrialRequest, Trials
from agentrft.optimize.variants import Knob, Level

_MARK = "planted "

TOOLS = tuple(
    ToolSpec(
        name=name,
        description=told,
        parameters={
            "type": "object",
            "properties": {"order": {"type": "string"}},
            "required": ["order"],
        },
    )
    for name, told in (
        ("get_order", "Reads an order."),
        ("cancel_order", "Cancels an order."),
        ("list_stores", "Lists stores near the buyer of an order."),
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Planted:
    """One level of one knob, and what it really does."""

    knob: str
    level: str = "on"
    shift: float = 0.0
    """Added to the logit of solving a task."""
    removes: tuple[FailureClass, ...] = ()
    """Planted failures that no longer happen."""
    tokens: float = 1.0
    """Factor on sampled tokens."""
    costs: bool = False
    """Whether the knob says so itself."""


def planted_knobs(effects: Sequence[Planted]) -> tuple[Knob, ...]:
    """Return knobs whose levels write themselves into a section of the spec."""
    levels: dict[str, list[Planted]] = {}
    for effect in effects:
        levels.setdefault(effect.knob, []).append(effect)
    return tuple(
        Knob(
            name=name,
            levels=tuple(Level(name=one.level, change=_mark(one)) for one in of),
            treats=tuple(dict.fromkeys(c for one in of for c in one.removes)),
            source="given",
            costs=any(one.costs for one in of),
        )
        for name, of in levels.items()
    )


def _mark(effect: Planted) -> "_Marking":
    return _Marking(name=f"{_MARK}{effect.knob}", text=effect.level)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Marking:
    """A change that can be compared, unlike a lambda."""

    name: str
    text: str

    def __call__(self, spec: AgentSpec) -> AgentSpec:
        others = tuple(section for section in spec.sections if section.name != self.name)
        return replace(spec, sections=(*others, Section(name=self.name, text=self.text)))


def planted_tasks(
    name: str, count: int, *, mean: float, concentration: float = 1.2, seed: int
) -> tuple[Task, ...]:
    """Return tasks whose row says how likely the baseline solves each: Beta distributed."""
    random = np.random.default_rng(derive_seed(seed, name))
    chances = np.full(count, mean)
    if 0 < mean < 1:
        chances = random.beta(mean * concentration, (1 - mean) * concentration, size=count)
    return tuple(
        Task(
            id=f"{name}-{number}",
            messages=(Message(role="user", content=f"Please cancel order {name}-{number}."),),
            row={"chance": float(chance)},
            family=f"family {number % 12}",
        )
        for number, chance in enumerate(chances)
    )


class PlantedDeathError(Exception):
    """The process was killed; what had finished is kept."""


Kept = dict[tuple[str, str, str, int], tuple[str, GradedTrajectory]]
"""Spec hash, split, task id and sample to the purpose and the result."""


@dataclass(slots=True, kw_only=True)
class PlantedTrials(Trials):
    """Rolls planted tasks out; counts what it executed, apart from what its ledger says."""

    effects: Sequence[Planted] = ()
    failures: Mapping[FailureClass, float] = field(default_factory=dict[FailureClass, float])
    """Planted failure to its probability, in the order in which they can happen."""
    seed: int = 0
    partial: float = 0.0
    """Score of a failed rollout; a tenth of the settings' logits is added where it is above 0."""
    rollouts: int = 1_000_000
    """Budget."""
    seconds: float = 0.0
    """Wall clock that each rollout is said to take."""
    dies_after: int | None = None
    """Executed rollouts after which the process is killed."""
    kept: Kept = field(default_factory=Kept)
    """What an earlier process left, and what this one adds."""
    decisions: dict[int, bool] = field(default_factory=dict[int, bool])
    """Likewise."""
    executed: int = 0
    requested: list[TrialRequest] = field(default_factory=list[TrialRequest])
    interrupted: int = 0
    reused: int = 0
    _hashes: dict[int, tuple[AgentSpec, str]] = field(
        default_factory=dict[int, tuple[AgentSpec, str]]
    )
    """By identity; holds the specs, so that none takes another's place."""

    def missing(self, requests: Sequence[TrialRequest]) -> int:
        return len({key for request in requests if (key := self._key(request)) not in self.kept})

    async def roll_out(self, requests: Sequence[TrialRequest]) -> list[GradedTrajectory]:
        """Answer from what is kept or roll out. Raises PlantedDeathError when its time has come."""
        if (missing := self.missing(requests)) + len(self.kept) > self.rollouts:
            raise BudgetSpentError(f"{missing} more rollouts exceed {self.rollouts}")
        self.requested.extend(requests)
        return [self._answer(request) for request in requests]

    async def ask(self, question: Question) -> list[str]:
        return ["" for _ in range(question.samples)]

    def decided(self, number: int, *, holds: bool) -> bool:
        return self.decisions.setdefault(number, holds)

    @property
    def spent(self) -> Spent:
        return Spent(
            rollouts=len(self.kept),
            interrupted=self.interrupted,
            reused=self.reused,
            sampled_tokens=sum(one.trajectory.sampled_tokens for _, one in self.kept.values()),
            tool_calls=sum(len(one.trajectory.tool_calls) for _, one in self.kept.values()),
            seconds=self.seconds * len(self.kept),
            by_purpose=dict(Counter(purpose for purpose, _ in self.kept.values())),
        )

    def chance(self, spec: AgentSpec, task: Task) -> float:
        """Return the true probability that a spec solves a task."""
        active = self._active(spec)
        chance = _solving(task, active)
        for probability in self._failures(active).values():
            chance *= 1 - probability
        return chance

    def _answer(self, request: TrialRequest) -> GradedTrajectory:
        key = self._key(request)
        if key in self.kept:
            self.reused += 1
        else:
            if self.executed == self.dies_after:
                self.interrupted += 1
                raise PlantedDeathError(f"killed after {self.executed} rollouts")
            self.kept[key] = (request.purpose, self._executed(request, key[0]))
        return self.kept[key][1]

    def _executed(self, request: TrialRequest, spec_hash: str) -> GradedTrajectory:
        self.executed += 1
        task = request.task
        name = (self.seed, spec_hash, request.split, task.id, request.sample)
        active = self._active(request.spec)
        draw = derive_seed("planted", *name)
        failure: FailureClass | None = None
        for failure_class, probability in self._failures(active).items():
            if failure is None and _uniform(draw, failure_class.value) < probability:
                failure = failure_class
        if failure is None and _uniform(draw, "solved") >= _solving(task, active):
            failure = FailureClass.WRONG_PLAN
        tokens = round(20 * math.prod(effect.tokens for effect in active))
        score = 1.0
        if failure:
            score = self.partial and self.partial + 0.1 * sum(one.shift for one in active)
        return fabricated(
            task,
            failure,
            spec_hash=spec_hash,
            seed=derive_seed(self.seed, request.split, task.id, request.sample),
            tokens=tokens,
            score=min(1.0, max(0.0, score)),
            system=request.spec.system,
        )

    def _active(self, spec: AgentSpec) -> list[Planted]:
        marks = {section.name: section.text for section in spec.sections}
        return [one for one in self.effects if marks.get(f"{_MARK}{one.knob}") == one.level]

    def _failures(self, active: Sequence[Planted]) -> Mapping[FailureClass, float]:
        removed = {failure_class for effect in active for failure_class in effect.removes}
        return {name: chance for name, chance in self.failures.items() if name not in removed}

    def _key(self, request: TrialRequest) -> tuple[str, str, str, int]:
        _, spec_hash = self._hashes.setdefault(id(request.spec), (request.spec, ""))
        if not spec_hash:
            spec_hash = request.spec.hash
            self._hashes[id(request.spec)] = (request.spec, spec_hash)
        return spec_hash, request.split, request.task.id, request.sample


def _solving(task: Task, active: Sequence[Planted]) -> float:
    chance = min(max(float(task["chance"]), 1e-9), 1 - 1e-9)
    logit = math.log(chance / (1 - chance)) + sum(effect.shift for effect in active)
    return 1 / (1 + math.exp(-logit))


def _uniform(seed: int, name: str) -> float:
    return derive_seed(seed, name) / 2**63


def fabricated(
    task: Task,
    failure: FailureClass | None,
    *,
    spec_hash: str = "",
    seed: int = 0,
    tokens: int = 20,
    score: float = 0.0,
    system: str = "",
) -> GradedTrajectory:
    """Return a rollout that solved its task, or that shows this failure as `measure` reads it."""
    turns, stop = _turns(task.id, failure, tokens)
    prompt = (Message(role="system", content=system),) if system else ()
    broken = failure is FailureClass.INFRASTRUCTURE
    trajectory = Trajectory(
        id=f"trace_{derive_seed(spec_hash, task.id, seed):032x}",
        task_id=task.id,
        model="planted",
        spec_hash=spec_hash,
        seed=seed,
        prompt=(*prompt, *task.messages),
        turns=turns,
        stop_reason=stop,
        failure=_DOWN if broken else None,
    )
    grade = Grade(score=None, failure=_DOWN) if broken else Grade(score=score)
    return GradedTrajectory(trajectory=trajectory, grade=grade)


_DOWN = Failure(kind=FailureKind.INFRASTRUCTURE, where="tool 'get_order'", message="no answer")


@lru_cache(maxsize=10_000)
def _turns(
    order: str, failure: FailureClass | None, tokens: int
) -> tuple[tuple[Turn, ...], StopReason]:
    """Return what was said. Solved: read, cancel, answer."""
    read = _call(order, "get_order", "order 4711 is open", tokens)
    cancel = _call(order, "cancel_order", "cancelled", tokens)
    done = _said("Done.", tokens)
    finished = StopReason.FINISHED
    match failure:
        case None | FailureClass.WRONG_PLAN | FailureClass.INFRASTRUCTURE:
            return (read, cancel, done), finished
        case FailureClass.MALFORMED_CALL:
            broken = ParseFailure(raw="get_order(", reason="the call is not closed")
            return (replace(done, parse_failures=(broken,)), done), finished
        case FailureClass.UNKNOWN_TOOL:
            return (_call(order, "find_order", "no such tool", tokens, error=True), done), finished
        case FailureClass.NO_CALL:
            return (done,), finished
        case FailureClass.WRONG_TOOL:
            return (read, _call(order, "list_stores", "one store", tokens), done), finished
        case FailureClass.WRONG_ARGUMENTS:
            told = "invalid argument: order is required"
            return (_call(order, "get_order", told, tokens, error=True), done), finished
        case FailureClass.MISREAD_OUTPUT:
            return (read, cancel, _said("Order 9923 is cancelled.", tokens)), finished
        case FailureClass.EARLY_STOP:
            return (read, done), finished
        case FailureClass.TOO_MANY_CALLS:
            return (read, cancel), StopReason.MAX_TURNS
        case FailureClass.UNSAFE_WRITE:
            return (cancel, done), finished
        case FailureClass.TRUNCATED:
            return (read, replace(done, finish_reason=FinishReason.LENGTH)), StopReason.MAX_TOKENS


def _call(order: str, tool: str, answer: str, tokens: int, *, error: bool = False) -> Turn:
    call = ToolCall(id=f"{tool}-1", name=tool, arguments=json.dumps({"order": order}))
    turn = _said("", tokens)
    result = ToolResult(call_id=call.id, name=tool, content=answer, is_error=error)
    message = Message(role="assistant", tool_calls=(call,))
    return replace(turn, message=message, tool_results=(result,))


def _said(text: str, tokens: int) -> Turn:
    return Turn(
        observation_ids=(0,) * 10,
        action_ids=(0,) * tokens,
        behavior_logprobs=(0.0,) * tokens,
        first_version=0,
        last_version=0,
        message=Message(role="assistant", content=text),
    )
