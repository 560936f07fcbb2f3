"""Spans on their way to a real OTLP service, by gRPC and by HTTP, and when nobody takes them."""

import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from telemetry.export import Exporter, exporter_for, http_endpoint
from telemetry.tree import spans
from tests.support.otlp import Backend
from tests.support.records import record, refusal

RESOURCE = {"service.name": "headrace", "headrace.location": "ams"}


@pytest.fixture(autouse=True)
def _no_leak() -> None:
    """See tests/balancer/mesh/test_mesh.py."""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


def test_by_grpc(backend: Backend) -> None:
    """The tree as it was, with the worker in the resource, the state and the headers."""
    exporter = Exporter(exporter_for(backend.url, {"X-Key": "k"}), backend.url, RESOURCE)
    made = spans(record(tracestate="headrace=ams,a=1", parent_id="2222222222222222"), {"gpu-1": ("10.0.0.1", 8000)})
    exporter.add(made, record().trace_id, "headrace=ams,a=1", 3)
    exporter.close()
    assert {"exported": len(made)} == exporter.take_counts()
    assert {} == exporter.take_counts()
    assert "k" == backend.metadata[0]["x-key"]
    by_id = {span.span_id: span for span in backend.spans}
    assert len(by_id) == len(made)
    for span in made:
        seen = by_id[span.span_id]
        assert (span.name, span.parent_id, span.start, span.end) == (seen.name, seen.parent_id, seen.start, seen.end)
        assert record().trace_id == seen.trace_id
        assert span.attributes == seen.attributes
        assert "headrace=ams,a=1" == seen.state
        assert "ams-3" == seen.resource["service.instance.id"]


def test_where_it_runs(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """What OpenTelemetry's own variable says is in the resource, and names nothing anew that is ours."""
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "cloud.region=eu-west-1,headrace.location=lhr")
    exporter = Exporter(exporter_for(backend.url, {}), backend.url, RESOURCE)
    exporter.add(spans(refusal(), {}), record().trace_id, "", 0)
    exporter.close()
    (seen,) = backend.spans
    assert ("eu-west-1", "ams", "headrace") == tuple(
        seen.resource[key] for key in ("cloud.region", "headrace.location", "service.name")
    )


def test_errors_arrive(backend: Backend) -> None:
    """The status of the server's span, for a 5xx alone."""
    exporter = Exporter(exporter_for(backend.url, {}), backend.url, RESOURCE)
    exporter.add(spans(record(status=502, outcome="upstream_error"), {})[:1], record().trace_id, "", 0)
    exporter.add(spans(refusal(), {}), record().trace_id, "", 0)
    exporter.close()
    assert [True, False] == [span.failed for span in backend.spans]


def test_by_http() -> None:
    """The same by OTLP/HTTP, where the URL has its port or a path."""
    bodies: list[bytes] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/v1/traces"
        exporter = Exporter(exporter_for(url, {}), url, RESOURCE)
        exporter.add(spans(record(), {}), record().trace_id, "", 0)
        exporter.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert {"exported": 4} == exporter.take_counts()
    assert bodies


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://10.0.0.1:4317", None),
        ("http://10.0.0.1:4318", "http://10.0.0.1:4318/v1/traces"),
        ("http://10.0.0.1:4318/", "http://10.0.0.1:4318/v1/traces"),
        ("https://otlp.example/v1/traces", "https://otlp.example/v1/traces"),
    ],
)
def test_what_a_url_stands_for(url: str, endpoint: str | None) -> None:
    """gRPC, unless a port or a path says HTTP."""
    assert endpoint == http_endpoint(url)


class Stuck(SpanExporter):
    """Takes its first batch and does not come back until it is let go; then refuses."""

    def __init__(self) -> None:
        self.entered, self.go = threading.Event(), threading.Event()

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        self.go.wait(10)
        return SpanExportResult.FAILURE

    def shutdown(self) -> None:
        pass


def test_an_outage_costs_the_queue(caplog: pytest.LogCaptureFixture) -> None:
    """What does not fit is dropped, what is not taken failed; every span is one of these, and the log hears of it once."""
    stuck = Stuck()
    exporter = Exporter(stuck, "here", RESOURCE, queue=8)
    for _ in range(2):
        exporter.add(spans(record(), {}), record().trace_id, "", 0)
    assert stuck.entered.wait(10)
    for _ in range(5):
        exporter.add(spans(record(), {}), record().trace_id, "", 0)
    stuck.go.set()
    exporter.close()
    assert {"failed": 16, "dropped": 12} == exporter.take_counts()
    assert 1 == len([line for line in caplog.messages if "telemetry.otlp" in line])


def test_the_wire_is_otlp(backend: Backend) -> None:
    """One export for what came together, a resource a worker."""
    exporter = Exporter(exporter_for(backend.url, {}), backend.url, RESOURCE)
    for worker in (0, 1):
        exporter.add(spans(record(), {}), record().trace_id, "", worker)
    exporter.close()
    (request,) = backend.requests
    assert isinstance(request, ExportTraceServiceRequest)
    assert 2 == len(request.resource_spans)
