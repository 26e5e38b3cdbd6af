"""Graders with rows to audit, small enough to read."""

import asyncio
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from agentrft import Environment, tool
from agentrft.audit.probe import Finding, Subject
from agentrft.audit.references import Answer, find_answers
from agentrft.audit.report import AuditReport
from agentrft.audit.run import audit
from agentrft.core.config import AuditConfig
from agentrft.core.task import Message, Task, ToolCall
from agentrft.core.trajectory import Trajectory
from agentrft.graders.build import build_grader
from agentrft.graders.environment import EnvironmentGrader
from agentrft.graders.fixed import FixedGrader
from agentrft.rollout.environment import python_environment, tool_specs

ROWS = 12
TOPICS = ("billing", "shipping", "returns", "password")


def check(
    operation: str, given: str = "{{sample.output_text}}", reference: str = "{{item.answer}}"
) -> dict[str, Any]:
    return {
        "type": "string_check",
        "operation": operation,
        "input": given,
        "reference": reference,
    }


def sums(rows: int = ROWS) -> list[Task]:
    """Rows with a number for an answer, none of them alike."""
    return [
        asked(f"sum-{n}", f"What is {n} plus {n + 30}?", answer=str(2 * n + 30))
        for n in range(1, rows + 1)
    ]


def tickets(rows: int = ROWS) -> list[Task]:
    """Rows with one of four labels."""
    return [asked(f"ticket-{n}", f"Ticket {n}", answer=TOPICS[n % 4]) for n in range(rows)]


def asked(name: str, question: str, **row: Any) -> Task:
    return Task(id=name, messages=(Message(role="user", content=question),), row=row)


def of_object(config: Mapping[str, Any], tasks: Sequence[Task]) -> Subject:
    return Subject(
        grader=build_grader(config),
        config=config,
        tasks=tasks,
        answers=find_answers(config, tasks),
    )


def of_scores(
    scores: Callable[[Task, str], float], tasks: Sequence[Task], **fields: Any
) -> Subject:
    """A grader that is a function of the row and the answer."""

    def scored(task: Task, trajectory: Trajectory) -> float:
        return scores(task, trajectory.output_text)

    answers = find_answers({}, tasks)
    return Subject(grader=FixedGrader(scored), config={}, tasks=tasks, answers=answers, **fields)


class Desk(Environment):
    """An order to cancel; graded by its state and by what the reply says of it."""

    opened = 0

    def __init__(self, task: Task) -> None:
        type(self).opened += 1
        self.order = str(task["order"])
        self.cancelled: list[str] = []

    @tool
    def cancel(self, order: str) -> str:
        """Cancel an order."""
        self.cancelled.append(order)
        return f"ok {order}"

    @tool
    def note(self, text: str = "") -> str:
        """Write something down."""
        return "ok"

    def right(self) -> bool:
        return self.cancelled == [self.order]

    def grade(self, trajectory: Trajectory) -> float:
        return float(self.right() and trajectory.output_text == f"{self.order} is cancelled")


class CredulousDesk(Desk):
    """Believes what it is told."""

    def grade(self, trajectory: Trajectory) -> float:
        return float("ok" in trajectory.output_text or "Done" in trajectory.output_text)


class BusyDesk(Desk):
    """Pays for having called something."""

    def grade(self, trajectory: Trajectory) -> float:
        return 1.0 if self.right() else min(1.0, 0.5 * len(trajectory.tool_calls))


def of_desk(desk: type[Desk], rows: int = ROWS, **fields: Any) -> Subject:
    tasks = [asked(f"order-{n}", f"Cancel W{n:03}.", order=f"W{n:03}") for n in range(rows)]
    answers = {
        task.id: Answer(
            text=f"{task['order']} is cancelled",
            calls=(ToolCall(id="", name="cancel", arguments=f'{{"order": "{task["order"]}"}}'),),
        )
        for task in tasks
    }
    return Subject(
        grader=EnvironmentGrader(),
        config={},
        tasks=tasks,
        answers=answers,
        open_environment=python_environment(desk),
        tools=tool_specs(desk),
        **fields,
    )


def audited(subject: Subject, *, only: Collection[int] = (), **options: Any) -> AuditReport:
    return asyncio.run(audit(subject, AuditConfig(timeout_s=60.0), only=only, **options))


def finding(subject: Subject, probe: int) -> Finding:
    (found,) = audited(subject, only=[probe]).findings
    return found
