"""The record: all that is known of one request when it has ended. One is made per request, never more.

Times are Unix nanoseconds, 0 where the moment never came. On the wire it is a msgpack array (`array_like`): field
order is the format, new fields go to the end with a default.
"""

from typing import Any

import msgspec

OUTCOMES = ("ok", "client_gone", "shed", "upstream_error", "timeout", "bad_request")

# instance, score (s), prefill, decode, background, phantom (tokens), kv_use, weight
CandidateRow = tuple[str, float, int, int, int, int, float, float]
CANDIDATE_FIELDS = ("instance", "score", "prefill", "decode", "background", "phantom", "kv_use", "weight")


class Phases(msgspec.Struct, array_like=True, frozen=True):
    """Whose time an attempt was, by the engine's own span; seconds."""

    queue: float
    prefill: float
    decode: float
    network: float  # the rest, before the first token of a stream
    span_id: str  # the engine's
    start: int  # Unix ns, by the engine's clock
    end: int


class Attempt(msgspec.Struct, array_like=True, gc=False):
    """One try at one instance. `status` is 0 if no answer's head came."""

    instance: str
    span_id: str  # 16 hex digits: the parent id the engine was told
    start: int
    end: int
    outcome: str  # a balancer Outcome
    status: int = 0
    connect_ns: int = 0  # time spent connecting; 0 on a pooled connection
    location: str = ""  # it went to another location: this one
    engine: Phases | None = None  # once the engine has told of it; workers never know


class Content(msgspec.Struct, array_like=True):
    """What was said, cut to size. `answer`: the bytes that went to the client, head and framing included."""

    prompt: bytes
    answer: bytes


class Record(msgspec.Struct, array_like=True):
    """See DESIGN 4.5."""

    request_id: str
    trace_id: str  # 32 hex digits
    span_id: str  # 16 hex digits: the server span
    parent_id: str  # the caller's span, or ""
    trace_flags: int
    tracestate: str
    location: str
    worker: int
    tenant: str  # keyed hash
    method: str
    route: str  # the path's pattern, never the raw path
    model: str  # canonical; "" if it was never known
    stream: bool
    priority: int
    hop: int
    prompt_bytes: int
    max_tokens: int  # 0: none given
    prompt_tokens_estimated: int
    prompt_tokens: int  # from usage; 0 if the engine said nothing
    output_tokens_predicted: int
    output_tokens: int  # from usage, else counted
    cached_tokens: int
    accepted: int  # the request's head was whole
    queued: int  # it began to wait
    routed: int  # the last decision was made
    connected: int
    sent: int
    first_byte: int  # of the answer's head
    first_token: int  # first event of a stream
    last_byte: int
    done: int
    attempts: list[Attempt]
    candidates: tuple[CandidateRow, ...]  # of the last decision
    reason: str
    table_version: int
    spill_from: str
    spill_to: str
    outcome: str  # one of OUTCOMES
    status: int  # what the client got; 0 if it left before
    error: str  # the error's code, or ""
    bytes_in: int
    bytes_out: int
    events: int  # SSE events relayed
    gap_max_ns: int  # longest silence between two pieces of a stream
    gaps_over_1s: int
    queue_depth: int = 0  # how many waited when it began to wait
    relayed: int = 0  # the answer's first bytes went to the client
    response_id: str = ""  # as the engine said, like the next two
    response_model: str = ""
    finish_reasons: tuple[str, ...] = ()
    client_address: str = ""
    content: Content | None = None  # only if the operator wants it in spans; never shown or kept otherwise


MOMENTS = (
    "accepted", "queued", "routed", "connected", "sent", "first_byte", "first_token", "last_byte", "done", "relayed",
)  # fmt: skip


def shift(record: Record, offset: int) -> None:
    """Adds to every moment that came: a worker writes monotonic times, which cost it less than Unix times would."""
    for name in MOMENTS:
        if moment := getattr(record, name):
            setattr(record, name, moment + offset)
    for attempt in record.attempts:
        attempt.start += offset
        attempt.end += offset


def as_dict(record: Record) -> dict[str, Any]:
    """A record with its field names, for JSON; without what was said."""
    view = msgspec.structs.asdict(record)
    del view["content"]
    view["finish_reasons"] = list(record.finish_reasons)
    view["attempts"] = [
        {**msgspec.structs.asdict(a), "engine": msgspec.structs.asdict(a.engine) if a.engine else None}
        for a in record.attempts
    ]
    view["candidates"] = [dict(zip(CANDIDATE_FIELDS, row, strict=True)) for row in record.candidates]
    return view
