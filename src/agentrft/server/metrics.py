"""Numbers of this process and of the queue, for Prometheus."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import Scope

_LATENCY_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 10.0, 60.0)


class Metrics:
    """Counters and gauges in a registry of their own, so that two servers share nothing."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        labels = ("method", "route", "status")
        self._requests = Counter(
            "agentrft_requests_total", "Requests answered.", labels, registry=self.registry
        )
        self._latency = Histogram(
            "agentrft_request_seconds",
            "Time to the end of the answer.",
            ("method", "route"),
            buckets=_LATENCY_S,
            registry=self.registry,
        )
        self.followers = Gauge(
            "agentrft_event_followers", "Open event streams.", registry=self.registry
        )
        self.jobs = Gauge(
            "agentrft_jobs",
            "Fine-tuning jobs of every project.",
            ("status",),
            registry=self.registry,
        )
        self.queue_age_s = Gauge(
            "agentrft_queue_age_seconds",
            "Age of the oldest job that waits for a worker.",
            registry=self.registry,
        )
        self.webhooks = Counter(
            "agentrft_webhook_deliveries_total",
            "Tries to deliver a webhook.",
            ("outcome",),
            registry=self.registry,
        )

    def request(self, scope: Scope, status: int, took_s: float) -> None:
        """Count one request under its route's template, never under the path it wrote."""
        route = getattr(scope.get("route"), "path", "none")
        known = route != "none" and scope["method"] in ("GET", "POST", "DELETE")
        method = scope["method"] if known else "any"
        self._requests.labels(method, route, str(status)).inc()
        self._latency.labels(method, route).observe(took_s)
