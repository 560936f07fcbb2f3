"""An engine's own spans and our attempts, joined: whose time was it? Pure.

An engine names our attempt as its span's parent, because we told it so. Either may be heard of first: an engine exports in
batches, some seconds late. Both are remembered, each so many; what never finds its other half is forgotten.
"""

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import msgspec

from telemetry import names
from telemetry.record import Attempt, Phases, Record

MOST = 10_000  # attempts, and engine spans, that wait for each other


class EngineSpan(msgspec.Struct, frozen=True):
    """What a span of an engine says of one request."""

    span_id: str
    parent_id: str  # our attempt
    start: int  # Unix ns, by the engine's clock
    end: int
    queue: float  # s
    prefill: float
    decode: float


class Joined(NamedTuple):
    """An attempt whose engine has told of it; its `engine` is filled in."""

    record: Record
    attempt: Attempt


class Join:
    """What waits for its other half."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._attempts: OrderedDict[str, Joined] = OrderedDict()
        self._early: OrderedDict[str, EngineSpan] = OrderedDict()

    def add_record(self, record: Record) -> Iterator[Joined]:
        """Those of a request's attempts whose engine was heard of before."""
        for attempt in record.attempts:
            joined = Joined(record, attempt)
            if (span := self._early.pop(attempt.span_id, None)) is not None:
                yield _fill(joined, span)
            else:
                _keep(self._attempts, attempt.span_id, joined, self._most)

    def add_spans(self, spans: Iterable[EngineSpan]) -> Iterator[Joined]:
        """The attempts that these speak of, of those that were heard of before."""
        for span in spans:
            if (joined := self._attempts.pop(span.parent_id, None)) is not None:
                yield _fill(joined, span)
            else:
                _keep(self._early, span.parent_id, span, self._most)


def _keep(kept: "OrderedDict[str, Any]", key: str, value: object, most: int) -> None:
    kept[key] = value
    if len(kept) > most:
        kept.popitem(last=False)


def _fill(joined: Joined, span: EngineSpan) -> Joined:
    """The network's time is what the engine's does not explain, by durations alone: clocks may differ."""
    record, attempt = joined
    sent = attempt.start + attempt.connect_ns
    if record.first_token and attempt is record.attempts[-1]:
        network = (record.first_token - sent) / 1e9 - span.queue - span.prefill
    else:
        network = (attempt.end - sent - (span.end - span.start)) / 1e9
    attempt.engine = Phases(
        span.queue, span.prefill, span.decode, max(0.0, network), span.span_id, span.start, span.end
    )
    return joined


def engine_span(span_id: bytes, parent_id: bytes, start: int, end: int, said: Mapping[str, float]) -> EngineSpan | None:
    """An engine's span as read from OTLP; None if it says nothing of its phases, or nonsense."""
    known = (names.ENGINE_QUEUE, names.ENGINE_PREFILL, names.ENGINE_DECODE)
    times = [said.get(name, 0.0) for name in known]
    if not any(name in said for name in known) or len(parent_id) != 8 or len(span_id) != 8 or not 0 < start <= end:
        return None
    if not all(0 <= seconds < 86_400 for seconds in times):
        return None
    return EngineSpan(span_id.hex(), parent_id.hex(), start, end, *times)
