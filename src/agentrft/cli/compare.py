"""The command that holds runs against each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentrft.cli.project import Opened, ResumeOption, UnsafeOption, opened_grading, run_job
from agentrft.cli.terminal import HomeOption, console, open_home

if TYPE_CHECKING:
    from agentrft.jobs.context import Job
    from agentrft.measure.comparison import Comparison

app = typer.Typer()


@app.command()
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN...",
            help="Run ids; NAME=RUN names it in the table, and runs of one NAME pool as its seeds.",
        ),
    ],
    best_of: Annotated[
        int, typer.Option(help="Rollouts to choose among; 0 takes four where there are as many.")
    ] = 0,
    verifier: Annotated[
        str, typer.Option(help="Who chooses beside the grader: judge:NAME or learned.")
    ] = "grader",
    reference: Annotated[
        str, typer.Option(help="Row that differences are to; else the best without new weights.")
    ] = "",
    output: Annotated[
        Path | None, typer.Option(help="Folder for the pages; else the comparison's own run.")
    ] = None,
    project: Annotated[
        Path | None, typer.Option(help="Project folder, if it is not where the first run began.")
    ] = None,
    resume: ResumeOption = False,
    *,
    unsafe_graders: UnsafeOption = False,
    home: HomeOption = None,
) -> None:
    """Say from what runs measured on the holdout whether the weights paid."""
    from agentrft.core.run import Method
    from agentrft.jobs.comparison import compare_runs, write_comparison
    from agentrft.jobs.project import assembled, read_config
    from agentrft.jobs.regrade import project_file
    from agentrft.measure.comparison_section import Payoff, comparison_tables

    opened = open_home(home)
    first = opened.store.run(runs[0].rpartition("=")[2])
    if project is not None and project.is_dir():
        project /= "agent.toml"
    file = project or project_file(opened.store, first.id)
    grading = opened_grading(opened, unsafe_graders)
    agent = assembled(file.parent, read_config(file.parent, file.name), grading.of_project)

    async def work(job: "Job") -> "tuple[Comparison, Path]":
        compared = await compare_runs(
            job, agent, runs, best_of_k=best_of, verifier=verifier, reference=reference
        )
        return compared, output or opened.report(job.run.id)

    compared, folder = run_job(
        Opened(home=opened, project=agent, file=file.resolve(), grading=grading),
        Method.COMPARISON,
        first.seed,
        resume,
        work,
    )
    for part in comparison_tables(Payoff(answer=compared.answer, comparison=compared)):
        console().print(part)
    page = write_comparison(compared, folder, f"{agent.config.name}: runs compared")
    console().print(f"page    {page}", highlight=False, soft_wrap=True)
