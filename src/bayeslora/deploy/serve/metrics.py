"""Counters of a server, in Prometheus' text format."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """The metrics of one app, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        with_registry: dict[str, Any] = {"registry": self.registry}
        self.requests = Counter(
            "bayeslora_requests",
            "Answers; errors are those of status 400 and above.",
            ["path", "status"],
            **with_registry,
        )
        self.seconds = Histogram(
            "bayeslora_request_seconds", "Seconds from request to answer.", ["path"], buckets=_SECONDS, **with_registry
        )
        self.batch_items = Histogram("bayeslora_batch_items", "Items in one forward.", buckets=_SIZES, **with_registry)
        self.batch_seconds = Histogram(
            "bayeslora_batch_seconds", "Seconds of one forward.", buckets=_SECONDS, **with_registry
        )
        self.queue = Gauge("bayeslora_queue_items", "Items that wait for a forward.", **with_registry)
        self.items = Counter("bayeslora_items", "Items predicted.", **with_registry)
        self.abstained = Counter("bayeslora_abstained_items", "Items that said abstain.", **with_registry)
        self.entropy = Summary(
            "bayeslora_entropy_nats", "Entropy of the items; sum / count is the mean.", **with_registry
        )
        self.information = Summary(
            "bayeslora_mutual_information_nats",
            "Mutual information of the items; sum / count is the mean.",
            **with_registry,
        )

    def watch_queue(self, length: Callable[[], int]) -> None:
        """Read the queue's length when the metrics are asked for."""
        self.queue.set_function(length)

    def observe_batch(self, items: int, seconds: float) -> None:
        """A forward has ended."""
        self.batch_items.observe(items)
        self.batch_seconds.observe(seconds)

    def observe_records(self, records: Iterable[dict[str, Any]]) -> None:
        """Items are answered."""
        for record in records:
            self.items.inc()
            self.entropy.observe(record["entropy"])
            self.information.observe(record["mutual_information"])
            self.abstained.inc(bool(record.get("abstain")))

    def text(self) -> bytes:
        """What Prometheus reads."""
        return generate_latest(self.registry)


class CountRequests:
    """Middleware that counts answers by path and status, and their seconds; unknown paths are one path, "other"."""

    def __init__(self, app: ASGIApp, metrics: Metrics, paths: Iterable[str]):
        self.app = app
        self.metrics = metrics
        self.paths = frozenset(paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"] if scope["path"] in self.paths else "other"
        started = time.perf_counter()

        async def counting(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, message["status"]).inc()
                self.metrics.seconds.labels(path).observe(time.perf_counter() - started)
            await send(message)

        return await self.app(scope, receive, counting)
