"""Requests made up from our own OpenAPI document: none may make the server fail."""

import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx2
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from live import Live, live_server
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.core.result import Ok
from served import bearer

from agentrft.inference.scripted import ScriptedChat, scripted_answer
from agentrft.store.access import Role

CASES = int(os.environ.get("AGENTRFT_SCHEMATHESIS_CASES", "20"))
"""For each operation and each of: as documented, and on purpose not."""


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    chat = ScriptedChat(lambda _request: scripted_answer("hello"))
    folder = tmp_path_factory.mktemp("home")
    with live_server(folder, chat, deliver_webhooks=False, requests_per_minute=10**9) as it:
        yield it


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_no_request_makes_the_server_fail(live: Live, mode: GenerationMode) -> None:
    caller = bearer(live.token_of("default", Role.ADMIN))
    found = httpx2.get(f"{live.url}/openapi.json", headers=caller).json()
    asked = 0
    for result in schemathesis.openapi.from_dict(found).get_all_operations():
        assert isinstance(result, Ok)
        operation: Any = result.ok()

        @settings(
            max_examples=CASES,
            deadline=None,
            derandomize=True,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        )
        @given(case=operation.as_strategy(generation_mode=mode))
        def ask(case: Any) -> None:
            nonlocal asked
            asked += 1
            reply = case.call(base_url=live.url, headers=caller)
            case.validate_response(reply, checks=[not_a_server_error])

        # What takes no parameters cannot be asked in a wrong way.
        with suppress(Unsatisfiable):
            ask()
    sys.stdout.write(f"{asked} requests, {mode.value}, none made the server fail\n")
    assert asked > CASES
