"""The command that repeats a run on another base model."""

import dataclasses
from pathlib import Path
from typing import Annotated

import typer

from agentrft.cli.project import FindingsOption, Opened, UnsafeOption, opened_grading, run_job
from agentrft.cli.terminal import HomeOption, console, open_home

app = typer.Typer()


@app.command()
def rebase(
    run: Annotated[str, typer.Argument(help="Run id of an improvement or a training.")],
    model: Annotated[str, typer.Option(help="The other base: short name, folder or hub id.")],
    project: Annotated[
        Path | None, typer.Option(help="Project folder, if it is not where the run began.")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the newest unfinished one.")
    ] = False,
    *,
    unsafe_graders: UnsafeOption = False,
    allow_audit_findings: FindingsOption = False,
    home: HomeOption = None,
) -> None:
    """Do to another base model what a run did to its own, and compare both."""
    from agentrft.core.config import ProjectConfig
    from agentrft.core.run import Method
    from agentrft.jobs.optimize import opened_run
    from agentrft.jobs.origin import origin_of
    from agentrft.jobs.project import assembled
    from agentrft.jobs.rebase import rebase as run_rebase
    from agentrft.jobs.regrade import project_file
    from agentrft.measure.report import terminal
    from agentrft.store.codec import load_config

    opened = open_home(home)
    source = opened_run(opened, run)
    if project is not None and project.is_dir():
        project /= "agent.toml"
    file = project or project_file(opened.store, run)
    config = load_config(ProjectConfig, source.run.config, run)
    grading = opened_grading(opened, unsafe_graders)
    own = assembled(file.parent, config, grading.of_project)
    origin = origin_of(source, own)
    other = dataclasses.replace(own, config=dataclasses.replace(config, model=model))
    report, folder = run_job(
        Opened(home=opened, project=other, file=file.resolve(), grading=grading),
        Method.REBASE,
        source.run.seed,
        resume,
        lambda job: run_rebase(job, origin, other, allow_findings=allow_audit_findings),
    )
    console().print(terminal(report))
    console().print(f"report  {folder / 'report.html'}", highlight=False, soft_wrap=True)
