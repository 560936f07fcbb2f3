"""What a worker answers itself."""

import json

import msgspec
import pytest

from balancer.model import Table
from proxy.core.settings import Limits
from tests.support.plane import Bench, post


def get(bench: Bench, path: bytes, method: bytes = b"GET", lines: bytes = b"") -> tuple[int, bytes]:
    client, transport = bench.client()
    client.data_received(method + b" " + path + b" HTTP/1.1\r\nhost: a\r\n" + lines + b"\r\n")
    head, _, body = transport.written.partition(b"\r\n\r\n")
    return int(head.split(b" ", 2)[1]), body


def test_models() -> None:
    """Models and aliases, as the OpenAI API lists them."""
    bench = Bench()
    status, body = get(bench, b"/v1/models")
    assert (200, ["alias", "m"]) == (status, [model["id"] for model in json.loads(body)["data"]])
    assert "alias" == json.loads(get(bench, b"/v1/models/alias")[1])["id"]
    assert 404 == get(bench, b"/v1/models/nobody")[0]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (b"org/name", "org/name"), (b"org%2Fname", "org/name"), (b"org%2fname?x=%2F", "org/name"), (b"%6D", "m"),
        (b"a%20b%2Bc+d", "a b+c+d"), (b"%E6%BC%A2", "漢"), (b"50%25", "50%"), (b"50%", "50%"),
    ],
)  # fmt: skip
def test_a_models_name_in_a_path(path: bytes, name: str) -> None:
    """It is percent-encoded there, and may hold a slash, encoded or not."""
    bench = Bench()
    bench.plane.configure(msgspec.structs.replace(bench.plane.site, names={name: "m"}), bench.now)
    status, body = get(bench, b"/v1/models/" + path)
    assert (200, name) == (status, json.loads(body).get("id"))


@pytest.mark.parametrize("path", [b"%FF", b"org%252Fname", b"%00", b""])
def test_no_models_name_in_a_path(path: bytes) -> None:
    """Whatever a path holds, what is no model's name is a 404: it is decoded once."""
    bench = Bench()
    bench.plane.configure(msgspec.structs.replace(bench.plane.site, names={"org/name": "m"}), bench.now)
    assert 404 == get(bench, b"/v1/models/" + path)[0]


@pytest.mark.parametrize(
    "path",
    [b"/v1/models", b"/v1/models/m", b"/v1/models/nobody", b"/v1/chat/completions", b"/nothing", b"/livez", b"/readyz"],
)
@pytest.mark.parametrize("draining", [False, True])
def test_head(path: bytes, draining: bool) -> None:
    """HEAD is GET without the body, errors too: on a kept connection a body would be the next answer's beginning."""
    bench = Bench()
    bench.plane.draining = draining
    answers = []
    for method in (b"GET", b"HEAD"):
        client, transport = bench.client()
        client.data_received(method + b" " + path + b" HTTP/1.1\r\nhost: a\r\nx-request-id: 1\r\n\r\n")
        assert draining is (transport.closed or transport.eof)
        head, end, body = transport.written.partition(b"\r\n\r\n")
        answers.append((head.replace(b"HEAD", b"GET"), end, body))
    (got, *_, body), told = answers
    same = got if b"405" not in got else told[0]  # a 405 names the method, in the body
    assert (same, b"\r\n\r\n", b"") == told
    assert body


def test_head_of_what_is_too_large() -> None:
    """An error that closes has no body for HEAD either."""
    assert (413, b"") == get(Bench(Limits(body_bytes=1)), b"/livez", b"HEAD", b"content-length: 2\r\n")


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
