"""Secrets sent through every way a request can go are found in no span, metric, log, record or admin answer."""

import base64
import http.client
import json
import urllib.parse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.http import eventually, fetch_json, fetch_text
from tests.support.otlp import Backend
from tests.support.servers import Engine, Location
from tests.support.world import World

StartEngine = Callable[..., Engine]
MARK = "canary"
SECRETS = {
    name: f"{MARK}-{name}-7f3a9c"
    for name in ("bearer", "engine", "prompt", "system", "query", "cookie", "header", "path", "user", "otlp", "basic")
}  # fmt: skip
FAULTS = ("", "error:503", "error:400", "reset-before", "reset-after:1", "garbage", "stall-after:1")


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


def send(url: str, path: str, body: bytes, method: str = "POST", **headers: str) -> int:
    """One request with secrets wherever a client can put one; its status, 0 if the connection broke."""
    where = urllib.parse.urlsplit(url)
    connection = http.client.HTTPConnection(where.hostname or "", where.port, timeout=30)
    said = {
        "authorization": f"Bearer {SECRETS['bearer']}", "cookie": f"session={SECRETS['cookie']}",
        "x-api-key": SECRETS["header"], "content-type": "application/json", **headers,
    }  # fmt: skip
    try:
        connection.request(method, f"{path}?key={SECRETS['query']}", body, said)
        answer = connection.getresponse()
        answer.read()
        return answer.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


def body_of(stream: bool = True, **changes: Any) -> bytes:
    messages = [{"role": "system", "content": SECRETS["system"]}, {"role": "user", "content": SECRETS["prompt"]}]
    asked = {"model": "demo", "stream": stream, "messages": messages, "user": SECRETS["user"], **changes}
    return json.dumps({**asked, "metadata": {"output_tokens": 3}}).encode()


def send_all(url: str) -> None:
    """Well, broken by engines in every way, and wrong in every way."""
    for fault in FAULTS:
        for stream in (True, False):
            send(url, "/v1/chat/completions", body_of(stream), **({"x-fail": fault} if fault else {}))
    basic = base64.b64encode(f"u:{SECRETS['basic']}".encode()).decode()
    send(url, "/v1/chat/completions", body_of(), authorization=f"Basic {basic}")
    send(url, "/v1/chat/completions", body_of(model=SECRETS["prompt"]))
    send(url, "/v1/chat/completions", body_of(max_tokens=SECRETS["prompt"]))
    send(url, "/v1/chat/completions", body_of()[:-9])
    send(url, f"/v1/{SECRETS['path']}", b"{}")
    send(url, f"/v1/files/{SECRETS['path']}", b"", "GET")
    send(url, "/v1/chat/completions", b"", SECRETS["path"].upper().replace("-", ""))
    send(url, "/v1/embeddings", json.dumps({"model": "demo", "input": SECRETS["prompt"]}).encode())
    send(url, "/v1/chat/completions", body_of(), **{"x-headrace-hop": f"1;{SECRETS['header']}"})
    send(url, "/v1/chat/completions", body_of(), traceparent=f"00-{SECRETS['header']}-01", tracestate="a=")
    send(url, "/v1/chat/completions", body_of(), **{"x-headrace-priority": SECRETS["header"]})
    send(url, "/v1/chat/completions", body_of(), **{"transfer-encoding": SECRETS["header"]})


def seen(location: Location, folder: Path) -> Iterator[tuple[str, str]]:
    """All that a location shows or keeps, by where that is."""
    yield "log", location.output
    for path in ("/metrics", "/api/state", "/api/requests?limit=1000", "/api/weights", "/livez", "/readyz"):
        yield path, fetch_text(f"{location.admin}{path}")
    for one in fetch_json(f"{location.admin}/api/requests?limit=1000")["requests"]:
        yield "request", fetch_text(f"{location.admin}/api/requests/{one['request_id']}")
        yield "trace", fetch_text(f"{location.admin}/api/requests/{one['request_id']}/trace")
    for file in folder.rglob("*"):
        if file.is_file() and file.suffix not in (".yaml", ".pem", ".key"):
            yield str(file), file.read_bytes().decode(errors="replace")


def test_canaries(world: World, backend: Backend, start_engine: StartEngine, tmp_path: Path) -> None:
    """By two locations, one of which sends its requests to the other once its own engine is gone."""
    own, other = start_engine(), start_engine()
    telemetry = {"otlp": backend.url, "sample": "100%", "headers": {"authorization": SECRETS["otlp"]}}
    kept = {name: tmp_path / f"records-{name}" for name in ("ams", "lhr")}
    world.build(
        {"ams": [{"url": own.url, "api_key": SECRETS["engine"]}], "lhr": [{"url": other.url, "api_key": SECRETS["engine"]}]},
        {frozenset(("ams", "lhr")): 0.01}, **{name: {"telemetry": {**telemetry, "records": str(kept[name])}} for name in kept},
        all={"limits": {"stream_idle_timeout": "1s", "first_byte_timeout": "2s"}},
    )  # fmt: skip
    world.meshed()
    ams, lhr = world.locations["ams"], world.locations["lhr"]
    send_all(ams.url)
    own.stop()
    eventually(lambda: 200 == send(ams.url, "/v1/chat/completions", body_of()), "it is spilled")
    send_all(ams.url)
    for name, location in world.locations.items():
        eventually(lambda location=location: 0.0 == location.outstanding(), f"{name} has ended all")
    expected = {"other", "/v1/chat/completions", "/v1/embeddings"}
    routes = lambda: {str(span.attributes.get("http.route")) for span in list(backend.spans)}  # noqa: E731
    eventually(lambda: expected <= routes(), "the spans of all routes come")

    outcomes = ams.state()["totals"]["outcomes"]
    assert {"ok", "upstream_error", "timeout", "bad_request"} <= outcomes.keys()
    assert 0 < lhr.state()["totals"]["requests"]
    for location in (ams, lhr):
        for where, text in seen(location, tmp_path):
            assert MARK not in text.lower(), f"{where}: {around(text)}"
    for request in backend.requests:
        text = request.SerializeToString().decode(errors="replace")
        assert MARK not in text.lower(), f"span: {around(text)}"


def around(text: str) -> str:
    """The text about the first secret in it."""
    at = text.lower().find(MARK)
    return text[max(0, at - 200) : at + 100]
