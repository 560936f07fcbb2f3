"""From an ended request to its Record, and to what the estimator learns of it."""

from typing import TYPE_CHECKING

from balancer.model import Decision, Priority
from proxy.core.headers import Head
from proxy.net.relay import Whole
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


NOTHING = Whole(0, 0, b"")  # what a relay has counted that never was


def of_exchange(exchange: "Exchange") -> Record:
    """The record of an exchange that has ended. Times are still monotonic: the agent adds its batch's offset."""
    head, ask, trace, decision, usage = exchange.head, exchange.ask, exchange.trace, exchange.decision, exchange.usage
    relay = exchange.relay if exchange.first_byte else NOTHING
    events = relay.events
    if decision is not None:
        predicted, made, candidates, reason, version = (
            decision.prompt_tokens, decision.output_tokens, decision.candidates, decision.reason, decision.version,
        )  # fmt: skip
    else:
        predicted, made, candidates, reason, version = 0, 0, (), "", 0
    if usage is not None:
        prompt, output, cached = usage.prompt, usage.output, usage.cached
    else:
        prompt, output, cached = 0, events, 0
    plane = exchange.plane
    return Record(
        exchange.request_id, trace.trace_id, trace.span_id, trace.parent_id, trace.flags, trace.state,
        plane.site.location, plane.worker, ask.tenant, head.method.decode(), route_of(head.path), ask.model, ask.stream,
        ask.priority, 0, ask.prompt_bytes, ask.max_tokens, predicted, prompt, made, output, cached,
        exchange.accepted, exchange.queued, exchange.routed, exchange.connected, exchange.sent, exchange.first_byte,
        exchange.first_token, relay.last, exchange.ended_at, exchange.attempts, candidates, reason, version, "", "",
        exchange.outcome, exchange.status, exchange.error.code if exchange.error else "", exchange.bytes_in,
        exchange.bytes_out or relay.bytes_out, events, relay.gap_max, relay.gaps, exchange.queue_depth,
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
    return Record(
        request_id or trace.trace_id, trace.trace_id, trace.span_id, trace.parent_id, trace.flags, trace.state,
        plane.site.location, plane.worker, tenant, head.method.decode() if head else "", route_of(head.path) if head else "other",
        "", False, Priority.NORMAL, 0, head.length if head else 0, 0, 0, 0, 0, 0, 0,
        accepted, 0, 0, 0, 0, 0, 0, 0, now, [], (), "", 0, "", "", outcome, status, error,
        head.size if head else 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def tokens_of(exchange: "Exchange") -> tuple[int, int]:
    """Prompt and output tokens of a whole answer; the output counted by events where the engine did not say."""
    usage, events = exchange.usage, exchange.relay.events
    return (usage.prompt, usage.output or events) if usage is not None else (0, events)


def learn(exchange: "Exchange") -> None:
    """Teaches the estimator what a whole answer really was."""
    if exchange.decision is None or exchange.outcome != "ok":
        return
    relay, (prompt, output) = exchange.relay, tokens_of(exchange)
    exchange.plane.router.learn(exchange.ask, prompt, output, relay.events)
    if relay.first_token and output > 1:
        exchange.plane.observe_tpot((relay.last - relay.first_token) // (output - 1))


def settle(exchange: "Exchange") -> None:
    """Corrects what its tenant was charged for a request that had waited in the queue."""
    decision: Decision | None = exchange.decision
    if decision is not None and exchange.outcome == "ok":
        served = tokens_of(exchange)[1] - decision.output_tokens
        exchange.plane.router.queue(exchange.ask.model).settle(exchange.ask.tenant, served)
