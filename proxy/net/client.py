"""Client connections: bytes in, one strict request at a time, its answer out, then the next.

A head is gathered up to its empty line, checked by `core.headers`, then parsed by llhttp: two opinions that must agree.
A head that equals one read before in all but its length takes the short way (`core.known`), if its body came with it.
Of a body llhttp gets exactly the bytes that belong to it (a chunked one is fed up to each empty line, where alone it
can end), so what follows is always the next request's beginning. Pipelined requests wait their turn in the buffer.
"""

import asyncio
import re
import socket
import struct
from typing import TYPE_CHECKING, cast

import httptools
import msgspec

from proxy.core import errors, headers, heads, request
from proxy.core.errors import ParseReject, ProxyError
from proxy.net import clock, local, records, vigil
from proxy.net.engine import HIGH_WATER, LOW_WATER
from proxy.net.exchange import Exchange

if TYPE_CHECKING:
    from proxy.net.plane import Plane

CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PIPELINED = 65536  # bytes of later requests kept while one is in flight
LINGER_NS = 2_000_000_000  # how long a refused sender is listened to, so that it gets to read why
_UPGRADE = re.compile(rb"\r\nupgrade:[^\r]*", re.IGNORECASE)
RESET = struct.pack("ii", 1, 0)  # linger for no time: without it the kernel ends an aborted connection like any other
FRESH_NS = 1_000_000_000  # how long a connection that has not asked yet may take for it while the worker drains


class Client(asyncio.Protocol):
    """One client connection (asyncio and llhttp call its methods)."""

    __slots__ = (
        "accepted", "address", "advancing", "around", "body", "buffer", "complete", "exchange", "fields", "head", "keep_alive",
        "lingering", "on_body", "origin", "parser", "paused", "plane", "reading", "since", "transport", "url",
    )  # fmt: skip

    transport: asyncio.Transport

    def __init__(self, plane: "Plane") -> None:
        self.plane = plane
        self.exchange: Exchange | None = None
        self.head: headers.Head | None = None
        self.buffer = b""
        self.body = bytearray()
        self.on_body = self.body.extend  # llhttp calls the array itself
        self.fields: list[tuple[bytes, bytes]] = []
        self.url = b""
        self.complete = False  # llhttp has seen the request's end
        self.keep_alive = True
        self.advancing = False
        self.paused = False  # the client does not read its answer
        self.reading = True
        self.around = 0  # bytes since the last of a chunked body: llhttp gathers a trailer's line without a limit
        self.lingering = False  # refused; its bytes are thrown away
        self.since = self.accepted = 0
        self.address = ""
        self.origin = b""  # the lines that say where its requests come from

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one by duck typing only
        transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        peer = transport.get_extra_info("peername")
        self.address = peer[0] if peer else ""
        secure = transport.get_extra_info("sslcontext") is not None
        self.origin = b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nvia: 1.1 headrace-%b\r\n" % (
            self.address.encode(), b"https" if secure else b"http", self.plane.site.location.encode(),
        )  # fmt: skip
        self.parser = httptools.HttpRequestParser(self)
        self.since = clock.now()
        plane = self.plane
        plane.open_clients.add(self)
        if plane.clients + plane.connections_elsewhere() > plane.limits.connections:
            plane.count("headrace_connections_refused_total|limit")
            self.keep_alive = False
            self.answer_error(errors.OutOfResources("Too many connections.", retry_after=1.0), "", 0)
            self._linger()

    def data_received(self, data: bytes) -> None:
        if self.lingering:
            return
        if self.exchange is not None or self.paused:  # one at a time, and none whose answer would only wait here
            self.buffer += data
            if len(self.buffer) > PIPELINED:
                self.reading = False
                self.transport.pause_reading()
            return
        if self.buffer:
            self.buffer += data
        elif self.head is None:
            if self._take_known(data):
                return
            self.buffer = data
            self.since = clock.now()
        else:
            self.buffer = data
        self._advance()

    def connection_lost(self, exc: Exception | None) -> None:
        self.plane.open_clients.discard(self)
        exchange, self.exchange = self.exchange, None
        if exchange is not None:
            exchange.abandoned(clock.now())
        elif self.head is not None and not self.lingering:
            self._note("client_gone", 0, "", "")

    def pause_writing(self) -> None:
        self.paused = True
        self.since = clock.now()
        if self.exchange is not None and self.exchange.connection is not None:
            self.exchange.connection.pause()

    def resume_writing(self) -> None:
        self.paused = False
        if self.exchange is not None and self.exchange.connection is not None:
            self.exchange.connection.resume()
        elif self.exchange is None and not self.lingering:
            self._go_on()

    # llhttp

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.head is None:
            self.fields.append((name, value))
        else:  # a trailer, of which only the size matters
            self.head.size += len(name) + len(value) + 4

    def on_message_complete(self) -> None:
        self.complete = True

    # requests

    def _take_known(self, data: bytes) -> bool:
        """The short way of a whole request whose head's like was read before; False: it must go the long way."""
        end = data.find(b"\r\n\r\n") + 4
        found = self.plane.requests.find(data[:end])
        if found is None or len(data) - end != found[1] or found[1] > self.plane.limits.body_bytes:
            return False
        self.since = self.accepted = clock.now()
        self.head = head = found[0]
        self.complete = self.keep_alive = True
        try:
            self._serve(head, data[end:], len(data))
        except ProxyError as error:
            self.head = msgspec.structs.replace(head, length=found[1])
            self._reject(error)
        return True

    def _advance(self) -> None:
        """Takes requests out of the buffer until one is in flight or more bytes are needed."""
        self.advancing = True
        while (
            self.exchange is None and self.buffer and not (self.lingering or self.paused or self.transport.is_closing())
        ):
            try:
                if self.head is None and not self._read_head():
                    break
                if not self.complete and not self._read_body():
                    break
                assert self.head is not None  # noqa: S101
                self._serve(self.head, bytes(self.body), self.head.size + len(self.body))
            except ProxyError as error:
                self._reject(error)
        self.advancing = False

    def _read_head(self) -> bool:
        limit = self.plane.limits.header_bytes
        buffer = self.buffer
        if buffer[:2] == b"\r\n":  # RFC 9112 2.2: an empty line before a request is ignored
            buffer = self.buffer = buffer[2:]
        end = buffer.find(b"\r\n\r\n", 0, limit)
        if end < 0:
            if len(buffer) >= limit:
                raise ParseReject("header_bytes", f"A request's head is limited to {limit} bytes.", 431)
            if buffer:
                headers.accept_partial(buffer)
            return False
        raw, self.buffer = buffer[: end + 4], buffer[end + 4 :]
        self.accepted = clock.now()
        headers.accept(raw)
        self._feed(raw)
        parser = self.parser
        minor = 0 if parser.get_http_version() == "1.0" else 1
        head = headers.read(parser.get_method(), self.url, minor, self.fields, len(raw))
        self.head = head
        self.keep_alive = head.keep_alive
        if head.length > self.plane.limits.body_bytes:
            raise self._too_large()
        if head.common:
            self.plane.requests.keep(raw, head, head.length)
        if head.expects and not self.complete and not self.buffer:
            self.transport.write(CONTINUE)
        return True

    def _feed(self, data: bytes) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._feed_plain(data)
        except httptools.HttpParserError as error:
            if self.head is None:
                headers.blame(data)
            raise ParseReject("chunk", f"The request's body is not validly chunked: {error}") from None

    def _feed_plain(self, head: bytes) -> None:
        """Feeds a head anew, as if it offered no other protocol (RFC 9110 7.8): llhttp would leave its body unread."""
        plain = _UPGRADE.sub(b"", head)
        if plain == head:  # CONNECT
            headers.blame(head)
        self.parser = httptools.HttpRequestParser(self)
        self.fields, self.url, self.complete = [], b"", False
        self._feed(plain)

    def _read_body(self) -> bool:
        head, limits = self.head, self.plane.limits
        assert head is not None  # noqa: S101
        self.since = clock.now()
        while self.buffer and not self.complete:
            if head.chunked:
                end = self.buffer.find(b"\r\n\r\n") + 4
                if end < 4:  # what could be the half of an empty line is kept back
                    end = len(self.buffer) - 3
                    if end <= 0:
                        break
            else:
                end = head.length - len(self.body)
            data, self.buffer = self.buffer[:end], self.buffer[end:]
            before = len(self.body)
            self._feed(data)
            if len(self.body) > limits.body_bytes:
                raise self._too_large()
            self.around = self.around + len(data) if len(self.body) == before else 0
            if max(head.size, self.around) > limits.header_bytes:
                raise ParseReject(
                    "header_bytes", f"A head and its trailers have {limits.header_bytes} bytes at most.", 431
                )
        return self.complete

    def _too_large(self) -> errors.TooLarge:
        return errors.TooLarge(f"limits.body_bytes: a body is limited to {self.plane.limits.body_bytes} bytes.")

    def _serve(self, head: headers.Head, body: bytes, size: int) -> None:
        """Answers a whole request, or begins its exchange."""
        plane = self.plane
        if not head.asks:
            self._answer(head, local.answer(plane, head))
            return
        fields = request.read(body)
        model = plane.site.names.get(fields.model)
        if model is None:
            raise errors.ModelNotFound(fields.model, sorted(plane.site.names))
        ask = local.ask(plane, head, fields, model, len(body), self.address)
        trace = plane.trace_of(head)
        hop = plane.hop_of(head, body) if head.hop else None
        if hop is not None:
            ask.tenant, ask.priority = hop.tenant, hop.priority
        self._forget_request()
        plane.active += 1
        plane.router.budget.arrived += 1
        now, add_usage = clock.now(), ask.stream and head.route.usage_option and not request.asks_usage(fields)
        self.exchange = exchange = Exchange(
            plane, self, head, body, fields, ask, trace, head.request_id.decode() or trace.trace_id, add_usage, size,
            self.accepted, now,
        )  # fmt: skip
        if hop is not None:
            exchange.hop = hop
            exchange.request_id = hop.request_id
        if plane.site.content:
            exchange.kept = records.Kept(body, self.transport.write)
        exchange.start(now)

    def _forget_request(self) -> None:
        self.head = None
        self.complete = False
        if self.url:  # it came the long way
            self.fields = []
            self.url = b""
            self.around = 0
            self.body.clear()

    def done(self) -> None:
        """The exchange has ended: the next request, or the end of the connection."""
        self.exchange = None
        if not self.keep_alive:
            self.end(clock.now())
        elif not self.paused:
            self._go_on()

    def end(self, now: int) -> None:
        """Closes the connection once all is sent; the sweep sees to it that this does not take for ever."""
        self.since = now
        self.transport.close()

    def reset(self) -> None:
        """Ends the connection at once, and so that its client cannot take that for the answer's end."""
        connected = self.transport.get_extra_info("socket")
        if connected is not None:
            connected.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.transport.abort()

    def _go_on(self) -> None:
        """Takes up the next request, be it one that came early."""
        self.since = clock.now()
        if not self.reading:
            self.reading = True
            self.transport.resume_reading()
        if self.buffer and not self.advancing:
            self._advance()

    # answers

    def connection_line(self, head: headers.Head | None) -> bytes:
        """The `Connection` line of an answer to `head`, empty where HTTP's default says it. Decides whether it stays open."""
        if self.plane.draining:
            self.keep_alive = False
        if not self.keep_alive:
            return b"connection: close\r\n"
        return b"connection: keep-alive\r\n" if head is not None and head.minor == 0 else b""

    def origin_of(self, head: headers.Head) -> bytes:
        """`origin` for a request that came with an X-Forwarded-For of its own."""
        name, value = self.origin.split(b": ", 1)
        return b"%b: %b, %b" % (name, head.forwarded_for, value)

    def answer_error(self, error: ProxyError, request_id: str, attempts: int) -> int:
        """Writes an error of ours; returns its size in bytes."""
        if error.close:
            self.keep_alive = False
        body = error.body()
        head = self.exchange.head if self.exchange is not None else self.head
        extra = b"%b%bx-headrace-location: %b\r\nx-headrace-attempts: %d\r\n" % (
            self.connection_line(head), error.headers(), self.plane.site.location.encode(), attempts,
        )  # fmt: skip
        if request_id:
            extra += b"x-request-id: %b\r\n" % request_id.encode()
        answer = heads.own(error.http_status, body, self.plane.date, extra)
        if head is None or head.method != b"HEAD":
            answer += body
        self.transport.write(answer)
        return len(answer)

    def _answer(self, head: headers.Head, answer: local.Answer) -> None:
        text = heads.own(answer.status, answer.body, self.plane.date, self.connection_line(head), answer.content_type)
        self.transport.write(text if head.method == b"HEAD" else text + answer.body)
        if head.path.startswith(b"/v1/"):
            self._note("ok", answer.status, "", "")
        self._forget_request()
        self.done()

    def _reject(self, error: ProxyError) -> None:
        """Answers a request that never became an exchange."""
        if isinstance(error, ParseReject):
            self.plane.count("headrace_parse_rejects_total|" + error.rule)
        request_id = self.head.request_id.decode() if self.head is not None else ""
        request_id = request_id or self.plane.new_request_id()
        self._note(error.outcome, error.http_status, error.code, request_id)
        self.answer_error(error, request_id, 0)
        if self.keep_alive and self.complete:
            self._forget_request()
            self.done()
        else:
            self._linger()

    def _linger(self) -> None:
        """Ends our side and throws away what still comes: a reset now could take the answer from the client."""
        self.lingering = True
        self.since = clock.now()
        self.head, self.buffer = None, b""
        self.body.clear()
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _note(self, outcome: str, status: int, error: str, request_id: str) -> None:
        now = clock.now()
        tenant = self.plane.tenant_of((self.head.authorization if self.head else b"") or self.address.encode())
        self.plane.noted.append(
            records.of_refusal(
                self.plane, self.head, tenant, request_id, status, outcome, error, self.accepted or now, now
            )
        )

    # the sweep

    def tick(self, now: int) -> None:
        """Once a second: who is silent for too long is told so, or closed."""
        silence = now - self.since
        late = silence > self.plane.deadlines.stream
        if self.paused and late:
            self.reset()
        elif self.exchange is not None:
            vigil.tick(self.exchange, now)
        elif self.lingering:
            if silence > LINGER_NS:
                self.transport.abort()
        elif self.transport.is_closing():  # it asked its last, and has not read all of the answer
            if late:
                self.reset()
        elif not self.paused:  # what came meanwhile is not late: it is not looked at
            self._tick_request(silence, now)

    def _tick_request(self, silence: int, now: int) -> None:
        """The same for a request that is not whole, or not there."""
        deadlines = self.plane.deadlines
        if self.head is not None:
            if silence > deadlines.body or now - self.accepted > deadlines.request:
                self._reject(errors.RequestTimeout("limits.body_timeout: the request's body did not come in time."))
        elif self.buffer:
            if silence > deadlines.head:
                self._reject(errors.RequestTimeout("limits.header_timeout: the request's head did not come in time."))
        elif silence > (FRESH_NS if self.plane.draining else deadlines.idle):
            self.end(now)
