"""From an ended request to its Record, and to what the estimator learns of it."""

from typing import TYPE_CHECKING

from balancer.model import Decision, Priority
from proxy.core.headers import Head
from telemetry.record import Record

if TYPE_CHECKING:
    from proxy.net.exchange import Exchange
    from proxy.net.plane import Plane

_ROUTES = {
    b"/v1/chat/completions": "/v1/chat/completions",
    b"/v1/completions": "/v1/completions",
    b"/v1/embeddings": "/v1/embeddings",
    b"/v1/responses": "/v1/responses",
    b"/v1/models": "/v1/models",
}


def route_of(path: bytes) -> str:
    """The path's pattern: never the raw path, which could hold anything."""
    bare = path.partition(b"?")[0]
    known = _ROUTES.get(bare)
    if known is not None:
        return known
    if bare.startswith(b"/v1/models/"):
        return "/v1/models/{id}"
    return "/v1/*" if bare.startswith(b"/v1/") else "other"


def of_exchange(exchange: "Exchange") -> Record:
    """The record of an exchange that has ended."""
    plane, head, ask, trace = exchange.plane, exchange.head, exchange.ask, exchange.trace
    offset = plane.offset
    relay = exchange.relay if exchange.first_byte else None
    usage = exchange.usage
    decision = exchange.decision
    counted = relay.events if relay is not None else 0

    for attempt in exchange.attempts:
        attempt.start += offset
        attempt.end += offset
    last = relay.last if relay is not None else 0
    return Record(
        exchange.request_id, trace.trace_id, trace.span_id, trace.parent_id, trace.flags, trace.state,
        plane.site.location, plane.worker, ask.tenant, head.method.decode(), route_of(head.path), ask.model, ask.stream,
        ask.priority, 0, ask.prompt_bytes, ask.max_tokens,
        decision.prompt_tokens if decision else 0, usage.prompt if usage else 0,
        decision.output_tokens if decision else 0, usage.output if usage else counted, usage.cached if usage else 0,
        exchange.accepted + offset,
        exchange.queued + offset if exchange.queued else 0,
        exchange.routed + offset if exchange.routed else 0,
        exchange.connected + offset if exchange.connected else 0,
        exchange.sent + offset if exchange.sent else 0,
        exchange.first_byte + offset if exchange.first_byte else 0,
        exchange.first_token + offset if exchange.first_token else 0,
        last + offset if last else 0,
        exchange.ended_at + offset,
        exchange.attempts, decision.candidates if decision else (), decision.reason if decision else "",
        decision.version if decision else 0, "", "", exchange.outcome, exchange.status,
        exchange.error.code if exchange.error else "", head.size + ask.prompt_bytes,
        exchange.bytes_out or (relay.bytes_out if relay is not None else 0), counted,
        relay.gap_max if relay is not None else 0, relay.gaps if relay is not None else 0, exchange.queue_depth,
    )  # fmt: skip


def of_refusal(  # noqa: PLR0913  each is a field of the record
    plane: "Plane",
    head: Head | None,
    tenant: str,
    request_id: str,
    status: int,
    outcome: str,
    error: str,
    accepted: int,
    now: int,
) -> Record:
    """The record of a request that never became an exchange: it was bad, or answered here."""
    trace = plane.trace_of(head)
    offset = plane.offset
    return Record(
        request_id or trace.trace_id, trace.trace_id, trace.span_id, trace.parent_id, trace.flags, trace.state,
        plane.site.location, plane.worker, tenant, head.method.decode() if head else "", route_of(head.path) if head else "other",
        "", False, Priority.NORMAL, 0, head.length if head else 0, 0, 0, 0, 0, 0, 0,
        accepted + offset, 0, 0, 0, 0, 0, 0, 0, now + offset, [], (), "", 0, "", "", outcome, status, error,
        head.size if head else 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def learn(exchange: "Exchange") -> None:
    """Teaches the estimator what a whole answer really was."""
    decision: Decision | None = exchange.decision
    if decision is None or exchange.outcome != "ok":
        return
    usage, events = exchange.usage, exchange.relay.events
    prompt, output = (usage.prompt, usage.output) if usage is not None else (0, 0)
    exchange.plane.router.learn(exchange.ask, prompt, output or events, events)
    if exchange.queued:
        exchange.plane.router.queue(exchange.ask.model).settle(
            exchange.ask.tenant, (output or events) - decision.output_tokens
        )
    relay = exchange.relay
    tokens = output or events
    if relay.first_token and tokens > 1:
        exchange.plane.observe_tpot((relay.last - relay.first_token) // (tokens - 1))
