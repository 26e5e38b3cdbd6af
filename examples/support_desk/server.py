"""The desk's tools over HTTP: POST /<tool> in the form of the fine-tuning API's agentic extension.

    python server.py [PORT]

Each rollout (`trace_id`) has a shop of its own, made from the row (`item`) of its first call.
"""

import asyncio
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from tools import SupportDesk

from agentrft import Task
from agentrft.core.task import ToolCall

MAX_BODY_BYTES = 1 << 20
MAX_DESKS = 1024
"""Rollouts remembered; the longest unused is forgotten first."""


class Desks:
    """The open desks by rollout."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._desks: OrderedDict[str, tuple[SupportDesk, threading.Lock]] = OrderedDict()

    def call(self, trace_id: str, row: Mapping[str, Any], call: ToolCall) -> str:
        """Run one tool on the shop of one rollout; calls of a rollout wait for each other."""
        with self._lock:
            if trace_id not in self._desks:
                task = Task(id=trace_id, messages=(), row=row)
                self._desks[trace_id] = SupportDesk(task), threading.Lock()
            self._desks.move_to_end(trace_id)
            if len(self._desks) > MAX_DESKS:
                _, (oldest, _) = self._desks.popitem(last=False)
                oldest.teardown()
            desk, lock = self._desks[trace_id]
        with lock:
            return asyncio.run(desk.call_tool(call)).content

    def close(self) -> None:
        """Forget all rollouts."""
        with self._lock:
            for desk, _ in self._desks.values():
                desk.teardown()
            self._desks.clear()


class DeskHandler(BaseHTTPRequestHandler):
    """Answers one tool call; a tool's own error is output, only a broken request is a 4xx."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer POST /<tool>."""
        length = int(self.headers.get("Content-Length", "0"))
        if length > MAX_BODY_BYTES:
            self.close_connection = True
            return self._send(413, {"error": f"the body is larger than {MAX_BODY_BYTES} bytes"})
        try:
            body = json.loads(self.rfile.read(length))
            arguments = body["arguments"]
            call = ToolCall(
                id=body["call_id"],
                name=self.path.strip("/"),
                arguments=arguments if isinstance(arguments, str) else json.dumps(arguments),
            )
            trace_id, row, item_id = body["trace_id"], body["item"], body["id"]
            output = cast(DeskServer, self.server).desks.call(trace_id, row, call)
        except (ValueError, KeyError, TypeError) as error:
            return self._send(400, {"error": f"not a tool call: {type(error).__name__}: {error}"})
        return self._send(
            200,
            {
                "type": "function_call_output",
                "call_id": call.id,
                "id": item_id,
                "output": output,
            },
        )

    def _send(self, status: int, body: Mapping[str, Any]) -> None:
        payload = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, format: str, *args: Any) -> None:
        """Stay silent: one line per tool call would drown everything else."""


class DeskServer(ThreadingHTTPServer):
    """Serves the desk on loopback; port 0 takes a free one."""

    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), DeskHandler)
        self.desks = Desks()

    def server_close(self) -> None:
        """Stop listening and forget all rollouts."""
        super().server_close()
        self.desks.close()


if __name__ == "__main__":
    with DeskServer(int(sys.argv[1]) if len(sys.argv) > 1 else 8700) as server:
        print(f"support desk on http://127.0.0.1:{server.server_port}")
        server.serve_forever()
