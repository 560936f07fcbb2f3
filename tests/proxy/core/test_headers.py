"""Only heads that every parser reads alike are accepted, and what is read from them is right."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core import headers
from proxy.core.errors import ParseReject

LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
HOST = (b"Host", b"a")


def rule_of(head: bytes) -> str | None:
    try:
        headers.accept(head)
    except ParseReject as reject:
        return reject.rule
    return None


@pytest.mark.parametrize(
    ("head", "rule"),
    [
        (LINE + b"Host: a\r\n\r\n", None),
        (LINE + b"\r\n", None),
        (LINE + b"Host:a\r\nX-Empty:\r\nX-Utf8: h\xc3\xa9\r\nX-Tab:\ta\tb\r\n\r\n", None),
        (LINE + b"Host: a\nX: b\r\n\r\n", "bare_lf"),
        (LINE + b"Host: a\rX: b\r\n\r\n", "bare_cr"),
        (LINE + b"Host: a\r\n b\r\n\r\n", "obs_fold"),
        (LINE + b"Host: a\r\n\tb\r\n\r\n", "obs_fold"),
        (LINE + b"Host : a\r\n\r\n", "space_before_colon"),
        (LINE + b"Ho_st: a\r\n\r\n", "header_name"),
        (LINE + b"Ho\x00st: a\r\n\r\n", "header_name"),
        (LINE + b": a\r\n\r\n", "header_name"),
        (LINE + b"Host\r\n\r\n", "header_name"),
        (LINE + b"H\xc3\xb6st: a\r\n\r\n", "header_name"),
        (LINE + b"Host: a\x00b\r\n\r\n", "header_value"),
        (LINE + b"Host: a\x0bb\r\n\r\n", "header_value"),
        (LINE + b"Host: a\x7f\r\n\r\n", "header_value"),
        (b"GET /\r\n\r\n", "request_line"),
        (b"GET  / HTTP/1.1\r\n\r\n", "request_line"),
        (b"GET / HTTP/1.1 \r\n\r\n", "request_line"),
        (b" GET / HTTP/1.1\r\n\r\n", "request_line"),
        (b"GET / HTTP/2.0\r\n\r\n", "version"),
        (b"GET / HTTP/0.9\r\n\r\n", "version"),
        (b"GET / HTTP/1.2\r\n\r\n", "version"),
        (b"GET / http/1.1\r\n\r\n", "request_line"),
        (b"PRI * HTTP/2.0\r\n\r\n", "version"),
        (b"get / HTTP/1.1\r\n\r\n", "method"),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n", "target"),
        (b"GET /\x01 HTTP/1.1\r\n\r\n", "target"),
    ],
)  # fmt: skip
def test_accept(head: bytes, rule: str | None) -> None:
    """Each broken rule has its name."""
    assert rule == rule_of(head)


@given(st.binary(max_size=200))
def test_nothing_else_escapes(data: bytes) -> None:
    """Whatever comes, it is accepted or a ParseReject."""
    rule_of(data + b"\r\n\r\n")
    rule_of(LINE + data + b"\r\n\r\n")
    with contextlib.suppress(ParseReject):
        headers.accept_partial(data or b"A")


@pytest.mark.parametrize(
    ("data", "rule"),
    [
        (b"POST /v1", None),
        (b"POST / HTTP/1.1\r\nHost: a\r", None),
        (b"POST / HTTP/1.1\nHost: a", "bare_lf"),
        (b"GET /\r\n", "request_line"),
        (b"GET / HTTP/2.0\r\n", "version"),
        (b"\x16\x03\x01", "request_line"),
        (b"post", "request_line"),
    ],
)
def test_accept_partial(data: bytes, rule: str | None) -> None:
    """A beginning that can never be whole is refused without waiting for the rest."""
    found = None
    try:
        headers.accept_partial(data)
    except ParseReject as reject:
        found = reject.rule
    assert rule == found


def read(
    *fields: tuple[bytes, bytes], method: bytes = b"POST", target: bytes = b"/v1/x", minor: int = 1
) -> headers.Head:
    return headers.read(method, target, minor, list(fields), 99)


@pytest.mark.parametrize(
    ("fields", "minor", "rule", "status"),
    [
        ([], 1, "missing_host", 400),
        ([HOST, HOST], 1, "duplicate_host", 400),
        ([(b"host", b"a b")], 1, "host", 400),
        ([(b"host", b"a/b")], 1, "host", 400),
        ([(b"host", b"")], 1, "host", 400),
        ([HOST, (b"Content-Length", b"1"), (b"Content-Length", b"1")], 1, "duplicate_content_length", 400),
        ([HOST, (b"Content-Length", b"1, 1")], 1, "content_length", 400),
        ([HOST, (b"Content-Length", b"+1")], 1, "content_length", 400),
        ([HOST, (b"Content-Length", b"-1")], 1, "content_length", 400),
        ([HOST, (b"Content-Length", b"0x1")], 1, "content_length", 400),
        ([HOST, (b"Content-Length", b"9" * 19)], 1, "content_length", 400),
        ([HOST, (b"Content-Length", b"")], 1, "content_length", 400),
        ([HOST, (b"Content-Length", b"1"), (b"Transfer-Encoding", b"chunked")], 1, "length_and_chunked", 400),
        ([HOST, (b"Transfer-Encoding", b"gzip, chunked")], 1, "transfer_encoding", 501),
        ([HOST, (b"Transfer-Encoding", b"identity")], 1, "transfer_encoding", 501),
        ([HOST, (b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")], 1, "transfer_encoding", 501),
        ([HOST, (b"Transfer-Encoding", b"chunked")], 0, "transfer_encoding", 400),
        ([HOST, (b"Expect", b"200-ok")], 1, "expect", 417),
    ],
)  # fmt: skip
def test_framing(fields: list[tuple[bytes, bytes]], minor: int, rule: str, status: int) -> None:
    """Framing that could be read in two ways is refused."""
    with pytest.raises(ParseReject) as caught:
        read(*fields, minor=minor)
    assert (rule, status) == (caught.value.rule, caught.value.http_status)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/v1/x?y=1", b"/v1/x?y=1"),
        (b"http://other/v1/x", b"/v1/x"),
        (b"HTTPS://other:1?a", b"/?a"),
        (b"*", None),
        (b"other:443", None),
        (b"/a#b", None),
        (b"ftp://a/b", None),
    ],
)
def test_target(target: bytes, expected: bytes | None) -> None:
    """The target is a path, or a URL whose path is taken."""
    if expected is None:
        with pytest.raises(ParseReject, match="target"):
            read(HOST, target=target)
    else:
        assert expected == read(HOST, target=target).path


def test_methods() -> None:
    """CONNECT and unknown methods are not served."""
    with pytest.raises(ParseReject) as caught:
        read(HOST, method=b"CONNECT")
    assert ("method", 501) == (caught.value.rule, caught.value.http_status)


def test_what_goes_on() -> None:
    """Hop-by-hop lines, those that Connection names, and ours stay here."""
    head = read(
        HOST, (b"Connection", b"close, X-Private"), (b"X-Private", b"1"), (b"X-Other", b"2"), (b"TE", b"trailers"),
        (b"X-Headrace-Hop", b"forged"), (b"Authorization", b"Bearer k"), (b"Accept-Encoding", b"gzip"),
        (b"Content-Type", b"application/json"),
    )  # fmt: skip
    assert b"X-Other: 2\r\nContent-Type: application/json\r\nx-forwarded-host: a\r\n" == head.passed
    assert (b"Bearer k", b"authorization: Bearer k\r\n") == (head.authorization, head.credentials)
    assert not head.keep_alive


@pytest.mark.parametrize(
    ("minor", "connection", "expected"),
    [(1, None, True), (1, b"close", False), (1, b"Keep-Alive", True), (0, None, False), (0, b"keep-alive", True)],
)
def test_keep_alive(minor: int, connection: bytes | None, expected: bool) -> None:
    """HTTP/1.1 stays open unless told, HTTP/1.0 closes unless told."""
    fields = [HOST] + ([(b"Connection", connection)] if connection else [])
    assert expected == read(*fields, minor=minor).keep_alive


def test_identity() -> None:
    """Request ids are taken if sane; a second traceparent voids the first."""
    head = read(
        HOST, (b"X-Request-Id", b"abc-1"), (b"traceparent", b"x"), (b"tracestate", b"a=1"), (b"tracestate", b"b=2")
    )
    assert (b"abc-1", b"x", b"a=1,b=2") == (head.request_id, head.traceparent, head.tracestate)
    head = read(HOST, (b"X-Request-Id", b"a b"), (b"traceparent", b"x"), (b"traceparent", b"y"))
    assert (b"", b"") == (head.request_id, head.traceparent)


@pytest.mark.parametrize(
    ("lines", "rule"),
    [
        (b"content-length: 1\r\ntransfer-encoding: chunked\r\n", "length_and_chunked"),
        (b"content-length: 1\r\ncontent-length: 2\r\n", "duplicate_content_length"),
        (b"", "head"),
    ],
)
def test_blame(lines: bytes, rule: str) -> None:
    """What llhttp refused by itself gets its rule's name all the same."""
    with pytest.raises(ParseReject) as caught:
        headers.blame(LINE + b"Host: a\r\n" + lines + b"\r\n")
    assert rule == caught.value.rule
