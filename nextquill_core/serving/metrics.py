"""What the server measures about itself, in Prometheus' format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import GaugeMetricFamily

from nextquill_core.serving.deployment import Rollout

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Metrics:
    """The metrics of one server.

    Attributes:
        requests: Finished requests, by route and status.
        seconds: Time from a request's first byte to its answer's last, by route.
        first_text_seconds: Time from a draft's request to the first part of its text.
        new_tokens: Generated tokens, by model.
        prompt_tokens: Tokens of the prompts that were shown, by model.
        drafts: Written drafts, by model and by whether a history was shown.
        refused: Requests that were refused because of too many others.
        in_flight: Drafts that are being written.
    """

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)  # memory, processor time and open files
        self.requests = self._counter("requests", "Finished requests", "route", "status")
        self.seconds = self._histogram("request_seconds", "Duration of requests", "route")
        self.first_text_seconds = self._histogram("first_text_seconds", "Time to the first part of a draft")
        self.new_tokens = self._counter("new_tokens", "Generated tokens", "model")
        self.prompt_tokens = self._counter("prompt_tokens", "Tokens of prompts", "model")
        self.drafts = self._counter("drafts", "Written drafts", "model", "history")
        self.refused = self._counter("refused", "Requests refused because of too many others")
        self.in_flight = Gauge("nextquill_in_flight", "Drafts that are being written", registry=self._registry)

    def show_models(self, rollout: Rollout) -> None:
        """Let every reading of the metrics show what is served at that moment."""
        self._registry.register(_Models(rollout))

    def text(self) -> bytes:
        """Return the metrics in Prometheus' text format."""
        found: bytes = generate_latest(self._registry)
        return found

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"nextquill_{name}", about, labels, registry=self._registry)

    def _histogram(self, name: str, about: str, *labels: str) -> Histogram:
        return Histogram(f"nextquill_{name}", about, labels, registry=self._registry, buckets=SECONDS)


class _Models:
    """A collector of what is served."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    def collect(self) -> list[GaugeMetricFamily]:
        """Return the metrics of the moment."""
        models = GaugeMetricFamily("nextquill_model", "1 for each served model", labels=["method", "model"])
        current = self._rollout.current
        served = current.catalog.models if current else {}
        for method, model in served.items():
            models.add_metric([method, model], 1)
        failed = GaugeMetricFamily("nextquill_refresh_failures", "Changes of the store that were not taken over")
        failed.add_metric([], self._rollout.failures)
        return [models, failed]
