"""How many requests a token may make: one bucket per token, filled steadily."""

import time
from dataclasses import dataclass

_MOST_BUCKETS = 10_000


@dataclass
class _Bucket:
    tokens: float
    at: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Allowance:
    """What one request was told."""

    allowed: bool
    limit: int
    remaining: int
    reset_s: float
    """Until the bucket is full again."""
    retry_s: float
    """Until one more request is allowed; 0 if it is."""

    @property
    def headers(self) -> dict[str, str]:
        """As the contract spells them."""
        return {
            "x-ratelimit-limit-requests": str(self.limit),
            "x-ratelimit-remaining-requests": str(self.remaining),
            "x-ratelimit-reset-requests": f"{self.reset_s:.3f}s",
        }


class Limiter:
    """Counts requests by key; `now` is given by tests."""

    def __init__(self, per_minute: int) -> None:
        self._per_minute = per_minute
        self._buckets: dict[str, _Bucket] = {}

    def take(self, key: str, now: float | None = None) -> Allowance:
        """Count one request against a key."""
        now = time.monotonic() if now is None else now
        rate = self._per_minute / 60
        bucket = self._buckets.pop(key, None) or _Bucket(self._per_minute, now)
        bucket.tokens = min(self._per_minute, bucket.tokens + (now - bucket.at) * rate)
        bucket.at = now
        allowed = bucket.tokens >= 1
        bucket.tokens -= allowed
        self._buckets[key] = bucket
        # The first is the one that was asked least recently: it has been full for longest.
        if len(self._buckets) > _MOST_BUCKETS:
            del self._buckets[next(iter(self._buckets))]
        return Allowance(
            allowed=allowed,
            limit=self._per_minute,
            remaining=int(bucket.tokens),
            reset_s=(self._per_minute - bucket.tokens) / rate,
            retry_s=0.0 if allowed else (1 - bucket.tokens) / rate,
        )
