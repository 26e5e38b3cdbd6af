"""What can go wrong on the way out. Texts are safe to show: no header value is in them."""

from agentrft.core.errors import AgentRFTError


class EndpointError(AgentRFTError):
    """An endpoint gave nothing that can be used, retries included."""


class NotSentError(EndpointError):
    """Nothing was sent: too large a request, or a circuit that is open."""


class LeftAloneError(NotSentError):
    """Most of an endpoint's last calls failed, so it is not called for a while."""

    def __init__(self, where: str, left_s: float) -> None:
        super().__init__(f"{where} is left alone for {left_s:.0f} s: most of its last calls failed")
        self.left_s = left_s


class AddressRefusedError(NotSentError):
    """The address policy forbids the address; the text goes on from the name of the URL."""


class HeaderRefusedError(NotSentError):
    """A header cannot be sent."""


class TryAgain(Exception):
    """An attempt failed in a way that may pass; raise it while reading a reply to have another."""

    def __init__(self, reason: str, retry_after_s: float | None = None) -> None:
        super().__init__(reason)
        self.retry_after_s = retry_after_s
