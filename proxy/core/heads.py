"""The heads that Headrace writes: the request an engine gets, the answer a client gets. Answers are framed anew here."""

import enum
from http import HTTPStatus
from typing import Protocol

from proxy.core.headers import Head, upstream_passed

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}
_WITH_USAGE_OPTION = (b"/v1/chat/completions", b"/v1/completions")

Headers = list[tuple[bytes, bytes]]


class Framing(enum.Enum):
    """How a client finds an answer's end."""

    LENGTH = enum.auto()  # Content-Length, as the engine gave it
    CHUNKED = enum.auto()
    CLOSE = enum.auto()  # HTTP/1.0
    NONE = enum.auto()  # 204 and 304 have no body


class Target(Protocol):
    """What of an upstream its head needs."""

    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def prefix(self) -> str: ...
    @property
    def api_key(self) -> str | None: ...


def has_usage_option(path: bytes) -> bool:
    """Whether this route knows `stream_options.include_usage`."""
    return path.partition(b"?")[0] in _WITH_USAGE_OPTION


def to_engine(head: Head, target: Target, location: str, context: bytes, length: int) -> bytes:
    """The request's head for an engine: hop-by-hop lines gone, ours added. Never chunked: the body is at hand."""
    if target.api_key is not None:
        authorization = b"authorization: Bearer %b\r\n" % target.api_key.encode()
    elif head.authorization:
        authorization = b"authorization: %b\r\n" % head.authorization
    else:
        authorization = b""
    host = f"[{target.host}]" if ":" in target.host else target.host
    return b"%b %b%b HTTP/1.1\r\nhost: %b:%d\r\n%b%b%bx-forwarded-host: %b\r\nvia: 1.1 headrace-%b\r\ncontent-length: %d\r\n\r\n" % (
        head.method, target.prefix.encode(), head.path, host.encode(), target.port, head.passed, authorization, context,
        head.host, location.encode(), length,
    )  # fmt: skip


def is_event_stream(headers: Headers) -> bool:
    """Whether an answer is server-sent events that can be read (not compressed)."""
    events = False
    for name, value in headers:
        low = name.lower()
        if low == b"content-type":
            events = value[:17].lower() == b"text/event-stream"
        elif low == b"content-encoding" and value.strip().lower() != b"identity":
            return False
    return events


def framing(status: int, headers: Headers, minor: int, is_events: bool) -> Framing:
    """How the client of HTTP/1.`minor` gets this answer's end. Streams are cut anew, so their length is not known."""
    if status in (204, 304):
        return Framing.NONE
    if not is_events and any(name.lower() == b"content-length" for name, _ in headers):
        return Framing.LENGTH
    return Framing.CHUNKED if minor == 1 else Framing.CLOSE


def to_client(
    status: int,
    headers: Headers,
    framed: Framing,
    connection: bytes,
    request_id: bytes,
    identity: bytes,
    attempts: int,
    timing: tuple[float, float, float, float],
) -> bytes:
    """The answer's head for the client. `timing`: queue, route, connect, first byte in ms; `identity`: location,
    instance and reason as header lines; `connection`: `Connection: close` or nothing.
    """
    end = b""
    if framed is Framing.CHUNKED:
        end = b"transfer-encoding: chunked\r\n"
    elif framed is Framing.LENGTH:
        end = b"content-length: %b\r\n" % next(v for n, v in headers if n.lower() == b"content-length")
    return (
        b"HTTP/1.1 %d %b\r\n%b%b%bx-request-id: %b\r\n%bx-headrace-attempts: %d\r\n"
        b"server-timing: queue;dur=%.2f, route;dur=%.2f, connect;dur=%.2f, first_byte;dur=%.2f\r\n\r\n"
        % (status, _REASONS.get(status, b""), upstream_passed(headers), end, connection, request_id, identity, attempts, *timing)
    )


def own(status: int, body: bytes, date: bytes, extra: bytes = b"", content_type: bytes = b"application/json") -> bytes:
    """The head of an answer of our own; `extra` are further header lines."""
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\ndate: %b\r\n%b\r\n" % (
        status, _REASONS.get(status, b""), content_type, len(body), date, extra,
    )  # fmt: skip
