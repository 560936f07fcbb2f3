"""Traces as a backend gets them from real processes: one tree over engines and locations."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from fixtures.demo_processes import free_ports
from telemetry import names
from tests.support.http import eventually, fetch_json
from tests.support.otlp import Backend, Seen
from tests.support.servers import Engine, Location
from tests.support.world import World

StartEngine = Callable[..., Engine]
CALLER = "1234567890abcdef"
SLACK = 2_000_000  # ns: what two processes may differ in their idea of the time


@pytest.fixture(autouse=True)
def _no_leak() -> None:
    """See tests/balancer/mesh/test_mesh.py."""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    made = World(tmp_path)
    yield made
    made.close()


def stream(url: str, trace_id: str = "", flags: str = "01", **body: Any) -> dict[str, str]:
    """One stream of five tokens, read whole; its answer's headers."""
    asked = {
        "model": "demo", "stream": True, "messages": [{"role": "user", "content": "hello"}],
        "metadata": {"output_tokens": 5}, **body,
    }  # fmt: skip
    headers = {"content-type": "application/json"}
    if trace_id:
        headers |= {"traceparent": f"00-{trace_id}-{CALLER}-{flags}", "tracestate": "vendor=1"}
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(asked).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return dict(error.headers)


def children(spans: dict[str, Seen], parent: Seen) -> list[Seen]:
    """A span's children by when they began."""
    return sorted((s for s in spans.values() if s.parent_id == parent.span_id), key=lambda s: s.start)


def check_times(spans: dict[str, Seen]) -> None:
    """Every child lies inside its parent."""
    for span in spans.values():
        assert span.start <= span.end
        if (parent := spans.get(span.parent_id)) is not None:
            assert parent.start - SLACK <= span.start, (parent.name, span.name)
            assert span.end <= parent.end + SLACK, (parent.name, span.name)


def fail(engine: Engine, how: str | None) -> None:
    """Breaks or heals an engine."""
    found = re.search(r"admin on (http://\S+)", engine.output)
    assert found is not None
    data = json.dumps({"fail": how}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{found[1]}/admin/fail", data), timeout=10).close()


def test_spilled_after_a_retry(world: World, backend: Backend, start_engine: StartEngine) -> None:
    """Its own engine resets it, another location takes it: one tree down to that location's engine."""
    (listen,) = free_ports(1)
    broken, good = start_engine(), start_engine(otlp=f"http://127.0.0.1:{listen}")
    telemetry = {"otlp": backend.url, "sample": 0.0}
    world.build(
        {"ams": [broken.url], "lhr": [good.url]}, {frozenset(("ams", "lhr")): 0.01},
        ams={"telemetry": telemetry}, lhr={"telemetry": {**telemetry, "listen": f"127.0.0.1:{listen}"}},
    )  # fmt: skip
    world.meshed()
    ams, tried = world.locations["ams"], list[str]()

    def crosses() -> bool:
        """Its probe may notice first, or a worker not know lhr yet: then it goes another way."""
        tried.append(f"{len(tried) + 1:032x}")
        fail(broken, "reset-before")
        headers = stream(ams.url, tried[-1])
        fail(broken, None)
        return headers.get("x-headrace-attempts") == "2" and "x-headrace-spill" in headers

    eventually(crosses, "it goes to lhr after its own engine has failed")
    trace_id = tried[-1]
    spans = backend.trace(trace_id, 10)
    assert 10 == len(spans)
    (server,) = (span for span in spans.values() if span.parent_id == CALLER)
    assert ("POST /v1/chat/completions", "ams") == (server.name, server.attributes[names.LOCATION])
    assert "headrace=ams,vendor=1" == server.state
    assert not server.failed
    chat, route = sorted(children(spans, server), key=lambda span: span.name)
    assert ["chat demo", "headrace.route"] == [chat.name, route.name]
    assert route.attributes[names.ROUTE_SPILL] is True
    first, second = children(spans, chat)
    assert (True, "reset") == (first.failed, first.attributes[names.ERROR_TYPE])
    assert (False, 1, "reset", "lhr") == (
        second.failed, second.attributes[names.HTTP_RESENDS], second.attributes[names.RETRY_REASON],
        second.attributes[names.SPILL_TO],
    )  # fmt: skip
    (there,) = children(spans, second)
    assert ("lhr", 2) == (there.attributes[names.LOCATION], there.kind)
    assert "headrace=lhr,vendor=1" == there.state
    (post,) = children(spans, next(span for span in children(spans, there) if span.name == "chat demo"))
    (engine,) = children(spans, post)
    assert "llm_request" == engine.name
    assert ["stop"] == chat.attributes[names.GEN_AI_FINISH_REASONS]
    assert chat.attributes[names.GEN_AI_RESPONSE_ID] == engine.attributes["gen_ai.request.id"]
    check_times(spans)


def test_engines_time_is_known(tmp_path: Path, backend: Backend, start_engine: StartEngine) -> None:
    """The agent joins the engine's span: explain, trace and the metrics know whose time it was."""
    (listen,) = free_ports(1)
    engine = start_engine(otlp=f"http://127.0.0.1:{listen}")
    telemetry = {"otlp": backend.url, "sample": 1, "listen": f"127.0.0.1:{listen}"}
    with Location(tmp_path, {"demo": [engine.url]}, telemetry=telemetry) as location:
        request_id = stream(location.url)["x-request-id"]
        eventually(lambda: location.record(request_id), "it is recorded")
        eventually(lambda: location.record(request_id)["attempts"][0].get("engine_ms"), "its engine has told of it")
        trace = fetch_json(f"{location.admin}/api/requests/{request_id}/trace")
        assert ["POST /v1/chat/completions", "headrace.route", "chat demo", "POST", "engine"] == [
            span["name"] for span in trace["spans"]
        ]
        for phase in ("queue", "prefill", "decode", "network"):
            assert (
                f'headrace_engine_phase_seconds_count{{instance="{engine.url[7:]}",model="demo",phase="{phase}"}} 1.0'
                in (location.metrics())
            )
        eventually(lambda: 'headrace_spans_total{state="exported"} 4.0' in location.metrics(), "all spans are exported")
        eventually(lambda: 'headrace_spans_total{state="forwarded"} 1.0' in location.metrics(), "the engine's too")


def test_what_is_exported(tmp_path: Path, backend: Backend, start_engine: StartEngine) -> None:
    """The caller's word holds; without one the share; an error always. Nothing waits for a backend that is away."""
    bad = start_engine(model="bad", fail="error:500")
    with Location(
        tmp_path, {"demo": [start_engine().url], "bad": [bad.url]}, telemetry={"otlp": backend.url, "sample": 0}
    ) as location:
        stream(location.url)
        stream(location.url, "a" * 32, "00")
        stream(location.url, "b" * 32, "01")
        stream(location.url, "c" * 32, "00", model="bad")
        backend.trace("b" * 32, 4)
        failed = backend.trace("c" * 32, 1)
        assert {"b" * 32, "c" * 32} == {span.trace_id for span in backend.spans}
        assert any(span.failed for span in failed.values())
        backend.stop()
        for _ in range(3):
            assert "1" == stream(location.url, "d" * 32)["x-headrace-attempts"]
