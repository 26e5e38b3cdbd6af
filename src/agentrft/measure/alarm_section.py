"""The alarms of a report, each with links to the rollouts on the page that show it best."""

from collections.abc import Sequence
from html import escape

from agentrft.core.grade import Grade
from agentrft.core.run import RolloutRecord
from agentrft.measure.monitors import Alarm
from agentrft.measure.summary import ReportInput
from agentrft.measure.transcript import evidence


def alarm_section(given: ReportInput) -> str:
    """Return table and transcripts; nothing if no monitor raised an alarm."""
    raised = [(stage.name, alarm) for stage in given.stages for alarm in stage.alarms]
    if not raised:
        return ""
    named = dict.fromkeys(trace for _, alarm in raised for trace in alarm.evidence)
    records = {r.graded.trajectory.id: r for stage in given.stages for r in stage.records}
    shown = [records[trace] for trace in named if trace in records]
    numbers = {record.graded.trajectory.id: n for n, record in enumerate(shown, start=1)}
    rows = "".join(_row(stage, alarm, numbers) for stage, alarm in raised)
    return (
        "<h2>Alarms</h2>"
        '<p class="soft">What monitors saw while the policy trained. Numbers lead to the rollouts that '
        "show it best. An alarm is a reason to look, not yet a proof.</p>"
        '<div class="panel wide"><table><tr><th>stage</th><th>step</th><th>level</th>'
        f"<th>what</th><th>rollouts</th></tr>{rows}</table></div>"
        + "".join(_evidence(record, numbers) for record in shown)
    )


def _row(stage: str, alarm: Alarm, numbers: dict[str, int]) -> str:
    links = " ".join(
        f'<a href="#{escape(trace)}">{numbers[trace]}</a>'
        for trace in alarm.evidence
        if trace in numbers
    )
    mark = "bad" if alarm.level == "act" else "soft"
    return (
        f"<tr><td>{escape(stage)}</td><td>{alarm.step}</td>"
        f'<td><span class="{mark}">{escape(alarm.level)}</span></td>'
        f"<td>{escape(alarm.message)}</td><td>{links}</td></tr>"
    )


def _evidence(record: RolloutRecord, numbers: dict[str, int]) -> str:
    graded = record.graded
    scores = _scores(
        [("score", graded.grade), ("held out", graded.gold), ("second", graded.second)]
    )
    number, task = numbers[graded.trajectory.id], graded.trajectory.task_id
    label = f"{number} · {record.split} · step {record.step} · {task}"
    return evidence(record, label, scores)


def _scores(grades: Sequence[tuple[str, Grade | None]]) -> str:
    return ", ".join(
        f"{name} {'not graded' if grade.score is None else f'{grade.score:.2f}'}"
        for name, grade in grades
        if grade is not None
    )
