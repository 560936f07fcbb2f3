"""Silence: what ends a request, what a client hears, and what the balancer does."""

import pytest

from proxy.core.settings import Limits
from tests.support.plane import DONE, EVENT, LAST, STREAM_HEAD, Bench, body_of, chunk, post

SECOND = 1_000_000_000


def test_stalls() -> None:
    """No first byte in time is a 504; silence inside a stream ends it with an event."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    client.tick(bench.now + 400 * SECOND)
    assert transport.written.startswith(b"HTTP/1.1 504")
    client, transport = bench.client()
    client.data_received(post(stream=True))
    connection, _ = bench.engine_of(client)
    connection.data_received(STREAM_HEAD + chunk(EVENT))
    client.tick(bench.now + 400 * SECOND)
    assert b'data: {"error":' in transport.written
    assert [("timeout", 504), ("timeout", 200)] == [(r.outcome, r.status) for r in bench.plane.take_records()]
    assert bench.clean


def test_a_stream_without_a_first_token_counts_once_against_its_instance_and_goes_on() -> None:
    """Three of them eject it, long before a timeout; the first token makes up for it."""
    bench = Bench()
    clients = []
    while len(clients) < 3:
        client, transport = bench.client()
        client.data_received(post(stream=True))
        connection, _ = bench.engine_of(client)
        if client.exchange is not None and client.exchange.upstream.name == "one":
            clients.append((client, connection, transport))
        else:
            connection.data_received(STREAM_HEAD + chunk(EVENT))
    assert client.exchange is not None
    assert client.exchange.decision is not None
    late = client.exchange.sent + SECOND
    bench.plane.notice(client.exchange.sent + SECOND // 2)
    assert not bench.router.health.out
    bench.plane.notice(late + SECOND)
    bench.plane.notice(late + 2 * SECOND)
    assert bench.router.health.notes[0].failures == 3
    assert bench.router.health.out == {0}
    client, connection, transport = clients[0]
    connection.data_received(STREAM_HEAD + chunk(EVENT + DONE) + LAST)
    assert EVENT + DONE == body_of(transport.written)


def test_who_is_not_streamed_or_still_connecting_is_not_noticed() -> None:
    bench = Bench()
    client, _ = bench.client()
    client.data_received(post())
    bench.plane.notice(bench.now + 100 * SECOND)
    assert not bench.router.health.notes


def test_waiting_is_said() -> None:
    """Ten silent seconds of a begun stream: a comment of one line, no empty event."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post(stream=True))
    connection, _ = bench.engine_of(client)
    connection.data_received(STREAM_HEAD)
    transport.take()
    client.tick(bench.now + 12 * SECOND)
    assert chunk(b": waiting\n") == transport.written


@pytest.mark.parametrize("begun", [False, True])
def test_a_request_has_its_time(begun: bool) -> None:
    """However well its answer flows: after `request_timeout` it ends."""
    bench = Bench(Limits(request_timeout=20.0))
    client, transport = bench.client()
    client.data_received(post(stream=True))
    exchange, (connection, _) = client.exchange, bench.engine_of(client)
    assert exchange is not None
    if begun:
        connection.data_received(STREAM_HEAD + chunk(EVENT))
        exchange.relay.last += 20 * SECOND
    transport.take()
    client.tick(exchange.accepted + 20 * SECOND)
    assert b"" == transport.written
    client.tick(exchange.accepted + 21 * SECOND)
    assert (b'data: {"error":' in transport.written, transport.written.startswith(b"HTTP/1.1 504")) == (
        begun,
        not begun,
    )
    assert ["timeout"] == [record.outcome for record in bench.plane.take_records()]
    assert bench.clean


def test_an_engine_is_not_late_for_who_does_not_read() -> None:
    """While its client is paused an engine is not read, so its silence is ours: nor is there anything to say of it."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post(stream=True))
    connection, _ = bench.engine_of(client)
    connection.data_received(STREAM_HEAD + chunk(EVENT))
    assert client.exchange is not None
    client.exchange.relay.last -= 100 * SECOND
    client.pause_writing()
    transport.take()
    client.tick(client.since + 299 * SECOND)
    assert (b"", False) == (transport.written, transport.closed)
    client.resume_writing()
    client.tick(client.since + 299 * SECOND)
    assert b'data: {"error":' in transport.written


def test_an_unstreamed_request_stays_on_the_ledger_while_it_connects() -> None:
    """Its time begins when it is sent: an engine that accepts slowly must not look empty."""
    bench = Bench(engines=1, kept=0)
    bench.plane.connect = lambda pool, exchange: None  # type: ignore[method-assign,assignment,return-value]
    client, _ = bench.client()
    client.data_received(post(prompt="x" * 4000))
    before = list(bench.cells)
    assert before[0] > 0
    client.tick(bench.now + 2 * SECOND)
    assert before == bench.cells
