"""The command line: composition root, and the only reader of environment variables.

Heavy imports happen inside commands, so that `--help` answers at once.
"""

import os
import sys

import typer

from agentrft.cli import (
    audit,
    chat,
    compare,
    export,
    home,
    machine,
    project,
    rebase,
    search,
    serve,
    spec,
    tenants,
)
from agentrft.cli.terminal import INTERRUPTED

app = typer.Typer(
    help="Reinforcement fine-tuning for agents that use tools, on your own machine.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(project.app)
app.add_typer(search.app)
app.add_typer(compare.app)
app.add_typer(rebase.app)
app.add_typer(spec.spec_app, name="spec")
app.add_typer(audit.app)
app.add_typer(export.app)
app.add_typer(chat.app)
app.add_typer(serve.app)
app.add_typer(machine.app)
app.add_typer(tenants.jobs_app, name="jobs")
app.add_typer(tenants.token_app, name="token")
app.add_typer(tenants.webhooks_app, name="webhooks")
app.add_typer(home.models_app, name="models")
app.add_typer(machine.images_app, name="images")
app.add_typer(home.runs_app, name="runs")


def main() -> None:
    """Run the command line; errors of ours become one line and exit code 1."""
    from agentrft.core.errors import AgentRFTError

    # Spinning OpenMP threads of two processes on the same cores can cost tenfold, so that they wait
    # asleep, after a millisecond: between the operations of a decode step they need less.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    os.environ.setdefault("GOMP_SPINCOUNT", "20000")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Without it `trainer.deterministic` is refused on CUDA; read when the device is first used.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    try:
        app()
    except AgentRFTError as error:
        from agentrft.jobs.context import Stopped

        stopped = isinstance(error, Stopped)
        print(f"{'' if stopped else 'error: '}{error}", file=sys.stderr)
        sys.exit(INTERRUPTED if stopped else 1)
