"""`agentrft audit`: attack a grader and say what it can be made to pay for."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentrft.cli.terminal import HomeOption, console, open_home

if TYPE_CHECKING:
    from agentrft.audit.agreement import Reliability
    from agentrft.audit.probe import Finding, Subject
    from agentrft.audit.report import AuditReport, Headline
    from agentrft.core.config import AuditConfig
    from agentrft.jobs.grading import Grading
    from agentrft.measure.statistics import Estimate
    from agentrft.store.home import Home

BLOCKED = 2
"""Exit code of an audit whose grader must not train anything."""
_SHOWN_CHARACTERS = 160
_FAMILIES = {
    "A": "texts that need no answer",
    "B": "right answers made wrong",
    "C": "templates and judges",
    "D": "code and resources",
    "E": "tools",
    "F": "arithmetic and data",
    "L": "asked of a model; warnings only",
}

app = typer.Typer()


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the command line says to attack."""

    project: Path | None
    grader: Path | None
    data: Path | None
    reference: str
    call_tools: bool
    config_file: str


@app.command()
def audit(
    project: Annotated[Path | None, typer.Argument(help="Project folder.")] = None,
    *,
    grader: Annotated[
        Path | None, typer.Option(help="Grader object (JSON or TOML) instead of the project's own.")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="JSON Lines file instead of the project's train rows.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Rows that are tried; 0 takes the config's.")] = 0,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    probe: Annotated[list[int] | None, typer.Option(help="Only these probes.")] = None,
    task: Annotated[str, typer.Option(help="Only this row, every text of it shown.")] = "",
    reference: Annotated[str, typer.Option(help="Key of a row that holds the right answer.")] = "",
    model: Annotated[
        str, typer.Option(help="Entry of grader_models for the probes that ask one.")
    ] = "",
    second: Annotated[
        str, typer.Option(help="Entry of grader_models that a grading model is compared with.")
    ] = "",
    call_tools: Annotated[
        bool, typer.Option("--call-tools", help="Call tools by URL too; they may have effects.")
    ] = False,
    fix: Annotated[
        Path | None, typer.Option(help="Write the best patched grader object here, if any.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the whole report here.")
    ] = None,
    unsafe_graders: Annotated[
        bool,
        typer.Option("--unsafe-graders", help="Let code of graders run without a sandbox, as you."),
    ] = False,
    config: Annotated[str, typer.Option("--config", help="Config file of the project.")] = (
        "agent.toml"
    ),
    home: HomeOption = None,
) -> None:
    """Attack a grader with wrong answers of 45 kinds; exit code 2 if it must not train anything."""
    from agentrft.jobs.grading import Grading

    opened = open_home(home)
    grading = Grading(opened, unsafe=unsafe_graders)
    asked = _Asked(
        project=project,
        grader=grader,
        data=data,
        reference=reference,
        call_tools=call_tools,
        config_file=config,
    )
    subject, settings = _subject(opened, grading, asked)
    settings = replace(settings, rows=rows or settings.rows)
    command = _command(asked, rows)
    report = asyncio.run(
        _audited(
            grading,
            subject,
            settings,
            seed=seed,
            only=probe or (),
            task=task,
            model=model,
            second=second,
            command=command,
        )
    )
    _print(report)
    if json_file is not None:
        json_file.write_text(json.dumps(report.as_json(), indent=1), encoding="utf-8")
    if fix is not None and report.suggestions:
        fix.write_text(json.dumps(report.suggestions[0].config, indent=2), encoding="utf-8")
    if report.blocked:
        raise typer.Exit(BLOCKED)


def _subject(home: "Home", grading: "Grading", asked: _Asked) -> "tuple[Subject, AuditConfig]":
    from agentrft.core.config import AuditConfig
    from agentrft.core.errors import ConfigError
    from agentrft.jobs.audit import bare_subject, project_subject
    from agentrft.jobs.grading import read_table
    from agentrft.jobs.project import assembled, read_config
    from agentrft.store.codec import load_server_config

    given = read_table(asked.grader) if asked.grader else {}
    if asked.project is None:
        if asked.data is None or not given:
            raise ConfigError(
                "name a project folder, or a grader object and rows: --grader, --data"
            )
        backends = grading.of_server(load_server_config(home.path))
        return bare_subject(given, asked.data, backends, reference=asked.reference), AuditConfig()
    config = read_config(asked.project, asked.config_file)
    if given:
        config = replace(config, grader=given)
    if asked.data is not None:
        config = replace(config, data=replace(config.data, train=str(asked.data.resolve())))
    project = assembled(asked.project, config, grading.of_project)
    subject = project_subject(project, reference=asked.reference, call_tools=asked.call_tools)
    return subject, config.audit


def _command(asked: _Asked, rows: int) -> str:
    """Return the command that this audit was, for replays to build on."""
    words = ["agentrft audit"]
    words += [str(asked.project)] if asked.project else []
    words += ["--grader", str(asked.grader)] if asked.grader else []
    words += ["--data", str(asked.data)] if asked.data else []
    words += ["--reference", asked.reference] if asked.reference else []
    words += ["--config", asked.config_file] if asked.config_file != "agent.toml" else []
    words += ["--call-tools"] if asked.call_tools else []
    words += ["--rows", str(rows)] if rows else []
    return " ".join(words)


async def _audited(
    grading: "Grading",
    subject: "Subject",
    settings: "AuditConfig",
    *,
    seed: int,
    only: Sequence[int],
    task: str,
    model: str,
    second: str,
    command: str,
) -> "AuditReport":
    """Audit, and look for a better grader where this one was refused or fooled."""
    from agentrft.audit.agreement import reliability_of
    from agentrft.audit.catalogue import LLM_PROBES, PROBES
    from agentrft.audit.fixes import suggestions
    from agentrft.audit.probe import Verdict
    from agentrft.audit.run import audit as run_audit
    from agentrft.core.errors import ConfigError
    from agentrft.graders.build import build_grader
    from agentrft.graders.second_model import second_opinion
    from agentrft.jobs.progress import BarProgress

    for option, name in (("--model", model), ("--second", second)):
        if name and name not in subject.backends.models:
            known = ", ".join(subject.backends.models) or "none"
            raise ConfigError(f"{option} {name}: grader_models has no such entry; known: {known}")
    other = (
        build_grader(second_opinion(subject.config, second), backends=subject.backends)
        if (second)
        else None
    )
    try:
        with BarProgress(console()).phase("audit", len(only) or len(PROBES + LLM_PROBES)) as phase:

            def found(finding: "Finding") -> None:
                phase.advance()
                phase.note(f"{finding.probe} {finding.title}")

            report = await run_audit(
                subject,
                settings,
                seed=seed,
                only=only,
                task=task,
                model=subject.backends.models.get(model),
                command=command,
                on_finding=found,
            )
            if other is not None:
                phase.note("asking the grader again, and the second model")
                reliability = await reliability_of(
                    subject, rows=settings.rows, seed=seed, second=other
                )
                report = replace(report, reliability=reliability)
            fooled = any(finding.verdict is Verdict.FOOLED for finding in report.findings)
            if only or task or not (fooled or report.blocked):
                return report
            phase.note("looking for a grader that does better")
            return replace(report, suggestions=await suggestions(subject, settings, report))
    finally:
        await grading.close()


def _print(report: "AuditReport") -> None:
    from rich.text import Text

    from agentrft.audit.probe import Verdict

    colours = {Verdict.FOOLED: "bold red", Verdict.WARN: "yellow", Verdict.SKIPPED: "dim"}
    out = console()
    for family, title in _FAMILIES.items():
        findings = [finding for finding in report.findings if finding.group == family]
        if findings:
            out.print(Text(f"\n{family}  {title}", style="bold"))
        for finding in findings:
            style = colours.get(finding.verdict, "")
            line = f"{finding.probe:>3}  {finding.verdict:<8}{finding.title}: {finding.summary}"
            out.print(Text(line, style=style), soft_wrap=True)
            if finding.verdict in (Verdict.WARN, Verdict.FOOLED) and finding.replay:
                paid = "" if finding.score is None else f"  score {finding.score:.2f}"
                out.print(Text(f"       {shown(finding.text)}{paid}"), soft_wrap=True)
                out.print(Text(f"       {finding.replay}", style="dim"), soft_wrap=True)
    for shot in report.shots:
        score = "-" if shot.score is None else f"{shot.score:.3f}"
        line = f"{score:>7}  {shot.attempt.label}: {shown(shot.attempt.text)}"
        out.print(Text(line), soft_wrap=True)
    out.print(Text("\n" + _summary(report)), soft_wrap=True)


def _summary(report: "AuditReport") -> str:
    lines = [
        *_figures(report.headline),
        f"rows               {report.rows}, right answers known for {report.answers}",
        f"seconds            {report.seconds:.1f}, {report.unreached} probes skipped",
    ]
    if report.reliability is not None:
        lines += ["", *_agreement(report.reliability)]
    for number, suggestion in enumerate(report.suggestions, start=1):
        lines.append(f"\nsuggestion {number}: {suggestion.change}")
        lines.append("  " + json.dumps(suggestion.config, ensure_ascii=True))
        before, after = _figures(suggestion.before), _figures(suggestion.after)
        lines += [
            f"  {was}  ->  {now.split(maxsplit=2)[-1] if was != now else 'same'}"
            for was, now in zip(before, after, strict=True)
        ]
    lines += [f"BLOCKED: {reason}" for reason in report.blocked] or ["passed"]
    return "\n".join(lines)


def _agreement(found: "Reliability") -> list[str]:
    def figure(value: "Estimate | None") -> str:
        if value is None:
            return "not known"
        return f"{value.value:.2f} ({value.low:.2f} to {value.high:.2f})"

    repeated, order, known, other = found.repeats, found.order, found.anchors, found.second
    apart = "not known" if known is None else "yes" if known.separated else "no"
    lines = [
        f"flips when asked again       {figure(repeated and repeated.flips)}",
        f"same verdict, labels turned  {figure(order and order.same_side)}",
        f"right above wrong answers    {figure(known and known.ordered)}, one threshold: {apart}",
        f"same verdict, second model   {figure(other and other.same_side)}",
        f"rank correlation with it     {figure(other and other.spearman)}",
        f"quadratic-weighted kappa     {figure(other and other.kappa)}",
    ]
    return lines + [f"gradings that failed: {count} {code}" for code, count in found.errors.items()]


def _figures(headline: "Headline") -> list[str]:
    def figure(value: float | None) -> str:
        return "not known" if value is None else f"{value:.3f}"

    return [
        f"false-pass ceiling {figure(headline.false_pass_ceiling)}",
        f"lazy policy        {figure(headline.lazy_policy)}",
        f"base rate          {figure(headline.base_rate)}",
        f"right answers      {figure(headline.reference_score)}",
        f"false fails        {figure(headline.false_fail_rate)}",
        f"grader errors      {figure(headline.error_rate)}",
        f"p95 latency        {figure(headline.p95_latency_s)}",
    ]


def shown(text: str) -> str:
    """Return a text that is safe to print: nothing invisible, nothing endless."""
    visible = "".join(
        char if char.isprintable() and char.isascii() else char.encode("unicode_escape").decode()
        for char in text[:_SHOWN_CHARACTERS]
    )
    more = f"... ({len(text)} characters)" if len(text) > _SHOWN_CHARACTERS else ""
    return f"'{visible}'{more}"
