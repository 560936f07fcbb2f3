"""A real Jaeger is sent a request's spans over two locations, and asked for them: the same tree, all of it legible."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.support import jaeger
from tests.support.http import fetch_json
from tests.support.jaeger import Jaeger
from tests.support.servers import Engine
from tests.support.traces import SPILLED, check_spilled, spill_after_a_retry
from tests.support.world import World

pytestmark = [
    pytest.mark.real,
    pytest.mark.e2e,
    pytest.mark.timeout(jaeger.FETCH_SECONDS + jaeger.BUILD_SECONDS + 300),  # the first time
]


class Traced(NamedTuple):
    """A request that has been, and the Jaeger that was told of it."""

    jaeger: Jaeger
    trace_id: str

    def shown(self) -> list[dict[str, Any]]:
        """The spans as Jaeger's page gets them."""
        (trace,) = fetch_json(f"{self.jaeger.url}/api/traces/{self.trace_id}")["data"]
        return list(trace["spans"])


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Traced]:
    try:
        program = jaeger.binary()
    except jaeger.NotToBeHadError as error:
        pytest.skip(str(error))
    folder: Path = tmp_path_factory.mktemp("jaeger")
    with contextlib.ExitStack() as stack:
        backend = stack.enter_context(Jaeger(program, folder))
        world = World(folder)
        stack.callback(world.close)
        trace_id = spill_after_a_retry(world, lambda **options: stack.enter_context(Engine(**options)), backend.otlp)
        yield Traced(backend, trace_id)


def test_tree(traced: Traced) -> None:
    """What it kept is what its sender meant."""
    check_spilled(traced.jaeger.trace(traced.trace_id, len(SPILLED)))


def test_services(traced: Traced) -> None:
    """It finds the trace by the service that README names; the engine's is another."""
    traced.jaeger.trace(traced.trace_id, len(SPILLED))
    assert {"headrace", "vllm.llm_engine"} == set(fetch_json(f"{traced.jaeger.url}/api/services")["data"])
    found = fetch_json(f"{traced.jaeger.url}/api/traces?service=headrace&operation=chat%20demo")["data"]
    assert int(traced.trace_id, 16) in {int(trace["traceID"], 16) for trace in found}


def test_page(traced: Traced) -> None:
    """Its page shows every attribute, and no span had to be corrected."""
    traced.jaeger.trace(traced.trace_id, len(SPILLED))
    spans = traced.shown()
    assert [] == [
        f"{span['operationName']}: {tag['key']}" for span in spans for tag in span["tags"] if tag["value"] == ""
    ]
    assert [] == [text for span in spans for text in span["warnings"] or () if "duration" in text]
