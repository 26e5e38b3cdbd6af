"""One try to deliver an event, signed as Standard Webhooks has it, and when to try again."""

import asyncio

from agentrft.egress.client import post_once
from agentrft.egress.errors import AddressRefusedError, EndpointError, TryAgain
from agentrft.egress.policy import EgressPolicy
from agentrft.egress.signing import signature_headers

TIMEOUT_S = 30.0
BACKOFF_S = (5.0, 30.0, 120.0, 600.0, 3600.0, 4 * 3600.0, 12 * 3600.0)


async def deliver(
    url: str,
    secret: str,
    event_id: str,
    body: bytes,
    *,
    timestamp: float,
    policy: EgressPolicy,
    timeout_s: float = TIMEOUT_S,
) -> None:
    """POST the event once. Raises EndpointError unless the answer is 2xx within the time."""
    try:
        target = policy.target(url)
    except AddressRefusedError as error:
        raise AddressRefusedError(f"the webhook's URL {error}") from None
    headers = signature_headers(secret, event_id, body, timestamp=timestamp)
    deadline = asyncio.timeout(timeout_s)
    try:
        async with deadline:
            reply = await post_once(target, body, headers, policy)
    except AddressRefusedError as error:
        raise AddressRefusedError(f"webhook {target.shown} {error}") from None
    except TryAgain as failure:
        raise EndpointError(f"webhook {target.shown}: {failure}") from None
    except TimeoutError:
        if not deadline.expired():
            raise
        raise EndpointError(f"webhook {target.shown}: no answer in {timeout_s:g} s") from None
    if not 200 <= reply.status < 300:
        raise EndpointError(f"webhook {target.shown} answered HTTP {reply.status}; 2xx is success")


def backoff_s(attempts: int) -> float | None:
    """Return the pause after so many failed tries, None to give up."""
    return BACKOFF_S[attempts - 1] if attempts <= len(BACKOFF_S) else None
