"""The audit of a project's grader, and the gate it is before whatever learns from grades."""

import ast
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from agentrft.audit.catalogue import LLM_PROBES, PROBES
from agentrft.audit.probe import Finding, Subject, Verdict
from agentrft.audit.references import find_answers
from agentrft.audit.report import AuditReport
from agentrft.audit.run import audit
from agentrft.core.config import AuditConfig
from agentrft.core.errors import DataError, UserError
from agentrft.core.grade import GradedTrajectory
from agentrft.core.task import Demonstration, Message, Task
from agentrft.core.trajectory import StopReason, ToolResult, Trajectory, Turn
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.jobs.context import Job
from agentrft.jobs.project import Project
from agentrft.store.jsonl import parsed
from agentrft.store.rows import task_of

FILE = "audit.json"
"""In the folder of the run that the audit was a gate of."""
WHAT_TO_DO = (
    "`agentrft audit` on the project shows the texts, also in audit.json of the run's folder; mend "
    "the grader, or train with --allow-audit-findings"
)


class GraderRefusedError(UserError):
    """An audit found the grader unfit to train with; `report` says why."""

    def __init__(self, report: AuditReport, what_to_do: str) -> None:
        super().__init__(
            "the grader did not pass its audit, so nothing was trained:\n"
            + "\n".join(f"  {reason}" for reason in report.blocked)
            + f"\n{what_to_do}"
        )
        self.report = report


def project_subject(
    project: Project,
    *,
    reference: str = "",
    call_tools: bool = False,
    rollouts: Sequence[GradedTrajectory] = (),
) -> Subject:
    """Return what an audit of a project attacks: its training grader on its train rows.

    `reference` names the key of a row that holds the right answer. Tools by URL are called only if
    `call_tools`. Raises DataError for rows that cannot be read.
    """
    tasks = project.tasks("train")
    gold = known_good(tasks, project.demonstrations())
    config = project.config.grader
    remote = () if call_tools else (tool.name for tool in project.config.tools)
    return Subject(
        grader=project.grader,
        config=config,
        tasks=tasks,
        backends=project.backends,
        rollouts=rollouts,
        open_environment=project.open_environment,
        remote_tools=frozenset(remote),
        tools=project.tools,
        system=project.spec.system,
        limits=project.config.limits,
        gold=gold,
        answers=find_answers(config, tasks, path=reference, gold=gold),
        validation=() if project.validation_rows == "train" else project.tasks("validation"),
        pass_threshold=project.config.pass_threshold,
        grader_source=project_source(project),
    )


def bare_subject(
    config: Mapping[str, Any], data: Path, backends: Backends, *, reference: str = ""
) -> Subject:
    """Return what an audit of a grader object with a data file attacks. Raises DataError.

    Rows need no messages here: graders read whatever keys they name.
    """

    def row_task(row: Mapping[str, Any], line: int) -> Task:
        name = f"row-{line}"
        return task_of(row, name) if "messages" in row else Task(id=name, messages=(), row=row)

    tasks = tuple(parsed(data, row_task, f"{data} "))
    if not tasks:
        raise DataError(f"{data} is empty; it needs at least one JSON object per line")
    return Subject(
        grader=build_grader(config, backends=backends),
        config=config,
        tasks=tasks,
        backends=backends,
        answers=find_answers(config, tasks, path=reference),
    )


async def audited(job: Job, project: Project, *, allow_findings: bool) -> None:
    """Be the gate of a run that trains on a project's grades; stages were audited with their whole.

    Raises as `gate` does.
    """
    if job.run.parent_id is None:
        subject = project_subject(project)
        await gate(job, subject, project.config.audit, allow_findings=allow_findings)


async def gate(
    job: Job,
    subject: Subject,
    config: AuditConfig,
    *,
    allow_findings: bool = False,
    what_to_do: str = WHAT_TO_DO,
) -> AuditReport | None:
    """Audit before a run trains; what was found is stored with the run. None if that was done before.

    Raises GraderRefusedError above the thresholds, unless findings are allowed, which the run's
    result then says.
    """
    before = job.run.result.get("audit")
    if before and (allow_findings or not before["blocked"]):
        job.note_result(audit={**before, "allowed": allow_findings and bool(before["blocked"])})
        return None
    report = await job.unless_stopped(_with_progress(job, subject, config))
    job.folder.mkdir(parents=True, exist_ok=True)
    (job.folder / FILE).write_text(json.dumps(report.as_json(), indent=1), encoding="utf-8")
    job.note_result(audit=summary(report, allowed=allow_findings))
    for finding in report.findings:
        if finding.verdict in (Verdict.WARN, Verdict.FOOLED):
            job.event(f"audit: probe {finding.probe}, {finding.title}: {finding.summary}")
    for reason in report.blocked:
        job.event(f"audit: {reason}", level="warn" if allow_findings else "error")
    if report.blocked and not allow_findings:
        raise GraderRefusedError(report, what_to_do)
    return report


def summary(report: AuditReport, *, allowed: bool) -> dict[str, Any]:
    """Return what a run's result keeps of its audit."""
    shown = report.as_json()
    count = {v: sum(finding.verdict is v for finding in report.findings) for v in Verdict}
    return {
        "headline": shown["headline"],
        "blocked": shown["blocked"],
        "allowed": allowed and bool(report.blocked),
        "verdicts": {verdict.value: number for verdict, number in count.items()},
        "seconds": report.seconds,
    }


def caveats(job: Job) -> tuple[str, ...]:
    """Return what a reader of the run's results must know of its audit."""
    kept = job.run.result.get("audit") or {}
    if not kept.get("allowed"):
        return ()
    found = "; ".join(kept["blocked"])
    return (f"The grader did not pass its audit and was trained with all the same: {found}",)


async def _with_progress(job: Job, subject: Subject, config: AuditConfig) -> AuditReport:
    with job.progress.phase("audit of the grader", len(PROBES) + len(LLM_PROBES)) as phase:

        def found(finding: Finding) -> None:
            phase.advance()
            phase.note(f"{finding.probe} {finding.title}")

        return await audit(subject, config, seed=job.run.seed, on_finding=found)


def known_good(
    tasks: Sequence[Task], demonstrations: Sequence[Demonstration]
) -> dict[str, Trajectory]:
    """Return demonstrations as rollouts by task id: those of the same id or the same prompt."""
    by_prompt = {_prompt(task.messages): task.id for task in tasks}
    ids = {task.id for task in tasks}
    found: dict[str, Trajectory] = {}
    for shown in demonstrations:
        prompt, answers = _split(shown.messages)
        task_id = shown.id if shown.id in ids else by_prompt.get(_prompt(prompt), "")
        turns = _turns(answers)
        if task_id and turns:
            found[task_id] = Trajectory(
                id=f"demonstration {shown.id}",
                task_id=task_id,
                model="",
                spec_hash="",
                seed=0,
                prompt=prompt,
                turns=turns,
                stop_reason=StopReason.FINISHED,
            )
    return found


def _prompt(messages: Sequence[Message]) -> tuple[tuple[str, str], ...]:
    return tuple((message.role, message.content) for message in messages)


def _split(messages: Sequence[Message]) -> tuple[tuple[Message, ...], tuple[Message, ...]]:
    """Split a conversation where the assistant first speaks."""
    roles = [message.role for message in messages]
    place = roles.index("assistant") if "assistant" in roles else len(roles)
    return tuple(messages[:place]), tuple(messages[place:])


def _turns(messages: Sequence[Message]) -> tuple[Turn, ...]:
    """Return what the assistant did; nothing if the user speaks again, which no rollout has."""
    turns: list[Turn] = []
    for message in messages:
        match message.role:
            case "assistant":
                turns.append(
                    Turn(
                        observation_ids=(),
                        action_ids=(),
                        behavior_logprobs=(),
                        first_version=0,
                        last_version=0,
                        message=message,
                    )
                )
            case "tool":
                result = ToolResult(
                    call_id=message.tool_call_id or "",
                    name=message.name or "",
                    content=message.content,
                )
                turns[-1] = replace(turns[-1], tool_results=(*turns[-1].tool_results, result))
            case _:
                return ()
    return tuple(turns)


def project_source(project: Project) -> str:
    """Return the Python behind a project's grader: the file that is named and its own imports."""
    config = project.config
    named = [config.environment] if not config.grader else list(_functions(config.grader))
    seen: dict[Path, str] = {}
    for reference in named:
        if reference:
            _read_with_imports(project.folder / reference.partition(":")[0], seen)
    return "\n\n".join(seen.values())


def _functions(config: Mapping[str, Any]) -> Iterator[str]:
    if config.get("type") == "function":
        yield str(config["function"])
    for part in config.get("graders", {}).values():
        yield from _functions(part)


def _read_with_imports(path: Path, seen: dict[Path, str]) -> None:
    if path in seen:
        return
    source = path.read_text(encoding="utf-8")
    seen[path] = source
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Import(names=names):
                modules = [alias.name for alias in names]
            case ast.ImportFrom(module=str() as module):
                modules = [module]
            case _:
                continue
        for module in modules:
            sibling = path.parent / f"{module.partition('.')[0]}.py"
            if sibling.is_file():
                _read_with_imports(sibling, seen)
