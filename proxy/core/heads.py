"""The heads that Headrace writes: the request an engine gets, the answer a client gets. Answers are framed anew here."""

import enum
from http import HTTPStatus
from typing import Protocol

import msgspec

from proxy.core.headers import Head

_REASONS = {status.value: status.phrase.encode() for status in HTTPStatus}

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
    def prefix(self) -> bytes: ...
    @property
    def lines(self) -> bytes: ...
    @property
    def api_key(self) -> str | None: ...


def to_engine(head: Head, target: Target, context: bytes, body: bytes) -> bytes:
    """A request for an engine: hop-by-hop lines gone, ours added. Never chunked: the body is at hand."""
    return b"%b %b%b HTTP/1.1\r\n%b%b%b%bcontent-length: %d\r\n\r\n%b" % (
        head.method, target.prefix, head.path, target.lines, head.passed,
        head.credentials if target.api_key is None else b"", context, len(body), body,
    )  # fmt: skip


# Lines of an answer that do not go on: they belong to one connection, or are ours to say.
_DROPPED = frozenset(
    {
        b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"te", b"trailer", b"transfer-encoding", b"upgrade",
        b"server-timing", b"x-request-id", b"x-headrace-location", b"x-headrace-instance", b"x-headrace-reason",
        b"x-headrace-attempts", b"x-headrace-spill",
    }
)  # fmt: skip


class Answer(msgspec.Struct, gc=False):
    """What the relay needs of an answer's head."""

    passed: bytes  # the lines that go on
    length: int  # Content-Length, -1 if there is none
    events: bool  # server-sent events that can be read: not compressed


def read_answer(headers: Headers) -> Answer:
    """Reads an answer's header lines in one pass."""
    length = -1
    connection = b""
    events = False
    encoded = False
    passed: list[bytes] = []
    for name, value in headers:
        low = name.lower()
        if low == b"content-length":
            length = int(value)
            continue
        if low in _DROPPED:
            continue
        if low == b"connection":
            connection = connection + b"," + value if connection else value
            continue
        if low == b"content-type":
            events = value[:17].lower() == b"text/event-stream"
        elif low == b"content-encoding":
            encoded = value.strip().lower() != b"identity"
        passed.append(b"%b: %b\r\n" % (name, value))
    if connection and connection.lower() not in (b"keep-alive", b"close"):
        named = {option.strip() for option in connection.lower().split(b",")}
        passed = [line for line in passed if line.partition(b":")[0].lower() not in named]
    return Answer(b"".join(passed), length, events and not encoded)


def framing(status: int, answer: Answer, minor: int) -> Framing:
    """How the client of HTTP/1.`minor` gets this answer's end. Streams are cut anew, so their length is not known."""
    if status in (204, 304):
        return Framing.NONE
    if answer.length >= 0 and not answer.events:
        return Framing.LENGTH
    return Framing.CHUNKED if minor == 1 else Framing.CLOSE


def timing(queue: float, route: float, connect: float, first_byte: float) -> bytes:
    """The `server-timing` line, from ms. On a kept connection, without a queue, two of them are nothing to write."""
    if queue or connect:
        return b"server-timing: queue;dur=%.2f, route;dur=%.2f, connect;dur=%.2f, first_byte;dur=%.2f\r\n" % (
            queue, route, connect, first_byte,
        )  # fmt: skip
    return b"server-timing: queue;dur=0, route;dur=%.2f, connect;dur=0, first_byte;dur=%.2f\r\n" % (route, first_byte)


def to_client(status: int, answer: Answer, framed: Framing, lines: bytes) -> bytes:
    """The answer's head for the client; `lines`: our own header lines."""
    if framed is Framing.CHUNKED:
        end = b"transfer-encoding: chunked\r\n"
    elif framed is Framing.LENGTH:
        end = b"content-length: %d\r\n" % answer.length
    else:
        end = b""
    return b"HTTP/1.1 %d %b\r\n%b%b%b\r\n" % (status, _REASONS.get(status, b""), answer.passed, end, lines)


def whole(answer: Answer, lines: bytes, body: bytes) -> bytes:
    """A 200 and its body at once; its length is the body's."""
    return b"HTTP/1.1 200 OK\r\n%bcontent-length: %d\r\n%b\r\n%b" % (answer.passed, len(body), lines, body)


def own(status: int, body: bytes, date: bytes, extra: bytes = b"", content_type: bytes = b"application/json") -> bytes:
    """The head of an answer of our own; `extra` are further header lines."""
    return b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\ndate: %b\r\n%b\r\n" % (
        status, _REASONS.get(status, b""), content_type, len(body), date, extra,
    )  # fmt: skip
