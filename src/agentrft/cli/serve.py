"""Commands that run for long: serve, worker, and the process that answers chats."""

import asyncio
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Annotated

import typer

from agentrft.cli.tenants import DEFAULT_PROJECT
from agentrft.cli.terminal import HomeOption, ask_to_stop, open_home

app = typer.Typer()

ParentOption = Annotated[int, typer.Option(hidden=True, help="Process to end with.")]
SocketOption = Annotated[
    Path | None, typer.Option(hidden=True, help="Instead of the one in the home folder.")
]


@app.command()
def serve(
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.")] = 8000,
    workers: Annotated[int, typer.Option(help="Workers to start; 0 leaves it to others.")] = 1,
    home: HomeOption = None,
) -> None:
    """Serve the fine-tuning API, with a worker that does the jobs and a process that answers chats.

    More settings are in server.toml of the home folder.
    """
    import uvicorn

    from agentrft.inference.chat import ChatClient
    from agentrft.jobs.grading import Grading
    from agentrft.server.app import ServerSettings, create_app
    from agentrft.server.children import Child, keep_running
    from agentrft.store.codec import load_server_config

    opened = open_home(home)
    config = load_server_config(opened.path)
    grading = Grading(opened, served=True)
    settings = ServerSettings(
        host=host,
        port=port,
        allowed_hosts=config.hosts,
        allowed_origins=config.origins,
        default_model=config.model,
        aliases=config.aliases,
        backends=grading.of_server(config, own_ports=[port]),
        audit=config.audit,
        requests_per_minute=config.requests_per_minute,
    )
    if opened.access.is_empty():
        from agentrft.store.access import Role

        opened.access.create_project(DEFAULT_PROJECT)
        _, token = opened.access.create_token(DEFAULT_PROJECT, Role.ADMIN, "first")
        print(f"first token (admin, shown this once): {token}", flush=True)
    socket = opened.path / "chat.sock"
    command = [sys.executable, "-m", "agentrft"]
    own = ["--home", str(opened.path), "--parent", str(os.getpid())]
    children = [Child(name="chat", command=[*command, "chat-process", *own])]
    children += [
        Child(name=f"worker {number}", command=[*command, "worker", *own, "--port", str(port)])
        for number in range(workers)
    ]
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(opened, settings, ChatClient(socket)),
            host=host,
            port=port,
            log_level="warning",
            server_header=False,
            timeout_graceful_shutdown=5,
        )
    )

    async def run() -> None:
        stop = asyncio.Event()
        running = [asyncio.create_task(keep_running(child, stop)) for child in children]
        print(f"AgentRFT serves http://{host}:{port}/v1", flush=True)
        try:
            await server.serve()
        finally:
            stop.set()
            await asyncio.gather(*running)
            await grading.close()

    asyncio.run(run())
    opened.close()


@app.command()
def worker(
    home: HomeOption = None,
    port: Annotated[int, typer.Option(help="Of a server here, which tools may not call.")] = 8000,
    parent: ParentOption = 0,
) -> None:
    """Do fine-tuning jobs of this home until told to stop; several may run, on several machines."""
    from agentrft.jobs.grading import Grading
    from agentrft.jobs.worker import WorkerConfig, work
    from agentrft.store.codec import load_server_config

    opened = open_home(home)
    config = load_server_config(opened.path)
    grading = Grading(opened, served=bool(parent))
    backends = grading.of_server(config, own_ports=[port])
    if parent:
        # Training takes every core it gets; the API beside it must still answer at once.
        os.nice(5)

    async def run() -> None:
        stop = asyncio.Event()
        _end_with_parent(parent)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, ask_to_stop, stop)
        try:
            await work(opened, WorkerConfig(backends=backends, audit=config.audit), stop)
        finally:
            await grading.close()

    asyncio.run(run())
    opened.close()


@app.command(hidden=True)
def chat_process(
    home: HomeOption = None, parent: ParentOption = 0, socket: SocketOption = None
) -> None:
    """Answer chats for the server, over a socket in the home folder."""
    from agentrft.core.config import EngineConfig
    from agentrft.inference.service import serve_chat
    from agentrft.store.codec import load_server_config

    opened = open_home(home)
    config = load_server_config(opened.path)
    _end_with_parent(parent)
    serve_chat(
        socket or opened.path / "chat.sock",
        opened.models,
        EngineConfig(max_sequences=config.chats),
        max_loaded=config.loaded_models,
    )


def _end_with_parent(parent: int) -> None:
    """Ask this process to end when the server that started it is gone, even by SIGKILL."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent:
        threading.Thread(target=watch, daemon=True).start()
