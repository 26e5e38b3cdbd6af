"""The desk over HTTP answers as the desk in Python does."""

# pyright: reportMissingImports=false
import asyncio
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.client import HTTPConnection
from typing import Any

import pytest
from desk import FOLDER, played, read
from expert import plan, reply
from server import DeskServer
from tools import RemoteDesk, SupportDesk

from agentrft.core.config import HttpTool
from agentrft.core.task import Task, ToolCall
from agentrft.graders.build import build_grader
from agentrft.rollout.environment import python_environment, tools_of
from agentrft.rollout.http_tools import combined_environment, http_environment
from agentrft.store.codec import load_project_config


@pytest.fixture
def port() -> Iterator[int]:
    with DeskServer(0) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_port
        server.shutdown()
        thread.join()


def row() -> dict[str, Any]:
    order = {
        "id": "W12345",
        "name": "Ann Baker",
        "email": "ann.baker@mail.com",
        "address": "1 Oak Street",
        "status": "delivered",
        "delivered": "2026-03-01",
        "paid": "card",
        "items": {"mug": 22.0, "lamp": 19.9},
    }
    return {"id": "t", "messages": [], "shop": {"today": "2026-03-15", "orders": [order]}}


CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("find_customer", {"email": "ann.baker@mail.com"}),
    ("get_order", {"order_id": "W12345"}),
    ("search_policy", {"topic": "refund"}),
    ("refund", {"order_id": "W12345", "amount": 19.9}),
    ("change_address", {"order_id": "W12345", "address": "5 Main Street"}),
    ("cancel_order", {"order_id": "W12345"}),
    ("cancel_order", {"order_id": "W12345"}),
    ("hand_over", {"reason": "unsure"}),
    ("get_order", {"order_id": "W12345"}),
    ("get_order", {"number": "W12345"}),
    ("refund", {"order_id": "W12345", "amount": "much"}),
    ("burn_down", {}),
)


def post(port: int, path: str, body: bytes) -> tuple[int, dict[str, Any]]:
    connection = HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", path, body, {"Content-Type": "application/json"})
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def call(port: int, name: str, arguments: object, trace_id: str = "trace_a") -> dict[str, Any]:
    body = {
        "type": "function_call",
        "id": "fc_1",
        "call_id": "call_1",
        "name": name,
        "arguments": arguments,
        "trace_id": trace_id,
        "item": row(),
    }
    status, answer = post(port, f"/{name}", json.dumps(body).encode())
    assert status == 200
    return answer


def test_every_tool_answers_over_http_as_it_does_in_python(port: int):
    desk = SupportDesk(Task(id="t", messages=(), row=row()))
    for name, arguments in CALLS:
        text = json.dumps(arguments)
        local = asyncio.run(desk.call_tool(ToolCall(id="call_1", name=name, arguments=text)))
        assert call(port, name, text) == {
            "type": "function_call_output",
            "call_id": "call_1",
            "id": "fc_1",
            "output": local.content,
        }
    desk.teardown()


def test_each_rollout_has_a_shop_of_its_own(port: int):
    call(port, "cancel_order", '{"order_id": "W12345"}', "trace_a")
    look_up = '{"order_id": "W12345"}'
    assert "status=cancelled" in call(port, "get_order", look_up, "trace_a")["output"]
    assert "status=delivered" in call(port, "get_order", look_up, "trace_b")["output"]


def test_arguments_may_be_an_object(port: int):
    answer = call(port, "get_order", {"order_id": "W12345"})
    assert answer["output"].startswith("status=delivered days=14 total=41.90")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"nonsense",
        b"[]",
        b'{"item": {}}',
        b'{"call_id": "c", "id": "f", "arguments": "{}", "trace_id": "t", "item": {"shop": 5}}',
    ],
)
def test_a_body_that_is_no_tool_call_is_a_400(port: int, body: bytes):
    status, answer = post(port, "/get_order", body)
    assert status == 400
    assert "not a call of a tool" in answer["error"]


def remote_tools(port: int) -> list[HttpTool]:
    config = load_project_config(FOLDER / "agent-http.toml")
    return [
        replace(tool, server_url=tool.server_url.replace(":8700/", f":{port}/"))
        for tool in config.tools
    ]


def test_the_http_project_offers_the_python_projects_tools_under_the_same_limits():
    local, remote = (
        load_project_config(FOLDER / f"{name}.toml") for name in ("agent", "agent-http")
    )
    assert (remote.limits, remote.data, remote.system) == (local.limits, local.data, local.system)
    for tool in remote.tools:
        spec = tools_of(SupportDesk)[tool.name].spec
        assert (tool.description, tool.parameters) == (spec.description, spec.parameters)
        assert tool.server_url.endswith(f"/{tool.name}")
    assert {tool.name for tool in remote.tools} == set(tools_of(SupportDesk))


def test_rollouts_over_http_get_the_grades_of_rollouts_in_python(port: int):
    rows = {row["family"]: row for row in read("validation")}.values()

    async def compare() -> list[tuple[object, object]]:
        tools = http_environment(remote_tools(port))
        remote = combined_environment([python_environment(RemoteDesk), tools])
        pairs = [
            (
                await played(row, turns, reply(row)),
                await played(row, turns, reply(row), open_environment=remote),
            )
            for row in rows
            for turns in ([[call] for call in plan(row)], [plan(row)], [])
        ]
        return [(local, over_http) for local, over_http in pairs]

    found = asyncio.run(compare())
    assert len(found) == 3 * 13
    assert all(local == over_http for local, over_http in found)


def test_a_number_in_quotes_is_repeated_as_it_was_taken(port: int):
    [row] = [row for row in read("validation") if any(c[0] == "refund" for c in plan(row))][:1]
    quoted = [
        (name, {key: str(value) if key == "amount" else value for key, value in given.items()})
        for name, given in plan(row)
    ]

    async def graded() -> object:
        tools = http_environment(remote_tools(port))
        remote = combined_environment([python_environment(RemoteDesk), tools])
        return await played(row, [quoted], reply(row), open_environment=remote)

    assert asyncio.run(graded()) == asyncio.run(played(row, [plan(row)], reply(row)))


def test_the_desk_grades_over_http_as_it_does_in_python(port: int):
    rows = {row["family"]: row for row in read("validation")}.values()

    async def compare() -> list[tuple[object, object]]:
        remote = http_environment(remote_tools(port))
        grader = build_grader({"type": "endpoint", "url": f"http://127.0.0.1:{port}/grade"})
        pairs = [
            (
                await played(row, turns, reply(row)),
                await played(row, turns, reply(row), open_environment=remote, grader=grader),
            )
            for row in rows
            for turns in ([[call] for call in plan(row)], [plan(row)], [])
        ]
        return [(local.score, over_http.score) for local, over_http in pairs]

    found = asyncio.run(compare())
    assert {local for local, _ in found} == {0.0, 1.0}
    assert all(local == over_http for local, over_http in found)
