"""Commands on a project folder: improve, train, evaluate, report, regrade, init."""

import asyncio
import dataclasses
import signal
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from agentrft.cli.terminal import HomeOption, ask_to_stop, console, open_home
from agentrft.core.run import Split

if TYPE_CHECKING:
    from agentrft.core.policy import Checkpoint
    from agentrft.core.run import Method
    from agentrft.jobs.context import Job
    from agentrft.jobs.grading import Grading
    from agentrft.jobs.project import Project
    from agentrft.jobs.regrade import Regrader
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
UnsafeOption = Annotated[
    bool,
    typer.Option("--unsafe-graders", help="Let code of graders run without a sandbox, as you."),
]
FindingsOption = Annotated[
    bool,
    typer.Option("--allow-audit-findings", help="Train although the grader's audit refuses it."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A project with the home it works in and what its graders reach."""

    home: "Home"
    project: "Project"
    file: Path
    grading: "Grading"


@app.command()
def improve(
    project: ProjectArgument,
    preset: PresetOption = "",
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    config: ConfigOption = "agent.toml",
    *,
    unsafe_graders: UnsafeOption = False,
    allow_audit_findings: FindingsOption = False,
    home: HomeOption = None,
) -> None:
    """Measure, search for a better spec, train as advised, measure again, report."""
    from agentrft.core.run import Method
    from agentrft.jobs.improve import improve as run_improve
    from agentrft.jobs.serving import require_weights
    from agentrft.measure.report import terminal

    opened = opened_project(home, project, config, preset, unsafe_graders)
    require_weights(opened.project.config)
    result = run_job(
        opened,
        Method.IMPROVE,
        seed,
        resume,
        lambda job: run_improve(job, opened.project, allow_findings=allow_audit_findings),
    )
    console().print(terminal(result.report))
    console().print(f"report  {result.folder / 'report.html'}", highlight=False, soft_wrap=True)
    if result.checkpoint:
        console().print(f"weights {result.checkpoint.path}", highlight=False, soft_wrap=True)


@app.command()
def train(
    project: ProjectArgument,
    method: Annotated[
        str,
        typer.Argument(help="supervised, rejection, distillation, preference or reinforcement."),
    ],
    start: Annotated[
        Path | None, typer.Option(help="Checkpoint folder whose weights to begin from.")
    ] = None,
    preset: PresetOption = "",
    seed: SeedOption = 0,
    resume: ResumeOption = False,
    config: ConfigOption = "agent.toml",
    *,
    unsafe_graders: UnsafeOption = False,
    allow_audit_findings: FindingsOption = False,
    home: HomeOption = None,
) -> None:
    """Train with one method and write checkpoints."""
    from agentrft.core.errors import ConfigError
    from agentrft.core.run import TRAINING, Method
    from agentrft.jobs.following import run_lines
    from agentrft.jobs.serving import require_weights
    from agentrft.jobs.training_stage import train as run_training

    if method not in TRAINING:
        known = ", ".join(one for one in Method if one in TRAINING)
        raise ConfigError(f"no method {method!r} changes weights; use one of {known}")
    opened = opened_project(home, project, config, preset, unsafe_graders)
    require_weights(opened.project.config)
    begin = start.resolve() if start else None

    async def work(job: "Job") -> tuple["Checkpoint", list[str]]:
        found = await run_training(job, opened.project, begin, allow_findings=allow_audit_findings)
        return found, run_lines(job)

    checkpoint, lines = run_job(opened, Method(method), seed, resume, work)
    for line in lines:
        console().print(line, highlight=False, soft_wrap=True, markup=False)
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
    *,
    unsafe_graders: UnsafeOption = False,
    home: HomeOption = None,
) -> None:
    """Measure the base model or a checkpoint on a split."""
    from agentrft.core.run import Method
    from agentrft.jobs.improve import measure
    from agentrft.measure.report import terminal

    opened = opened_project(home, project, config, preset, unsafe_graders)
    weights = checkpoint.resolve() if checkpoint else None
    report = run_job(
        opened,
        Method.EVALUATION,
        seed,
        resume,
        lambda job: measure(job, opened.project, split, weights),
    )
    console().print(terminal(report))


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="Run id, as `agentrft runs list` shows it.")],
    home: HomeOption = None,
) -> None:
    """Print the table of an improvement or a search again and rewrite its pages."""
    from agentrft.core.run import Method
    from agentrft.jobs.improvement_report import report_again
    from agentrft.jobs.optimize import search_report_again
    from agentrft.jobs.rebase_report import rebase_report_again
    from agentrft.measure.report import terminal

    opened = open_home(home)
    others = {Method.OPTIMIZE: search_report_again, Method.REBASE: rebase_report_again}
    again = others.get(opened.store.run(run).method, report_again)
    rebuilt, folder = again(opened, run)
    console().print(terminal(rebuilt))
    console().print(f"report  {folder / 'report.html'}", highlight=False, soft_wrap=True)


@app.command()
def regrade(
    run: Annotated[str, typer.Argument(help="Run id, or id of a fine-tuning job.")],
    grader: Annotated[
        Path | None,
        typer.Option(help="Grader object (JSON, TOML) or agent.toml; else the project's own."),
    ] = None,
    project: Annotated[
        Path | None, typer.Option(help="Project folder, if it is not where the run began.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the newest one.")] = False,
    *,
    unsafe_graders: UnsafeOption = False,
    home: HomeOption = None,
) -> None:
    """Grade the stored rollouts of a run again, without sampling, and show what changes."""
    from agentrft.core.run import Method
    from agentrft.jobs.context import Job
    from agentrft.jobs.progress import BarProgress
    from agentrft.jobs.regrade import new_regrade
    from agentrft.jobs.regrade import regrade as run_regrade
    from agentrft.jobs.resume import unfinished_run
    from agentrft.measure.regrading import terminal

    opened = open_home(home)
    source = opened.store.run(run)
    grading = opened_grading(opened, unsafe_graders)
    regrader = _regrader(opened, run, grader, project, grading)

    def start(stop: asyncio.Event) -> Job:
        if resume:
            settings = regrader.settings
            unfinished = unfinished_run(
                opened.store, source.project, Method.REGRADE, settings, parent_id=run
            )
            again = opened.store.run(unfinished)
        else:
            again = new_regrade(opened, source, regrader)
        return Job(home=opened, run=again, progress=BarProgress(console()), stop=stop)

    result = _finish(start, lambda job: run_regrade(job, regrader), grading)
    console().print(terminal(result))
    folder = opened.report(result.run_id)
    console().print(f"report  {folder / 'regrade.json'}", highlight=False, soft_wrap=True)


def _regrader(
    home: "Home", run: str, grader: Path | None, project: Path | None, grading: "Grading"
) -> "Regrader":
    """Find grader and rows: the job's own files, or those of the run's project."""
    from agentrft.core.config import RewardTerms
    from agentrft.jobs.grading import read_table
    from agentrft.jobs.project import assembled, read_config
    from agentrft.jobs.regrade import job_regrader, project_file, project_regrader
    from agentrft.store.codec import load_server_config

    table = read_table(grader) if grader else {}
    if run.startswith("ftjob-"):
        backends = grading.of_server(load_server_config(home.path))
        return job_regrader(home, home.queue.get(run).job, table, backends)
    if grader is not None and "type" not in table:
        project, table = grader, {}
    if project is not None and project.is_dir():
        project /= "agent.toml"
    file = project or project_file(home.store, run)
    config = read_config(file.parent, file.name)
    if table:
        # Gates name parts of the project's own grader, which another one need not have.
        config = dataclasses.replace(config, grader=table, reward=RewardTerms())
    return project_regrader(assembled(file.parent, config, grading.of_project))


@app.command()
def signing_key(home: HomeOption = None) -> None:
    """Print the key that calls of endpoint graders are signed with, for who verifies them."""
    print(open_home(home).signing_key())


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


def opened_project(
    home: Path | None, folder: Path, config_file: str, preset: str, unsafe: bool
) -> Opened:
    """Open a project folder in a home, graders included."""
    from agentrft.jobs.project import open_project

    opened = open_home(home)
    grading = opened_grading(opened, unsafe)
    return Opened(
        home=opened,
        project=open_project(
            folder, config_file=config_file, preset=preset, backends=grading.of_project
        ),
        file=(folder / config_file).resolve(),
        grading=grading,
    )


def opened_grading(home: "Home", unsafe: bool) -> "Grading":
    """Return what graders reach, and say on the terminal if their code may run without a sandbox."""
    from agentrft.jobs.grading import Grading

    if unsafe:
        console().print(
            "[bold white on red] --unsafe-graders [/] code of graders may run without a sandbox: "
            "it can do on this machine whatever you can"
        )
    return Grading(home, unsafe=unsafe)


def run_job(
    opened: Opened,
    method: "Method",
    seed: int,
    resume: bool,
    work: Callable[["Job"], Coroutine[Any, Any, T]],
) -> T:
    """Run a job of a project, a new one or the newest unfinished one."""
    from agentrft.jobs.context import Job
    from agentrft.jobs.progress import BarProgress
    from agentrft.jobs.provenance import note_provenance
    from agentrft.jobs.regrade import PROJECT_FILE
    from agentrft.jobs.resume import unfinished_run

    name, settings = opened.project.config.name, dataclasses.asdict(opened.project.config)
    store = opened.home.store
    run_id = unfinished_run(store, name, method, opened.project.config) if resume else ""

    def start(stop: asyncio.Event) -> Job:
        job = Job.start(
            opened.home,
            name,
            method,
            config=settings,
            seed=seed,
            progress=BarProgress(console()),
            stop=stop,
            run_id=run_id,
        )
        job.note_result(**{PROJECT_FILE: str(opened.file)})
        note_provenance(job, opened.project)
        return job

    return _finish(start, work, opened.grading)


def _finish(
    start: Callable[[asyncio.Event], "Job"],
    work: Callable[["Job"], Coroutine[Any, Any, T]],
    grading: "Grading",
) -> T:
    """Run a job to its end or to the first Ctrl-C; the second one ends the process at once."""

    async def main() -> T:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ask_to_stop, stop)
        job = start(stop)
        console().print(f"run     {job.run.id}", highlight=False)
        with job.home.at_work(job.run.id):
            try:
                return await work(job)
            finally:
                await grading.close()

    return asyncio.run(main())
