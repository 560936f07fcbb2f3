"""The record: what it is on the wire and as JSON."""

import msgspec

from telemetry.record import MOMENTS, Content, Record, as_dict, shift
from tests.support.records import attempt, record, refusal

decode_records = msgspec.msgpack.Decoder(list[Record]).decode


def test_wire() -> None:
    """Records come back as they were sent."""
    records = [record(), refusal(), record(attempts=[attempt("gpu-2", outcome="reset", status=0), attempt()])]
    assert records == decode_records(msgspec.msgpack.encode(records))


def test_a_shorter_record_is_read() -> None:
    """A field that an older worker does not know has its default: fields are only ever added at the end."""
    fields = msgspec.msgpack.decode(msgspec.msgpack.encode(record(queue_depth=9)))
    assert [record(queue_depth=0)] == decode_records(msgspec.msgpack.encode([fields[:-7]]))


def test_shift() -> None:
    """Moments that came move by the offset, those that never came stay 0; attempts move too."""
    before, moved = record(queued=0), record(queued=0)
    shift(moved, 7)
    assert [(t + 7 if t else 0) for t in (getattr(before, m) for m in MOMENTS)] == [getattr(moved, m) for m in MOMENTS]
    assert 0 == moved.queued
    assert before.attempts[0].start + 7 == moved.attempts[0].start
    assert before.attempts[0].end + 7 == moved.attempts[0].end


def test_as_dict() -> None:
    """Names instead of positions, in the attempts and the candidates too; JSON can hold all of it."""
    view = as_dict(record())
    assert ("gpu-1", 200) == (view["attempts"][0]["instance"], view["attempts"][0]["status"])
    second = {"instance": "gpu-2", "score": 0.5, "prefill": 300, "decode": 70, "background": 5, "phantom": 9}
    assert {**second, "kv_use": 0.2, "weight": 2.0} == view["candidates"][1]
    assert view == msgspec.json.decode(msgspec.json.encode(view))


def test_what_was_said_is_not_shown() -> None:
    """Content is for spans alone."""
    assert as_dict(record()) == as_dict(record(content=Content(b"sesame", b"open")))
