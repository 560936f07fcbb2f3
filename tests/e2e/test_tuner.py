"""Weights that real processes find: engines of two speeds, an agent that is killed, a backend that is told why."""

import json
import os
import signal
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.support.http import eventually, fetch_json
from tests.support.otlp import Backend
from tests.support.servers import Engine, Location


@pytest.fixture(autouse=True)
def _no_leak() -> None:
    """See tests/balancer/mesh/test_mesh.py."""


@pytest.fixture
def backend() -> Iterator[Backend]:
    with Backend() as made:
        yield made


def stream(url: str) -> None:
    """One stream of a prompt that keeps an engine busy for a while."""
    asked: dict[str, Any] = {
        "model": "demo", "stream": True, "messages": [{"role": "user", "content": "word " * 3000}],
        "metadata": {"output_tokens": 2},
    }  # fmt: skip
    request = urllib.request.Request(f"{url}/v1/chat/completions", json.dumps(asked).encode())
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def test_the_faster_instance_gets_more(
    start_location: Callable[..., Location], start_engine: Callable[..., Engine], backend: Backend
) -> None:
    """Within some seconds; why is in a span linked to traces that are there; a killed agent's successor knows it."""
    engines = [{"url": start_engine(profile=name).url, "name": name} for name in ("a100", "h100")]
    location = start_location({"demo": engines}, telemetry={"otlp": backend.url, "sample": "100%"})

    def weights() -> dict[str, float]:
        rows = fetch_json(f"{location.admin}/api/weights")["models"]["demo"]
        return {row["instance"]: row["weight"] for row in rows}

    def learned() -> bool:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(stream, [location.url] * 16))
        return weights()["h100"] > 1.15 and weights()["a100"] < 0.9

    eventually(learned, "the weights are found", seconds=60)
    changes = fetch_json(f"{location.admin}/api/weights")["history"]
    assert {"a100", "h100"} == {change["instance"] for change in changes}
    eventually(lambda: any(span.name == "headrace.tune" for span in backend.spans), "the change is told")
    told = [span for span in backend.spans if span.name == "headrace.tune"]
    here = {(span.trace_id, span.span_id) for span in backend.spans}
    assert all(span.links for span in told)
    eventually(lambda: any(link in here for span in told for link in span.links), "its evidence is there")

    agent = location.state()["agent"]["pid"]
    before = weights()
    os.kill(agent, signal.SIGKILL)

    def successor() -> bool:
        try:
            return bool(location.state()["agent"]["pid"] != agent and location.state()["workers"][0]["connected"])
        except OSError:
            return False

    eventually(successor, "there is another agent", seconds=30)
    eventually(lambda: weights()["h100"] > 1.1, f"it knows the weights, which were {before}")
    (shown,) = [row for row in location.state()["models"]["demo"] if row["name"] == "h100"]
    assert weights()["h100"] == shown["weight"]
