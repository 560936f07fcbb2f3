"""Requests whose traces tests read: how they are sent, and what their spans must be wherever they are kept."""

import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

from fixtures.demo_processes import free_ports
from telemetry import names
from tests.support.http import eventually
from tests.support.otlp import Seen
from tests.support.servers import Engine
from tests.support.world import World

StartEngine = Callable[..., Engine]
CALLER = "1234567890abcdef"  # the span of the client that asks
SLACK = 2_000_000  # ns: what two processes may differ in their idea of the time
SPILLED = [  # the spans of `spill_after_a_retry`: name, and which location or service tells it
    "POST /v1/chat/completions (ams)",
    "  chat demo (ams)",
    "    POST (ams)",
    "    POST (ams)",
    "      POST /v1/chat/completions (lhr)",
    "        headrace.route (lhr)",
    "        chat demo (lhr)",
    "          POST (lhr)",
    "            llm_request (vllm.llm_engine)",
    "  headrace.route (ams)",
]


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


def fail(engine: Engine, how: str | None) -> None:
    """Breaks or heals an engine."""
    found = re.search(r"admin on (http://\S+)", engine.output)
    assert found is not None
    data = json.dumps({"fail": how}).encode()
    urllib.request.urlopen(urllib.request.Request(f"{found[1]}/admin/fail", data), timeout=10).close()


def spill_after_a_retry(world: World, start_engine: StartEngine, otlp: str) -> str:
    """Starts ams and lhr, which export to `otlp`, and asks ams until its own engine has reset a request and lhr taken it.

    That request's trace.
    """
    (listen,) = free_ports(1)
    broken, good = start_engine(), start_engine(otlp=f"http://127.0.0.1:{listen}")
    telemetry = {"otlp": otlp, "sample": 0.0}
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
    return tried[-1]


def children(spans: dict[str, Seen], parent: str) -> list[Seen]:
    """A span's children by when they began."""
    return sorted((s for s in spans.values() if s.parent_id == parent), key=lambda s: s.start)


def tree(spans: dict[str, Seen], parent: str = CALLER, depth: int = 0) -> list[str]:
    """What hangs below a span, a line each."""
    lines = []
    for span in children(spans, parent):
        teller = span.resource.get(names.LOCATION) or span.resource["service.name"]
        lines.append(f"{'  ' * depth}{span.name} ({teller})")
        lines += tree(spans, span.span_id, depth + 1)
    return lines


def check_times(spans: dict[str, Seen]) -> None:
    """Every child lies inside its parent."""
    for span in spans.values():
        assert span.start <= span.end
        if (parent := spans.get(span.parent_id)) is not None:
            assert parent.start - SLACK <= span.start, (parent.name, span.name)
            assert span.end <= parent.end + SLACK, (parent.name, span.name)


def check_spilled(spans: dict[str, Seen]) -> None:
    """One tree over both locations, down to the engine that answered."""
    assert SPILLED == tree(spans)
    assert len(SPILLED) == len(spans)
    (server,) = children(spans, CALLER)
    assert ("ams", "headrace=ams,vendor=1", False) == (server.attributes[names.LOCATION], server.state, server.failed)
    chat, route = children(spans, server.span_id)
    assert route.attributes[names.ROUTE_SPILL] is True
    first, second = children(spans, chat.span_id)
    assert (True, "reset") == (first.failed, first.attributes[names.ERROR_TYPE])
    assert (False, 1, "reset", "lhr") == (
        second.failed, second.attributes[names.HTTP_RESENDS], second.attributes[names.RETRY_REASON],
        second.attributes[names.SPILL_TO],
    )  # fmt: skip
    (there,) = children(spans, second.span_id)
    assert ("lhr", "headrace=lhr,vendor=1", 2) == (there.attributes[names.LOCATION], there.state, there.kind)
    (engine,) = (span for span in spans.values() if span.name == "llm_request")
    assert ["stop"] == chat.attributes[names.GEN_AI_FINISH_REASONS]
    assert chat.attributes[names.GEN_AI_RESPONSE_ID] == engine.attributes["gen_ai.request.id"]
    check_times(spans)
