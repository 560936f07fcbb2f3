"""What a worker answers itself."""

import json

import pytest

from balancer.model import Table
from tests.support.plane import Bench, post


def get(bench: Bench, path: bytes, method: bytes = b"GET") -> tuple[int, bytes]:
    client, transport = bench.client()
    client.data_received(method + b" " + path + b" HTTP/1.1\r\nhost: a\r\n\r\n")
    head, _, body = transport.written.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def test_models() -> None:
    """Models and aliases, as the OpenAI API lists them."""
    bench = Bench()
    status, body = get(bench, b"/v1/models")
    assert (200, ["alias", "m"]) == (status, [model["id"] for model in json.loads(body)["data"]])
    assert "alias" == json.loads(get(bench, b"/v1/models/alias")[1])["id"]
    assert 404 == get(bench, b"/v1/models/nobody")[0]


def test_head() -> None:
    """HEAD is GET without the body."""
    assert (200, b"") == get(Bench(), b"/v1/models", b"HEAD")


def test_readiness() -> None:
    """Ready while an instance is; not without one, not while draining."""
    bench = Bench()
    assert (200, b"ready\n") == get(bench, b"/readyz")
    bench.plane.draining = True
    assert (503, b"draining\n") == get(bench, b"/readyz")
    bench.plane.draining = False
    bench.router.update(Table(2, {}), bench.now)
    assert 503 == get(bench, b"/readyz")[0]
    assert (200, b"ok\n") == get(bench, b"/livez")


@pytest.mark.parametrize(
    ("path", "method", "status"),
    [(b"/v1/chat/completions", b"GET", 405), (b"/x", b"GET", 404), (b"/livez", b"PUT", 405)],
)
def test_refusals(path: bytes, method: bytes, status: int) -> None:
    """Known paths say which methods they take, others that there is nothing."""
    assert status == get(Bench(), path, method)[0]


def test_cap() -> None:
    """Each API's own name for the cap on output tokens; no cap below nothing."""
    bench = Bench()
    for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"):
        for given, expected in ((7, 7), (-5, 0)):
            client, _ = bench.client()
            client.data_received(post(**{name: given}))
            assert client.exchange is not None
            assert expected == client.exchange.ask.max_tokens
