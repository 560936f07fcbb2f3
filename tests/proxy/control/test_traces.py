"""The agent's part of tracing: what is exported where, and what it forgets."""

import asyncio
import json
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry

from proxy.config import Address, Config, Engine, Mesh, Model, Peer, Telemetry
from proxy.control.traces import Traces, addresses
from telemetry import names
from telemetry.metrics import Metrics
from telemetry.record import Content
from telemetry.tuner import Change
from tests.support.otlp import Backend
from tests.support.records import record


@pytest.fixture(autouse=True)
def _no_leak() -> None:
    """See tests/balancer/mesh/test_mesh.py."""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


def config_of(telemetry: Telemetry) -> Config:
    """A location with one instance."""
    engine = Engine("https://gpu.example", "gpu-1")
    return Config("ams", Address("127.0.0.1", 8080), {"llama": Model((engine,))}, telemetry=telemetry)


def fresh() -> Traces:
    return Traces("1.0", Metrics(CollectorRegistry()))


def test_addresses() -> None:
    """Of instances and of other locations, with the port that the scheme stands for."""
    peers = {"lhr": Peer("lhr:7443", "http://lhr.example:8080")}
    mesh = Mesh(Address("127.0.0.1", 7443), locations=peers)
    config = Config(
        "ams", Address("127.0.0.1", 8080), {"llama": Model((Engine("https://gpu.example", "gpu-1"),))}, mesh=mesh
    )
    assert {"gpu-1": ("gpu.example", 443), "lhr": ("lhr.example", 8080)} == addresses(config)


def test_what_was_said_is_forgotten() -> None:
    """Without a backend, too: nothing that is kept or shown holds it."""
    one = record(content=Content(b"sesame", b"open"))
    fresh().observe(one)
    assert one.content is None


@pytest.mark.parametrize("content", [None, Content(b'{"prompt":"sesame"}', b'{"choices":[{"text":"open"}]}')])
def test_content_goes_into_the_chats_span_alone(backend: Backend, content: Content | None) -> None:
    """And only if the worker sent any."""

    async def go() -> None:
        traces = fresh()
        await traces.configure(config_of(Telemetry(otlp=backend.url)))
        traces.observe(record(content=content))
        await traces.close()
        assert {"exported": 4} == traces.take_counts()

    asyncio.run(go())
    told = [span for span in backend.spans if names.GEN_AI_INPUT in span.attributes]
    assert (["chat llama"] if content else []) == [span.name for span in told]
    for span in told:
        assert "sesame" == json.loads(span.attributes[names.GEN_AI_INPUT])[0]["parts"][0]["content"]
        assert "open" == json.loads(span.attributes[names.GEN_AI_OUTPUT])[0]["parts"][0]["content"]


def test_a_new_backend() -> None:
    """After a reload spans go to the new place, what waited still to the old one."""

    async def go() -> None:
        traces = fresh()
        await traces.configure(config_of(Telemetry(otlp=one.url)))
        traces.observe(record())
        await traces.configure(config_of(Telemetry(otlp=other.url)))
        traces.observe(record())
        await traces.close()
        await asyncio.get_running_loop().shutdown_default_executor()

    with Backend() as one, Backend() as other:
        asyncio.run(go())
        assert (4, 4) == (len(one.spans), len(other.spans))


def test_an_address_that_is_taken() -> None:
    """Is an error of the config, in words."""
    backend = Backend()

    async def go() -> None:
        traces = fresh()
        with pytest.raises(OSError, match=r"telemetry\.listen"):
            await traces.configure(config_of(Telemetry(listen=Address("127.0.0.1", backend.port))))

    try:
        asyncio.run(go())
    finally:
        backend.stop()


def test_changes_of_weights(backend: Backend) -> None:
    """Are spans of their own, linked to their evidence; without a backend they go nowhere."""
    change = Change(5, "llama", "gpu-1", "update", "on", 1.0, 0.8, 9e-5, 7e-5, 12.5, "slow", (("ab" * 16, "cd" * 8),))

    async def go() -> None:
        traces = fresh()
        traces.changed(change)
        await traces.configure(config_of(Telemetry(otlp=backend.url)))
        traces.changed(change)
        await traces.close()

    asyncio.run(go())
    (seen,) = backend.spans
    assert ("headrace.tune", [("ab" * 16, "cd" * 8)]) == (seen.name, seen.links)
    assert "ams-agent" == seen.resource["service.instance.id"]
