"""One request's way through a worker. `proxy.core.exchange` says what an event means; here it is done.

The life of its parts: a Lease from the decision to the attempt's end; an engine's connection from the sending to the
answer's end; a Relay from the answer's head; one Record at the end, whatever the end was.
"""

import asyncio
from typing import TYPE_CHECKING

import msgspec

from balancer.admit import Waiter
from balancer.ledger import Lease
from balancer.model import Ask, Decision, Outcome, Shut
from balancer.spill import Forward
from proxy.core import errors, heads
from proxy.core.exchange import ROWS, Action, Event, State, impossible
from proxy.core.headers import Head
from proxy.core.hop import Hop
from proxy.core.request import Fields, rewrite
from proxy.core.retry import may_retry, of_status
from proxy.core.sse import EventStream
from proxy.net import clock
from proxy.net.abroad import Abroad
from proxy.net.engine import EngineConnection, Pool
from proxy.net.records import Kept
from proxy.net.relay import Relay
from proxy.net.site import Upstream
from telemetry.context import SAMPLED, Trace
from telemetry.record import Attempt

if TYPE_CHECKING:
    from proxy.net.client import Client
    from proxy.net.plane import Plane

OK = Outcome.OK  # an enum's member costs as much to look up as four dictionary entries
ROUTING, RELAYING, ENDED = State.ROUTING, State.RELAYING, State.ENDED
NOT_THERE = frozenset({401, 403, 404, 405, 413, 431})  # what another location answers for not being set up as this one
CHOSEN, CONNECTED, HEAD, END = Event.CHOSEN, Event.CONNECTED, Event.HEAD, Event.END


class Exchange(msgspec.Struct, eq=False):
    """One request and all that is known of it until its record is written. Times are monotonic ns, 0: never.

    A Struct, because its constructor is C: forty slots set in Python cost more than the routing.
    """

    plane: "Plane"
    client: "Client"
    head: Head
    body: bytes
    fields: Fields
    ask: Ask
    trace: Trace
    request_id: str
    add_usage: bool  # its stream did not ask for usage
    bytes_in: int  # head and body
    accepted: int  # its head was whole
    since: int  # the last thing happened
    queued: int = 0
    routed: int = 0
    connected: int = 0
    sent: int = 0
    first_byte: int = 0
    first_token: int = 0
    ended_at: int = 0
    attempt_start: int = 0
    connect_ns: int = 0
    queue_depth: int = 0
    bytes_out: int = 0
    status: int = 0
    state: State = ROUTING
    span_id: str = ""  # of the attempt
    outcome: str = ""
    attempts: list[Attempt] = []
    tried: tuple[int, ...] = ()
    decision: Decision | None = None
    lease: Lease | None = None
    connection: EngineConnection | None = None
    task: asyncio.Task[None] | None = None
    waiter: Waiter | None = None
    error: errors.ProxyError | None = None
    relay: Relay = None  # type: ignore[assignment]  # from the answer's head on, unless it came whole
    answer: bytes = b""  # a whole answer's body
    upstream: Upstream = None  # type: ignore[assignment]  # from the first decision on
    reported: bool = False
    noticed: bool = False
    hop: Hop | None = None  # another location spilled it to this one
    spilled: str = ""  # the location that has it, if it is another one
    forward: Forward | None = None
    been: tuple[str, ...] = ()  # locations that it was sent to
    there: str = ""  # the instance that answered, as that location says
    relayed: int = 0  # the answer's first bytes went to the client
    kept: Kept | None = None  # what is said, if the operator wants it in spans

    # routing

    def start(self, now: int) -> None:
        """Routes for the first time: to another location, an instance, into the queue, or to an error."""
        abroad = self.plane.abroad
        if abroad is not None and self._abroad(abroad, now):
            return
        self._start_here(now)

    def _abroad(self, abroad: Abroad, now: int) -> bool:
        """What other locations have to do with it: True if it was refused to one, or sent to one."""
        if self.hop is not None:
            if reason := abroad.refuses(self.ask, self.hop, now):
                self.plane.count(f"headrace_spill_refused_total|{self.hop.origin}:{self.hop.target}:{reason}")
                self._refuse(errors.SpillRefused(self.plane.site.location, reason), now)
                return True
            return False
        return not self.head.hop and self._leave(abroad, now)

    def _leave(self, abroad: Abroad, now: int, *, gone: bool = False) -> bool:
        """Sends it to another location, if that is better; `gone`: nobody here takes it."""
        verdict, prompt, output = abroad.choose(self.ask, now, self.been, gone=gone)
        location = verdict.location
        if not location:
            return False
        self.spilled = location
        self.been += (location,)
        self.forward = abroad.forwarded(self.ask.model, location, prompt, now)
        self._place(abroad.decision(verdict, prompt, output), now)
        return True

    def _start_here(self, now: int) -> None:
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
            plane.put_out(other, "displaced", now)

    def _left_queue(self) -> None:
        self.waiter = None
        self.plane.waiting -= 1

    def put_out(self, reason: str, now: int) -> None:
        """It may wait in the queue no longer."""
        self._left_queue()
        router, model = self.plane.router, self.ask.model
        if router.serves(model):
            self._refuse(errors.saturated(model, reason, max(1.0, router.wait(self.ask, now))), now)
        else:
            self._refuse(errors.NoInstance(model), now)

    def _place(self, decision: Decision, now: int) -> None:
        """Takes a share of the instance's ledger and a connection to it."""
        self.state = ROWS[self.state][CHOSEN][0]  # type: ignore[index]
        plane, ask, cell = self.plane, self.ask, decision.instance.cell
        self.decision = decision
        try:
            if self.spilled:
                self.upstream = plane.site.remotes[self.spilled]
            else:
                self.upstream = plane.site.upstreams[ask.model][cell]
                if plane.abroad is not None:
                    plane.abroad.placed(ask.model, decision.prompt_tokens, decision.output_tokens)
            self.lease = plane.router.open(ask, decision, now)
            if self.tried:
                self.reported = self.noticed = False
                self.connect_ns = 0
                self.span_id = plane.new_span_id()
            else:
                self.span_id = self.trace.attempt_id
            self.tried += (cell,)
            self.routed = self.attempt_start = self.since = now
            pool = plane.pools[cell]
            connection = pool.take()
            if connection is not None:
                self._send(connection, now)
            else:
                self.task = plane.connect(pool, self)
        except Exception as error:  # noqa: BLE001  who called may be in the middle of somebody else's request
            plane.fault(self, error, now)

    # towards the engine

    def reached(self, connection: EngineConnection, now: int) -> None:
        """A new connection is there."""
        self.task = None
        self.connect_ns = now - self.attempt_start
        try:
            self._send(connection, now)
        except Exception as error:  # noqa: BLE001  nobody hears of what ends the task that called
            self.plane.fault(self, error, now)

    def faulted(self, now: int) -> None:
        """It could not be sent, through an error of ours, which another attempt would only meet again."""
        if self.state is State.CONNECTING or self.state is State.SENT:  # else it has ended meanwhile
            self._to(Event.FAILED)
            self._drop_connection()
            if self.lease is not None:
                self._end_attempt(Outcome.CANCELLED, 0, now)
            self._refuse(errors.Fault(), now)

    def _send(self, connection: EngineConnection, now: int) -> None:
        self.state = ROWS[self.state][CONNECTED][0]  # type: ignore[index]
        self.connection = connection
        self.connected = self.sent = self.since = now
        plane, upstream, trace, body = self.plane, self.upstream, self.trace, self.body
        model = upstream.model or self.ask.model
        if self.add_usage or model != self.fields.model:
            body = rewrite(body, self.fields, model, self.add_usage)
        # who tries again or spills keeps its trace, whatever its share: the engine's spans belong to it
        flags = trace.flags if len(self.tried) == 1 and not self.spilled else trace.flags | SAMPLED
        ids = (
            f"x-request-id: {self.request_id}\r\ntraceparent: 00-{trace.trace_id}-{self.span_id}-{flags:02x}\r\n"
            f"tracestate: {trace.state}\r\n"
        )
        head, client = self.head, self.client
        origin = client.origin_of(head) if head.forwarded_for else client.origin
        context = origin + ids.encode()
        if self.spilled and plane.abroad is not None:
            context += plane.abroad.sign(upstream, self.ask, self.request_id, head, body, now)
        connection.send(self, heads.to_engine(head, upstream, context, body))

    # from the engine

    def stale(self, pool: Pool, now: int) -> None:
        """The kept connection had been closed: the same instance again, by a new one, even if it just left the config."""
        self._to(Event.STALE)
        self.connection = None
        self.since = now
        self.task = self.plane.connect(pool, self)

    def whole(self, answer: heads.Answer, body: bytes, now: int) -> None:
        """The short way of a 200 that came in one piece, is no stream, and whose head's like was read before."""
        self.state = ROWS[ROWS[self.state][HEAD][0]][END][0]  # type: ignore[index]
        self.first_byte = now
        self.status = 200
        self.answer = body
        text = heads.whole(answer, self._lines(), body)
        self.bytes_out = len(text)
        self.client.transport.write(text)
        self.relayed = clock.now()
        self._finish(OK, now)

    def answered(self, connection: EngineConnection, now: int) -> bool:
        """The answer's head is there. False: it does not go to the client, and the connection is no longer ours."""
        outcome = of_status(connection.status)
        if self.spilled:
            self.there = f"{self.spilled}/{connection.header(b'x-headrace-instance')}"
            if connection.status in NOT_THERE:
                outcome = Outcome.SERVER_ERROR
        if outcome is Outcome.SERVER_ERROR or outcome is Outcome.SATURATED:
            self.connection = None
            connection.keep = (
                connection.keep and connection.complete and bool(self.spilled)
            )  # a refusal ends no connection
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
            self.client.transport.write if self.kept is None else self.kept.write,
            heads.to_client(self.status, answer, framing, self._lines()),
            framing is heads.Framing.CHUNKED,
            EventStream(self.add_usage) if answer.events else None, lease, self._first_token, now,
        )  # fmt: skip
        self.body = b""  # there is no way back: a stream must not hold its prompt for as long as it lasts
        if self.client.paused:
            connection.pause()
        return True

    def _lines(self) -> bytes:
        """Our own lines of the answer's head."""
        accepted, decision, plane, client = self.accepted, self.decision, self.plane, self.client
        assert decision is not None  # noqa: S101
        if self.spilled:
            identity: bytes | None = plane.identity(self.there, decision.reason, self.spilled)
        else:
            identity = plane.identities.get((self.upstream.name, decision.reason))
        queue = (self.routed - self.queued) / 1e6 if self.queued else 0.0
        return b"%b%bx-request-id: %b\r\nx-headrace-attempts: %d\r\n%b" % (
            b"" if client.keep_alive and self.head.minor and not plane.draining else client.connection_line(self.head),
            identity or plane.identity(self.upstream.name, decision.reason),
            self.request_id.encode(), len(self.tried),
            heads.timing(
                queue, (self.attempt_start - accepted) / 1e6 - queue, self.connect_ns / 1e6, (self.first_byte - accepted) / 1e6
            ),
        )  # fmt: skip

    def _first_token(self, now: int) -> None:
        assert self.lease is not None  # noqa: S101
        self.first_token = now
        self.lease.first_token()
        assert self.decision is not None  # noqa: S101
        self.plane.router.first_token(self.decision, now - self.sent)
        self.report(OK, now)
        if self.plane.waiting:
            self.plane.admit(now)

    def ended(self, rest: bytes, now: int) -> None:
        """The answer is whole."""
        self._to(Event.END)
        self.relay.end(rest, now)
        self._finish(of_status(self.status), now)

    def _finish(self, outcome: Outcome, now: int) -> None:
        connection, self.connection = self.connection, None
        if connection is not None:
            connection.release()
        self._end_attempt(outcome, self.status, now)
        self._close("ok" if outcome is OK else "bad_request", now)
        self.client.done()

    def failed(self, outcome: Outcome, now: int, status: int = 0) -> None:
        """The attempt failed: before the first byte another may follow, afterwards the client is told."""
        action = self._to(Event.FAILED)
        spilled = self.spilled
        self._drop_connection()
        self._end_attempt(outcome, status, now)
        if spilled and action is not Action.BREAK:
            self._come_back(outcome, status, now)
            return
        if action is Action.BREAK:
            self._break(outcome, now)
            return
        wait = self.plane.router.wait(self.ask, now)
        error = errors.spent(outcome, ((a.instance, a.status or a.outcome) for a in self.attempts), wait)
        if may_retry(outcome, len(self.attempts)):
            found = self.plane.router.route(self.ask, now, self.tried, admit=False)
            if type(found) is Decision:
                if self.plane.router.budget.take(now):
                    self.plane.count("headrace_retries_total|" + outcome)
                    self._place(found, now)
                    return
                self.plane.count("headrace_retry_budget_exhausted_total|" + outcome)
            elif self._rescued(outcome, now):
                return
        self._refuse(error, now)

    def _rescued(self, outcome: Outcome, now: int) -> bool:
        """Sends it to another location after all instances here have failed; their probes may not have noticed yet."""
        plane, model = self.plane, self.ask.model
        if plane.abroad is None or self.been or self.head.hop or not plane.router.serves(model):
            return False
        if not plane.router.budget.take(now):
            return False
        plane.count("headrace_retries_total|" + outcome)
        return self._leave(plane.abroad, now, gone=True)

    def _come_back(self, outcome: Outcome, status: int, now: int) -> None:
        """The other location did not take it: it is placed here, or tried once elsewhere if nobody here takes it."""
        location, self.spilled = self.spilled, ""
        how = "refused" if outcome is Outcome.SATURATED else "failed"
        self.plane.count(f"headrace_spill_total|{self.plane.site.location}:{location}:{how}")
        plane, model = self.plane, self.ask.model
        abroad = plane.abroad
        if not plane.router.serves(model):  # it left the config meanwhile
            self._refuse(errors.NoInstance(model), now)
            return
        if len(self.been) == 1 and abroad is not None and abroad.here(model, now).instances == 0:
            if self._leave(abroad, now):
                return
            self._refuse(errors.spent(outcome, ((a.instance, a.status or a.outcome) for a in self.attempts)), now)
            return
        self._start_here(now)

    def _break(self, outcome: Outcome, now: int) -> None:
        self.error = errors.StreamBroken(
            f"The engine {self.upstream.name} failed in the middle of its answer ({outcome})."
        )
        self.plane.count("headrace_stream_interruptions_total|engine:" + outcome)
        if not self.relay.break_off(self.error.event()) and not self.head.minor:
            self.client.reset()
        self._close("timeout" if outcome is Outcome.STALLED else "upstream_error", now)
        self.client.keep_alive = False
        self.client.done()

    # ends

    def _refuse(self, error: errors.ProxyError, now: int) -> None:
        self._to(Event.REFUSED)
        self.error = error
        self.status = error.http_status
        self.bytes_out = self.client.answer_error(error, self.request_id, len(self.attempts))
        self._close(error.outcome, now)
        self.client.done()

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
        if self.spilled and self.forward is not None and self.plane.abroad is not None:
            self.plane.abroad.ended(self.ask.model, self.spilled, self.forward, outcome, now)
            self.forward = None
            if self.first_byte:
                self.plane.count(f"headrace_spill_total|{self.plane.site.location}:{self.spilled}:answered")
        self.attempts.append(
            Attempt(
                self.upstream.name,
                self.span_id,
                self.attempt_start,
                now,
                outcome,
                status,
                self.connect_ns,
                self.spilled,
            )
        )
        if outcome is not OK or self.tried[-1] in self.plane.router.health.notes:
            self.report(outcome, now)

    def report(self, outcome: Outcome, now: int) -> None:
        """Tells the balancer how the attempt went: well once, badly always."""
        if outcome is OK or outcome is Outcome.CANCELLED:
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
