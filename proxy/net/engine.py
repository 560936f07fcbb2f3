"""Connections to engines: one request at a time each, kept and used again.

Rules. A connection carries one exchange. Bytes that nobody asked for, a second answer, anything that is not HTTP, or any
doubt where an answer ends closes it. A connection that was kept and is lost as soon as it is used, before it gave a byte,
was stale: its exchange connects anew. One that is lost later was cut by an engine at work. A piece of a begun stream that
is exactly one chunk of whole events is not given to llhttp at all: its framing is checked to the byte, and is what we would
write ourselves. llhttp's `should_keep_alive()` is read inside `on_message_complete`: afterwards it is false.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, cast

import httptools

from balancer.model import Outcome
from proxy.core.heads import Answer, read_answer
from proxy.net.clock import now
from proxy.net.site import Upstream

if TYPE_CHECKING:
    from proxy.net.exchange import Exchange
    from proxy.net.plane import Plane
    from proxy.net.relay import Relay

HIGH_WATER, LOW_WATER = 65536, 16384
MAX_IDLE = 1024  # kept connections an engine
IDLE_NS = 55 * 1_000_000_000  # how long they are kept
STALE_NS = (
    1_000_000_000  # how soon after the sending a stale one shows itself: the engine's refusal is a round trip away
)


class Pool:
    """The kept connections to one engine, the last used first."""

    __slots__ = ("idle", "retired", "upstream")

    def __init__(self, upstream: Upstream) -> None:
        self.upstream = upstream
        self.idle: list[EngineConnection] = []
        self.retired = False  # the engine has left the config

    def take(self) -> "EngineConnection | None":
        """A kept connection, or None."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.transport.is_closing():
                return connection
        return None

    def forget(self, connection: "EngineConnection") -> None:
        """A kept connection was closed."""
        if connection in self.idle:
            self.idle.remove(connection)

    def sweep(self, now: int) -> None:
        """Closes what was kept for too long."""
        while self.idle and now - self.idle[0].idle_since > IDLE_NS:
            self.idle.pop(0).transport.abort()

    def retire(self) -> None:
        """Closes what is kept, and keeps no more."""
        self.retired = True
        for connection in list(self.idle):
            connection.transport.abort()
        self.idle.clear()


class Uncertain(Exception):
    """An answer's framing is not what we read; llhttp makes its own error of it."""


class EngineConnection(asyncio.Protocol):
    """One connection to one engine (asyncio and llhttp call its methods)."""

    __slots__ = (
        "aligned", "begun", "between", "body_parts", "complete", "exchange", "feed", "framed", "head_bytes", "headers",
        "idle_since", "keep", "on_body", "parser", "parts", "plane", "pool", "raw", "status", "steady", "stopped",
        "transport", "used",
    )  # fmt: skip

    transport: asyncio.Transport
    feed: Callable[[bytes], None]  # the parser's

    def __init__(self, plane: "Plane", pool: Pool) -> None:
        self.plane = plane
        self.pool = pool
        self.exchange: Exchange | None = None
        self.status = self.head_bytes = self.body_parts = 0
        self.begun = self.complete = self.keep = self.framed = self.aligned = self.between = False
        self.parts: list[bytes] = []
        self.on_body = self.parts.append  # llhttp calls the list itself: no Python frame a chunk
        self.used = False  # it has carried an answer before
        self.stopped = False  # it is not read, because its client does not read
        self.idle_since = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.parser: httptools.HttpResponseParser | None = None  # of this answer, unless it needs none
        self.raw = b""  # an answer's first piece, in which its head may be whole
        self.steady: Relay | None = None  # takes the pieces of a stream that has begun

    # asyncio

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one by duck typing only
        transport.set_write_buffer_limits(HIGH_WATER, LOW_WATER)
        self.plane.engine_connections += 1

    def send(self, exchange: "Exchange", message: bytes) -> None:
        """Begins an exchange with a request's bytes."""
        self.exchange = exchange
        self.parser = None
        self.headers = []
        self.status = self.head_bytes = self.body_parts = 0
        self.begun = self.complete = self.keep = self.framed = self.aligned = self.between = False
        self.transport.write(message)

    def data_received(self, data: bytes) -> None:
        steady = self.steady
        if steady is None:
            if self.parser is not None or self.exchange is None or not self._take_known(self.exchange, data):
                self._receive(data)
            return
        if self.aligned and data[-4:] == b"\n\n\r\n":  # once an event: no frame and no look more than needed
            digits = data.find(b"\r\n", 0, 9)
            if data[:digits] == b"%x" % (len(data) - digits - 4) and steady.forward(data, now()):
                return
        try:
            self.feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.keep = False
            if self.complete:
                self._pass_on(now())
            elif self.exchange is not None:
                self._fail(self.exchange, Outcome.GARBAGE)
            return
        self.aligned = self.between and data[-2:] == b"\r\n"
        if len(self.parts) == 1 and not self.complete:
            steady.pump(self.parts.pop(), now())
        else:
            self._pass_on(now())

    def _receive(self, data: bytes) -> None:
        """Takes what comes up to the answer's head, and all of an answer that is no stream."""
        exchange = self.exchange
        if exchange is None:
            self.transport.abort()
            return
        if self.parser is None:
            self.parser = httptools.HttpResponseParser(self)
            self.feed = self.parser.feed_data
            self.raw = data
        try:
            self.feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self.keep = False
            if not self.complete:
                self._fail(exchange, Outcome.GARBAGE)
                return
        self.aligned = self.between and data[-2:] == b"\r\n"
        if self.begun:
            self._pass_on(now())
        elif self._begin(exchange, len(data)):
            self._pass_on(now())
            exchange.relayed = now()

    def _begin(self, exchange: "Exchange", size: int) -> bool:
        """Whether the answer's head is there and the rest goes to the client."""
        if not self.status:
            self.head_bytes += size
            if self.head_bytes > self.plane.limits.header_bytes:
                self._fail(exchange, Outcome.GARBAGE)
            return False
        self.begun = True
        if not exchange.answered(self, now()):
            return False
        if not self.complete and exchange.relay.stream is not None:
            self.steady = exchange.relay
        return True

    def _pass_on(self, at: int) -> None:
        """Gives the exchange what was parsed."""
        exchange, parts = self.exchange, self.parts
        assert exchange is not None  # noqa: S101
        if self.complete:
            body = b"".join(parts[: self.body_parts])
            parts.clear()
            exchange.ended(body, at)
        elif parts or exchange.relay.head:
            body = b"".join(parts)
            parts.clear()
            exchange.relay.pump(body, at)

    def _take_known(self, exchange: "Exchange", data: bytes) -> bool:
        """The short way of a whole answer whose head's like was read before; False: it must go the long way."""
        end = data.find(b"\r\n\r\n") + 4
        found = self.plane.answers.find(data[:end])
        if found is None or len(data) - end != found[1]:
            return False
        self.status = 200
        self.complete = self.keep = True
        exchange.whole(found[0], data[end:], now())
        return True

    def header(self, name: bytes) -> str:
        """One line of the answer's head, before `answer` is asked for; "" if it is not there."""
        return next((value.decode("latin-1") for given, value in self.headers if given.lower() == name), "")[:128]

    def answer(self) -> Answer:
        """What the lines of the answer's head say; one that may come again, but for its length, is kept."""
        answer = read_answer(self.headers)
        self.headers = []
        raw, self.raw = self.raw, b""
        whole = self.complete and self.keep and answer.length >= 0 and not answer.events
        if self.status == 200 and whole and not self.pool.upstream.location:  # a location's heads are never the same
            self.plane.answers.keep(raw[: raw.find(b"\r\n\r\n") + 4], answer, answer.length)
        return answer

    def connection_lost(self, exc: Exception | None) -> None:
        self.plane.engine_connections -= 1
        exchange = self.exchange
        if exchange is None:
            self.pool.forget(self)
            return
        if self.begun and not self.framed and exc is None:
            self.complete, self.keep = True, False
            exchange.ended(b"", now())
            return
        self.exchange = self.steady = None
        at = now()
        if self.used and not self.head_bytes and not self.begun and at - exchange.sent < STALE_NS:
            exchange.stale(self.pool, at)
        else:
            exchange.failed(Outcome.RESET, at)

    def pause_writing(self) -> None:
        """The request's body waits in the transport's buffer: it is bounded by the body limit."""

    def resume_writing(self) -> None:
        """See pause_writing."""

    # llhttp

    def on_message_begin(self) -> None:
        if self.complete:
            self.keep = False  # a second answer to one request

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.status:  # else it is a trailer, or a second answer's, and must not pass for this head's
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        assert self.parser is not None  # noqa: S101
        status = self.parser.get_status_code()
        if status < 200 or self.complete:
            return
        framed = status in (204, 304)
        coded = False
        for name, value in self.headers:
            low = name.lower()
            if low == b"transfer-encoding":
                if coded or value.lower() != b"chunked":
                    raise Uncertain  # llhttp takes it, and what remains coded would go on as if it were not
                framed = coded = True
            elif low == b"content-length":
                framed = True
        self.status = status
        self.framed = framed

    def on_chunk_header(self) -> None:
        self.between = False

    def on_chunk_complete(self) -> None:
        self.between = True

    def on_message_complete(self) -> None:
        if not self.status:  # 1xx: the answer is yet to come
            self.headers = []
        elif not self.complete:
            self.complete = True
            assert self.parser is not None  # noqa: S101
            self.keep = bool(self.parser.should_keep_alive())
            self.body_parts = len(self.parts)
        else:
            self.keep = False

    # for the exchange

    def pause(self) -> None:
        """Its client does not read: neither do we."""
        self.stopped = True
        self.transport.pause_reading()

    def resume(self) -> None:
        """Its client reads again, or is no longer its client."""
        self.stopped = False
        self.transport.resume_reading()

    def release(self) -> None:
        """The exchange is done with it: kept if the answer was whole and left no doubt, else closed."""
        self.exchange = self.steady = None
        self.parts.clear()
        if self.complete and self.keep and not self.transport.is_closing():
            pool = self.pool
            if not pool.retired and len(pool.idle) < MAX_IDLE:
                self.used = True
                self.idle_since = now()
                if self.stopped:  # the answer's last bytes were too many for its client, which is not the next one
                    self.resume()
                pool.idle.append(self)
                return
        self.transport.abort()

    def _fail(self, exchange: "Exchange", outcome: Outcome) -> None:
        self.exchange = self.steady = None
        self.parts.clear()
        self.transport.abort()
        exchange.failed(outcome, now())
