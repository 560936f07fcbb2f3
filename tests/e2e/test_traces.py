"""Traces as a backend gets them from real processes: one tree over engines and locations."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fixtures.demo_processes import free_ports
from tests.support.http import eventually, fetch_json
from tests.support.otlp import Backend
from tests.support.servers import Location
from tests.support.traces import SPILLED, StartEngine, check_spilled, spill_after_a_retry, stream
from tests.support.world import World


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


def test_spilled_after_a_retry(world: World, backend: Backend, start_engine: StartEngine) -> None:
    """Its own engine resets it, another location takes it: one tree down to that location's engine."""
    trace_id = spill_after_a_retry(world, start_engine, backend.url)
    check_spilled(backend.trace(trace_id, len(SPILLED)))


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
