"""OTLP/gRPC for the engines' own spans: read for what they say of our attempts, and passed on byte for byte.

Whoever exports here is answered at once; what the backend does not take is lost and counted. At most `IN_FLIGHT` exports
wait for the backend, so that its outage costs a bounded amount of memory.
"""

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator, Mapping

import grpc
from google.protobuf.message import DecodeError
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from telemetry.join import EngineSpan, engine_span

SERVICE, METHOD = "opentelemetry.proto.collector.trace.v1.TraceService", "Export"
PATH = f"/{SERVICE}/{METHOD}"
MOST_BYTES = 4 << 20  # of one export
IN_FLIGHT = 32  # exports
TIMEOUT = 10.0  # s
GRACE = 0.2

Forward = Callable[[bytes], Awaitable[bool]]  # whether the backend took an export


class Receiver:
    """One listener."""

    def __init__(self, take: Callable[[list[EngineSpan]], None], count: Callable[[str, int], None]) -> None:
        """`take`: is told of what the engines said; `count`: spans by what became of them."""
        self._take, self._count = take, count
        self._server: grpc.aio.Server | None = None
        self._forwarding: set[asyncio.Task[None]] = set()
        self.forward: Forward | None = None  # left out: the spans end here

    async def start(self, address: str) -> int:
        """Listens; the port. Raises OSError."""
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", MOST_BYTES),
                ("grpc.so_reuseport", 0),
            ]
        )
        method = grpc.unary_unary_rpc_method_handler(self._export)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, {METHOD: method}),))
        try:
            port = int(server.add_insecure_port(address))
        except RuntimeError as error:
            raise OSError(f"telemetry.listen: cannot listen on {address}") from error
        await server.start()
        self._server = server
        return port

    async def stop(self) -> None:
        """Listens no more."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(GRACE)
        for task in self._forwarding:
            task.cancel()

    async def _export(self, data: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
        try:
            request = ExportTraceServiceRequest.FromString(data)
        except DecodeError:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "not an ExportTraceServiceRequest")
        self._take(list(read(request)))
        number = sum(len(scope.spans) for resource in request.resource_spans for scope in resource.scope_spans)
        if self.forward is None or not number:
            return b""
        if len(self._forwarding) >= IN_FLIGHT:
            self._count("unforwarded", number)
            return b""
        task = asyncio.get_running_loop().create_task(self._pass_on(self.forward, data, number))
        self._forwarding.add(task)
        task.add_done_callback(self._forwarding.discard)
        return b""

    async def _pass_on(self, forward: Forward, data: bytes, number: int) -> None:
        taken = False
        with contextlib.suppress(OSError, TimeoutError, grpc.aio.AioRpcError):
            taken = await asyncio.wait_for(forward(data), TIMEOUT)
        self._count("forwarded" if taken else "unforwarded", number)


def read(request: ExportTraceServiceRequest) -> Iterator[EngineSpan]:
    """What the spans of an export say of our attempts."""
    for resource in request.resource_spans:
        for scope in resource.scope_spans:
            for span in scope.spans:
                said = {}
                for attribute in span.attributes:
                    value = attribute.value
                    if value.HasField("double_value"):
                        said[attribute.key] = value.double_value
                    elif value.HasField("int_value"):
                        said[attribute.key] = float(value.int_value)
                start, end = span.start_time_unix_nano, span.end_time_unix_nano
                if (found := engine_span(span.span_id, span.parent_span_id, start, end, said)) is not None:
                    yield found


class GrpcForward:
    """Passes exports on to a backend by gRPC."""

    def __init__(self, target: str, secure: bool, headers: Mapping[str, str]) -> None:
        """`target`: host:port."""
        credentials = grpc.ssl_channel_credentials() if secure else None
        self._channel = (
            grpc.aio.secure_channel(target, credentials) if credentials else grpc.aio.insecure_channel(target)
        )
        self._metadata = [(name.lower(), value) for name, value in headers.items()]
        self._call = self._channel.unary_unary(PATH)

    async def __call__(self, data: bytes) -> bool:
        """Raises AioRpcError if it is not taken."""
        await self._call(data, metadata=self._metadata, timeout=TIMEOUT)
        return True

    async def close(self) -> None:
        """Ends the connection."""
        await self._channel.close()
