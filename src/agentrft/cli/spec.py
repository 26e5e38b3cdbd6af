"""Commands on specs: what a project acts under, what a search found, and taking it over."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentrft.cli.project import ConfigOption, ProjectArgument
from agentrft.cli.terminal import HomeOption, console, open_home

if TYPE_CHECKING:
    from agentrft.core.spec import AgentSpec
    from agentrft.jobs.context import Job

spec_app = typer.Typer(help="What a project tells its model, as files.", no_args_is_help=True)

RunArgument = Annotated[str, typer.Argument(help="Run id of an `optimize` or `improve`.")]


@spec_app.command("show")
def spec_show(
    target: Annotated[
        str, typer.Argument(help="Project folder, or run id of an `optimize` or `improve`.")
    ],
    config: ConfigOption = "agent.toml",
    home: HomeOption = None,
) -> None:
    """Show a spec with its hash: a project's, or the one that a run chose."""
    from agentrft.core.spec import AgentSpec
    from agentrft.store.spec_files import spec_files

    folder = Path(target)
    spec = _of_project(folder, config) if folder.is_dir() else _of_run(_run(home, target))
    _print(f"hash {spec.hash}")
    for name, text in spec_files(spec, AgentSpec()).items():
        _print(f"\n--- {name}\n{text.rstrip()}")


@spec_app.command("diff")
def spec_diff(
    project: ProjectArgument,
    run: RunArgument,
    config: ConfigOption = "agent.toml",
    home: HomeOption = None,
) -> None:
    """Show what applying a run's spec would change in a project."""
    from agentrft.store.spec_files import spec_diff as difference

    text = difference(_of_project(project, config), _of_run(_run(home, run)))
    _print(text or "no difference")


@spec_app.command("apply")
def spec_apply(
    project: ProjectArgument,
    run: RunArgument,
    config: ConfigOption = "agent.toml",
    home: HomeOption = None,
) -> None:
    """Write the spec that a run chose into the project's spec folder."""
    from agentrft.core.errors import ConfigError, UserError
    from agentrft.jobs.optimize import kept_summary, searched
    from agentrft.jobs.project import SPEC_FOLDER, plain_spec, read_config
    from agentrft.store.spec_files import write_spec

    job = _run(home, run)
    settings = read_config(project, config)
    if job.run.project != settings.name:
        raise ConfigError(f"run {run} is of project {job.run.project!r}, not {settings.name!r}")
    summary, before, found = kept_summary(searched(job)), _of_project(project, config), _of_run(job)
    if found.hash == summary.baseline_hash:
        raise UserError(f"run {run} promoted nothing; there is nothing to apply")
    if before.hash not in (summary.baseline_hash, found.hash):
        raise ConfigError(
            f"{project} has spec {before.hash} now, and run {run} improved on "
            f"{summary.baseline_hash}; restore that one, or search again"
        )
    write_spec(project / SPEC_FOLDER, found, plain_spec(project, settings))
    _print(f"wrote   {project / SPEC_FOLDER}: spec {found.hash}")
    if found.hash == summary.chosen_hash:
        for knob, level in summary.chosen.items():
            _print(f"        {knob}: {level}")


def _of_project(folder: Path, config_file: str) -> "AgentSpec":
    from agentrft.jobs.project import SPEC_FOLDER, plain_spec, read_config
    from agentrft.store.spec_files import read_spec

    return read_spec(folder / SPEC_FOLDER, plain_spec(folder, read_config(folder, config_file)))


def _of_run(job: "Job") -> "AgentSpec":
    """Return what a search chose, or what an improvement left of it under its last weights."""
    from agentrft.jobs.optimize import kept_spec, kept_summary, searched

    search = searched(job)
    name = job.run.result.get("spec") or kept_summary(search).chosen_hash
    return kept_spec(job.folder, name)


def _run(home: Path | None, run_id: str) -> "Job":
    from agentrft.jobs.optimize import opened_run

    return opened_run(open_home(home), run_id)


def _print(text: str) -> None:
    console().print(text, highlight=False, soft_wrap=True, markup=False)
