"""One request's way through a worker. `proxy.core.exchange` says what an event means; here it is done.

The life of its parts: a Lease from the decision to the attempt's end; an engine's connection from the sending to the
answer's end; a Relay from the answer's head; one Record at the end, whatever the end was.
"""

import asyncio
from typing import TYPE_CHECKING

from balancer.admit import Waiter
from balancer.ledger import Lease
from balancer.model import Ask, Decision, Outcome, Shut
from proxy.core import errors, heads
from proxy.core.deadline import WAITING_COMMENT_NS
from proxy.core.exchange import ROWS, Action, Event, State, impossible
from proxy.core.headers import Head
from proxy.core.request import Fields, asks_usage, rewrite
from proxy.core.retry import may_retry, of_status
from proxy.core.sse import EventStream, Usage
from proxy.net.engine import EngineConnection
from proxy.net.relay import Relay, Whole
from proxy.net.site import Upstream
from telemetry.record import Attempt

if TYPE_CHECKING:
    from proxy.net.client import Client
    from proxy.net.plane import Plane


class Exchange:
    """One request and all that is known of it until its record is written. Times are monotonic ns."""

    __slots__ = (
        "accepted", "add_usage", "ask", "attempt_start", "attempts", "body", "bytes_in", "bytes_out", "client", "connect_ns",
        "connected", "connection", "decision", "ended_at", "error", "fields", "first_byte", "first_token", "head", "lease",
        "noticed", "outcome", "plane", "queue_depth", "queued", "relay", "reported", "request_id", "routed", "sent", "since",
        "span_id", "state", "status", "task", "trace", "tried", "upstream", "usage", "waiter",
    )  # fmt: skip

    relay: Relay
    upstream: Upstream
    outcome: str
    ended_at: int

    def __init__(
        self,
        plane: "Plane",
        client: "Client",
        head: Head,
        body: bytes,
        fields: Fields,
        ask: Ask,
        now: int,
        bytes_in: int,
    ) -> None:
        self.plane, self.client = plane, client
        self.head, self.body, self.fields, self.ask = head, body, fields, ask
        self.trace = plane.trace_of(head)
        self.request_id = head.request_id.decode() or self.trace.trace_id
        self.state = State.ROUTING
        self.add_usage = ask.stream and not asks_usage(fields) and heads.has_usage_option(head.path)
        self.accepted = self.since = now
        self.bytes_in = bytes_in  # head and body
        self.queued = self.routed = self.connected = self.sent = self.first_byte = self.first_token = 0
        self.attempt_start = self.connect_ns = self.queue_depth = self.bytes_out = 0
        self.attempts: list[Attempt] = []
        self.tried: tuple[int, ...] = ()
        self.decision: Decision | None = None
        self.lease: Lease | None = None
        self.connection: EngineConnection | None = None
        self.task: asyncio.Task[None] | None = None
        self.waiter: Waiter | None = None
        self.error: errors.ProxyError | None = None
        self.usage: Usage | None = None
        self.status = 0
        self.span_id = ""
        self.reported = False

    # routing

    def start(self, now: int) -> None:
        """Routes for the first time: to an instance, into the queue, or to an error."""
        plane = self.plane
        if (plane.waiting or plane.router.shared) and plane.router.crowded(self.ask.model):
            self._enqueue(now)  # others came first
            plane.admit(now)
            return
        found = plane.router.route(self.ask, now)
        if type(found) is Decision:
            self._place(found, now)
        elif found is Shut.SATURATED:
            self._enqueue(now)
        else:
            self._refuse(errors.NoInstance(self.ask.model), now)

    def admitted(self, decision: Decision, now: int) -> None:
        """The queue's turn has come to it."""
        self._left_queue()
        self._place(decision, now)

    def _enqueue(self, now: int) -> None:
        plane = self.plane
        self._to(Event.SATURATED)
        self.queue_depth = plane.waiting + plane.queued_elsewhere
        waiter, (refusal, displaced) = plane.router.enqueue(self.ask, now, self, plane.queued_elsewhere)
        if refusal is not None:
            self._refuse(errors.saturated(self.ask.model, refusal.reason, refusal.retry_after), now)
            return
        self.waiter = waiter
        plane.waiting += 1
        self.queued = self.since = now
        if displaced is not None:
            other = displaced.request
            assert isinstance(other, Exchange)  # noqa: S101
            other.put_out("displaced", max(1.0, plane.router.queue(self.ask.model).wait(now, displaced.priority)), now)

    def _left_queue(self) -> None:
        self.waiter = None
        self.plane.waiting -= 1

    def put_out(self, reason: str, retry_after: float, now: int) -> None:
        """It may wait in the queue no longer."""
        self._left_queue()
        self._refuse(errors.saturated(self.ask.model, reason, retry_after), now)

    def _place(self, decision: Decision, now: int) -> None:
        """Takes a share of the instance's ledger and a connection to it."""
        self._to(Event.CHOSEN)
        cell = decision.instance.cell
        self.decision, self.routed = decision, now
        self.tried += (cell,)
        self.lease = self.plane.router.open(self.ask, decision, now)
        self.reported = self.noticed = False
        self.upstream = self.plane.site.upstreams[self.ask.model][cell]
        self.span_id = self.plane.new_span_id()
        self.attempt_start = self.since = now
        self.connect_ns = 0
        pool = self.plane.pools[cell]
        connection = pool.take()
        if connection is not None:
            self._send(connection, now)
        else:
            self.task = self.plane.connect(pool, self)

    # towards the engine

    def reached(self, connection: EngineConnection, now: int) -> None:
        """A new connection is there."""
        self.task = None
        self.connect_ns = now - self.attempt_start
        self._send(connection, now)

    def _send(self, connection: EngineConnection, now: int) -> None:
        self._to(Event.CONNECTED)
        self.connection = connection
        self.connected = self.sent = self.since = now
        upstream = self.upstream
        body = self.body
        if self.add_usage or upstream.model != self.fields.model:
            body = rewrite(body, self.fields, upstream.model, self.add_usage)
        connection.send(
            self, heads.to_engine(self.head, upstream, self.plane.site.location, self._context(), len(body)) + body
        )

    def _context(self) -> bytes:
        """The header lines that name this client and this attempt."""
        trace = self.trace
        lines = b"x-forwarded-for: %b\r\nx-forwarded-proto: %b\r\nx-request-id: %b\r\ntraceparent: 00-%b-%b-%02x\r\n" % (
            self.client.forwarded_for(self.head), self.client.scheme, self.request_id.encode(),
            trace.trace_id.encode(), self.span_id.encode(), trace.flags,
        )  # fmt: skip
        return lines + b"tracestate: %b\r\n" % trace.state.encode() if trace.state else lines

    # from the engine

    def stale(self, now: int) -> None:
        """The kept connection had been closed: the same instance again, by a new one."""
        self._to(Event.STALE)
        self.connection = None
        self.since = now
        self.task = self.plane.connect(self.plane.pools[self.tried[-1]], self)

    def whole(self, connection: EngineConnection, answer: heads.Answer, body: bytes, now: int) -> None:
        """The short way of an answer that came in one piece, is no stream, and whose head's like was read before."""
        self._to(Event.HEAD)
        self.first_byte = now
        self.status = connection.status
        text = self._answer_head(answer, heads.Framing.LENGTH) + body
        self.client.transport.write(text)
        self.relay = Whole(now, len(text), body)
        self._to(Event.END)
        self._finish(now)

    def answered(self, connection: EngineConnection, now: int) -> bool:
        """The answer's head is there. False: it does not go to the client, and the connection is no longer ours."""
        outcome = of_status(connection.status)
        if outcome is Outcome.SERVER_ERROR or outcome is Outcome.SATURATED:
            self.connection = None
            connection.keep = False
            connection.release()
            self.failed(outcome, now, connection.status)
            return False
        self._to(Event.HEAD)
        self.first_byte = self.since = now
        self.status = connection.status
        lease = self.lease
        assert lease is not None  # noqa: S101
        answer = connection.answer()
        framing = heads.framing(connection.status, answer, self.head.minor)
        if framing is heads.Framing.CLOSE:
            self.client.keep_alive = False
        self.relay = Relay(
            self.client.transport.write, self._answer_head(answer, framing), framing is heads.Framing.CHUNKED,
            EventStream(self.add_usage) if answer.events else None, lease, self._first_token, now,
        )  # fmt: skip
        self.body = b""  # there is no way back: a stream must not hold its prompt for as long as it lasts
        if self.client.paused:
            connection.transport.pause_reading()
        return True

    def _answer_head(self, answer: heads.Answer, framing: heads.Framing) -> bytes:
        decision = self.decision
        assert decision is not None  # noqa: S101
        queue = (self.routed - self.queued) / 1e6 if self.queued else 0.0
        route = (self.attempt_start - self.accepted) / 1e6 - queue
        identity = b"x-request-id: %b\r\n%bx-headrace-attempts: %d\r\n" % (
            self.request_id.encode(), self.plane.identity(self.upstream.name, decision.reason), len(self.attempts) + 1,
        )  # fmt: skip
        return heads.to_client(
            self.status, answer, framing, self.client.connection_line(), identity,
            (queue, route, self.connect_ns / 1e6, (self.first_byte - self.accepted) / 1e6),
        )  # fmt: skip

    def _first_token(self, now: int) -> None:
        assert self.lease is not None  # noqa: S101
        self.first_token = now
        self.lease.first_token()
        assert self.decision is not None  # noqa: S101
        self.plane.router.first_token(self.decision, now - self.sent)
        self._report(Outcome.OK, now)
        if self.plane.waiting:
            self.plane.admit(now)

    def ended(self, rest: bytes, now: int) -> None:
        """The answer is whole."""
        self._to(Event.END)
        self.relay.end(rest, now)
        self._finish(now)

    def _finish(self, now: int) -> None:
        self.usage = self.relay.usage
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.release()
        outcome = of_status(self.status)
        self._end_attempt(outcome, self.status, now)
        self._close("ok" if outcome is Outcome.OK else "bad_request", now)
        self.client.done(self.client.keep_alive)

    def failed(self, outcome: Outcome, now: int, status: int = 0) -> None:
        """The attempt failed: before the first byte another may follow, afterwards the client is told."""
        action = self._to(Event.FAILED)
        self._drop_connection()
        if action is Action.BREAK:
            self.usage = self.relay.usage
        self._end_attempt(outcome, status, now)
        if action is Action.BREAK:
            self._break(outcome, now)
            return
        error = errors.spent(outcome, ((a.instance, a.status or a.outcome) for a in self.attempts))
        if may_retry(outcome, len(self.attempts)):
            if self.plane.router.budget.take(now):
                found = self.plane.router.route(self.ask, now, self.tried, admit=False)
                if type(found) is Decision:
                    self.plane.count("headrace_retries_total|" + outcome)
                    self._place(found, now)
                    return
            else:
                self.plane.count("headrace_retry_budget_exhausted_total|" + outcome)
        self._refuse(error, now)

    def _break(self, outcome: Outcome, now: int) -> None:
        self.error = errors.StreamBroken(
            f"The engine {self.upstream.name} failed in the middle of its answer ({outcome})."
        )
        self.plane.count("headrace_stream_interruptions_total|engine:" + outcome)
        self.relay.break_off(self.error.event())
        self._close("timeout" if outcome is Outcome.STALLED else "upstream_error", now)
        self.client.done(False)

    # ends

    def _refuse(self, error: errors.ProxyError, now: int) -> None:
        self._to(Event.REFUSED)
        self.error = error
        self.status = error.http_status
        self.bytes_out = self.client.answer_error(error, self.request_id, len(self.attempts))
        self._close(error.outcome, now)
        self.client.done(self.client.keep_alive)

    def abandoned(self, now: int) -> None:
        """The client is gone: the engine's work is stopped and its tokens leave the ledger."""
        self._to(Event.CLIENT_GONE)
        if self.waiter is not None:
            self.plane.router.queue(self.ask.model).drop(self.waiter)
            self._left_queue()
        if self.task is not None:
            self.task.cancel()
            self.task = None
        if self.lease is not None:
            if self.first_byte:
                self.plane.count("headrace_stream_interruptions_total|client:gone")
            self._drop_connection()
            self._end_attempt(Outcome.CANCELLED, self.status, now)
        self._close("client_gone", now)

    def _drop_connection(self) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.keep = False
            connection.release()

    def _end_attempt(self, outcome: Outcome, status: int, now: int) -> None:
        assert self.lease is not None  # noqa: S101
        self.lease.release()
        self.lease = None
        self.attempts.append(
            Attempt(self.upstream.name, self.span_id, self.attempt_start, now, outcome, status, self.connect_ns)
        )
        self._report(outcome, now)

    def _report(self, outcome: Outcome, now: int) -> None:
        """Tells the balancer how the attempt went: well once, badly always."""
        if outcome is Outcome.OK or outcome is Outcome.CANCELLED:
            if self.reported:
                return
            self.reported = True
        decision = self.decision
        assert decision is not None  # noqa: S101
        self.plane.router.report(self.tried[-1], outcome, now, decision.reason not in ("p2c", "only"))

    def _close(self, outcome: str, now: int) -> None:
        self.outcome, self.ended_at = outcome, now
        plane = self.plane
        plane.active -= 1
        plane.ended.append(self)
        if plane.waiting:
            plane.admit(now)

    def _to(self, event: Event) -> Action:
        self.state, action = ROWS[self.state][event] or impossible(self.state, event)
        return action

    # the sweep

    def tick(self, now: int) -> None:
        """Once a second: silence that lasts too long ends it, shorter silence is filled with a comment."""
        deadlines = self.plane.deadlines
        state = self.state
        if now - self.accepted > deadlines.request and state in (State.CONNECTING, State.SENT, State.RELAYING):
            self._timeout(now)
            return
        if state is State.RELAYING:
            self._tick_relay(now)
        elif deadlines.stalled(state, self.since, now):
            self._timeout(now)
        elif self.lease is not None and not self.ask.stream:
            self._elapse(now)

    def _tick_relay(self, now: int) -> None:
        relay = self.relay
        if self.client.paused:
            return
        if self.plane.deadlines.stalled(State.RELAYING, relay.last, now):
            self._timeout(now)
        elif relay.commentable and now - relay.last > WAITING_COMMENT_NS and now - self.since > WAITING_COMMENT_NS:
            self.since = now
            relay.comment()

    def _elapse(self, now: int) -> None:
        assert self.lease is not None  # noqa: S101
        assert self.decision is not None  # noqa: S101
        self.lease.elapse(now - self.sent, int(self.decision.ttft * 1e9), self.plane.tpot_ns)

    def notice(self, now: int) -> None:
        """Four times a second while there is no first token: the balancer hears once of an attempt that seems stalled."""
        decision = self.decision
        if decision is None or self.noticed or not self.ask.stream or self.lease is None or self.task is not None:
            return
        if self.plane.router.overdue(self.ask, decision, now - self.sent):
            self.noticed = True
            self._report(Outcome.STALLED, now)

    def _timeout(self, now: int) -> None:
        if self.task is not None:
            self.task.cancel()
            self.task = None
            self.failed(Outcome.REFUSED, now)
        else:
            self.failed(Outcome.STALLED, now)
