"""The command line: composition root, and the only reader of environment variables.

Heavy imports happen inside commands, so that `--help` answers at once.
"""

import asyncio
import dataclasses
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from agentrft.core.run import Split

if TYPE_CHECKING:
    from rich.console import Console

    from agentrft.core.run import Method
    from agentrft.inference.models import KnownModel, ModelFiles
    from agentrft.jobs.context import Job
    from agentrft.jobs.project import Project
    from agentrft.store.home import Home

T = TypeVar("T")

app = typer.Typer(
    help="Reinforcement fine-tuning for agents that use tools, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
models_app = typer.Typer(help="Models on this machine.", no_args_is_help=True)
runs_app = typer.Typer(help="Runs in the home folder.", no_args_is_help=True)
app.add_typer(models_app, name="models")
app.add_typer(runs_app, name="runs")

INTERRUPTED = 130
"""Exit code of a run that was asked to stop, as shells use it for Ctrl-C."""

HomeOption = Annotated[
    Path | None,
    typer.Option("--home", help="Home folder (else AGENTRFT_HOME, else your user data folder)."),
]
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
        _open_home(home), opened, Method.IMPROVE, seed, resume, lambda job: run_improve(job, opened)
    )
    _console().print(terminal(result.report))
    _console().print(f"report  {result.folder / 'report.html'}", highlight=False, soft_wrap=True)
    _console().print(f"weights {result.checkpoint.path}", highlight=False, soft_wrap=True)


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
        _open_home(home),
        opened,
        Method(method),
        seed,
        resume,
        lambda job: run_training(job, opened, start),
    )
    _console().print(f"weights {checkpoint.path}", highlight=False, soft_wrap=True)


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
        _open_home(home),
        opened,
        Method.EVALUATION,
        seed,
        resume,
        lambda job: measure(job, opened, split, checkpoint),
    )
    _console().print(terminal(report))


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Run id, as `agentrft runs list` shows it.")],
    home: HomeOption = None,
) -> None:
    """Print the table of an improvement again and rewrite its pages from what is stored."""
    from agentrft.jobs.improve import report_again
    from agentrft.measure.report import terminal

    rebuilt, folder = report_again(_open_home(home), run)
    _console().print(terminal(rebuilt))
    _console().print(f"report  {folder / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def init(
    name: Annotated[Path, typer.Argument(help="Folder to write; must not exist.")],
) -> None:
    """Write a small working project: two tools, a dozen tasks, a grader."""
    from agentrft.jobs.starter import write_starter

    write_starter(name)
    _console().print(
        f"wrote {name}: agent.toml, tools.py, data\nnext: agentrft improve {name}", highlight=False
    )


@models_app.command("list")
def models_list(home: HomeOption = None) -> None:
    """List models with a short name, and whether they are on disk."""
    from agentrft.inference.models import describe, known_models

    cache = _open_home(home).models
    for model in known_models():
        _print_facts(describe(model.name, cache))


@models_app.command("pull")
def models_pull(
    name: Annotated[str, typer.Argument(help="Short name, hub id or folder.")],
    home: HomeOption = None,
) -> None:
    """Fetch and convert a model; a second call only checks it."""
    from agentrft.inference.models import pull
    from agentrft.jobs.progress import BarProgress

    cache = _open_home(home).models
    with BarProgress(_console()).phase(f"pull {name}", 100) as phase:
        _print_facts(pull(name, cache, lambda stage, share: phase.note(f"{stage} {share:.0%}")))


@models_app.command("info")
def models_info(
    name: Annotated[str, typer.Argument(help="Short name, hub id or folder.")],
    home: HomeOption = None,
) -> None:
    """Show what a model is and what it needs."""
    from agentrft.inference.models import describe

    _print_facts(describe(name, _open_home(home).models))


@runs_app.command("list")
def runs_list(
    project: Annotated[str, typer.Option(help="Only runs of this project.")] = "",
    home: HomeOption = None,
) -> None:
    """List runs, newest first."""
    import time

    from rich.table import Table

    table = Table("run", "project", "method", "status", "created", "error", box=None)
    for run in _open_home(home).store.runs(project=project or None).items:
        created = time.strftime("%Y-%m-%d %H:%M", time.localtime(run.created_at))
        table.add_row(run.id, run.project, run.method, run.status, created, run.error or "")
    _console().print(table)


@runs_app.command("show")
def runs_show(
    run: Annotated[str, typer.Argument(help="Run id.")],
    home: HomeOption = None,
) -> None:
    """Show a run's last events and step metrics."""
    from agentrft.core.run import Event, StepMetrics

    store = _open_home(home).store
    found = store.run(run)
    _console().print(f"{found.id}  {found.method}  {found.status}  {found.error or ''}")
    for step in store.read(run, StepMetrics, limit=1000).items:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in step.values.items())
        _console().print(f"step {step.step}: {figures}", highlight=False, soft_wrap=True)
    for event in store.read(run, Event, limit=1000).items:
        _console().print(f"{event.level}: {event.message}", highlight=False, soft_wrap=True)


def _print_facts(facts: "ModelFiles | KnownModel") -> None:
    for name, value in dataclasses.asdict(facts).items():
        _console().print(f"{name:16} {value}", highlight=False, soft_wrap=True)


def _console() -> "Console":
    from rich.console import Console

    return Console(soft_wrap=False)


def _open_home(path: Path | None) -> "Home":
    import platformdirs

    from agentrft.store.home import Home

    named = os.environ.get("AGENTRFT_HOME")
    chosen = path or (Path(named) if named else platformdirs.user_data_path("agentrft"))
    return Home.open(chosen.expanduser())


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
            loop.add_signal_handler(number, _ask_to_stop, stop)
        job = Job.start(
            home,
            project.config.name,
            method,
            config=settings,
            seed=seed,
            progress=BarProgress(_console()),
            stop=stop,
            run_id=run_id,
        )
        _console().print(f"run     {job.run.id}", highlight=False)
        return await work(job)

    return asyncio.run(main())


def _ask_to_stop(stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(INTERRUPTED)
    print("stopping after the current step; press Ctrl-C again to end at once", file=sys.stderr)
    stop.set()


def main() -> None:
    """Run the command line; errors of ours become one line and exit code 1."""
    from agentrft.core.errors import AgentRFTError

    # Spinning OpenMP threads of two processes on the same cores can cost tenfold.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        app()
    except AgentRFTError as error:
        from agentrft.jobs.context import Stopped

        stopped = isinstance(error, Stopped)
        print(f"{'' if stopped else 'error: '}{error}", file=sys.stderr)
        sys.exit(INTERRUPTED if stopped else 1)
