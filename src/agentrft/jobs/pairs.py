"""Pairs to prefer by: mined from graded rollouts, or rendered from conversations. Pure.

What both ways begin with carries no loss; a rollout's tokens are its own, never rendered again.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from agentrft.core.grade import GradedTrajectory, Outcome
from agentrft.core.sample import Sample
from agentrft.core.seeds import derive_seed
from agentrft.core.task import Preference
from agentrft.core.trajectory import Trajectory
from agentrft.jobs.project import Project
from agentrft.jobs.serving import DemonstrationRenderer
from agentrft.jobs.supervised import rendered
from agentrft.training.credit import NothingToCompareError, preference_pair

Pair = tuple[Sample, Sample]
"""What is preferred, then what is rejected."""
SAME = 1e-9
"""Gaps of scores that differ by less are the same gap."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parting:
    """Where two rollouts of a task part: the first token that the policy chose otherwise."""

    context: int
    shared_tokens: int
    """Equal tokens before it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mined:
    """What graded rollouts hold to prefer by."""

    pairs: tuple[Pair, ...]
    tasks: int
    tasks_with_gap: int
    """Tasks with two rollouts that score far enough apart."""


def mined(
    rollouts: Sequence[GradedTrajectory], *, least_gap: float, most_per_task: int, seed: int
) -> Mined:
    """Return pairs of rollouts of one task whose scores are `least_gap` apart, or further.

    Those that part late come first: they say most exactly what was better. No two pairs of a task
    have the same texts. The result does not depend on the order of the rollouts.
    """
    tried: dict[str, list[GradedTrajectory]] = {}
    for graded in sorted(rollouts, key=lambda graded: graded.trajectory.id):
        if graded.outcome is not Outcome.INFRASTRUCTURE_FAULT and not graded.screened:
            tried.setdefault(graded.trajectory.task_id, []).append(graded)
    pairs: list[Pair] = []
    with_gap = 0
    for task_id in sorted(tried):
        unlike = list(_unlike(tried[task_id], least_gap))
        with_gap += bool(unlike)
        random.Random(derive_seed(seed, "pairs", task_id)).shuffle(unlike)
        pairs += itertools.islice(_of_task(unlike), most_per_task)
    return Mined(pairs=tuple(pairs), tasks=len(tried), tasks_with_gap=with_gap)


def parting(one: Trajectory, other: Trajectory) -> Parting | None:
    """Return where the policy went another way; None if the world did so first, or nobody did."""
    shared = 0
    for mine, its in zip(one.turns, other.turns, strict=False):
        if (mine.context, mine.observation_ids) != (its.context, its.observation_ids):
            return None
        both = zip(mine.action_ids, its.action_ids, strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))
        shared += len(mine.observation_ids) + common
        if mine.action_ids != its.action_ids:
            cut = common == min(len(mine.action_ids), len(its.action_ids))
            return None if cut else Parting(context=mine.context, shared_tokens=shared)
    return None


def rendered_pair(
    preference: Preference,
    project: Project,
    renderer: DemonstrationRenderer,
    *,
    longest: int | None = None,
) -> Pair:
    """Render both ways as demonstrations are; what is longer than `longest` tokens is cut at the end.

    Raises NothingToCompareError if the assistant says nothing in one of them that it does not say in
    the other, and DataError for what the model's chat format cannot express.
    """
    ways = [rendered([way], project, renderer, longest=longest) for way in preference.ways]
    preferred, rejected = ((s[0].token_ids, s[0].action_mask) if s else ((), ()) for s in ways)
    return preference_pair(preferred, rejected, preference.id)


def comparable(
    preferences: Sequence[Preference],
    project: Project,
    renderer: DemonstrationRenderer,
    *,
    longest: int | None = None,
) -> list[Pair]:
    """Render pairs and leave out those of which nothing can be compared within `longest` tokens."""
    pairs: list[Pair] = []
    for preference in preferences:
        try:
            pairs.append(rendered_pair(preference, project, renderer, longest=longest))
        except NothingToCompareError:
            continue
    return pairs


def _unlike(
    tried: Sequence[GradedTrajectory], least_gap: float
) -> Iterator[tuple[Trajectory, Trajectory]]:
    """Yield better and worse, whichever part somewhere or not."""
    for better, worse in itertools.permutations(tried, 2):
        high, low = better.grade.score, worse.grade.score
        if high is not None and low is not None and high - low >= max(least_gap, SAME) - SAME / 2:
            yield better.trajectory, worse.trajectory


def _of_task(unlike: Sequence[tuple[Trajectory, Trajectory]]) -> Iterator[Pair]:
    """Yield what can be compared, latest parting first; ties stay as they come."""
    parted = [
        (where, better, worse)
        for better, worse in unlike
        if (where := parting(better, worse)) is not None
    ]
    parted.sort(key=lambda found: found[0].shared_tokens, reverse=True)
    texts: set[tuple[tuple[int, ...], ...]] = set()
    for where, better, worse in parted:
        preferred, rejected = (_context(way, where.context) for way in (better, worse))
        said = (_said(*preferred), _said(*rejected))
        if said not in texts:
            texts.add(said)
            yield preference_pair(preferred, rejected, f"{better.id} over {worse.id}")


def _context(trajectory: Trajectory, number: int) -> tuple[list[int], list[bool]]:
    """Return the tokens of one append-only stretch as the engine saw them, True where it sampled."""
    token_ids: list[int] = []
    sampled: list[bool] = []
    for turn in trajectory.contexts()[number]:
        token_ids += (*turn.observation_ids, *turn.action_ids)
        sampled += [False] * len(turn.observation_ids) + [True] * len(turn.action_ids)
    return token_ids, sampled


def _said(token_ids: Sequence[int], sampled: Sequence[bool]) -> tuple[int, ...]:
    return tuple(itertools.compress(token_ids, sampled))
