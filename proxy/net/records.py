"""From an ended request to its Record, and to what the estimator learns of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

from balancer.model import Decision, Priority
from proxy.core.headers import Head
from proxy.core.sse import Said, Usage, read_body, usage_in_body
from telemetry.record import Content, Record

MOST_CONTENT = 65536  # bytes of a prompt, and of an answer

if TYPE_CHECKING:
    from proxy.net.exchange import Exchange
    from proxy.net.plane import Plane


def of_exchange(exchange: "Exchange") -> Record:
    """The record of an exchange that has ended. Times are still monotonic: the agent adds its batch's offset."""
    head, ask, trace, decision, relay = exchange.head, exchange.ask, exchange.trace, exchange.decision, exchange.relay
    usage, said = told_by(exchange)
    if relay is not None:
        events, last, sent, gap_max, gaps = relay.events, relay.last, relay.bytes_out, relay.gap_max, relay.gaps
    else:
        events, last, sent, gap_max, gaps = 0, exchange.first_byte, 0, 0, 0
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
    if exchange.hop is not None:
        crossing = exchange.hop.origin, exchange.hop.target
    else:
        crossing = (plane.site.location, exchange.spilled) if exchange.spilled else ("", "")
    return Record(
        exchange.request_id, trace.trace_id, trace.span_id, trace.parent_id, trace.flags, trace.state,
        plane.site.location, plane.worker, ask.tenant, head.method.decode(), head.route.pattern, ask.model, ask.stream,
        ask.priority, int(exchange.hop is not None), ask.prompt_bytes, ask.max_tokens, predicted, prompt, made, output, cached,
        exchange.accepted, exchange.queued, exchange.routed, exchange.connected, exchange.sent, exchange.first_byte,
        exchange.first_token, last, exchange.ended_at, exchange.attempts, candidates, reason, version, *crossing,
        exchange.outcome, exchange.status, exchange.error.code if exchange.error else "", exchange.bytes_in,
        exchange.bytes_out or sent, events, gap_max, gaps, exchange.queue_depth,
        exchange.relayed, said.id, said.model, said.finish_reasons, exchange.client.address,
        None if exchange.kept is None else content_of(exchange.kept, exchange.answer),
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
        plane.site.location, plane.worker, tenant, head.method.decode() if head else "", head.route.pattern if head else "other",
        "", False, Priority.NORMAL, 0, head.length if head else 0, 0, 0, 0, 0, 0, 0,
        accepted, 0, 0, 0, 0, 0, 0, 0, now, [], (), "", 0, "", "", outcome, status, error,
        head.size if head else 0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def usage_of(exchange: "Exchange") -> Usage | None:
    """What the engine said of its tokens, if it did."""
    if exchange.relay is not None:
        return exchange.relay.usage
    return usage_in_body(exchange.answer) if exchange.answer else None


NOTHING: tuple[None, Said] = (None, Said())


def told_by(exchange: "Exchange") -> tuple[Usage | None, Said]:
    """What the answer said of its tokens and of itself."""
    relay = exchange.relay
    if relay is None:
        return read_body(exchange.answer) if exchange.answer else NOTHING
    if relay.stream is not None:
        return relay.stream.usage, relay.stream.said
    return read_body(relay.tail) if relay.tail else NOTHING


def content_of(kept: "Kept", whole: bytes) -> Content:
    """What was said; `whole`: the body of an answer that did not come in pieces."""
    return Content(kept.prompt, kept.answer or whole[:MOST_CONTENT])


class Kept:
    """What is said in a request whose content is wanted: the prompt and what goes to the client, cut to size."""

    def __init__(self, prompt: bytes, write: Callable[[bytes], None]) -> None:
        self.prompt = prompt[:MOST_CONTENT]
        self.answer = b""
        self._write = write

    def write(self, data: bytes) -> None:
        """Sends on, and keeps."""
        if len(self.answer) < MOST_CONTENT:
            self.answer += data[: MOST_CONTENT - len(self.answer)]
        self._write(data)


def tokens_of(exchange: "Exchange") -> tuple[int, int, int]:
    """Prompt and output tokens of an answer, and the events of its stream, by which output is counted where the engine did
    not say.
    """
    usage, events = usage_of(exchange), exchange.relay.events if exchange.relay is not None else 0
    return (usage.prompt, usage.output or events, events) if usage is not None else (0, events, events)


def learn(exchange: "Exchange") -> None:
    """Teaches the estimator what a whole answer really was."""
    if exchange.decision is None or exchange.outcome != "ok":
        return
    prompt, output, events = tokens_of(exchange)
    exchange.plane.router.learn(exchange.ask, prompt, output, events)
    if exchange.first_token and output > 1:
        tpot = (exchange.relay.last - exchange.first_token) // (output - 1)
        exchange.plane.observe_tpot(tpot)
        if exchange.plane.abroad is not None and not exchange.spilled:
            exchange.plane.abroad.observe(exchange.ask.model, exchange.tried[-1], tpot * 1e-9)


def settle(exchange: "Exchange") -> None:
    """Corrects what its tenant was charged for a request that had waited in the queue."""
    decision: Decision | None = exchange.decision
    if decision is not None and exchange.outcome == "ok":
        served = tokens_of(exchange)[1] - decision.output_tokens
        exchange.plane.router.settle(exchange.ask, served)
