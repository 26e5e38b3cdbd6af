"""Signatures as Standard Webhooks has them, so that a receiver knows who sent what, and when."""

from datetime import UTC, datetime

from standardwebhooks import Webhook


def signature_headers(
    secret: str, message_id: str, body: bytes, *, timestamp: float
) -> dict[str, str]:
    """Return the three headers that a receiver verifies with the same secret.

    `message_id` is the same at every try, so a receiver can drop what it has seen; `timestamp` is the
    Unix time of this try, which receivers want to be recent.
    """
    signed_at = datetime.fromtimestamp(int(timestamp), UTC)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(int(timestamp)),
        "webhook-signature": Webhook(secret).sign(message_id, signed_at, body.decode()),
    }
