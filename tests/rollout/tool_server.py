"""A real tool server on a free port of this machine, scripted per path."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Request:
    path: str
    headers: dict[str, str]
    body: dict[str, Any]
    client: tuple[str, int]


@dataclass
class Reply:
    body: str | bytes = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict[str, str])
    missing_bytes: int = 0
    """Announced and never sent."""
    before: Callable[[], object] = lambda: None


class ToolServer:
    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.replies: dict[str, list[Reply] | Callable[[Request], Reply]] = {}
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                owner.answer(self)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 128

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients that hang up are part of the tests."""

        self.server = Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        length = int(handler.headers["content-length"])
        body = json.loads(handler.rfile.read(length))
        request = Request(handler.path, dict(handler.headers.items()), body, handler.client_address)
        self.requests.append(request)
        path = handler.path.partition("?")[0]
        script = self.replies.get(path, lambda r: output(r, "ok"))
        if callable(script):
            reply = script(request)
        else:
            reply = script[min(len(self.to(path)), len(script)) - 1]
        reply.before()
        content = reply.body.encode() if isinstance(reply.body, str) else reply.body
        handler.send_response(reply.status)
        for name, value in reply.headers.items():
            handler.send_header(name, value)
        handler.send_header("content-length", str(len(content) + reply.missing_bytes))
        handler.end_headers()
        handler.wfile.write(content)
        if reply.missing_bytes:
            handler.close_connection = True

    def to(self, path: str) -> list[Request]:
        return [request for request in self.requests if request.path.partition("?")[0] == path]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()


def output(request: Request, text: str) -> Reply:
    ids = {"call_id": request.body["call_id"], "id": request.body["id"]}
    return Reply(json.dumps({"type": "function_call_output", **ids, "output": text}))
