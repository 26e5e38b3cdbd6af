"""Commands on a project folder: improve, train, evaluate, report, init."""

import asyncio
import dataclasses
import signal
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from agentrft.cli.terminal import HomeOption, ask_to_stop, console, open_home
from agentrft.core.run import Split

if TYPE_CHECKING:
    from agentrft.core.run import Method
    from agentrft.jobs.context import Job
    from agentrft.jobs.project import Project
    from agentrft.store.home import Home

T = TypeVar("T")

app = typer.Typer()

ProjectArgument = Annotated[Path, typer.Argument(help="Project folder with an agent.toml.")]
PresetOption = Annotated[str, typer.Option(help="Named settings of agent.toml, e.g. quick.")]
ConfigOption = Annotated[str, typer.Option("--config", help="Config file in the project folder.")]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]
ResumeOption = Annotated[
    bool, typer.Option("--resume", help="Continue the newest unfinished run of this project.")
]


@app.command()
def improve(
    project: ProjectArgument,
    preset: PresetOption = "",
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    config: ConfigOption = "agent.toml",
    home: HomeOption = None,
) -> None:
    """Run all stages: measure, warm start, reinforce, measure again, report."""
    from agentrft.core.run import Method
    from agentrft.jobs.improve import improve as run_improve
    from agentrft.measure.report import terminal

    opened = _open_project(project, config, preset)
    result = _run(
        open_home(home), opened, Method.IMPROVE, seed, resume, lambda job: run_improve(job, opened)
    )
    console().print(terminal(result.report))
    console().print(f"report  {result.folder / 'report.html'}", highlight=False, soft_wrap=True)
    console().print(f"weights {result.checkpoint.path}", highlight=False, soft_wrap=True)


@app.command()
def train(
    project: ProjectArgument,
    method: Annotated[str, typer.Argument(help="supervised or reinforcement.")],
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint folder whose weights to begin from.")
    ] = None,
    preset: PresetOption = "",
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    config: ConfigOption = "agent.toml",
    home: HomeOption = None,
) -> None:
    """Train with one method and write checkpoints."""
    from agentrft.core.errors import ConfigError
    from agentrft.core.run import Method
    from agentrft.jobs.improve import train as run_training

    if method not in (Method.SUPERVISED, Method.REINFORCEMENT):
        raise ConfigError(f"no method {method!r}; use supervised or reinforcement")
    opened = _open_project(project, config, preset)
    checkpoint = _run(
        open_home(home),
        opened,
        Method(method),
        seed,
        resume,
        lambda job: run_training(job, opened, start),
    )
    console().print(f"weights {checkpoint.path}", highlight=False, soft_wrap=True)


@app.command()
def evaluate(
    project: ProjectArgument,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint folder; without it the base model.")
    ] = None,
    split: Annotated[Split, typer.Option(help="Which rows.")] = "holdout",
    preset: PresetOption = "",
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    config: ConfigOption = "agent.toml",
    home: HomeOption = None,
) -> None:
    """Measure the base model or a checkpoint on a split."""
    from agentrft.core.run import Method
    from agentrft.jobs.improve import measure
    from agentrft.measure.report import terminal

    opened = _open_project(project, config, preset)
    report = _run(
        open_home(home),
        opened,
        Method.EVALUATION,
        seed,
        resume,
        lambda job: measure(job, opened, split, checkpoint),
    )
    console().print(terminal(report))


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Run id, as `agentrft runs list` shows it.")],
    home: HomeOption = None,
) -> None:
    """Print the table of an improvement again and rewrite its pages from what is stored."""
    from agentrft.jobs.improve import report_again
    from agentrft.measure.report import terminal

    rebuilt, folder = report_again(open_home(home), run)
    console().print(terminal(rebuilt))
    console().print(f"report  {folder / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def init(
    name: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
) -> None:
    """Write a small working project: two tools, a dozen tasks, a grader."""
    from agentrft.jobs.starter import write_starter

    write_starter(name)
    console().print(
        f"wrote {name}: agent.toml, tools.py, data\nnext: agentrft improve {name}", highlight=False
    )


def _open_project(folder: Path, config_file: str, preset: str) -> "Project":
    from agentrft.jobs.project import open_project

    return open_project(folder, config_file=config_file, preset=preset)


def _run(
    home: "Home",
    project: "Project",
    method: "Method",
    seed: int,
    resume: bool,
    work: Callable[["Job"], Coroutine[Any, Any, T]],
) -> T:
    """Run a job to its end or to the first Ctrl-C; the second one ends the process at once."""
    from agentrft.jobs.context import Job
    from agentrft.jobs.progress import BarProgress
    from agentrft.jobs.resume import unfinished_run

    settings = dataclasses.asdict(project.config)
    run_id = unfinished_run(home.store, project.config.name, method, settings) if resume else ""

    async def main() -> T:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ask_to_stop, stop)
        job = Job.start(
            home,
            project.config.name,
            method,
            config=settings,
            seed=seed,
            progress=BarProgress(console()),
            stop=stop,
            run_id=run_id,
        )
        console().print(f"run     {job.run.id}", highlight=False)
        return await work(job)

    return asyncio.run(main())
