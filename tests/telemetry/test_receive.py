"""The listener for the engines' spans, with OTLP's own client stub."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from telemetry import names, receive
from telemetry.join import EngineSpan
from telemetry.receive import PATH, GrpcForward, Receiver
from tests.support.otlp import Backend


@pytest.fixture(autouse=True)
def _no_leak() -> None:
    """See tests/balancer/mesh/test_mesh.py."""


def export(count: int = 1) -> ExportTraceServiceRequest:
    """An export of an engine with so many spans."""
    request = ExportTraceServiceRequest()
    scope = request.resource_spans.add().scope_spans.add()
    for number in range(count):
        span = Span(
            name="llm_request", trace_id=b"t" * 16, span_id=bytes([number + 1]) * 8, parent_span_id=b"p" * 8,
            start_time_unix_nano=1_000, end_time_unix_nano=2_000,
        )  # fmt: skip
        span.attributes.add(key=names.ENGINE_QUEUE).value.double_value = 0.25
        span.attributes.add(key=names.ENGINE_PREFILL).value.double_value = 0.5
        span.attributes.add(key=names.ENGINE_DECODE).value.int_value = 2
        scope.spans.append(span)
    return request


class Bench:
    """A receiver, what it told, what it counted."""

    def __init__(self) -> None:
        self.told: list[EngineSpan] = []
        self.counts: Counter[str] = Counter()
        self.receiver = Receiver(self.told.extend, self._count)

    def _count(self, state: str, n: int) -> None:
        self.counts[state] += n

    async def run(self, *exports: bytes) -> None:
        port = await self.receiver.start("127.0.0.1:0")
        try:
            async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
                for data in exports:
                    await channel.unary_unary(PATH)(data)
            async with asyncio.timeout(10):
                await asyncio.gather(*self.receiver._forwarding)
        finally:
            await self.receiver.stop()


def test_read() -> None:
    """What a span says of its request, whole numbers too."""
    bench = Bench()
    asyncio.run(bench.run(export().SerializeToString()))
    assert [EngineSpan("01" * 8, (b"p" * 8).hex(), 1000, 2000, 0.25, 0.5, 2.0)] == bench.told
    assert not bench.counts


def test_forwarded_unchanged() -> None:
    """The backend gets the same bytes' meaning, and our headers."""
    bench, sent = Bench(), export(3)

    async def go(url: str) -> None:
        forward = GrpcForward(url.removeprefix("http://"), False, {"X-Key": "k"})
        bench.receiver.forward = forward
        await bench.run(sent.SerializeToString())
        await forward.close()

    with Backend() as backend:
        asyncio.run(go(backend.url))
        assert [sent] == backend.requests
        assert "k" == backend.metadata[0]["x-key"]
    assert {"forwarded": 3} == bench.counts


async def refuse(data: bytes) -> bool:
    raise OSError("nobody is there")


async def decline(data: bytes) -> bool:
    return False


@pytest.mark.parametrize("forward", [refuse, decline])
def test_a_backend_that_is_away(forward: Callable[[bytes], Awaitable[bool]]) -> None:
    """The engine is answered, we have read it, and what the backend did not get is counted."""
    bench = Bench()
    bench.receiver.forward = forward
    asyncio.run(bench.run(export(2).SerializeToString()))
    assert 2 == len(bench.told)
    assert {"unforwarded": 2} == bench.counts


def test_a_slow_backend_holds_so_many(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond that exports are counted and dropped: memory has a bound."""
    monkeypatch.setattr(receive, "IN_FLIGHT", 2)
    bench, gate = Bench(), asyncio.Event()

    async def slow(data: bytes) -> bool:
        await gate.wait()
        return True

    async def go() -> None:
        bench.receiver.forward = slow
        asyncio.get_running_loop().call_later(0.3, gate.set)
        await bench.run(*[export().SerializeToString()] * 5)

    asyncio.run(go())
    assert {"forwarded": 2, "unforwarded": 3} == bench.counts


def test_garbage() -> None:
    """Is refused, in words, and changes nothing."""
    bench = Bench()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        asyncio.run(bench.run(b"\xff\xff not protobuf"))
    assert grpc.StatusCode.INVALID_ARGUMENT == refused.value.code()
    assert not bench.told
