"""Commands before any weight changes: preflight, optimize."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentrft.cli.project import (
    ConfigOption,
    PresetOption,
    ProjectArgument,
    ResumeOption,
    SeedOption,
    UnsafeOption,
    opened_project,
    run_job,
)
from agentrft.cli.terminal import HomeOption, console

if TYPE_CHECKING:
    from agentrft.jobs.context import Job
    from agentrft.optimize.problem import Found

app = typer.Typer()


@app.command()
def preflight(
    project: ProjectArgument,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; without it the base model.")
    ] = None,
    preset: PresetOption = "",
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    config: ConfigOption = "agent.toml",
    *,
    unsafe_graders: UnsafeOption = False,
    home: HomeOption = None,
) -> None:
    """Measure where the agent stands and say which method comes next."""
    from agentrft.core.run import Method
    from agentrft.jobs.preflight import preflight as run_preflight
    from agentrft.measure.preflight_page import terminal

    opened = opened_project(home, project, config, preset, unsafe_graders)
    result = run_job(
        opened,
        Method.PREFLIGHT,
        seed,
        resume,
        lambda job: run_preflight(job, opened.project, checkpoint),
    )
    console().print(terminal(result))
    folder = opened.home.report(result.run_id)
    console().print(f"report  {folder / 'preflight.html'}", highlight=False, soft_wrap=True)


@app.command()
def optimize(
    project: ProjectArgument,
    preset: PresetOption = "",
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    config: ConfigOption = "agent.toml",
    *,
    unsafe_graders: UnsafeOption = False,
    home: HomeOption = None,
) -> None:
    """Search for a better prompt and task structure, and prove it on the holdout."""
    from agentrft.core.run import Method
    from agentrft.jobs.optimize import optimize as run_optimize
    from agentrft.jobs.optimize import search_report
    from agentrft.measure.report import terminal

    opened = opened_project(home, project, config, preset, unsafe_graders)

    async def work(job: "Job") -> tuple["Job", "Found"]:
        return job, await run_optimize(job, opened.project)

    job, found = run_job(opened, Method.OPTIMIZE, seed, resume, work)
    report, folder = search_report(job, opened.project.config, found.summary)
    console().print(terminal(report))
    lines = [f"report  {folder / 'report.html'}"]
    if found.summary.promoted:
        lines += [
            f"spec    {job.folder / 'spec'}",
            f"apply   agentrft spec apply {project} {job.run.id}",
        ]
    console().print("\n".join(lines), highlight=False, soft_wrap=True)
