"""Spans on their way out: built late from plain ones, through the SDK's batch processor and its OTLP exporters.

The processor's thread exports; who adds a span never waits. A full queue drops its oldest span; a batch that the backend
does not take is given up after the exporter's own retries. Both are counted, and said once an outage.
"""

import logging
import threading
import urllib.parse
from collections.abc import Iterable, Mapping, Sequence

from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from telemetry.context import SAMPLED
from telemetry.tree import Span

log = logging.getLogger("headrace.export")
QUEUE = 8192  # spans
BATCH = 512
EVERY_MS = 1000
TIMEOUT = 10  # s
HTTP_PORT = 4318  # OTLP's own for HTTP; any other is gRPC's, unless the URL has a path
KINDS = {"server": SpanKind.SERVER, "internal": SpanKind.INTERNAL, "client": SpanKind.CLIENT}


def exporter_for(url: str, headers: Mapping[str, str]) -> SpanExporter:
    """The exporter that speaks what the URL stands for."""
    if (endpoint := http_endpoint(url)) is not None:
        return HttpExporter(endpoint=endpoint, headers=dict(headers), timeout=TIMEOUT)
    lower = [(name.lower(), value) for name, value in headers.items()]
    return GrpcExporter(endpoint=url, insecure=url.startswith("http:"), headers=lower, timeout=TIMEOUT)


def http_endpoint(url: str) -> str | None:
    """Where OTLP goes by HTTP; None: it goes by gRPC."""
    parts = urllib.parse.urlsplit(url)
    if parts.path.strip("/"):
        return url
    return url.rstrip("/") + "/v1/traces" if parts.port == HTTP_PORT else None


class Counted(SpanExporter):
    """An exporter whose spans are counted: by what became of them, and when they leave the queue."""

    def __init__(self, inner: SpanExporter, where: str) -> None:
        self._inner = inner
        self._where = where
        self._lock = threading.Lock()
        self._counts: dict[str, int] = {}
        self._failing = False
        self.taken = 0  # spans that have left the queue, since the beginning

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Called by the processor's thread."""
        self.taken += len(spans)
        result = self._inner.export(spans)
        good = result is SpanExportResult.SUCCESS
        self.count("exported" if good else "failed", len(spans))
        if not good and not self._failing:
            log.warning("telemetry.otlp: %s does not take spans; they are lost until this ends", self._where)
        self._failing = not good
        return result

    def count(self, state: str, n: int) -> None:
        """Adds to a count."""
        with self._lock:
            self._counts[state] = self._counts.get(state, 0) + n

    def take_counts(self) -> dict[str, int]:
        """The counts since the last call."""
        with self._lock:
            counts, self._counts = self._counts, {}
        return counts

    def shutdown(self) -> None:
        """Ends the exporter."""
        self._inner.shutdown()

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """There is nothing to flush here."""
        return True


class Exporter:
    """Where one location's spans go."""

    def __init__(self, exporter: SpanExporter, where: str, resource: Mapping[str, str], queue: int = QUEUE) -> None:
        """`where`: for the log; `resource`: what all spans' resources say, the worker's number being added."""
        for noisy in ("opentelemetry.sdk", "opentelemetry.exporter"):
            logging.getLogger(noisy).setLevel(logging.CRITICAL)  # what fails is counted, and said here once
        self._common = dict(resource)
        self._resources: dict[int, Resource] = {}
        self._queue = queue
        self._added = 0
        self._dropped = 0
        self._counted = Counted(exporter, where)
        self._processor = BatchSpanProcessor(
            self._counted, max_queue_size=queue, schedule_delay_millis=EVERY_MS, max_export_batch_size=min(BATCH, queue),
            export_timeout_millis=TIMEOUT * 1000,
        )  # fmt: skip

    def add(self, spans: Iterable[Span], trace_id: str, state: str, worker: int) -> None:
        """Takes one request's spans; `worker`: who made them, below 0 for the agent."""
        resource = self._resource(worker)
        for span in spans:
            if self._added - self._dropped - self._counted.taken >= self._queue:
                self._dropped += 1
                self._counted.count("dropped", 1)
            self._added += 1
            self._processor.on_end(readable(span, trace_id, state, resource))

    def take_counts(self) -> dict[str, int]:
        """Spans by what became of them, since the last call."""
        return self._counted.take_counts()

    def close(self) -> None:
        """Exports what waits, as far as the backend takes it. Blocks."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _resource(self, worker: int) -> Resource:
        found = self._resources.get(worker)
        if found is None:
            part = worker if worker >= 0 else "agent"
            instance = f"{self._common.get('headrace.location', '')}-{part}"
            # create: what OTEL_RESOURCE_ATTRIBUTES says of the machine (cloud.region and its like) is there too
            found = self._resources[worker] = Resource.create({**self._common, "service.instance.id": instance})
        return found


_SCOPE = InstrumentationScope("headrace")


def readable(span: Span, trace_id: str, state: str, resource: Resource) -> ReadableSpan:
    """The SDK's form of a span. Its flags say that it is sampled: the processor takes no other."""
    trace, flags = int(trace_id, 16), TraceFlags(SAMPLED)
    entries = TraceState.from_header([state]) if state else None
    return ReadableSpan(
        name=span.name,
        context=SpanContext(trace, int(span.span_id, 16), is_remote=False, trace_flags=flags, trace_state=entries),
        parent=SpanContext(trace, int(span.parent_id, 16), span.kind == "server", flags) if span.parent_id else None,
        resource=resource,
        attributes=span.attributes,
        links=[Link(SpanContext(int(at, 16), int(span_id, 16), True, flags)) for at, span_id in span.links],
        events=[Event(event.name, timestamp=event.at) for event in span.events],
        kind=KINDS[span.kind],
        status=Status(StatusCode.ERROR, span.error) if span.error else Status(StatusCode.UNSET),
        start_time=span.start,
        end_time=max(span.end, span.start + 1),  # Jaeger takes a span of no length for a negative one, and warns
        instrumentation_scope=_SCOPE,
    )
