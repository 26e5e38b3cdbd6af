"""A grader of the corpus with its rows: planted with one named defect, or clean."""

import inspect
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from agentrft.audit.probe import Subject
from agentrft.audit.references import find_answers
from agentrft.core.protocols import Grader, Sandbox
from agentrft.core.task import Task
from agentrft.core.trajectory import Trajectory
from agentrft.graders.backends import Backends
from agentrft.graders.build import build_grader
from agentrft.graders.function import FunctionGrader, GraderFunction
from agentrft.inference.grader_model import GraderModel
from agentrft.rollout.environment import Environment, python_environment

Score = Callable[[Mapping[str, Any], Mapping[str, Any]], float]
"""What a hosted grader does: `sample` and `item` to a score."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One grader. `probes` may name the defect; a clean grader has none."""

    name: str
    tasks: tuple[Task, ...]
    config: Mapping[str, Any] = field(default_factory=dict[str, Any])
    probes: frozenset[int] = frozenset()
    gold: Mapping[str, Trajectory] = field(default_factory=dict[str, Trajectory])
    environment: type[Environment] | None = None
    function: GraderFunction | None = None
    judge: GraderModel | None = None
    hosted: Score | None = None

    answer_key: str = "reference_answer"
    """Where the rows hold the right answer; empty lets the audit look for it."""

    @property
    def kind(self) -> str:
        """Type of the grader object."""
        return str(self.config.get("type", "environment"))


@contextmanager
def opened(case: Case, sandbox: Sandbox | None) -> Iterator[Subject]:
    """Make what the audit is given; a hosted grader is served on loopback meanwhile."""
    backends = Backends(sandbox=sandbox, models={"judge": case.judge} if case.judge else {})
    if case.hosted is None:
        yield _subject(case, case.config, backends)
        return
    with _served(case.hosted) as url:
        yield _subject(case, {**case.config, "url": url}, backends)


def _subject(case: Case, config: Mapping[str, Any], backends: Backends) -> Subject:
    grader: Grader
    source = ""
    if case.function is not None:
        grader = FunctionGrader(name=case.name, code=case.function)
        source = inspect.getsource(case.function.function)
    else:
        grader = build_grader(config, backends=backends)
    if case.environment is not None and not config:
        source = inspect.getsource(case.environment)
    return Subject(
        grader=grader,
        config=config,
        tasks=case.tasks,
        backends=backends,
        open_environment=python_environment(case.environment) if case.environment else None,
        tools=case.tasks[0].tools,
        gold=case.gold,
        answers=find_answers(config, case.tasks, path=case.answer_key, gold=case.gold),
        grader_source=source,
    )


@contextmanager
def _served(score: Score) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            request = json.loads(self.rfile.read(length))
            try:
                reply = {"score": score(request["sample"], request["item"])}
            except KeyError as missing:
                reply = {"error": f"the row lacks {missing}"}
            body = json.dumps(reply).encode()
            self.send_response(200 if "score" in reply else 500)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    class Server(ThreadingHTTPServer):
        request_queue_size = (
            128  # sixteen connect at once, and a full queue makes them wait a second
        )

    server = Server(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/grade"
    finally:
        server.shutdown()
        server.server_close()
