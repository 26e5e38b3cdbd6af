"""Commands before any weight changes: preflight."""

from pathlib import Path
from typing import Annotated

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
    from agentrft.jobs.standing import preflight as run_preflight
    from agentrft.measure.standing_page import terminal

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
