"""Policies measured on the holdout, what they took, and whether they may be compared.

Pure: rollouts in, numbers out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median_high

import numpy as np

from agentrft.core.config import PriceList
from agentrft.core.errors import UserError
from agentrft.core.grade import Grade
from agentrft.core.run import RolloutRecord, StepMetrics
from agentrft.core.trajectory import Trajectory
from agentrft.measure.summary import by_task

GRADER = "grader"
"""Chooses by the grade itself: an upper bound, since serving has no reference to grade with."""
TRAINED_TOKEN = 3.0
"""Tokens read that one trained token weighs: a backward pass costs twice a forward pass."""

RolloutKey = tuple[str, float]
"""A rollout by id and beginning; the same one may be in several arms."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spending:
    """What rollouts and training took."""

    rollouts: float = 0.0
    prompt_tokens: float = 0.0
    """Tokens read, each once: history is kept in the cache. An endpoint counts every call's prompt."""
    sampled_tokens: float = 0.0
    tool_calls: float = 0.0
    trained_tokens: float = 0.0
    """Tokens that passed through the trainer."""
    seconds: float = 0.0
    """Of the machine: each moment is divided among the rollouts that ran side by side."""

    def __add__(self, other: "Spending") -> "Spending":
        mine, more = asdict(self), asdict(other)
        return Spending(**{unit: mine[unit] + more[unit] for unit in mine})

    def times(self, factor: float) -> "Spending":
        """Return that much of everything."""
        return Spending(**{unit: factor * amount for unit, amount in asdict(self).items()})

    def money(self, prices: PriceList) -> float:
        """Return what it costs, in the currency of the prices."""
        return (
            prices.machine_hour * self.seconds / 3600
            + prices.prompt_tokens * self.prompt_tokens / 1e6
            + prices.sampled_tokens * self.sampled_tokens / 1e6
            + prices.tool_call * self.tool_calls
        )

    @property
    def weighed_tokens(self) -> float:
        """Tokens through the model: the cost where nothing has a price."""
        return self.prompt_tokens + self.sampled_tokens + TRAINED_TOKEN * self.trained_tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Arm:
    """One policy measured on the holdout, or the best of k rollouts of one."""

    name: str
    """Arms of one name are one policy made with several seeds."""
    records: Sequence[RolloutRecord]
    """Of the holdout alone, infrastructure faults included."""
    training: Spending = field(default_factory=Spending)
    """Before the first task was served: search, trainings, a verifier's training."""
    trained: bool = False
    """Whether its weights were changed."""
    k: int = 1
    chosen_by: str = ""
    """`grader`, or the name of a verifier; empty without a choice."""
    policy: str = ""
    """Name of the arm that is chosen from; empty without a choice."""
    verdicts: Mapping[RolloutKey, Grade] = field(default_factory=dict[RolloutKey, Grade])
    """What the verifier says of each rollout; unused where the grader chooses."""
    grader: str = ""
    """The grader with its reward terms and the score that counts as solved, as one text; empty where
    nobody knows."""


def best_of(
    arm: Arm,
    k: int,
    chosen_by: str = GRADER,
    *,
    verdicts: Mapping[RolloutKey, Grade] | None = None,
    training: Spending | None = None,
) -> Arm:
    """Return the best of k rollouts of a measured policy.

    `training` is what the verifier took before it could choose. Raises UserError if the policy has
    too few rollouts of every task.
    """
    most = samples(arm)
    if not 2 <= k <= most:
        raise UserError(
            f"best of {k} needs {max(k, 2)} rollouts per task, and {arm.name!r} has {most}; measure "
            "it with a larger methods.evaluation.samples_per_task, at temperature 1"
        )
    return replace(
        arm,
        name=choice_name(arm.name, k, chosen_by),
        k=k,
        chosen_by=chosen_by,
        policy=arm.name,
        verdicts=verdicts or {},
        training=arm.training + (training or Spending()),
    )


def samples(arm: Arm) -> int:
    """Return how many rollouts a task has, in the middle of all tasks.

    Infrastructure may have spoiled some of one, and a search have made more of another.
    """
    counts = [len(graded) for graded in by_task(arm.records).values()]
    return median_high(counts) if counts else 0


def choice_name(policy: str, k: int, chosen_by: str) -> str:
    """Return what a choice among rollouts is called."""
    return f"{policy}, best of {k} by {chosen_by}"


def spent(records: Iterable[RolloutRecord], *, seconds: float = 0.0) -> Spending:
    """Return what these rollouts took; `seconds` is the wall clock of the run that made them."""
    made = [record.graded.trajectory for record in records]
    return Spending(
        rollouts=len(made),
        prompt_tokens=sum(one.observed_tokens for one in made),
        sampled_tokens=sum(one.sampled_tokens for one in made),
        tool_calls=sum(len(one.made_calls) for one in made),
        seconds=seconds,
    )


def spent_on_training(
    records: Iterable[RolloutRecord], metrics: Iterable[StepMetrics], *, seconds: float
) -> Spending:
    """Return what a training took: its rollouts, without those that only measure, and its steps."""
    took = spent((record for record in records if record.split != "holdout"), seconds=seconds)
    tokens = sum(step.values.get("computed_tokens", 0.0) for step in metrics)
    return replace(took, trained_tokens=tokens)


def seeds_of(arms: Iterable[Arm]) -> list[list[Arm]]:
    """Return arms of one name together, in the order in which they were measured."""
    named: dict[str, list[Arm]] = {}
    for arm in arms:
        named.setdefault(arm.name, []).append(arm)
    return [sorted(of_name, key=_began) for of_name in named.values()]


def _began(arm: Arm) -> tuple[float, str]:
    made = (record.graded.trajectory for record in arm.records)
    return min((one.started_at, one.id) for one in made)


def odds(samples: int, k: int) -> list[float]:
    """Return the chance of each place, best first, to be the best of k drawn without replacement.

    With fewer samples than k, all are drawn.
    """
    k = min(k, samples)
    return [
        math.comb(samples - 1 - place, k - 1) / math.comb(samples, k) for place in range(samples)
    ]


def check_comparable(arms: Sequence[Arm]) -> None:
    """Raise UserError, with the reason, for arms whose rates say nothing about each other."""
    if not arms:
        raise UserError("no arm to compare; name runs that measured the holdout")
    first = arms[0]
    asked, graders = _asked(first), _graders(first)
    for arm in arms:
        if not by_task(arm.records):
            raise UserError(f"{arm.name!r} has no graded rollout of the holdout; measure it first")
        there = _asked(arm)
        if there.keys() != asked.keys():
            alone = min(there.keys() ^ asked.keys())
            raise UserError(
                f"{first.name!r} and {arm.name!r} were measured on other holdout tasks "
                f"({len(asked)} and {len(there)}; {alone!r} is in one of them only), so their rates "
                "do not compare; measure both on the same tasks"
            )
        if changed := next((task for task in asked if there[task] != asked[task]), None):
            raise UserError(
                f"holdout task {changed!r} says something else in {arm.name!r} than in "
                f"{first.name!r}; the data changed between them, so measure both again"
            )
        if _graders(arm) != graders or (arm.grader and first.grader and arm.grader != first.grader):
            raise UserError(
                f"{first.name!r} and {arm.name!r} were graded by other graders, so their rates do not "
                "compare; measure both with one grader"
            )
    for seeds in seeds_of(arms):
        keys = [rollout_key(one.graded.trajectory) for arm in seeds for one in arm.records]
        if len(set(keys)) < len(keys):
            raise UserError(
                f"{seeds[0].name!r} names the same rollouts twice; runs of one name count as seeds of "
                "one policy, so name each run once"
            )
        models = {one.graded.trajectory.model for arm in seeds for one in arm.records}
        if len(models) > 1:
            raise UserError(
                f"{seeds[0].name!r} names rollouts of {' and '.join(sorted(models))}; runs of one name "
                "count as seeds of one policy, so give each model a name"
            )
        if len({arm.trained for arm in seeds}) > 1:
            raise UserError(
                f"{seeds[0].name!r} names weights that were trained and weights that were not; runs of "
                "one name count as seeds of one policy, so give these two names"
            )


def _asked(arm: Arm) -> dict[str, tuple[tuple[str, str], ...]]:
    """Return what each task asks; system text is the policy's own."""
    asked: dict[str, tuple[tuple[str, str], ...]] = {}
    for record in arm.records:
        prompt = record.graded.trajectory.prompt
        said = tuple((m.role, m.content) for m in prompt if m.role not in ("system", "developer"))
        task = record.graded.trajectory.task_id
        asked[task] = asked.get(task, ()) or said  # a rollout that never began has no prompt
    return asked


def _graders(arm: Arm) -> set[str]:
    return {one.grade.grader for graded in by_task(arm.records).values() for one in graded}


def rollout_key(trajectory: Trajectory) -> RolloutKey:
    """Return what names this rollout."""
    return trajectory.id, trajectory.started_at


def machine_seconds(arms: Iterable[Arm]) -> dict[RolloutKey, float]:
    """Divide each moment among the rollouts that ran in it."""
    made = {
        rollout_key(record.graded.trajectory): record.graded.trajectory
        for arm in arms
        for record in arm.records
    }
    starts = np.array([one.started_at for one in made.values()])
    ends = starts + np.array([one.duration_s for one in made.values()])
    times = np.unique(np.concatenate((starts, ends)))
    running = np.searchsorted(np.sort(starts), times, "right") - np.searchsorted(
        np.sort(ends), times, "right"
    )
    shares = np.diff(times) / np.maximum(running[:-1], 1)
    clock = np.concatenate(([0.0], np.cumsum(shares)))
    taken = clock[np.searchsorted(times, ends)] - clock[np.searchsorted(times, starts)]
    return dict(zip(made, taken.tolist(), strict=True))
