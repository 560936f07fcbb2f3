"""Metrics for Prometheus, fed with records and with the workers' counters; gauges are collected when scraped.

A record costs about 20 us here, which is why it happens in the agent. Values of a label are bounded: from the 1,001st
on they are called `other`.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.core import Metric as Family

from telemetry import names
from telemetry.names import OPERATIONS, POLICY, PRIORITIES
from telemetry.record import Attempt, Record

MOST_VALUES = 1000
OTHER = "other"
NS = 1e-9
PHASES = ("queue", "prefill", "decode", "network")
TTFT_GAIN = 0.1  # share of the newest request in the moving average


_COUNTED = {f"{metric.name}_total": metric for metric in names.COUNTED}


class Sample(NamedTuple):
    """One value of a collected gauge; `labels` in the metric's order."""

    metric: names.Metric
    labels: tuple[str, ...]
    value: float


class Bounded:
    """The children of one metric, found by their label values; too many values of a label become one."""

    def __init__(self, parent: Any) -> None:
        self._parent = parent
        self._children: dict[tuple[str, ...], Any] = {}
        self._seen: list[set[str]] = []

    def of(self, *values: str) -> Any:
        """The child for these values."""
        child = self._children.get(values)
        if child is None:
            child = self._parent.labels(*self._bound(values))
            if len(self._children) < 10 * MOST_VALUES:
                self._children[values] = child
        return child

    def _bound(self, values: tuple[str, ...]) -> list[str]:
        self._seen = self._seen or [set() for _ in values]
        bounded = []
        for value, seen in zip(values, self._seen, strict=True):
            if value not in seen and len(seen) >= MOST_VALUES:
                value = OTHER
            else:
                seen.add(value)
            bounded.append(value)
        return bounded


class Metrics:
    """All metrics of one location, on a registry of its own."""

    def __init__(self, registry: CollectorRegistry, gauges: Callable[[], Iterable[Sample]] = tuple) -> None:
        """`gauges`: what is asked for at every scrape."""
        self._gauges = gauges
        self._by_name: dict[str, Bounded] = {}
        self._ttft: dict[tuple[str, str], float] = {}
        for metric in (*names.OBSERVED, *names.COUNTED):
            if metric.kind == "histogram":
                made: Any = Histogram(
                    metric.name, metric.help, metric.labels, buckets=metric.buckets, registry=registry
                )
            else:
                made = Counter(metric.name, metric.help, metric.labels, registry=registry)
            self._by_name[metric.name] = Bounded(made)
        registry.register(self)

    def _of(self, metric: names.Metric, *values: str) -> Any:
        return self._by_name[metric.name].of(*values)

    def collect(self) -> list[Family]:
        """The gauges, for the registry."""
        families = {m.name: GaugeMetricFamily(m.name, m.help, labels=m.labels) for m in names.COLLECTED}
        for metric, labels, value in self._gauges():
            families[metric.name].add_metric(labels, value)
        return list(families.values())

    def count(self, key: str, n: int) -> None:
        """Adds to a worker's counter, "METRIC_total|VALUES"; an unknown one is ignored: a newer worker may send it."""
        name, _, values = key.partition("|")
        metric = _COUNTED.get(name)
        if metric is not None and n > 0:
            given = values.split(":", len(metric.labels) - 1)
            self._of(metric, *given, *[""] * (len(metric.labels) - len(given))).inc(n)

    def ttft_ewma(self, model: str, instance: str) -> float | None:
        """The moving average of the time to first token in seconds; None before the first."""
        return self._ttft.get((model, instance))

    def spans(self, state: str, n: int) -> None:
        """Spans, by what became of them."""
        self._of(names.SPANS, state).inc(n)

    def tuned(self, model: str, kind: str) -> None:
        """A weight was changed."""
        self._of(names.TUNER_UPDATES, model, kind).inc()
        if kind == "rollback":
            self._of(names.TUNER_ROLLBACKS, model).inc()

    def left_alone(self, model: str, reason: str, n: int) -> None:
        """So many weights were not changed."""
        self._of(names.TUNER_REJECTED, model, reason).inc(n)

    def engine(self, record: Record, attempt: Attempt) -> None:
        """An attempt's time by its engine's own spans."""
        phases = attempt.engine
        if phases is not None:
            for phase, seconds in zip(
                PHASES, (phases.queue, phases.prefill, phases.decode, phases.network), strict=True
            ):
                self._of(names.ENGINE, record.model, attempt.instance, phase).observe(seconds)

    def lag(self, worker: int, seconds: float) -> None:
        """A worker's event loop lag."""
        self._of(names.LAG, str(worker)).observe(max(0.0, seconds))

    def observe(self, record: Record) -> None:
        """Takes one record."""
        self._of(names.REQUESTS, record.route, str(record.status), record.outcome).inc()
        if not record.model:
            return
        error = "" if record.outcome == "ok" else record.error or record.outcome
        labels = (OPERATIONS.get(record.route, "other"), record.model, error, record.location)
        exemplar = {"trace_id": record.trace_id}
        self._of(names.DURATION, *labels).observe((record.done - record.accepted) * NS, exemplar)
        self._observe_tokens(record, labels, exemplar)
        if record.queued:
            waited = (record.routed or record.done) - record.queued
            self._of(names.QUEUE_WAIT, PRIORITIES[record.priority]).observe(waited * NS)
        if record.reason:
            self._of(names.DECISIONS, POLICY, record.reason, record.spill_to or record.location).inc()
        if record.sent and len(record.attempts) == 1:
            waited = record.routed - record.queued if record.queued else 0
            spent = record.sent - record.accepted - waited - record.attempts[0].connect_ns
            self._of(names.OVERHEAD, "before_upstream").observe(max(0, spent) * NS, exemplar)
        if record.relayed:
            spent = record.relayed - record.first_byte
            self._of(names.OVERHEAD, "first_chunk").observe(max(0, spent) * NS, exemplar)

    def _observe_tokens(self, record: Record, labels: tuple[str, ...], exemplar: dict[str, str]) -> None:
        model, tenant_class = record.model, PRIORITIES[record.priority]
        if record.prompt_tokens:
            self._of(names.TOKENS, "input", model, tenant_class).inc(record.prompt_tokens)
        if record.cached_tokens:
            self._of(names.TOKENS, "cached", model, tenant_class).inc(record.cached_tokens)
        if record.output_tokens:
            self._of(names.TOKENS, "output", model, tenant_class).inc(record.output_tokens)
            if record.outcome == "ok" and record.output_tokens_predicted:
                ratio = record.output_tokens / record.output_tokens_predicted
                self._of(names.ESTIMATE_ERROR, model).observe(ratio)
        if not record.first_token:
            return
        instance = record.attempts[-1].instance
        ttft = (record.first_token - record.accepted) * NS
        self._of(names.TTFT, *labels, instance).observe(ttft, exemplar)
        self._average_ttft(model, instance, ttft)
        if record.output_tokens > 1:
            mean = (record.last_byte - record.first_token) / (record.output_tokens - 1)
            self._of(names.TPOT, *labels, instance).observe(max(0.0, mean) * NS)

    def _average_ttft(self, model: str, instance: str, ttft: float) -> None:
        before = self._ttft.get((model, instance))
        if before is not None:
            self._ttft[model, instance] = before + TTFT_GAIN * (ttft - before)
        elif len(self._ttft) < 10 * MOST_VALUES:
            self._ttft[model, instance] = ttft


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest-rank percentile of values that need not be sorted; 0 of none."""
    if not values:
        return 0.0
    ranked = sorted(values)
    return ranked[max(0, math.ceil(share * len(ranked)) - 1)]
