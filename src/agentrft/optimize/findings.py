"""What a search leaves behind: specs it tried, demonstrations. Pure."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from agentrft.core.grade import GradedTrajectory
from agentrft.core.task import Demonstration, Task, ToolSpec
from agentrft.measure.search_summary import Tried
from agentrft.measure.statistics import rate
from agentrft.optimize.purse import Seen
from agentrft.optimize.trials import passed


@dataclass(slots=True, kw_only=True)
class Attempt:
    """One spec on its way through the search."""

    name: str
    settings: Mapping[str, str]
    ended: str
    verdict: str


def tried(
    attempts: Mapping[str, Attempt], seen: Iterable[Seen], threshold: float
) -> tuple[Tried, ...]:
    """Return a record of every spec, by hash, with what it reached on dev."""
    of_spec: dict[str, dict[str, list[bool]]] = {}
    counts: dict[str, int] = {}
    for one in seen:
        spec = one.graded.trajectory.spec_hash
        counts[spec] = counts.get(spec, 0) + 1
        if one.split == "dev" and (solved := passed(one.graded, threshold)) is not None:
            of_spec.setdefault(spec, {}).setdefault(one.task.id, []).append(solved)
    return tuple(
        Tried(
            name=attempt.name,
            spec_hash=spec,
            settings=attempt.settings,
            ended=attempt.ended,
            rollouts=counts.get(spec, 0),
            pass_rate=rate(of_spec[spec]) if spec in of_spec else None,
            verdict=attempt.verdict,
        )
        for spec, attempt in attempts.items()
    )


def solved_conversations(
    seen: Iterable[Seen], tools: Sequence[ToolSpec], spec_hash: str, threshold: float
) -> tuple[Demonstration, ...]:
    """Return one solved rollout of each feedback task; the chosen spec's and the plainest first."""
    best: dict[str, Seen] = {}
    for one in seen:
        conversation = one.graded.trajectory.messages
        if (
            one.split != "feedback"
            or not passed(one.graded, threshold)
            or conversation[-1].role != "assistant"
        ):
            continue
        held = best.get(one.task.id)
        if held is None or _detours(one, spec_hash) < _detours(held, spec_hash):
            best[one.task.id] = one
    return tuple(_demonstration(one.task, one.graded, tools) for one in best.values())


def _detours(one: Seen, spec_hash: str) -> tuple[bool, int, int, int]:
    trajectory = one.graded.trajectory
    errors = sum(result.is_error for result in trajectory.tool_results)
    broken = sum(len(turn.parse_failures) for turn in trajectory.turns)
    other = trajectory.spec_hash != spec_hash
    return other, errors + broken, len(trajectory.tool_calls), trajectory.sampled_tokens


def _demonstration(
    task: Task, graded: GradedTrajectory, tools: Sequence[ToolSpec]
) -> Demonstration:
    """Return the conversation without the spec's own system text, which whoever shows it adds."""
    trajectory = graded.trajectory
    answers = trajectory.messages[len(trajectory.prompt) :]
    return Demonstration(
        id=task.id,
        messages=(*task.messages, *answers),
        tools=task.tools or tuple(tools),
        family=task.family,
    )
