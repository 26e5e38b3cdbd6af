"""The command that hands trained weights to other programs."""

import asyncio
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from agentrft.cli.terminal import HomeOption, console, open_home

app = typer.Typer()


@app.command()
def export(
    source: Annotated[
        str, typer.Argument(help="Run id, model name `ft:...`, or checkpoint folder.")
    ],
    to: Annotated[Path, typer.Option(help="Folder to write; must not exist.")],
    form: Annotated[
        Literal["adapter", "merged", "gguf"], typer.Option("--format", help="What to write.")
    ] = "adapter",
    precision: Annotated[
        Literal["f16", "bf16", "q8_0"], typer.Option(help="Of the matrices in a GGUF file.")
    ] = "f16",
    home: HomeOption = None,
) -> None:
    """Write trained weights for other programs, load them back, and show that they are the same."""
    from agentrft.jobs.export import export as run_export

    os.environ["TQDM_DISABLE"] = "1"  # bars of the libraries that read the files back
    exported = asyncio.run(run_export(open_home(home), source, to, form, precision=precision))
    if exported.identity is not None:
        _print(f"canaries  {exported.identity:.4f} nats from the trainer, on average")
    for check in exported.checks:
        arrived = "too little to tell" if check.arrived is None else f"{check.arrived:.0%} arrived"
        greedy = "same" if check.shortfall == 0 else f"ties within {check.shortfall:.2g}"
        _print(
            f"read by {check.read_by}: largest difference {check.difference:.2g} nats over "
            f"{check.tokens} tokens ({check.bound:g} allowed), greedy continuation {greedy}, of what "
            f"training changed {arrived}"
        )
    for note in exported.notes:
        _print(f"note    {note}")
    _print(f"wrote   {exported.folder}")


def _print(text: str) -> None:
    console().print(text, highlight=False, soft_wrap=True, markup=False)
