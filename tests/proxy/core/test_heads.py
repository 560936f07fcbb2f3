"""The heads that are written: an engine's request, a client's answer."""

import pytest

from proxy.core import heads
from proxy.core.headers import Head
from proxy.net.site import Upstream


@pytest.mark.parametrize(
    ("key", "sent", "expected"),
    [
        (None, b"Bearer client", b"authorization: Bearer client\r\n"),
        ("engine", b"Bearer client", b"authorization: Bearer engine\r\n"),
        (None, b"", b""),
    ],
)
def test_to_engine(key: str | None, sent: bytes, expected: bytes) -> None:
    """An engine's own key replaces the client's."""
    head = Head(b"POST", b"/v1/x?a=1", 1, host=b"edge", authorization=sent, passed=b"a: b\r\n")
    upstream = Upstream(0, "e", "10.0.0.1", 8000, "m", prefix="/api", api_key=key)
    assert (
        b"POST /api/v1/x?a=1 HTTP/1.1\r\nhost: 10.0.0.1:8000\r\na: b\r\n" + expected
        + b"c: d\r\nx-forwarded-host: edge\r\nvia: 1.1 headrace-ams\r\ncontent-length: 5\r\n\r\n"
        == heads.to_engine(head, upstream, "ams", b"c: d\r\n", 5)
    )  # fmt: skip


def test_ipv6_host() -> None:
    """An IPv6 address stands in brackets."""
    out = heads.to_engine(Head(b"POST", b"/", 1), Upstream(0, "e", "::1", 80, "m"), "ams", b"", 0)
    assert b"host: [::1]:80\r\n" in out


@pytest.mark.parametrize(
    ("status", "fields", "minor", "expected"),
    [
        (204, [], 1, heads.Framing.NONE),
        (200, [(b"Content-Length", b"5")], 1, heads.Framing.LENGTH),
        (200, [(b"Content-Length", b"5"), (b"Content-Type", b"text/event-stream")], 1, heads.Framing.CHUNKED),
        (200, [], 1, heads.Framing.CHUNKED),
        (200, [], 0, heads.Framing.CLOSE),
        (200, [(b"Content-Type", b"text/event-stream")], 0, heads.Framing.CLOSE),
    ],
)
def test_framing(status: int, fields: list[tuple[bytes, bytes]], minor: int, expected: heads.Framing) -> None:
    """Answers are framed anew for the client's version."""
    assert expected is heads.framing(status, heads.read_answer(fields), minor)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ([(b"Content-Type", b"text/event-stream; charset=utf-8")], True),
        ([(b"Content-Type", b"application/json")], False),
        ([(b"Content-Type", b"text/event-stream"), (b"Content-Encoding", b"gzip")], False),
        ([(b"Content-Type", b"text/event-stream"), (b"Content-Encoding", b"identity")], True),
    ],
)
def test_event_streams(fields: list[tuple[bytes, bytes]], expected: bool) -> None:
    """Compressed streams cannot be read and are passed on as they are."""
    assert expected == heads.read_answer(fields).events


def test_what_goes_on_to_the_client() -> None:
    """An engine's own framing, hop-by-hop lines and lines in our name do not reach the client."""
    fields = [
        (b"Server", b"uvicorn"), (b"Connection", b"keep-alive, X-Hop"), (b"X-Hop", b"1"), (b"Content-Length", b"3"),
        (b"Transfer-Encoding", b"chunked"), (b"X-Headrace-Reason", b"forged"), (b"x-request-id", b"theirs"),
    ]  # fmt: skip
    assert b"Server: uvicorn\r\n" == heads.read_answer(fields).passed


def test_to_client() -> None:
    """Where it came from, after how many attempts, and where the time went."""
    answer = heads.read_answer([(b"Content-Type", b"application/json"), (b"Content-Length", b"2")])
    out = heads.to_client(
        200,
        answer,
        heads.Framing.LENGTH,
        b"connection: close\r\n",
        b"x-request-id: id-1\r\n",
        (0.0, 0.125, 1.0, 12.346),
    )
    assert (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: 2\r\nconnection: close\r\nx-request-id: id-1\r\n"
        b"server-timing: queue;dur=0.00, route;dur=0.12, connect;dur=1.00, first_byte;dur=12.35\r\n\r\n"
    ) == out


def test_usage_option() -> None:
    """Only the two routes that know the option are asked for usage."""
    assert [True, True, False] == [
        heads.has_usage_option(path) for path in (b"/v1/chat/completions?x", b"/v1/completions", b"/v1/responses")
    ]
