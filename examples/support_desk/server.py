"""The desk over HTTP: POST /<tool> and POST /grade, as the fine-tuning API's agentic extension has it.

    python server.py [PORT]

Each rollout (`trace_id`) has a shop of its own, made from the row (`item`) of its first call; the
grade looks at the shop that the rollout leaves behind.
"""

import asyncio
import json
import sys
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

from tools import SupportDesk

from agentrft import Task, Trajectory
from agentrft.core.task import Message, ToolCall
from agentrft.core.trajectory import StopReason, ToolResult, Turn

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
        desk, lock = self._desk(trace_id, row)
        with lock:
            return asyncio.run(desk.call_tool(call)).content

    def grade(
        self, trace_id: str, row: Mapping[str, Any], sample: Mapping[str, Any]
    ) -> Mapping[str, float]:
        """Grade one rollout by its conversation and the shop it leaves."""
        desk, lock = self._desk(trace_id, row)
        with lock:
            return desk.grade(trajectory_of(trace_id, sample["messages"]))

    def _desk(self, trace_id: str, row: Mapping[str, Any]) -> tuple[SupportDesk, threading.Lock]:
        with self._lock:
            if trace_id not in self._desks:
                task = Task(id=trace_id, messages=(), row=row)
                self._desks[trace_id] = SupportDesk(task), threading.Lock()
            self._desks.move_to_end(trace_id)
            if len(self._desks) > MAX_DESKS:
                _, (oldest, _) = self._desks.popitem(last=False)
                oldest.teardown()
            return self._desks[trace_id]

    def close(self) -> None:
        """Forget all rollouts."""
        with self._lock:
            for desk, _ in self._desks.values():
                desk.teardown()
            self._desks.clear()


def trajectory_of(trace_id: str, messages: Sequence[Mapping[str, Any]]) -> Trajectory:
    """Put the rollout together again from the messages that the grader is sent."""
    turns: list[Turn] = []
    for message in messages:
        if message["role"] == "tool":
            result = ToolResult(
                call_id=message["tool_call_id"],
                name=message.get("name") or "",
                content=message["content"],
            )
            turns[-1] = replace(turns[-1], tool_results=(*turns[-1].tool_results, result))
        elif message["role"] == "assistant":
            calls = tuple(
                ToolCall(id=call["id"], **call["function"])
                for call in message.get("tool_calls") or ()
            )
            said = Message(role="assistant", content=message.get("content") or "", tool_calls=calls)
            turns.append(
                Turn(
                    observation_ids=(),
                    action_ids=(),
                    behavior_logprobs=(),
                    first_version=0,
                    last_version=0,
                    message=said,
                )
            )
    return Trajectory(
        id=trace_id,
        task_id=trace_id,
        model="",
        spec_hash="",
        seed=0,
        prompt=(),
        turns=tuple(turns),
        stop_reason=StopReason.FINISHED,
    )


class DeskHandler(BaseHTTPRequestHandler):
    """Answers one call; a tool's own error is output, only a broken request is a 4xx."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer POST /<tool> and POST /grade."""
        length = int(self.headers.get("Content-Length", "0"))
        if length > MAX_BODY_BYTES:
            self.close_connection = True
            return self._send(413, {"error": f"the body is larger than {MAX_BODY_BYTES} bytes"})
        try:
            body = json.loads(self.rfile.read(length))
            desks = cast(DeskServer, self.server).desks
            if self.path == "/grade":
                return self._send(200, desks.grade(body["trace_id"], body["item"], body["sample"]))
            arguments = body["arguments"]
            call = ToolCall(
                id=body["call_id"],
                name=self.path.strip("/"),
                arguments=arguments if isinstance(arguments, str) else json.dumps(arguments),
            )
            trace_id, row, item_id = body["trace_id"], body["item"], body["id"]
            output = desks.call(trace_id, row, call)
        except (ValueError, KeyError, TypeError) as error:
            return self._send(
                400, {"error": f"not a call of a tool or a grader: {type(error).__name__}: {error}"}
            )
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
    request_queue_size = 128
    """Connections that may wait: a group of rollouts starts all at once."""

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
