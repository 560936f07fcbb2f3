"""The pump: one write a piece, counters on the side."""

from balancer.ledger import WIDTH, Ledger
from proxy.core.sse import EventStream
from proxy.net.relay import Relay
from tests.support.plane import DONE, EVENT, LAST, USAGE, chunk

SECOND = 1_000_000_000


def relay(stream: bool = True, chunked: bool = True) -> tuple[Relay, list[bytes], Ledger, list[int]]:
    writes: list[bytes] = []
    first: list[int] = []
    ledger = Ledger([0] * WIDTH)
    lease = ledger.acquire(0, 5, 100, [1] * 64)
    return (
        Relay(writes.append, b"HEAD", chunked, EventStream(True) if stream else None, lease, first.append, 0),
        writes,
        ledger,
        first,
    )


def test_one_write_a_piece() -> None:
    """Head and first events in one write, then one a piece, the end with the last."""
    pump, writes, ledger, first = relay()
    pump.pump(EVENT + EVENT, 10)
    pump.pump(EVENT, 20)
    pump.end(DONE, 30)
    assert [b"HEAD" + chunk(EVENT + EVENT), chunk(EVENT), chunk(DONE) + LAST] == writes
    assert [10] == first
    assert (4, 96) == (pump.events, ledger.outstanding(0)[1])
    assert sum(map(len, writes)) == pump.bytes_out


def test_half_an_event_waits() -> None:
    """Nothing is written for half an event."""
    pump, writes, _, first = relay()
    pump.pump(EVENT[:10], 10)
    assert [b"HEAD"] == writes
    assert [] == first
    pump.pump(EVENT[10:], 20)
    assert chunk(EVENT) == writes[1]


def test_the_short_way() -> None:
    """A chunk of whole events goes on as it came, once the first token has gone the long way; counted all the same."""
    pump, writes, ledger, _ = relay()
    assert not pump.forward(chunk(EVENT), 5)
    pump.pump(EVENT, 10)
    for moment in range(20, 29):
        assert pump.forward(chunk(EVENT + EVENT), moment)
    assert [chunk(EVENT + EVENT)] * 9 == writes[1:]
    assert (19, 28, sum(map(len, writes))) == (pump.events, pump.last, pump.bytes_out)
    assert ledger.outstanding(0)[1] < 90


def test_the_short_way_counts_events_only() -> None:
    """Not comments; each of several in one chunk, whatever ends them."""
    pump, _, _, _ = relay()
    pump.pump(EVENT, 10)
    assert pump.forward(chunk(b": ping\n\n"), 20)
    assert 1 == pump.events
    assert pump.forward(chunk(EVENT[:-2] + b"\r\n\r\n" + EVENT), 30)
    assert 3 == pump.events


def test_the_short_way_is_not_for_all() -> None:
    """Not while half an event is kept back, not for usage, not for a client of HTTP/1.0."""
    pump, _, _, _ = relay()
    pump.pump(EVENT + EVENT[:9], 10)
    assert not pump.forward(chunk(EVENT), 20)
    pump.pump(EVENT[9:], 30)
    assert not pump.forward(chunk(USAGE), 40)
    assert pump.forward(chunk(EVENT), 50)
    old, _, _, _ = relay(chunked=False)
    old.pump(EVENT, 10)
    assert not old.forward(chunk(EVENT), 20)


def test_silences() -> None:
    """The longest silence, and how many were over a second."""
    pump, _, _, _ = relay()
    for moment in (1, 4, 5, 8):
        pump.pump(EVENT, moment * SECOND)
    assert (3 * SECOND, 2) == (pump.gap_max, pump.gaps)


def test_not_a_stream() -> None:
    """Any other body goes through as it is; usage is read from its end."""
    pump, writes, _, _ = relay(stream=False, chunked=False)
    pump.pump(b'{"x":"' + b"y" * 9000, 1)
    pump.end(b'","usage":{"prompt_tokens":3,"completion_tokens":4}}', 2)
    assert b"HEAD" == writes[0][:4]
    assert pump.usage is not None
    assert (3, 4) == (pump.usage.prompt, pump.usage.output)


def test_nothing_of_ours_inside_an_event() -> None:
    """While part of a large event has gone on, neither comment nor error may follow it."""
    pump, writes, _, _ = relay()
    pump.pump(b"data: " + b"x" * 100_000, 1)
    before = len(writes)
    assert not pump.commentable
    pump.break_off(b"data: {}\n\n")
    assert before == len(writes)
