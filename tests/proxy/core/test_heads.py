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
    credentials = b"authorization: " + sent + b"\r\n" if sent else b""
    head = Head(b"POST", b"/v1/x?a=1", 1, credentials=credentials, passed=b"a: b\r\n")
    upstream = Upstream(0, "e", "10.0.0.1", 8000, "m", prefix=b"/api", api_key=key)
    first, *lines = heads.to_engine(head, upstream, b"c: d\r\n", b"{...}").split(b"\r\n")
    assert b"POST /api/v1/x?a=1 HTTP/1.1" == first
    assert [b"", b"{...}"] == lines[-2:]
    assert sorted(
        [b"host: 10.0.0.1:8000", b"a: b", b"c: d", b"content-length: 5", *([expected.strip()] if expected else [])]
    ) == sorted(lines[:-2])


def test_ipv6_host() -> None:
    """An IPv6 address stands in brackets."""
    out = heads.to_engine(Head(b"POST", b"/", 1), Upstream(0, "e", "::1", 80, "m"), b"", b"")
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


def test_several_connection_lines() -> None:
    """Each may name lines for us alone."""
    fields = [
        (b"Connection", b"X-Hop"), (b"X-Hop", b"1"), (b"connection", b"close"), (b"X-Own", b"2"), (b"Connection", b"x-other"),
        (b"X-Other", b"3"),
    ]  # fmt: skip
    assert b"X-Own: 2\r\n" == heads.read_answer(fields).passed


def test_to_client() -> None:
    """Where it came from, after how many attempts, and where the time went."""
    answer = heads.read_answer([(b"Content-Type", b"application/json"), (b"Content-Length", b"2")])
    out = heads.to_client(200, answer, heads.Framing.LENGTH, b"connection: close\r\nx-request-id: id-1\r\n")
    assert (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\ncontent-length: 2\r\nconnection: close\r\n"
        b"x-request-id: id-1\r\n\r\n"
    ) == out
    assert out + b"{}" == heads.whole(answer, b"connection: close\r\nx-request-id: id-1\r\n", b"{}")


@pytest.mark.parametrize(
    ("times", "expected"),
    [
        ((0.0, 0.125, 0.0, 12.346), b"queue;dur=0, route;dur=0.12, connect;dur=0, first_byte;dur=12.35"),
        ((0.0, 0.125, 1.0, 12.346), b"queue;dur=0.00, route;dur=0.12, connect;dur=1.00, first_byte;dur=12.35"),
        ((2.5, 0.125, 0.0, 12.346), b"queue;dur=2.50, route;dur=0.12, connect;dur=0.00, first_byte;dur=12.35"),
    ],
)
def test_timing(times: tuple[float, float, float, float], expected: bytes) -> None:
    """Where the time went, in ms."""
    assert b"server-timing: " + expected + b"\r\n" == heads.timing(*times)
