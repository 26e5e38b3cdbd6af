"""The command with which a person talks to the agent."""

import asyncio
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from agentrft.cli.project import ConfigOption, Opened, ProjectArgument, UnsafeOption, opened_project
from agentrft.cli.terminal import HomeOption, console

if TYPE_CHECKING:
    from agentrft.core.task import Task

app = typer.Typer()


@app.command()
def chat(
    project: ProjectArgument,
    checkpoint: Annotated[
        str,
        typer.Option(help="Run id, model `ft:...` or checkpoint folder; else the base model."),
    ] = "",
    task: Annotated[
        str,
        typer.Option(help="Id of the row that the environment is made for; else of the first row."),
    ] = "",
    config: ConfigOption = "agent.toml",
    *,
    unsafe_graders: UnsafeOption = False,
    home: HomeOption = None,
) -> None:
    """Talk to the agent, with its real tools and in the loop that it was trained in."""
    from agentrft.jobs.chat import COMMANDS, chosen_task
    from agentrft.jobs.trained import find_trained, trained_spec

    opened = opened_project(home, project, config, "", unsafe_graders)
    row = chosen_task(opened.project, task)
    weights = None
    if checkpoint:
        trained = find_trained(opened.home, checkpoint)
        weights = trained.folder
        if (spec := trained_spec(opened.home, trained)) is not None:
            opened = replace(opened, project=replace(opened.project, spec=spec))
    _show(f"model   {weights or opened.project.config.agent_model}")
    _show(f"spec    {opened.project.spec.hash}")
    _show(f"task    {row.id}" + ("" if task else " (the first row; choose one with --task)"))
    asked = [message.content for message in row.messages if message.role == "user"]
    _show(f"        an empty line asks what the row asks: {asked[-1]}" if asked else "")
    _show(f"        {COMMANDS}")
    asyncio.run(_talk(opened, row, weights))


async def _talk(opened: Opened, task: "Task", weights: Path | None) -> None:
    from agentrft.core.call_thread import in_thread
    from agentrft.jobs.chat import Chat, chat_setup
    from agentrft.jobs.serving import served_model

    async def read() -> str | None:
        return await in_thread(_line, name="terminal")

    try:
        with served_model(opened.project, opened.home, trained=False) as model:
            setup = await chat_setup(model, opened.home, weights)
            await Chat(setup, opened.project, task, read=read, show=_show).run()
    finally:
        await opened.grading.close()


def _line() -> str | None:
    try:
        line = input("you> ")
    except EOFError:
        return None
    if not sys.stdin.isatty():
        print(line)  # what is piped in stands in the transcript too
    return line


def _show(text: str) -> None:
    console().print(text, highlight=False, soft_wrap=True, markup=False)
