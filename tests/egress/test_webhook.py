import asyncio
import json
import time

import pytest
from raw_server import HANGS, Raw, RawServer, reply, serving
from standardwebhooks import Webhook

from agentrft.egress.errors import EndpointError
from agentrft.egress.policy import EgressPolicy
from agentrft.egress.webhook import backoff_s, deliver

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
BODY = json.dumps({"id": "evt_1", "type": "fine_tuning.job.succeeded"}).encode()


def send(*replies: Raw, policy: EgressPolicy | None = None, timeout_s: float = 5.0) -> RawServer:
    async def scenario() -> RawServer:
        async with serving(*replies) as server:
            await deliver(
                f"{server.url}/hook?key=hunter22",
                SECRET,
                "evt_1",
                BODY,
                timestamp=time.time(),
                policy=policy or EgressPolicy(),
                timeout_s=timeout_s,
            )
            return server

    return asyncio.run(scenario())


def test_a_receiver_can_verify_what_it_gets() -> None:
    (request,) = send(reply(status=204)).requests
    assert request.content == BODY
    assert request.headers["webhook-id"] == "evt_1"
    assert Webhook(SECRET).verify(request.content, dict(request.headers)) == json.loads(BODY)


@pytest.mark.parametrize(
    ("answer", "shown"),
    [
        (reply(status=500), "answered HTTP 500"),
        (reply(status=302, location="http://127.0.0.1:1/"), "answered HTTP 302"),
        (reply(status=410), "answered HTTP 410"),
        (Raw((b"nonsense\r\n\r\n",)), "RemoteProtocolError"),
        (HANGS, "no answer in 0.2 s"),
    ],
)
def test_anything_but_success_is_an_error_after_one_try(answer: Raw, shown: str) -> None:
    with pytest.raises(EndpointError, match=shown) as caught:
        send(answer, reply(), timeout_s=0.2)
    assert "hunter22" not in str(caught.value)


def test_a_large_answer_does_not_matter() -> None:
    assert len(send(reply("x" * (2 << 20))).requests) == 1


def test_the_policy_holds_for_webhooks_too() -> None:
    with pytest.raises(EndpointError, match="an administrator can allow"):
        send(policy=EgressPolicy(multi_project=True))


def test_pauses_grow_to_half_a_day_and_then_it_is_over() -> None:
    pauses = [backoff_s(attempts) for attempts in range(1, 10)]
    assert pauses == [5.0, 30.0, 120.0, 600.0, 3600.0, 14400.0, 43200.0, None, None]
