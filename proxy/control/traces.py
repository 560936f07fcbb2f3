"""The agent's part of tracing: which requests are exported and where to, and the spans of one that somebody asks for."""

import asyncio
import collections
import os
import urllib.parse
from collections.abc import Callable, Mapping
from typing import Any

import aiohttp
import msgspec

from proxy.config import Config, Telemetry
from telemetry import audit, names
from telemetry.content import messages
from telemetry.export import Exporter, exporter_for, http_endpoint
from telemetry.join import EngineSpan, Join
from telemetry.metrics import Metrics
from telemetry.receive import GrpcForward, Receiver
from telemetry.record import Attempt, Record
from telemetry.sampling import Sampler
from telemetry.tree import Span, engine_spans, spans
from telemetry.tuner import Change

AGENT = -1  # stands for a worker's number
FAREWELL = 3.0  # s that the last spans have when the agent ends


class Traces:
    """One agent's."""

    def __init__(self, version: str, metrics: Metrics) -> None:
        self._version, self._metrics = version, metrics
        self._join = Join()
        self._receiver: Receiver | None = None
        self._forward: GrpcForward | HttpForward | None = None
        self._counts: collections.Counter[str] = collections.Counter()
        self.network: Callable[[str, str, float], None] | None = None  # hears how long a model's instance is away
        self._sampler = Sampler()
        self._settings = Telemetry()
        self._exporter: Exporter | None = None
        self._addresses: dict[str, tuple[str, int]] = {}

    async def configure(self, config: Config) -> None:
        """Exports and listens by this config from now on; raises OSError if it cannot listen."""
        self._addresses = addresses(config)
        before, self._settings = self._settings, config.telemetry
        same = before.otlp == config.telemetry.otlp and before.headers == config.telemetry.headers
        if not same or before.listen != config.telemetry.listen:
            await self._listen(config.telemetry)
        if not same:
            self._export(config)

    def _export(self, config: Config) -> None:
        old, self._exporter = self._exporter, None
        if old is not None:
            asyncio.get_running_loop().run_in_executor(None, old.close)
        if (url := config.telemetry.otlp) is not None:
            parts = urllib.parse.urlsplit(url)
            resource = {"service.name": "headrace", "service.version": self._version, names.LOCATION: config.location}
            exporter = exporter_for(url, config.telemetry.headers)
            self._exporter = Exporter(exporter, f"{parts.hostname}:{parts.port}", resource)

    def observe(self, record: Record) -> None:
        """Exports a request's spans if they are wanted. What was said in it is forgotten here."""
        content, record.content = record.content, None
        for _, attempt in self._join.add_record(record) if self._receiver is not None else ():
            self._joined(record, attempt)
        if self._exporter is None or not (why := self._sampler.why(record)):
            return
        made = self.spans(record)
        made[0].attributes[names.SAMPLED_FOR] = why
        if content is not None:
            for span in made:
                if names.GEN_AI_OPERATION in span.attributes:
                    span.attributes |= messages(content)
        self._exporter.add(made, record.trace_id, record.tracestate, record.worker)

    def spans(self, record: Record) -> list[Span]:
        """A request's spans."""
        return spans(record, self._addresses)

    def take_counts(self) -> dict[str, int]:
        """Spans by what became of them, since the last call."""
        counts, self._counts = self._counts, collections.Counter()
        counts.update(self._exporter.take_counts() if self._exporter is not None else {})
        return counts

    async def _listen(self, settings: Telemetry) -> None:
        """Takes the engines' spans, and passes them on to where ours go."""
        old, self._receiver = self._receiver, None
        if old is not None:
            await old.stop()
        if self._forward is not None:
            await self._forward.close()
            self._forward = None
        if settings.listen is None:
            return
        receiver = Receiver(self._hear, self._count)
        await receiver.start(str(settings.listen))
        self._receiver = receiver
        if settings.otlp is not None:
            self._forward = forward_for(settings.otlp, settings.headers)
            receiver.forward = self._forward

    def _hear(self, told: list[EngineSpan]) -> None:
        for record, attempt in self._join.add_spans(told):
            self._joined(record, attempt)

    def _joined(self, record: Record, attempt: Attempt) -> None:
        self._metrics.engine(record, attempt)
        if self.network is not None and attempt.engine is not None:
            self.network(record.model, attempt.instance, attempt.engine.network)

    def changed(self, change: Change) -> None:
        """Exports the tuner's change as a span, in a trace of its own."""
        if self._exporter is not None:
            self._exporter.add([audit.span(change, os.urandom(8).hex())], os.urandom(16).hex(), "", AGENT)

    def _count(self, state: str, n: int) -> None:
        self._counts[state] += n

    async def close(self) -> None:
        """Gives the last spans a moment."""
        if self._receiver is not None:
            await self._receiver.stop()
        if self._exporter is not None:
            closing = asyncio.get_running_loop().run_in_executor(None, self._exporter.close)
            await asyncio.wait([closing], timeout=FAREWELL)


def addresses(config: Config) -> dict[str, tuple[str, int]]:
    """Host and port by an instance's name, and by another location's."""
    urls = {engine.name: engine.url for model in config.models.values() for engine in model.engines}
    if config.mesh is not None:
        urls |= {name: peer.url for name, peer in config.mesh.locations.items() if peer.url is not None}
    found = {}
    for name, url in urls.items():
        parts = urllib.parse.urlsplit(url)
        found[name] = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    return found


class HttpForward:
    """Passes exports on to a backend by HTTP."""

    def __init__(self, endpoint: str, headers: Mapping[str, str]) -> None:
        self._endpoint = endpoint
        self._session = aiohttp.ClientSession(headers={**headers, "content-type": "application/x-protobuf"})

    async def __call__(self, data: bytes) -> bool:
        """Whether it was taken; raises OSError if nobody is there."""
        async with self._session.post(self._endpoint, data=data, allow_redirects=False) as answer:
            return answer.status == 200

    async def close(self) -> None:
        """Ends the connections."""
        await self._session.close()


def forward_for(url: str, headers: Mapping[str, str]) -> GrpcForward | HttpForward:
    """What passes on the engines' spans to the backend."""
    if (endpoint := http_endpoint(url)) is not None:
        return HttpForward(endpoint, headers)
    parts = urllib.parse.urlsplit(url)
    return GrpcForward(parts.netloc, parts.scheme == "https", headers)


def shown(record: Record, made: list[Span]) -> Mapping[str, Any]:
    """A trace as the admin API gives it; times in Unix ns."""
    return {
        "request_id": record.request_id,
        "trace_id": record.trace_id,
        "location": record.location,
        "spans": msgspec.to_builtins(made + engine_spans(record)),
    }
