"""A request's spans, as plain data from its record: what is exported, and what `headrace trace` draws. Pure.

    SERVER  POST /v1/chat/completions
    ├ INTERNAL headrace.admit         only if it waited in the queue
    ├ INTERNAL headrace.route         its last decision
    └ CLIENT chat {model}
      └ CLIENT POST                   one an attempt; below it what the engine, or the other location, says itself

The worker drew the ids of the server's span and of every attempt's, because others were told them; the rest follow
from the server's, so that the same record gives the same spans.
"""

from collections.abc import Mapping
from typing import Any

import msgspec

from telemetry import names
from telemetry.record import Attempt, Record

SERVER, INTERNAL, CLIENT = "server", "internal", "client"
PROVIDER = "openai"  # the API that is spoken
MS = 1e-6
MOST_SCORE = 1e6  # s: an infinite score (who has failed) is none that a backend can show
IDS = 1 << 64
UNHARMED = ("ok", "cancelled")  # outcomes of attempts that did not fail
FAULTS = ("upstream_error", "timeout")  # outcomes of requests that are errors, whatever their status
DECODE_SHARE = 0.5  # of a prompt token's work: an output token's, by the score

Addresses = Mapping[str, tuple[str, int]]  # host and port by instance


class Event(msgspec.Struct, frozen=True):
    """A moment of a span."""

    name: str
    at: int  # Unix ns


class Span(msgspec.Struct):
    """One span; times in Unix ns."""

    name: str
    kind: str
    span_id: str  # 16 hex digits
    parent_id: str  # "" for none
    start: int
    end: int
    attributes: dict[str, Any]
    events: list[Event] = []
    error: str = ""  # what went wrong; "" if nothing did
    links: tuple[tuple[str, str], ...] = ()  # trace and span id of others


def spans(record: Record, addresses: Addresses) -> list[Span]:
    """The spans of a request, parents first. `addresses`: of the instances; one that is not there has none."""
    made = [_server(record)]
    if record.queued:
        made.append(_admit(record))
    if record.routed:
        made.append(_route(record))
    if record.attempts:
        chat = _chat(record)
        made.append(chat)
        made += (_attempt(record, number, chat.span_id, addresses) for number in range(len(record.attempts)))
    return made


def engine_spans(record: Record) -> list[Span]:
    """What the engines have told themselves, to be drawn below their attempts; they export their spans on their own."""
    made = []
    for attempt in record.attempts:
        phases = attempt.engine
        if phases is not None:
            attributes = {
                names.ENGINE_QUEUE: phases.queue, names.ENGINE_PREFILL: phases.prefill, names.ENGINE_DECODE: phases.decode,
            }  # fmt: skip
            span_id, parent = phases.span_id, attempt.span_id
            made.append(Span("engine", SERVER, span_id, parent, phases.start, phases.end, attributes))
    return made


def failed(record: Record) -> bool:
    """Whether a request is an error: of ours or of an engine, not of its client, and not one that was shed."""
    return record.status >= 500 or record.outcome in FAULTS


def _own_id(record: Record, number: int) -> str:
    return f"{(int(record.span_id, 16) + number) % IDS or 1:016x}"


def _server(record: Record) -> Span:
    attributes = {
        names.HTTP_METHOD: record.method, names.HTTP_ROUTE: record.route, names.URL_PATH: record.route,
        names.HTTP_STATUS: record.status, names.CLIENT_ADDRESS: record.client_address, names.LOCATION: record.location,
        names.REQUEST_ID: record.request_id, names.OUTCOME: record.outcome, names.TENANT: record.tenant,
    }  # fmt: skip
    if record.error:
        attributes[names.ERROR_TYPE] = record.error
    events = [Event(names.CLIENT_GONE, record.done)] if record.outcome == "client_gone" else []
    error = (record.error or record.outcome) if failed(record) else ""
    name = f"{record.method} {record.route}".strip()
    return Span(
        name, SERVER, record.span_id, record.parent_id, record.accepted, record.done, _told(attributes), events, error
    )


def _admit(record: Record) -> Span:
    end = next((attempt.start for attempt in record.attempts if attempt.start >= record.queued), record.done)
    attributes = {
        names.QUEUE_WAIT_MS: round((end - record.queued) * MS, 3), names.QUEUE_DEPTH_THEN: record.queue_depth,
        names.PRIORITY: names.PRIORITIES[record.priority],
    }  # fmt: skip
    return Span("headrace.admit", INTERNAL, _own_id(record, 1), record.span_id, record.queued, end, attributes)


def _route(record: Record) -> Span:
    """The last decision; it begins where what came before has ended."""
    before = [attempt.end for attempt in record.attempts if attempt.end <= record.routed]
    waited = record.routed if record.accepted < record.queued <= record.routed else 0
    rows = record.candidates
    attributes = {
        names.ROUTE_POLICY: names.POLICY, names.ROUTE_REASON: record.reason, names.ROUTE_CANDIDATES: [r[0] for r in rows],
        names.ROUTE_SCORES: [round(min(r[1], MOST_SCORE), 6) for r in rows],
        names.ROUTE_TOKENS: [r[2] + DECODE_SHARE * r[3] for r in rows],
        names.ROUTE_WEIGHTS: [r[7] for r in rows], names.ROUTE_VERSION: record.table_version,
        names.ROUTE_SPILL: bool(record.spill_to) and not record.hop,
    }  # fmt: skip
    start = max(record.accepted, waited, *before) if before or waited else record.accepted
    return Span("headrace.route", INTERNAL, _own_id(record, 2), record.span_id, start, record.routed, attributes)


def _chat(record: Record) -> Span:
    operation = names.OPERATIONS.get(record.route, "other")
    first, last = record.attempts[0], record.attempts[-1]
    attributes: dict[str, Any] = {
        names.GEN_AI_OPERATION: operation, names.GEN_AI_PROVIDER: PROVIDER, names.GEN_AI_MODEL: record.model,
        names.GEN_AI_STREAM: record.stream, names.GEN_AI_MAX_TOKENS: record.max_tokens,
        names.GEN_AI_RESPONSE_MODEL: record.response_model, names.GEN_AI_RESPONSE_ID: record.response_id,
        names.GEN_AI_FINISH_REASONS: list(record.finish_reasons), names.GEN_AI_INPUT_TOKENS: record.prompt_tokens,
        names.GEN_AI_OUTPUT_TOKENS: record.output_tokens, names.GEN_AI_CACHED_TOKENS: record.cached_tokens,
        names.ATTEMPTS: len(record.attempts),
    }  # fmt: skip
    events = []
    if record.first_token:
        attributes[names.GEN_AI_FIRST_CHUNK] = round((record.first_token - first.start) / 1e9, 6)
        events.append(Event(names.FIRST_TOKEN, record.first_token))
        if record.output_tokens > 1:
            mean = (record.last_byte - record.first_token) / (record.output_tokens - 1)
            attributes[names.TPOT_MS] = round(mean * MS, 3)
    if record.gaps_over_1s:
        events.append(Event(names.STREAM_STALL, record.last_byte))
    error = (record.error or record.outcome) if failed(record) else ""
    if error:
        attributes[names.ERROR_TYPE] = error
    name = f"{operation} {record.model}"
    return Span(
        name, CLIENT, _own_id(record, 3), record.span_id, first.start, last.end, _told(attributes), events, error
    )


def _attempt(record: Record, number: int, parent: str, addresses: Addresses) -> Span:
    attempt: Attempt = record.attempts[number]
    host, port = addresses.get(attempt.instance, ("", 0))
    attributes: dict[str, Any] = {
        names.HTTP_METHOD: record.method, names.SERVER_ADDRESS: host, names.SERVER_PORT: port, names.PROTOCOL_NAME: "http",
        names.PROTOCOL_VERSION: "1.1", names.HTTP_STATUS: attempt.status, names.INSTANCE: attempt.instance,
    }  # fmt: skip
    if number:
        attributes[names.HTTP_RESENDS] = number
        attributes[names.RETRY_REASON] = record.attempts[number - 1].outcome
    if attempt.location:
        attributes |= {names.SPILL_FROM: record.location, names.SPILL_TO: attempt.location, names.SPILL_HOP: 1}
    error = "" if attempt.outcome in UNHARMED else attempt.outcome
    if error:
        attributes[names.ERROR_TYPE] = str(attempt.status) if attempt.status >= 400 else error
    events = [Event(names.UPSTREAM_RESET, attempt.end)] if attempt.outcome == "reset" else []
    return Span(
        record.method, CLIENT, attempt.span_id, parent, attempt.start, attempt.end, _told(attributes), events, error
    )


def _told(attributes: dict[str, Any]) -> dict[str, Any]:
    """What is known of them: no empty text, no count of nothing where nothing was said."""
    return {key: value for key, value in attributes.items() if value or isinstance(value, bool)}
