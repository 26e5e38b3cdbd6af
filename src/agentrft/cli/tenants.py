"""Commands on the server's jobs, tokens and webhooks; they work on the home folder, server or not."""

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from agentrft.cli.terminal import HomeOption, console, open_home, print_table, shown_time

if TYPE_CHECKING:
    from agentrft.core.job import JobState
    from agentrft.store.access import TokenInfo

DEFAULT_PROJECT = "default"

jobs_app = typer.Typer(help="Fine-tuning jobs of the server.", no_args_is_help=True)
token_app = typer.Typer(help="Who may call the server.", no_args_is_help=True)
webhooks_app = typer.Typer(help="Addresses that are told when a job ends.", no_args_is_help=True)

TenantOption = Annotated[str, typer.Option("--project", help="Project of the server.")]
JobArgument = Annotated[str, typer.Argument(help="Job id, as `agentrft jobs list` shows it.")]


@jobs_app.command("list")
def jobs_list(project: TenantOption = DEFAULT_PROJECT, home: HomeOption = None) -> None:
    """List jobs, newest first."""
    states = open_home(home).queue.list(project, after=None, limit=100, metadata=None).items
    print_table(
        ("job", "method", "model", "status", "created", "worker", "result"),
        [
            (
                job.id,
                job.method.type,
                job.model,
                job.status,
                shown_time(job.created_at),
                state.worker or "-",
                job.fine_tuned_model or (job.error.message if job.error else "-"),
            )
            for state in states
            for job in [state.job]
        ],
    )


@jobs_app.command("show")
def jobs_show(job: JobArgument, home: HomeOption = None) -> None:
    """Show everything known of a job, as JSON."""
    from agentrft.store.codec import to_json

    sys.stdout.write(to_json(open_home(home).queue.get(job)).decode() + "\n")


@jobs_app.command("events")
def jobs_events(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", help="Wait for more until it ends.")] = False,
    home: HomeOption = None,
) -> None:
    """Print a job's events, oldest first."""
    opened = open_home(home)
    seen = 0
    while True:
        ended = opened.queue.get(job).job.status.is_final
        page = opened.store.events_since(job, seen, 1000)
        for _, event in page.items:
            line = f"{shown_time(event.created_at)} {event.level:5} {event.message}"
            console().print(line, highlight=False, soft_wrap=True)
        seen = page.last
        if not page.has_more:
            if not follow or ended:
                return
            time.sleep(0.5)


@jobs_app.command("checkpoints")
def jobs_checkpoints(job: JobArgument, home: HomeOption = None) -> None:
    """List the models that a job made and that can be called."""
    for model in open_home(home).catalogue.of_job(job):
        console().print(f"{model.step:6} {model.id}", highlight=False, soft_wrap=True)


@jobs_app.command("pause")
def jobs_pause(job: JobArgument, home: HomeOption = None) -> None:
    """Stop a job after its current step; what it learned so far can be called."""
    from agentrft.core.job import Wish

    queue = open_home(home).queue
    _print_wish(queue.wish(job, queue.get(job).job.project, Wish.PAUSE))


@jobs_app.command("resume")
def jobs_resume(job: JobArgument, home: HomeOption = None) -> None:
    """Let a paused job go on."""
    queue = open_home(home).queue
    _print_wish(queue.resume(job, queue.get(job).job.project))


@jobs_app.command("cancel")
def jobs_cancel(job: JobArgument, home: HomeOption = None) -> None:
    """End a job within one step; its checkpoints stay."""
    from agentrft.core.job import Wish

    queue = open_home(home).queue
    _print_wish(queue.wish(job, queue.get(job).job.project, Wish.CANCEL))


@token_app.command("create")
def token_create(
    role: Annotated[str, typer.Option(help="read, submit or admin.")],
    project: TenantOption = DEFAULT_PROJECT,
    name: Annotated[str, typer.Option(help="Whose it is, for the list.")] = "",
    days: Annotated[int, typer.Option(help="Days until it expires; 0 never.")] = 0,
    home: HomeOption = None,
) -> None:
    """Print a new token, alone, this once."""
    from agentrft.core.errors import ConfigError
    from agentrft.store.access import Role

    if role not in list(Role):
        raise ConfigError(f"no role {role!r}; use one of {', '.join(Role)}")
    access = open_home(home).access
    access.create_project(project)
    expires_at = time.time() + 86400 * days if days else None
    _, token = access.create_token(project, Role(role), name, expires_at=expires_at)
    print(token)


@token_app.command("list")
def token_list(home: HomeOption = None) -> None:
    """List tokens; the tokens themselves are not kept."""

    def state(token: "TokenInfo") -> str:
        if token.revoked_at:
            return "revoked"
        return f"until {shown_time(token.expires_at)}" if token.expires_at else "valid"

    print_table(
        ("token", "project", "role", "name", "created", "last used", "state"),
        [
            (
                token.id,
                token.project,
                token.role,
                token.name or "-",
                shown_time(token.created_at),
                shown_time(token.last_used_at) if token.last_used_at else "never",
                state(token),
            )
            for token in open_home(home).access.tokens(None)
        ],
    )


@token_app.command("revoke")
def token_revoke(
    token: Annotated[str, typer.Argument(help="Token id, as `agentrft token list` shows it.")],
    home: HomeOption = None,
) -> None:
    """Make a token useless from now on."""
    open_home(home).access.revoke(token)


@webhooks_app.command("add")
def webhooks_add(
    url: Annotated[str, typer.Argument(help="Where to POST `fine_tuning.job.*` events.")],
    project: TenantOption = DEFAULT_PROJECT,
    home: HomeOption = None,
) -> None:
    """Add an address and print its signing secret, alone, this once."""
    opened = open_home(home)
    opened.access.create_project(project)
    _, secret = opened.outbox.add_webhook(project, url)
    print(secret)


@webhooks_app.command("list")
def webhooks_list(project: TenantOption = DEFAULT_PROJECT, home: HomeOption = None) -> None:
    """List addresses."""
    for webhook in open_home(home).outbox.webhooks(project):
        console().print(f"{webhook.id} {webhook.url}", highlight=False, soft_wrap=True)


@webhooks_app.command("remove")
def webhooks_remove(
    webhook: Annotated[str, typer.Argument(help="Webhook id.")],
    project: TenantOption = DEFAULT_PROJECT,
    home: HomeOption = None,
) -> None:
    """Tell an address no more."""
    open_home(home).outbox.remove_webhook(project, webhook)


def _print_wish(state: "JobState") -> None:
    waiting = f"; asked to {state.wish}" if state.wish else ""
    console().print(f"{state.job.id} {state.job.status}{waiting}", highlight=False)
