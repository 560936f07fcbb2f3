"""The head of a request: which bytes are accepted as one, what is read from it, and the head an engine gets.

Rules (RFC 9112, the strict reading; whatever two parsers could read differently is refused):
- lines end with CRLF; no bare LF or CR, no folded lines, no space before a colon, no control characters;
- names are tokens without underscores (CGI-like servers take `_` and `-` for the same);
- one Host, one Content-Length of digits only, or `Transfer-Encoding: chunked` alone, never both;
- HTTP/1.0 or 1.1. The target is a path, or an absolute http(s) URL of which the path is taken.
"""

import re
from typing import NoReturn

import msgspec

from proxy.core import routes
from proxy.core.errors import ParseReject

_NAME = rb"[!#$%&'*+.^`|~0-9A-Za-z-]+"
_LINE = rb"(?:" + _NAME + rb":[^\x00-\x08\x0a-\x1f\x7f]*+\r\n)"
_HEAD = re.compile(rb"[A-Z]{1,20} [\x21-\x7e]++ HTTP/1\.[01]\r\n" + _LINE + rb"*+\r\n")
_REQUEST_LINE = re.compile(rb"([^\s]+) ([^\s]+) (HTTP/\d\.\d)")
_HOST = re.compile(rb"(?:[A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(?::\d{1,5})?")
_ABSOLUTE = re.compile(rb"https?://[^/?#]+", re.IGNORECASE)
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:@/+=-]{1,128}")
_LENGTH = re.compile(rb"[0-9]{1,18}")
_HARMLESS = frozenset({b"keep-alive", b"close", b"te", b"upgrade", b""})
_METHODS = frozenset({b"GET", b"HEAD", b"POST", b"PUT", b"PATCH", b"DELETE", b"OPTIONS"})

# Never go on: they belong to one connection, or are set anew here.
_DROPPED = frozenset(
    {
        b"connection", b"keep-alive", b"proxy-connection", b"proxy-authenticate", b"proxy-authorization", b"te",
        b"trailer", b"transfer-encoding", b"upgrade", b"http2-settings", b"content-length", b"host", b"expect",
        b"accept-encoding", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded",
    }
)  # fmt: skip


class Head(msgspec.Struct, gc=False):
    """What is read from a request's head. `passed` are the header lines that go on, ready to be sent."""

    method: bytes
    path: bytes  # with the query
    minor: int  # HTTP/1.minor
    keep_alive: bool = True
    length: int = 0
    chunked: bool = False
    expects: bool = False
    host: bytes = b""
    request_id: bytes = b""  # the client's, if it is sane
    traceparent: bytes = b""  # empty when absent or sent twice
    tracestate: bytes = b""
    authorization: bytes = b""
    priority: bytes = b""
    forwarded_for: bytes = b""
    hop: bytes = b""  # says that another location spilled it, if it can be verified
    passed: bytes = b""
    credentials: bytes = b""  # the Authorization line, ready to be sent to an engine that has no key of its own
    size: int = 0
    asks: bool = False  # a request to a model
    route: routes.Route = routes.OTHER

    @property
    def common(self) -> bool:
        """Whether a client is likely to send the same again but for its length: nothing of one request alone."""
        return (
            self.method == b"POST" and self.minor == 1 and self.keep_alive and not self.chunked and not self.expects
            and not self.request_id and not self.traceparent and not self.tracestate and not self.hop
        )  # fmt: skip


def accept(head: bytes) -> None:
    """Raises ParseReject naming the broken rule unless these bytes, up to the empty line, are one strict head."""
    if not _HEAD.fullmatch(head):
        raise _diagnosed(head)


def accept_partial(data: bytes) -> None:
    """Raises ParseReject as soon as the beginning of a head shows that it can never be whole."""
    if not b"A" <= data[:1] <= b"Z":
        raise ParseReject("request_line", "A request begins with a method in capital letters.")
    if data.count(b"\n") != data.count(b"\r\n"):
        raise ParseReject("bare_lf", "Lines end with CRLF, not with LF alone.")
    line, ended, _ = data.partition(b"\r\n")
    if ended:
        _check_request_line(line)


def _check_request_line(line: bytes) -> None:
    match = _REQUEST_LINE.fullmatch(line)
    if match is None:
        raise ParseReject("request_line", "The request line must be METHOD TARGET HTTP/1.1, one space between.")
    method, target, version = match.groups()
    if version not in (b"HTTP/1.1", b"HTTP/1.0"):
        raise ParseReject("version", "Only HTTP/1.1 and HTTP/1.0 are spoken here.", 505)
    if not re.fullmatch(rb"[A-Z]{1,20}", method):
        raise ParseReject("method", "The method must be capital letters.")
    if not re.fullmatch(rb"[\x21-\x7e]+", target):
        raise ParseReject("target", "The target must be printable ASCII without spaces.")


def _diagnosed(head: bytes) -> ParseReject:
    """Which rule a head breaks: the slow way, for the message and the counter."""
    if head.count(b"\n") != head.count(b"\r\n"):
        return ParseReject("bare_lf", "Lines end with CRLF, not with LF alone.")
    if head.count(b"\r") != head.count(b"\r\n"):
        return ParseReject("bare_cr", "A CR stands only before an LF.")
    request_line, *lines = head[:-4].split(b"\r\n")
    try:
        _check_request_line(request_line)
    except ParseReject as reject:
        return reject
    for line in lines:
        if broken := _diagnosed_line(line):
            return broken
    return ParseReject("request_line", "This is not a request's head.")


def blame(head: bytes) -> NoReturn:
    """Raises the ParseReject for an accepted head that llhttp nevertheless refused."""
    request_line, *lines = head[:-4].split(b"\r\n")
    method, target, version = request_line.split(b" ")
    pairs = [(name, value.strip(b" \t")) for name, _, value in (line.partition(b":") for line in lines)]
    read(method, target, int(version[-1:]), pairs, len(head))
    raise ParseReject("head", "The request's head is not valid HTTP.")


def _diagnosed_line(line: bytes) -> ParseReject | None:
    name, colon, value = line.partition(b":")
    if line[:1] in (b" ", b"\t"):
        return ParseReject("obs_fold", "A header line must not be folded onto the next.")
    if not colon:
        return ParseReject("header_name", "A header line must be NAME: VALUE.")
    if name != name.rstrip(b" \t"):
        return ParseReject("space_before_colon", "No space may stand before a header's colon.")
    if not re.fullmatch(_NAME, name):
        return ParseReject("header_name", f"A header's name holds a character it must not: {name[:80]!r}.")
    if re.search(rb"[\x00-\x08\x0a-\x1f\x7f]", value):
        return ParseReject("header_value", f"The value of {name[:80]!r} holds a control character.")
    return None


def read(  # noqa: C901  one pass over the lines, on every request
    method: bytes, target: bytes, minor: int, headers: list[tuple[bytes, bytes]], size: int
) -> Head:
    """Reads an accepted head's parsed parts; raises ParseReject for framing that could be read in two ways."""
    if method not in _METHODS:
        raise ParseReject("method", f"The method {method.decode()} is not served here.", 501)
    head = Head(method, _path(target), minor, keep_alive=minor == 1, size=size)
    head.route = routes.of(head.path)
    head.asks = method == b"POST" and head.route.asks
    hosts = lengths = codings = traceparents = 0
    connection = b""
    passed: list[bytes] = []
    for name, value in headers:
        low = name.lower()
        if low not in _READ:
            passed.append(b"%b: %b\r\n" % (name, value))
        elif low == b"host":
            hosts += 1
            head.host = value
        elif low == b"content-length":
            lengths += 1
            head.length = _length(value)
        elif low == b"authorization":
            head.authorization = value
            head.credentials = b"authorization: %b\r\n" % value
        elif low == b"connection":
            connection = connection + b"," + value if connection else value
        elif low == b"transfer-encoding":
            codings += 1
            head.chunked = _chunked(value)
        elif low == b"traceparent":
            traceparents += 1
            head.traceparent = value if traceparents == 1 else b""
        else:
            _read_rare(head, low, value)
    _check_framing(head, hosts, lengths, codings)
    if connection:
        options = {option.strip() for option in connection.lower().split(b",")}
        head.keep_alive = b"close" not in options and (minor == 1 or b"keep-alive" in options)
        if not options <= _HARMLESS:  # it names lines that are for us alone
            passed = [line for line in passed if line.partition(b":")[0].lower() not in options]
    head.passed = b"".join(passed) + b"x-forwarded-host: %b\r\n" % head.host
    return head


def _read_rare(head: Head, low: bytes, value: bytes) -> None:
    if low == b"expect":
        if value.lower() != b"100-continue":
            raise ParseReject("expect", "The only expectation met here is 100-continue.", 417)
        head.expects = head.minor == 1
    elif low == b"x-request-id":
        head.request_id = value if _REQUEST_ID.fullmatch(value) else b""
    elif low == b"tracestate":
        head.tracestate = head.tracestate + b"," + value if head.tracestate else value
    elif low == b"x-headrace-priority":
        head.priority = value.lower()
    elif low == b"x-headrace-hop":
        head.hop = head.hop + b"," + value if head.hop else value or b","
    elif low == b"x-forwarded-for":
        head.forwarded_for = head.forwarded_for + b", " + value if head.forwarded_for else value


_READ = _DROPPED | frozenset(
    {
        b"authorization", b"traceparent", b"tracestate", b"x-request-id", b"x-headrace-priority", b"x-headrace-hedge",
        b"x-headrace-hop", b"x-headrace-location", b"x-headrace-instance", b"x-headrace-spill", b"x-forwarded-for", b"via",
    }
)  # fmt: skip


def _path(target: bytes) -> bytes:
    if target[:1] == b"/":
        path = target
    elif match := _ABSOLUTE.match(target):
        path = target[match.end() :]
        path = path if path[:1] == b"/" else b"/" + path
    else:
        raise ParseReject("target", "The target must be a path.")
    if b"#" in path:
        raise ParseReject("target", "The target must not hold a fragment.")
    return path


def _length(value: bytes) -> int:
    if not _LENGTH.fullmatch(value):
        raise ParseReject("content_length", "Content-Length must be digits only.")
    return int(value)


def _chunked(value: bytes) -> bool:
    if value.strip().lower() != b"chunked":
        raise ParseReject("transfer_encoding", "The only Transfer-Encoding taken here is chunked.", 501)
    return True


def _check_framing(head: Head, hosts: int, lengths: int, codings: int) -> None:
    if hosts != 1 and (hosts or head.minor == 1):
        raise ParseReject("duplicate_host" if hosts else "missing_host", "A request has exactly one Host.")
    if hosts and not _HOST.fullmatch(head.host):
        raise ParseReject("host", "Host must be a name or an address, with or without a port.")
    if lengths > 1:
        raise ParseReject("duplicate_content_length", "A request has at most one Content-Length.")
    if codings > 1:
        raise ParseReject("transfer_encoding", "A request has at most one Transfer-Encoding.", 501)
    if codings and lengths:
        raise ParseReject("length_and_chunked", "A request has Content-Length or Transfer-Encoding, never both.")
    if codings and head.minor == 0:
        raise ParseReject("transfer_encoding", "HTTP/1.0 has no Transfer-Encoding.")
