"""A worker's data plane without sockets: fake transports on both sides, everything between them real."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable, Coroutine, Generator
from typing import Any

from balancer.ledger import WIDTH, Ledger
from balancer.model import Fleet, Instance, Table
from balancer.router import Router
from proxy.core.settings import Limits
from proxy.net.client import Client
from proxy.net.engine import EngineConnection
from proxy.net.plane import Plane
from proxy.net.site import Site, Upstream

ENGINES = ("one", "two", "three")


class FakeTransport:
    """Remembers what was written and done."""

    def __init__(self) -> None:
        self.written = b""
        self.closed = self.aborted = self.eof = False
        self.reading = True
        self.unsent = 0  # bytes of what was written that wait for a peer that does not read
        self.extra: dict[str, Any] = {"peername": ("192.0.2.7", 5555)}

    def write(self, data: bytes) -> None:
        self.written += data

    def take(self) -> bytes:
        """What was written since the last look."""
        taken, self.written = self.written, b""
        return taken

    def close(self) -> None:
        self.closed = True

    def abort(self) -> None:
        self.closed = self.aborted = True

    def is_closing(self) -> bool:
        return self.closed

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        self.limits = (high, low)

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def get_extra_info(self, name: str) -> Any:
        return self.extra.get(name)


class Dial:
    """A connection that is being made, and the task that waits for it: it comes, or fails, when the test says so."""

    def __init__(self, connecting: Coroutine[None, None, None]) -> None:
        self._connecting = connecting
        self._connecting.send(None)
        self.pending = True

    def _go_on(self, how: Callable[[], object]) -> None:
        self.pending = False
        with contextlib.suppress(StopIteration, asyncio.CancelledError):
            how()

    def reach(self) -> None:
        """The engine took it."""
        self._go_on(lambda: self._connecting.send(None))

    def refuse(self) -> None:
        """The engine did not."""
        self._go_on(lambda: self._connecting.throw(ConnectionRefusedError()))

    def cancel(self) -> None:
        """As of a task."""
        self._go_on(lambda: self._connecting.throw(asyncio.CancelledError()))


class _Turn:
    def __await__(self) -> Generator[None, None, None]:
        yield


class FakeLoop:
    """What a plane needs of a loop. Remembers what was left for later and what was reported."""

    def __init__(self) -> None:
        self.dials: list[Dial] = []
        self.soon: list[Callable[[], None]] = []
        self.reports: list[str] = []

    def create_task(self, coroutine: Coroutine[None, None, None]) -> Dial:
        self.dials.append(Dial(coroutine))
        return self.dials[-1]

    async def create_connection(
        self, factory: Callable[[], EngineConnection], *_: object, **__: object
    ) -> tuple[FakeTransport, EngineConnection]:
        await _Turn()
        transport, connection = FakeTransport(), factory()
        connection.connection_made(transport)  # type: ignore[arg-type]
        return transport, connection

    def call_soon(self, callback: Callable[..., None], *args: object) -> None:
        self.soon.append(lambda: callback(*args))

    def call_exception_handler(self, context: dict[str, str]) -> None:
        self.reports.append(repr(context))

    def turn(self) -> None:
        """Does what was left for later."""
        soon, self.soon = self.soon, []
        for callback in soon:
            callback()


class Bench:
    """A plane with three engines, each with kept connections; further ones are made at the test's word."""

    def __init__(self, limits: Limits | None = None, engines: int = 3, kept: int = 4, theirs: str = "theirs") -> None:
        self.cells = [0] * WIDTH * len(ENGINES)
        self.now = time.monotonic_ns()
        self.router = Router(Ledger(self.cells), random.Random(1))
        names = ENGINES[:engines]
        fleet = Fleet(tuple(Instance(cell, name) for cell, name in enumerate(names)))
        self.router.update(Table(1, {"m": fleet}), self.now)
        self.loop = FakeLoop()
        self.plane = Plane(
            worker=0,
            router=self.router,
            loop=self.loop,  # type: ignore[arg-type]
            connections_elsewhere=lambda: 0,
        )
        upstreams = {cell: Upstream(cell, name, "127.0.0.1", 9000 + cell, theirs) for cell, name in enumerate(names)}
        site = Site("ams", limits or Limits(), {"m": "m", "alias": "m"}, {"m": upstreams}, b"secret")
        self.plane.configure(site, self.now)
        for pool in self.plane.pools.values():
            for _ in range(kept):
                self.keep(pool.upstream.cell)

    def keep(self, cell: int) -> EngineConnection:
        """A kept connection to an engine that has carried an answer before."""
        connection = EngineConnection(self.plane, self.plane.pools[cell])
        connection.connection_made(FakeTransport())  # type: ignore[arg-type]
        connection.complete = connection.keep = True
        connection.release()
        return connection

    def client(self) -> tuple[Client, FakeTransport]:
        """A new client connection."""
        client, transport = self.plane.client_factory(), FakeTransport()
        client.connection_made(transport)  # type: ignore[arg-type]
        return client, transport

    def engine_of(self, client: Client) -> tuple[EngineConnection, FakeTransport]:
        """The engine's connection that carries the client's request."""
        assert client.exchange is not None
        connection = client.exchange.connection
        assert connection is not None
        transport: Any = connection.transport
        return connection, transport

    @property
    def clean(self) -> bool:
        """Whether nothing is outstanding anywhere."""
        return not any(self.cells) and self.plane.active == 0 and self.plane.waiting == 0


def post(
    body: bytes | None = None, head: bytes = b"", path: bytes = b"/v1/chat/completions", **fields: object
) -> bytes:
    """A request's bytes."""
    text = json.dumps({"model": "m", **fields}).encode() if body is None else body
    return b"POST %b HTTP/1.1\r\nhost: edge\r\n%bcontent-length: %d\r\n\r\n%b" % (path, head, len(text), text)


def answer(body: bytes = b'{"ok":1}', status: int = 200, head: bytes = b"content-type: application/json\r\n") -> bytes:
    """An engine's whole answer."""
    return b"HTTP/1.1 %d X\r\n%bcontent-length: %d\r\n\r\n%b" % (status, head, len(body), body)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
EVENT = b'data: {"choices":[{"delta":{"content":"x"}}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"
LAST = b"0\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def body_of(written: bytes) -> bytes:
    """The body of an answer as its client reads it, chunked or not."""
    head, _, rest = written.partition(b"\r\n\r\n")
    if b"transfer-encoding: chunked" not in head:
        return rest
    out = b""
    while rest and not rest.startswith(b"0\r\n"):
        size, _, rest = rest.partition(b"\r\n")
        out += rest[: int(size, 16)]
        rest = rest[int(size, 16) + 2 :]
    return out
