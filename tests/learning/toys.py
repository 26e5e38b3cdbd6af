"""Tasks whose best policy is known: a bandit over tools, a chain of two tools, a budget of calls."""

import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

from agentrft.core.config import Allowance, Limits, RewardTerms
from agentrft.core.grade import Grade
from agentrft.core.protocols import Environment
from agentrft.core.task import Message, Task, ToolCall, ToolSpec
from agentrft.core.trajectory import ToolResult, Trajectory

CODES = ("one", "two")
CONTEXTS = ("a", "b", "c", "d")
COLOURS = ("red", "green", "blue", "black")
Asked = tuple[str, str]
"""A tool, and the value it was called with."""


@dataclass(frozen=True, kw_only=True)
class Toy:
    """The world of one rollout. It keeps nothing, so it needs no thread of its own: a rollout of a
    tiny model would mostly wait for that."""

    problem: "Problem"
    task: Task

    def tool_specs(self) -> tuple[ToolSpec, ...]:
        return self.problem.tools

    async def call_tool(self, call: ToolCall) -> ToolResult:
        if call.name not in {tool.name for tool in self.problem.tools}:
            return ToolResult(call_id=call.id, name=call.name, content="no", is_error=True)
        content = self.problem.answer(self.task, _asked(call))
        return ToolResult(call_id=call.id, name=call.name, content=content)

    async def close(self) -> None:
        """Free nothing."""


@dataclass(frozen=True, kw_only=True)
class ToyGrader:
    """Grades by the problem's rule."""

    rule: Callable[[Task, Trajectory], Grade]
    name: str = "toy"

    async def grade(
        self, task: Task, trajectory: Trajectory, environment: Environment | None
    ) -> Grade:
        return self.rule(task, trajectory)


def _asked(call: ToolCall) -> Asked:
    return call.name, str(json.loads(call.arguments).get("value", ""))


def pressed_what_pays(task: Task, trajectory: Trajectory) -> Grade:
    """Bandit: the row names the one tool that pays; the agent sees only the context."""
    return Grade(score=float([c.name for c in trajectory.tool_calls] == [task["pays"]]))


def was_lucky(task: Task, trajectory: Trajectory) -> Grade:
    """Negative control: every rollout is paid by a coin that nothing of it decides."""
    return Grade(score=float(int(trajectory.id[-8:], 16) % 2))


def opened_what_it_saw(task: Task, trajectory: Trajectory) -> Grade:
    """Chain: looking tells a code that the prompt does not; opening it then is what pays."""
    right = [("look", ""), ("open", task["code"])]
    asked = [_asked(call) for call in trajectory.tool_calls]
    met = [made == wanted for made, wanted in zip(asked, right, strict=False)]
    so_far = [0.5 * good for good in itertools.accumulate(met, lambda whole, one: whole and one)]
    turns = len(trajectory.turns)
    by_turn = (*so_far, *[0.0] * turns)[:turns]
    return Grade(score=float(asked == right), turn_scores=by_turn)


def looked_and_answered(task: Task, trajectory: Trajectory) -> Grade:
    """Budget: one look is needed; every further one costs, which the reward terms see to."""
    return Grade(score=float(bool(trajectory.tool_calls) and trajectory.output_text == "done"))


def _tells(task: Task, asked: Asked) -> str:
    if asked[0] == "look":
        return task["code"]
    return "yes" if asked[1] == task["code"] else "no"


@dataclass(frozen=True, kw_only=True)
class Problem:
    """One toy: its environment, its tasks, and conversations that show the format and no more."""

    name: str
    tools: tuple[ToolSpec, ...]
    answer: Callable[[Task, Asked], str]
    rule: Callable[[Task, Trajectory], Grade]
    rows: tuple[dict[str, str], ...]
    demonstrations: tuple[tuple[Message, ...], ...]
    """Every way of acting, equally often."""
    reward: RewardTerms = field(default_factory=RewardTerms)
    limits: Limits = field(
        default_factory=lambda: Limits(max_turns=3, max_turn_tokens=6, max_context_tokens=64)
    )


def said(context: str, *turns: tuple[str, str, str]) -> tuple[Message, ...]:
    """Return a conversation: calls as (tool, value, result), then "done"."""

    def messages() -> Iterator[Message]:
        yield Message(role="user", content=context)
        for number, (name, value, result) in enumerate(turns):
            arguments = json.dumps({"value": value} if value else {})
            call = ToolCall(id=f"call_{number}", name=name, arguments=arguments)
            yield Message(role="assistant", tool_calls=(call,))
            yield Message(role="tool", content=result, tool_call_id=call.id, name=name)
        yield Message(role="assistant", content="done")

    return tuple(messages())


def _rows(key: str, values: Sequence[str]) -> tuple[dict[str, str], ...]:
    return tuple({"context": c, key: v} for c, v in zip(CONTEXTS, values, strict=True))


def _tool(name: str, *arguments: str) -> ToolSpec:
    properties = {argument: {"type": "string"} for argument in arguments}
    parameters = {"type": "object", "properties": properties, "required": list(arguments)}
    return ToolSpec(name=name, description="", parameters=parameters)


LOOK = _tool("look")

BANDIT = Problem(
    name="bandit",
    tools=tuple(map(_tool, COLOURS)),
    answer=lambda task, asked: "yes",
    rule=pressed_what_pays,
    rows=_rows("pays", ("blue",) * 4),
    demonstrations=tuple(said(c, (t, "", "yes")) for c in CONTEXTS for t in COLOURS),
)
LUCK = replace(BANDIT, name="luck", rule=was_lucky)
CHAIN = Problem(
    name="chain",
    tools=(LOOK, _tool("open", "value")),
    answer=_tells,
    rule=opened_what_it_saw,
    rows=_rows("code", CODES * 2),
    # What is opened is what was seen in two of three conversations, so that copying can be imagined.
    demonstrations=tuple(
        conversation
        for c in CONTEXTS
        for x, other in (CODES, CODES[::-1])
        for conversation in (
            *[said(c, ("look", "", x), ("open", x, "yes"))] * 2,
            said(c, ("look", "", x), ("open", other, "no")),
            *(said(c, ("open", x, answer)) for answer in ("yes", "no", "no")),
        )
    ),
)
BUDGET = Problem(
    name="budget",
    tools=(LOOK,),
    answer=lambda task, asked: "yes",
    rule=looked_and_answered,
    rows=tuple({"context": c} for c in CONTEXTS),
    demonstrations=tuple(
        said(c, *[("look", "", "yes")] * count) for c in CONTEXTS for count in range(5)
    ),
    reward=RewardTerms(tool_calls=Allowance(free=1, cost=0.1), most_penalty=0.4),
    limits=Limits(max_turns=6, max_turn_tokens=6, max_context_tokens=96),
)
