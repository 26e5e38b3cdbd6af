"""Commands on the home folder: models and runs."""

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from agentrft.cli.terminal import HomeOption, console, open_home, print_table, shown_time

if TYPE_CHECKING:
    from agentrft.inference.models import KnownModel, ModelFiles

models_app = typer.Typer(help="Models on this machine.", no_args_is_help=True)
runs_app = typer.Typer(help="Runs in the home folder.", no_args_is_help=True)


@models_app.command("list")
def models_list(home: HomeOption = None) -> None:
    """List models with a short name, and whether they are on disk."""
    from agentrft.inference.models import describe, known_models

    cache = open_home(home).models
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

    cache = open_home(home).models
    with BarProgress(console()).phase(f"pull {name}", 100) as phase:
        _print_facts(pull(name, cache, lambda stage, share: phase.note(f"{stage} {share:.0%}")))


@models_app.command("info")
def models_info(
    name: Annotated[str, typer.Argument(help="Short name, hub id or folder.")],
    home: HomeOption = None,
) -> None:
    """Show what a model is and what it needs."""
    from agentrft.inference.models import describe

    _print_facts(describe(name, open_home(home).models))


@runs_app.command("list")
def runs_list(
    project: Annotated[str, typer.Option(help="Only runs of this project.")] = "",
    home: HomeOption = None,
) -> None:
    """List runs, newest first."""
    runs = open_home(home).store.runs(project=project or None).items
    print_table(
        ("run", "project", "method", "status", "created", "error"),
        [
            (r.id, r.project, r.method, r.status, shown_time(r.created_at), r.error or "-")
            for r in runs
        ],
    )


@runs_app.command("show")
def runs_show(
    run: Annotated[str, typer.Argument(help="Run id.")],
    home: HomeOption = None,
) -> None:
    """Show a run's last events and step metrics."""
    from agentrft.core.run import Event, StepMetrics

    store = open_home(home).store
    found = store.run(run)
    console().print(f"{found.id}  {found.method}  {found.status}  {found.error or ''}")
    for step in store.read(run, StepMetrics, limit=1000).items:
        figures = "  ".join(f"{name} {value:.4g}" for name, value in step.values.items())
        console().print(f"step {step.step}: {figures}", highlight=False, soft_wrap=True)
    for event in store.read(run, Event, limit=1000).items:
        console().print(f"{event.level}: {event.message}", highlight=False, soft_wrap=True)


def _print_facts(facts: "ModelFiles | KnownModel") -> None:
    for name, value in dataclasses.asdict(facts).items():
        console().print(f"{name:16} {value}", highlight=False, soft_wrap=True)
