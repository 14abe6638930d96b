"""What the service counts, for Prometheus.

prometheus_client decides at its import whether several processes share their figures (PROMETHEUS_MULTIPROC_DIR, which
BentoML sets for its workers), so it is imported only when the first `Metrics` is made. Labels are bundle names, reasons
and statuses, all of them few: a raw path as a label, as BentoML's own metrics have it, grows without end.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from augmint.samples import BundleInfo
from serving.engine import Lane, Reason

__all__ = ["Metrics"]

_SECONDS: Final = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_SIZES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The engine's observer, and the counters of the API. One per process."""

    def __init__(self, registry: Any = None) -> None:
        import prometheus_client as prometheus

        self._multiprocess = "PROMETHEUS_MULTIPROC_DIR" in os.environ and registry is None
        self._registry = prometheus.REGISTRY if registry is None else registry
        common: dict[str, Any] = {"namespace": "augmint", "registry": self._registry}
        counter, histogram, gauge = prometheus.Counter, prometheus.Histogram, prometheus.Gauge
        self._images = counter("images_generated", "Images made.", ["bundle"], **common)
        self._padding = counter(
            "padding_rows", "Rows made only to fill a bucket, and thrown away.", ["bundle"], **common
        )
        self._batch = histogram("batch_images", "Images in one session call.", ["bundle"], buckets=_SIZES, **common)
        self._inference = histogram(
            "inference_seconds", "Latents and session call of one batch.", ["bundle"], buckets=_SECONDS, **common
        )
        self._wait = histogram(
            "queue_wait_seconds", "From a request's admission to its first batch.", buckets=_SECONDS, **common
        )
        self._depth = gauge("queue_images", "Images waiting or being made.", multiprocess_mode="livesum", **common)
        self._limit = gauge(
            "queue_limit_images", "Most images that may be waiting or made.", multiprocess_mode="livesum", **common
        )
        self._refused = counter("rejections", "Requests refused or given up.", ["reason"], **common)
        self._refused_images = counter(
            "rejected_images", "Images of requests refused or given up.", ["reason"], **common
        )
        self._unfit = counter(
            "unfit_images",
            "Images made and not delivered because of the quality asked for.",
            ["bundle", "reason"],
            **common,
        )
        self._answers = counter("http_answers", "Answers.", ["route", "status"], **common)
        self._latency = histogram(
            "http_answer_seconds",
            "From a request's head to its answer's last byte.",
            ["route"],
            buckets=_SECONDS,
            **common,
        )
        self._bundle_info = gauge(
            "bundle_info",
            "1 for every bundle that is served, 0 for one that was.",
            ["bundle", "digest", "family", "device", "reproducibility"],
            multiprocess_mode="livemax",
            **common,
        )
        self._bundles_refused = gauge(
            "bundles_refused",
            "Bundles in the directories that are not served; the log says why.",
            multiprocess_mode="livemax",
            **common,
        )
        self._ready = gauge("ready_workers", "Workers that are ready.", multiprocess_mode="livesum", **common)
        self._children: dict[tuple[Any, ...], Any] = {}

    # ------------------------------------------------------------------------------------------ the engine's observer

    def batch(self, lane: Lane, rows: int, padding: int, seconds: float, waits: Sequence[float], pending: int) -> None:
        self._depth.set(pending)
        self._child(self._images, lane.name).inc(rows)
        self._child(self._batch, lane.name).observe(rows)
        self._child(self._inference, lane.name).observe(seconds)
        if padding:
            self._child(self._padding, lane.name).inc(padding)
        for wait in waits:
            self._wait.observe(wait)

    def refused(self, reason: Reason | str, images: int) -> None:
        self._child(self._refused, reason).inc()
        self._child(self._refused_images, reason).inc(images)

    # ------------------------------------------------------------------------------------------ the API's

    def answered(self, route: str, status: int, seconds: float) -> None:
        self._child(self._answers, route, str(status)).inc()
        self._child(self._latency, route).observe(seconds)

    def unfit(self, bundle: str, reason: str, images: int) -> None:
        self._child(self._unfit, bundle, reason).inc(images)

    def serves(self, info: BundleInfo, *, served: bool = True) -> None:
        labels = (info.name, info.digest, info.family, info.device, info.reproducibility)
        # Not removed, which prometheus_client cannot do for several processes.
        self._bundle_info.labels(*labels).set(int(served))

    def refuses(self, bundles: int) -> None:
        self._bundles_refused.set(bundles)

    def admits(self, queue_images: int) -> None:
        self._limit.set(queue_images)

    def ready(self, ready: bool) -> None:
        self._ready.set(int(ready))

    def exposition(self) -> tuple[bytes, str]:
        """The text to be scraped, all workers' figures added up, and its content type."""
        import prometheus_client as prometheus
        from prometheus_client import multiprocess

        registry = self._registry
        if self._multiprocess:
            registry = prometheus.CollectorRegistry()
            multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return prometheus.generate_latest(registry), prometheus.CONTENT_TYPE_LATEST

    def _child(self, metric: Any, *labels: str) -> Any:
        # `labels()` takes a lock and builds a tuple of strings each time; a dict look-up does not.
        key = (id(metric), *labels)
        child = self._children.get(key)
        if child is None:
            child = self._children[key] = metric.labels(*labels)
        return child
