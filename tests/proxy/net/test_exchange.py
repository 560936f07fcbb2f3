"""A request's way: retried before the first byte, told after it, and nothing left behind whatever happened."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from balancer.model import Outcome
from tests.support.plane import DONE, EVENT, LAST, STREAM_HEAD, USAGE, Bench, answer, body_of, chunk, post

SECOND = 1_000_000_000


def records(bench: Bench) -> list[tuple[str, int]]:
    return [(record.outcome, record.status) for record in bench.plane.take_records()]


def test_a_stream() -> None:
    """Events go on as they are; the usage event that only we asked for does not; the record knows the tokens."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post(stream=True))
    connection, engine = bench.engine_of(client)
    assert b'"stream_options":{"include_usage":true}' in engine.written
    connection.data_received(STREAM_HEAD + chunk(EVENT))
    connection.data_received(chunk(EVENT) + chunk(USAGE + DONE) + LAST)
    assert EVENT + EVENT + DONE == body_of(transport.written)
    assert transport.written.endswith(LAST)
    (record,) = bench.plane.take_records()
    assert ("ok", 200, 5, 2, True) == (
        record.outcome,
        record.status,
        record.prompt_tokens,
        record.output_tokens,
        record.stream,
    )
    assert bench.clean


def test_usage_that_was_asked_for_goes_on() -> None:
    """A client that wants usage gets it."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post(stream=True, stream_options={"include_usage": True}))
    connection, _ = bench.engine_of(client)
    connection.data_received(STREAM_HEAD + chunk(EVENT + USAGE + DONE) + LAST)
    assert EVENT + USAGE + DONE == body_of(transport.written)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_failed_attempt_is_hidden(status: int) -> None:
    """Another instance answers, never the same."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    first, _ = bench.engine_of(client)
    first.data_received(answer(b"no", status))
    second, _ = bench.engine_of(client)
    assert first.pool is not second.pool
    second.data_received(answer())
    assert transport.written.startswith(b"HTTP/1.1 200")
    assert b"x-headrace-attempts: 2" in transport.written
    (record,) = bench.plane.take_records()
    assert [status, 200] == [attempt.status for attempt in record.attempts]
    assert bench.clean


def test_all_fail() -> None:
    """One clear error when three attempts are spent; the client should not try again at once."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    for _ in range(3):
        connection, _ = bench.engine_of(client)
        connection.data_received(answer(b"no", 500))
    assert transport.written.startswith(b"HTTP/1.1 502")
    assert b"x-should-retry: false" in transport.written
    assert "upstream_error" == json.loads(transport.written.partition(b"\r\n\r\n")[2])["error"]["code"]
    assert [("upstream_error", 502)] == records(bench)
    assert bench.clean


def test_a_clients_own_fault_is_passed_on() -> None:
    """4xx of the engine is the client's answer, and counts against nobody."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    connection, _ = bench.engine_of(client)
    connection.data_received(answer(b'{"error":1}', 422))
    assert transport.written.startswith(b"HTTP/1.1 422")
    assert transport.written.endswith(b'{"error":1}')
    assert [("bad_request", 422)] == records(bench)


def test_death_after_the_first_byte() -> None:
    """The client hears of it inside the stream, without [DONE] and without a proper end."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post(stream=True))
    connection, _ = bench.engine_of(client)
    connection.data_received(STREAM_HEAD + chunk(EVENT + b"data: half"))
    connection.connection_lost(None)
    _, _, rest = transport.written.partition(b"\r\n\r\n")
    assert b"half" not in rest
    assert b'data: {"error":' in rest
    assert not rest.endswith(LAST)
    assert transport.closed
    assert [("upstream_error", 200)] == records(bench)
    assert bench.clean


def test_garbage_is_another_instances_turn() -> None:
    """What is not HTTP never reaches the client."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    first, engine = bench.engine_of(client)
    first.data_received(b"\x00 not http\r\n\r\n")
    assert engine.aborted
    second, _ = bench.engine_of(client)
    second.data_received(answer())
    assert transport.written.startswith(b"HTTP/1.1 200")


def test_a_client_that_leaves() -> None:
    """The engine's work is stopped at once, its tokens leave the ledger, the outcome says so."""
    bench = Bench()
    client, _ = bench.client()
    client.data_received(post(stream=True))
    connection, engine = bench.engine_of(client)
    connection.data_received(STREAM_HEAD + chunk(EVENT))
    client.connection_lost(None)
    assert engine.aborted
    assert [("client_gone", 200)] == records(bench)
    assert bench.clean


def test_no_instance() -> None:
    """Nobody is ready: 503, with a time to come back."""
    bench = Bench(engines=0)
    client, transport = bench.client()
    client.data_received(post())
    assert transport.written.startswith(b"HTTP/1.1 503")
    assert b"retry-after" in transport.written
    assert [("shed", 503)] == records(bench)


def test_backpressure() -> None:
    """A client that does not read pauses its engine."""
    bench = Bench()
    client, _ = bench.client()
    client.data_received(post(stream=True))
    connection, engine = bench.engine_of(client)
    connection.data_received(STREAM_HEAD + chunk(EVENT))
    client.pause_writing()
    assert not engine.reading
    client.resume_writing()
    assert engine.reading


@pytest.mark.parametrize("known", [False, True])
def test_who_does_not_read_stops_nobody_elses_answer(known: bool) -> None:
    """The last bytes of an answer were too many for its client: the engine's connection is kept, and is read."""
    bench = Bench(engines=1)
    if known:
        first, _ = bench.client()
        first.data_received(post())
        bench.engine_of(first)[0].data_received(answer())
    client, transport = bench.client()
    client.data_received(post())
    connection, engine = bench.engine_of(client)
    transport.write = lambda data: client.pause_writing()  # type: ignore[method-assign]
    connection.data_received(answer())
    assert connection is bench.plane.pools[0].idle[-1]
    assert engine.reading


MOVES = st.lists(
    st.sampled_from(["head", "event", "end", "lost", "error", "garbage", "gone", "stall", "busy"]), max_size=8
)


@given(MOVES, st.booleans())
def test_nothing_is_left_behind(moves: list[str], stream: bool) -> None:  # noqa: C901  a list of moves
    """Any order of good and bad events: one outcome, and every count is back at 0."""
    bench = Bench()
    client, _ = bench.client()
    client.data_received(post(stream=stream))
    for move in [*moves, "gone"]:
        if client.exchange is None:
            break
        connection, _ = bench.engine_of(client)
        if move == "head" and not connection.begun:
            connection.data_received(STREAM_HEAD)
        elif move == "event" and connection.begun:
            connection.data_received(chunk(EVENT))
        elif move == "end" and connection.begun:
            connection.data_received(LAST)
        elif move == "lost":
            connection.exchange = None
            client.exchange.failed(Outcome.RESET, bench.now)
        elif move in ("error", "busy") and not connection.begun:
            connection.data_received(answer(b"", 500 if move == "error" else 429))
        elif move == "garbage":
            connection.data_received(b"\x00\r\n\r\n")
        elif move == "stall":
            client.tick(bench.now + 400 * SECOND)
        elif move == "gone":
            client.connection_lost(None)
    assert 1 == len(bench.plane.take_records())
    assert bench.clean
