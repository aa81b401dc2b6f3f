"""Numbers for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from ..jobs.artifacts import usage
from ..jobs.store import Store

BUCKETS = (0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.5, 1, 5, 30, 120)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "sfumato_requests",
            "Answered requests.",
            ("method", "route", "status"),
            registry=self.registry,
        )
        self.seconds = Histogram(
            "sfumato_request_seconds",
            "Seconds from a request to the end of its answer.",
            ("route",),
            buckets=BUCKETS,
            registry=self.registry,
        )
        self.jobs = Gauge("sfumato_jobs", "Jobs by state.", ("state",), registry=self.registry)
        self.waiting = Gauge(
            "sfumato_oldest_waiting_seconds", "Since the oldest waiting job came.", registry=self.registry
        )
        self.results = Gauge("sfumato_results_bytes", "Bytes of all results.", registry=self.registry)
        self.runner = Gauge(
            "sfumato_runner_up", "Whether the server's own runner lives.", registry=self.registry
        )

    def count(self, method: str, route: str, status: int, seconds: float) -> None:
        self.requests.labels(method, route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)

    def text(self, store: Store, now: float, runner: bool) -> bytes:
        for state, count in store.counts().items():
            self.jobs.labels(state).set(count)
        oldest = store.db.execute(
            "SELECT MIN(created) FROM jobs WHERE state IN ('queued', 'interrupted') AND held = 0"
        ).fetchone()[0]
        self.waiting.set(0 if oldest is None else max(0.0, now - oldest))
        self.results.set(usage(store))
        self.runner.set(int(runner))
        return generate_latest(self.registry)
