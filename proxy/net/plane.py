"""The data plane of one worker: what its connections share. It owns no process and no file; the worker drives it."""

import asyncio
import hashlib
import os
import random
import ssl
import traceback
from collections.abc import Callable

from balancer.model import Outcome
from balancer.router import Router
from proxy.core.deadline import Deadlines
from proxy.core.headers import Head
from proxy.core.heads import Answer
from proxy.core.hop import Hop
from proxy.core.known import Known
from proxy.core.settings import Limits
from proxy.net import clock, drain, records, vigil
from proxy.net.abroad import Abroad
from proxy.net.client import Client
from proxy.net.engine import EngineConnection, Pool
from proxy.net.exchange import Exchange
from proxy.net.site import Site, Upstream
from telemetry.context import Trace, below, extend, parse_traceparent
from telemetry.record import Record

KNOWN_TENANTS = 4096
LEARNED = 16  # about so many of a batch teach the estimator: its means forget after some fifty, more would only cost


def same_endpoint(one: Upstream, other: Upstream) -> bool:
    """Whether connections to one serve the other."""
    return (one.host, one.port, one.tls, one.server_name) == (other.host, other.port, other.tls, other.server_name)


class Plane:
    """Shared by all connections of one worker. Single-threaded."""

    def __init__(
        self, *, worker: int, router: Router, loop: asyncio.AbstractEventLoop, connections_elsewhere: Callable[[], int],
        workers: int = 1,
    ) -> None:  # fmt: skip
        """`workers`: how many the location has."""
        self.worker, self.workers = worker, workers
        self.router = router
        self.loop = loop
        self.connections_elsewhere = connections_elsewhere
        self.site = Site("", Limits(), {}, {})
        self.limits = self.site.limits
        self.deadlines = Deadlines(self.limits)
        self.draining = False
        self.active = 0  # requests in flight
        self.engine_connections = 0
        self.waiting = 0  # requests in this worker's queues
        self.queued_elsewhere = 0  # waiting at the location's other workers
        self.open_clients: set[Client] = set()
        self.pools: dict[int, Pool] = {}  # by cell
        self._leaving: list[tuple[Exchange, str]] = []  # who must leave the queue, and why
        self._clearing = False
        self.ended: list[Exchange] = []  # requests whose records are still to be made
        self.noted: list[Record] = []  # records of what never became an exchange
        self.counters: dict[str, int] = {}
        self.tpot_ns = 30_000_000  # mean over recent streams
        self.offset = clock.unix_offset()
        self.date = clock.http_date()
        self.requests: Known[Head] = Known()  # heads of requests and of answers that were read before
        self.answers: Known[Answer] = Known()
        self._draw = random.Random(os.urandom(32)).getrandbits
        self.tenants: dict[bytes, str] = {}  # hashes by what they are of
        self.identities: dict[tuple[str, str], bytes] = {}  # header lines by instance and reason
        self.abroad: Abroad | None = None  # other locations, if there are any
        self.sampled, self.trace_state = "", ""  # of new traces: ids that end in less are sampled; our own entry

    @property
    def clients(self) -> int:
        """Open client connections."""
        return len(self.open_clients)

    def configure(self, site: Site, now: int) -> None:
        """Puts a new Site in force; requests in flight end under the old one's connections."""
        self.site, self.limits = site, site.limits
        self.sampled, self.trace_state = below(site.sample), f"headrace={site.location}"
        self.deadlines = Deadlines(site.limits)
        self.tenants.clear()
        self.identities.clear()
        self.requests.clear()  # the limits by which they were read may have changed
        self.answers.clear()
        current = {cell: upstream for cells in site.upstreams.values() for cell, upstream in cells.items()}
        current.update({upstream.cell: upstream for upstream in site.remotes.values()})
        if site.remotes and self.abroad is None:
            self.abroad = Abroad(self, random.Random(os.urandom(16)), self.workers)
        if self.abroad is not None:
            self.abroad.configure(site)
        for cell, pool in list(self.pools.items()):
            if cell not in current or not same_endpoint(pool.upstream, current[cell]):
                self.pools.pop(cell).retire()
        for cell, upstream in current.items():
            if cell not in self.pools:
                self.pools[cell] = Pool(upstream)

    def client_factory(self) -> Client:
        """The protocol of a new client connection."""
        return Client(self)

    def drain(self) -> None:
        """From now on answers say `connection: close`; idle connections are closed, new ones may ask once."""
        self.draining = True
        for client in list(self.open_clients):
            drain.close_if_idle(client, clock.now())

    @property
    def expecting(self) -> bool:
        """Whether a client was accepted that has not asked for anything yet."""
        return any(map(drain.fresh, self.open_clients))

    @property
    def busy(self) -> bool:
        """Whether a request is in flight or on its way here, or an answer on its way out."""
        return self.active > 0 or any(map(drain.busy, self.open_clients))

    def close(self) -> None:
        """Ends every connection at once."""
        for client in list(self.open_clients):
            client.transport.abort()
        for pool in self.pools.values():
            pool.retire()

    def sweep(self, now: int) -> None:
        """Once a second: deadlines, the queue's end, idle engine connections, the date."""
        self.offset = clock.unix_offset()
        self.date = clock.http_date()
        for client in list(self.open_clients):
            client.tick(now)
        for waiter in self.router.expire(now):
            exchange = waiter.request
            assert isinstance(exchange, Exchange)  # noqa: S101
            self.put_out(exchange, "queue_timeout", now)
        self.admit(now)
        self.router.budget.look(now)
        for pool in self.pools.values():
            pool.sweep(now)

    def put_out(self, exchange: Exchange, reason: str, now: int) -> None:
        """It may wait no longer. One after the other: its client's next request may displace somebody else, and so on."""
        self._leaving.append((exchange, reason))
        if self._clearing:
            return
        self._clearing = True
        try:
            while self._leaving:
                leaver, why = self._leaving.pop()
                leaver.put_out(why, now)
        finally:
            self._clearing = False

    def notice(self, now: int) -> None:
        """Four times a second: who waits for a first token much longer than predicted, or at a location out of sight."""
        lost = []
        for client in self.open_clients:
            exchange = client.exchange
            if exchange is not None and not exchange.first_token:
                if exchange.spilled and vigil.cut_off(exchange, now):
                    lost.append(exchange)
                else:
                    vigil.notice(exchange, now)
        for exchange in lost:
            vigil.give_up(exchange, now)

    def admit(self, now: int) -> None:
        """Gives the queue's first to instances that can take them again."""
        for waiter, decision in self.router.admit(now):
            exchange = waiter.request
            assert isinstance(exchange, Exchange)  # noqa: S101
            exchange.admitted(decision, now)

    def fault(self, exchange: Exchange, error: Exception, now: int) -> None:
        """An error of ours kept an exchange from being sent: it ends alone, and later, so that its end cannot disturb who
        called. The report shows no values: they may be a client's bytes.
        """
        where = "".join(traceback.format_tb(error.__traceback__))
        self.loop.call_exception_handler({"message": f"{type(error).__name__} in a request's way:\n{where}"})
        self.loop.call_soon(exchange.faulted, now)

    # engine connections

    def connect(self, pool: Pool, exchange: Exchange) -> "asyncio.Task[None]":
        """Makes a new connection for an exchange, which hears of it by `reached` or `failed`."""
        return self.loop.create_task(self._connect(pool, exchange))

    async def _connect(self, pool: Pool, exchange: Exchange) -> None:
        upstream = pool.upstream
        try:
            _, connection = await self.loop.create_connection(
                lambda: EngineConnection(self, pool), upstream.host, upstream.port, ssl=upstream.tls,
                server_hostname=(upstream.server_name or upstream.host) if upstream.tls else None,
            )  # fmt: skip
        except (OSError, ssl.SSLError):
            exchange.task = None
            exchange.failed(Outcome.REFUSED, clock.now())
            return
        exchange.reached(connection, clock.now())

    # what requests need

    def hop_of(self, head: Head, body: bytes) -> Hop | None:
        """Whose request this is that says it was spilled; None if that is not so."""
        if self.abroad is not None:
            return self.abroad.admit(head, body, clock.now())
        self.count("headrace_hops_rejected_total|unknown_origin")
        return None

    def trace_of(self, head: Head | None) -> Trace:
        """The caller's trace if it sent a valid one, and its word on whether that is sampled; else a new one, sampled by
        its id. Always a span of our own.
        """
        drawn = self._draw(256).to_bytes(32, "big").hex()
        if head is not None and head.traceparent:
            parent = parse_traceparent(head.traceparent)
            if parent is not None:
                state = extend(self.trace_state, head.tracestate) if head.tracestate else self.trace_state
                return Trace(parent.trace_id, drawn[:16], parent.span_id, parent.flags, state, drawn[16:32])
        return Trace(drawn[32:], drawn[:16], "", int(drawn[48:] < self.sampled), self.trace_state, drawn[16:32])

    def new_span_id(self) -> str:
        """16 hex digits, not all zero."""
        return "%016x" % (self._draw(64) or 1)

    def new_request_id(self) -> str:
        """32 hex digits."""
        return f"{self._draw(128):032x}"

    def tenant_of(self, source: bytes) -> str:
        """A keyed hash of the `source`: the bearer token, else the client's address."""
        tenant = self.tenants.get(source)
        if tenant is None:
            if len(self.tenants) >= KNOWN_TENANTS:
                self.tenants.clear()
            tenant = hashlib.blake2b(source, digest_size=8, key=self.site.secret[:64]).hexdigest()
            self.tenants[source] = tenant
        return tenant

    def identity(self, instance: str, reason: str, spilled: str = "") -> bytes:
        """The header lines that say where an answer comes from; `spilled`: the location, if it is another one."""
        lines = b"x-headrace-location: %b\r\nx-headrace-instance: %b\r\nx-headrace-reason: %b\r\n" % (
            self.site.location.encode(), instance.encode(), reason.encode(),
        )  # fmt: skip
        if spilled:
            return lines + b"x-headrace-spill: %b>%b\r\n" % (self.site.location.encode(), spilled.encode())
        self.identities[instance, reason] = lines
        return lines

    def observe_tpot(self, nanoseconds: int) -> None:
        """Feeds the mean time of an output token, by which answers that are not streamed are taken to progress."""
        self.tpot_ns += (nanoseconds - self.tpot_ns) // 16

    def count(self, key: str, n: int = 1) -> None:
        """Adds to a counter that the agent shows; `key` is "metric|label value"."""
        self.counters[key] = self.counters.get(key, 0) + n

    def take_records(self) -> list[Record]:
        """The records of all that has ended since the last call, and what it teaches. Made here, many at a time: one by
        one, between two reads of a socket, they cost three times as much.
        """
        taken, self.noted = self.noted, []
        ended, self.ended = self.ended, []
        for exchange in ended[:: 1 + len(ended) // LEARNED]:
            records.learn(exchange)
        for exchange in ended:
            if exchange.queued:
                records.settle(exchange)
            taken.append(records.of_exchange(exchange))
        return taken

    @property
    def unrecorded(self) -> int:
        """How many records `take_records` would give."""
        return len(self.ended) + len(self.noted)
