"""A backend for spans: OTLP's own service over gRPC, which keeps what it is sent."""

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import grpc
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)
from opentelemetry.proto.collector.trace.v1.trace_service_pb2_grpc import (
    TraceServiceServicer,
    add_TraceServiceServicer_to_server,
)

from tests.support.http import eventually


class Seen:
    """One span as it came."""

    def __init__(self, span: Any, resource: dict[str, Any]) -> None:
        self.name: str = span.name
        self.kind: int = span.kind
        self.trace_id: str = span.trace_id.hex()
        self.span_id: str = span.span_id.hex()
        self.parent_id: str = span.parent_span_id.hex()
        self.start: int = span.start_time_unix_nano
        self.end: int = span.end_time_unix_nano
        self.failed: bool = span.status.code == 2
        self.state: str = span.trace_state
        self.events: list[str] = [event.name for event in span.events]
        self.links = [(link.trace_id.hex(), link.span_id.hex()) for link in span.links]
        self.attributes = values(span.attributes)
        self.resource = resource


def values(attributes: Any) -> dict[str, Any]:
    """Attributes as plain values."""
    found = {}
    for attribute in attributes:
        kind = attribute.value.WhichOneof("value")
        value = getattr(attribute.value, kind)
        found[attribute.key] = (
            [getattr(v, v.WhichOneof("value")) for v in value.values] if kind == "array_value" else value
        )
    return found


def seen(resources: Iterable[Any]) -> list[Seen]:
    """The spans of OTLP's resources, each with what its own resource says."""
    found = []
    for resource in resources:
        about = values(resource.resource.attributes)
        found += [Seen(span, about) for scope in resource.scope_spans for span in scope.spans]
    return found


class Backend(TraceServiceServicer):
    """Listens on a free loopback port from its construction on, or on the one given."""

    def __init__(self, port: int = 0) -> None:
        self.spans: list[Seen] = []
        self.requests: list[ExportTraceServiceRequest] = []
        self.metadata: list[dict[str, str]] = []
        self._server = grpc.server(ThreadPoolExecutor(2))
        add_TraceServiceServicer_to_server(self, self._server)  # type: ignore[no-untyped-call]
        self.port: int = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()
        self.url = f"http://127.0.0.1:{self.port}"

    def Export(self, request: ExportTraceServiceRequest, context: Any) -> ExportTraceServiceResponse:
        self.requests.append(request)
        self.metadata.append(dict(context.invocation_metadata()))
        self.spans += seen(request.resource_spans)
        return ExportTraceServiceResponse()

    def trace(self, trace_id: str, count: int, seconds: float = 20.0) -> dict[str, Seen]:
        """The spans of a trace by their ids, once so many are there."""
        found: dict[str, Seen] = {}

        def enough() -> bool:
            found.update({span.span_id: span for span in self.spans if span.trace_id == trace_id})
            return len(found) >= count

        eventually(enough, f"{count} spans of trace {trace_id}; there are {len(found)}", seconds=seconds)
        return found

    def stop(self) -> None:
        self._server.stop(0).wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
