"""Terms declared around a grade: gates cap the score, then penalties are taken off it.

A gate is a minimum, not a summand: with `a + b` a policy is paid for the easy term while the one that
matters is 0. Penalties are capped, never raise a score and never take it below 0.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from agentrft.core.config import Allowance, RewardTerms
from agentrft.core.errors import ConfigError, GraderError
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment, Grader
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.environment import check_turn_scores
from agentrft.graders.multi import Multi


@dataclass(frozen=True, slots=True)
class GraderWithTerms:
    """Applies declared terms to what another grader says."""

    grader: Grader
    terms: RewardTerms

    @property
    def name(self) -> str:
        """As the grader behind."""
        return self.grader.name

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        """Grade, then apply the terms. Raises GraderError for a gate on a part that is not there."""
        grade = await self.grader.grade(task, trajectory, environment)
        check_turn_scores(grade, trajectory)
        if grade.score is None:
            return grade
        gated = min([grade.score, *self._gates(grade)])
        penalties = dict(_penalties(self.terms, trajectory))
        penalty = min(sum(penalties.values()), self.terms.most_penalty)
        # A score below 0 stays what it is: a penalty must not lift it to 0.
        score = min(gated, max(gated - penalty, 0.0))
        return replace(
            grade,
            score=score,
            parts={**grade.parts, **penalties, "before_terms": grade.score},
        )

    def _gates(self, grade: Grade) -> Iterator[float]:
        for gate in self.terms.gates:
            if gate not in grade.parts:
                known = ", ".join(sorted(grade.parts)) or "none"
                raise GraderError(
                    f"reward.gates names {gate!r}, which is no part of what grader "
                    f"{grade.grader!r} gave; its parts: {known}"
                )
            if not math.isfinite(grade.parts[gate]):
                raise GraderError(f"gate {gate!r} is {grade.parts[gate]}; it must be finite")
            yield grade.parts[gate]


def with_terms(grader: Grader, terms: RewardTerms) -> Grader:
    """Return the grader with its terms around it, or as it is if there are none.

    Raises ConfigError naming the dotted path of a term that cannot be meant.
    """
    if terms == RewardTerms():
        return grader
    if not terms.most_penalty >= 0:
        raise ConfigError(f"reward.most_penalty is {terms.most_penalty:g}; it must be at least 0")
    for name, allowance in _allowances(terms):
        for key, value in (("free", allowance.free), ("cost", allowance.cost)):
            if not value >= 0:
                raise ConfigError(f"reward.{name}.{key} is {value:g}; it must be at least 0")
    if isinstance(grader, Multi) and (unknown := set(terms.gates) - set(grader.graders)):
        raise ConfigError(
            f"reward.gates names {', '.join(sorted(unknown))}, which is no part of grader "
            f"{grader.name!r}; its parts: {', '.join(grader.graders)}"
        )
    return GraderWithTerms(grader, terms)


def _penalties(terms: RewardTerms, trajectory: Trajectory) -> Iterator[tuple[str, float]]:
    used = {
        "tool_calls": len(trajectory.tool_calls),
        "sampled_tokens": trajectory.sampled_tokens,
        "seconds": trajectory.duration_s,
    }
    for name, allowance in _allowances(terms):
        yield f"{name}_penalty", allowance.cost * max(0.0, used[name] - allowance.free)


def _allowances(terms: RewardTerms) -> Iterator[tuple[str, Allowance]]:
    if terms.tool_calls:
        yield "tool_calls", terms.tool_calls
    if terms.sampled_tokens:
        yield "sampled_tokens", terms.sampled_tokens
    if terms.seconds:
        yield "seconds", terms.seconds
