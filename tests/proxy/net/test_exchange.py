"""A request's way: retried before the first byte, told after it, and nothing left behind whatever happened."""

import asyncio
import json
from collections.abc import Callable

import msgspec
import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st

from balancer.budget import RetryBudget
from proxy.net.engine import EngineConnection
from proxy.net.site import Upstream
from tests.support.plane import (
    DONE,
    EVENT,
    LAST,
    STREAM_HEAD,
    USAGE,
    Bench,
    FakeTransport,
    answer,
    body_of,
    chunk,
    post,
)

SECOND = 1_000_000_000
UNSENDABLE = "\ud800"  # a name that no request can be made with: no config has it, it stands for any fault of ours


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


def test_a_spent_budget_retries_nothing() -> None:
    """Retries must not become a storm: beyond their budget the first failure is the client's answer."""
    bench = Bench()
    bench.router.budget = RetryBudget(0.0, 0.0)
    client, transport = bench.client()
    client.data_received(post())
    connection, _ = bench.engine_of(client)
    connection.data_received(answer(b"no", 500))
    assert transport.written.startswith(b"HTTP/1.1 502")
    assert b"x-headrace-attempts: 1" in transport.written
    assert 1 == bench.plane.counters["headrace_retry_budget_exhausted_total|server_error"]
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


@pytest.mark.parametrize(
    ("minor", "wire", "reset"),
    [
        (0, STREAM_HEAD.replace(b"text/event-stream", b"application/json") + chunk(b'{"half":'), True),
        (0, STREAM_HEAD + chunk(b"data: " + b"x" * 100_000), True),
        (0, STREAM_HEAD + chunk(EVENT), False),
        (1, STREAM_HEAD.replace(b"text/event-stream", b"application/json") + chunk(b'{"half":'), False),
    ],
)
def test_half_an_answer_never_looks_whole(minor: int, wire: bytes, reset: bool) -> None:
    """HTTP/1.0 takes the connection's end for the answer's: where no event can say what happened, a reset must."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post(stream=True).replace(b"HTTP/1.1", b"HTTP/1.%d" % minor))
    connection, _ = bench.engine_of(client)
    connection.data_received(wire)
    connection.connection_lost(ConnectionResetError())
    assert (True, reset) == (transport.closed, transport.aborted)
    assert (EVENT in wire) is (b'data: {"error":' in transport.written)
    assert [("upstream_error", 200)] == records(bench)
    assert bench.clean


@pytest.fixture(scope="module")
def uv() -> None:
    """The first uvloop of a process opens a pipe for signals that stays: that is no test's leak."""
    uvloop.new_event_loop().close()


@pytest.mark.usefixtures("uv")
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_a_reset_is_one(loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """An aborted transport alone would end the connection as if all were well."""

    async def go() -> None:
        bench = Bench()
        server = await asyncio.get_running_loop().create_server(bench.plane.client_factory, "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            writer.write(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
            await reader.readuntil(b"ok\n")
            (client,) = bench.plane.open_clients
            client.reset()
            with pytest.raises(ConnectionResetError):
                await asyncio.wait_for(reader.read(), 10)
        finally:
            writer.close()
            server.close()
            await server.wait_closed()

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(go())


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


def test_an_answer_that_begins_for_who_does_not_read_is_not_read() -> None:
    """The client paused the attempt before this one: nobody told this engine's connection."""
    bench = Bench()
    client, _ = bench.client()
    client.data_received(post(stream=True))
    first, _ = bench.engine_of(client)
    client.pause_writing()
    first.data_received(answer(b"no", 500))
    connection, engine = bench.engine_of(client)
    assert engine.reading
    connection.data_received(STREAM_HEAD + chunk(EVENT))
    assert not engine.reading
    client.resume_writing()
    assert engine.reading


@pytest.mark.parametrize("request_number", [1, 2])
def test_the_way_a_request_came_goes_on(request_number: int) -> None:
    """Whom other proxies forwarded it for stands before whom we got it from, also by the short way."""
    bench = Bench()
    for _ in range(request_number):
        client, _ = bench.client()
        client.data_received(post(head=b"X-Forwarded-For: 203.0.113.9, 10.0.0.1\r\n"))
    _, engine = bench.engine_of(client)
    assert b"\r\nx-forwarded-for: 203.0.113.9, 10.0.0.1, 192.0.2.7\r\n" in engine.written
    assert 1 == engine.written.lower().count(b"x-forwarded-for")


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
    st.sampled_from(
        ["head", "event", "end", "lost", "error", "garbage", "gone", "stall", "busy", "reach", "refuse", "turn"]
    ),
    max_size=8,
)


def engine_moves(connection: EngineConnection, move: str) -> None:
    """What an engine does to the connection that carries a request."""
    if move == "head" and not connection.begun:
        connection.data_received(STREAM_HEAD)
    elif move == "event" and connection.begun:
        connection.data_received(chunk(EVENT))
    elif move == "end" and connection.begun:
        connection.data_received(LAST)
    elif move == "lost":
        connection.connection_lost(ConnectionResetError())
    elif move in ("error", "busy") and not connection.begun:
        connection.data_received(answer(b"", 500 if move == "error" else 429))
    elif move == "garbage":
        connection.data_received(b"\x00\r\n\r\n")


@given(MOVES, st.booleans(), st.integers(0, 2), st.sampled_from(["theirs", UNSENDABLE]))
def test_nothing_is_left_behind(moves: list[str], stream: bool, kept: int, theirs: str) -> None:
    """Any order of good and bad events, on kept connections and fresh ones: one outcome, and every count is back at 0."""
    bench = Bench(kept=kept, theirs=theirs)
    client, _ = bench.client()
    client.data_received(post(stream=stream))
    for move in [*moves, "gone"]:
        exchange = client.exchange
        if exchange is None:
            break
        if move == "stall":
            client.tick(bench.now + 400 * SECOND)
        elif move == "gone":
            client.connection_lost(None)
        elif move == "turn":
            bench.loop.turn()
        elif exchange.connection is not None:
            if exchange.connection.exchange is exchange:
                engine_moves(exchange.connection, move)
        elif move == "reach":
            bench.loop.dials[-1].reach()
        elif move == "refuse":
            bench.loop.dials[-1].refuse()
    bench.loop.turn()
    assert 1 == len(bench.plane.take_records())
    assert bench.clean
    assert not any(dial.pending for dial in bench.loop.dials)
    idle = sum(len(pool.idle) for pool in bench.plane.pools.values())
    assert idle <= 3 * kept + 1


@pytest.mark.parametrize("kept", [0, 1])
def test_a_fault_of_ours_ends_one_request(kept: int) -> None:
    """What cannot be sent, against all expectation, is answered; its connection is closed; no byte of it is reported."""
    bench = Bench(engines=1, kept=kept, theirs=UNSENDABLE)
    client, transport = bench.client()
    client.data_received(post(prompt="secret") + b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
    if not kept:
        bench.loop.dials[0].reach()
    assert client.exchange is not None
    connection, engine = bench.engine_of(client)
    assert b"" == transport.written
    bench.loop.turn()
    assert transport.written.startswith(b"HTTP/1.1 500")
    assert b"HTTP/1.1 200" in transport.written
    assert engine.aborted
    connection.connection_lost(None)
    assert [] == bench.plane.pools[0].idle
    assert ["UnicodeEncodeError" in report and "secret" not in report for report in bench.loop.reports] == [True]
    assert [("upstream_error", 500)] == records(bench)
    assert bench.clean


@pytest.mark.parametrize("upstreams", [Bench(theirs=UNSENDABLE).plane.site.upstreams, {"m": {}}])
def test_a_fault_of_ours_in_the_queue_is_nobody_elses(upstreams: dict[str, dict[int, Upstream]]) -> None:
    """Whose answer makes room for requests that cannot be sent gets it whole; each of them ends alone."""
    bench = Bench(engines=1, kept=2)
    first, transport = bench.client()
    first.data_received(post(prompt="x" * 60_000))
    queued = [bench.client() for _ in range(600)]
    for client, _ in queued:
        client.data_received(post(prompt="hi"))
    assert 600 == bench.plane.waiting
    connection, _ = bench.engine_of(first)
    bench.plane.configure(msgspec.structs.replace(bench.plane.site, upstreams=upstreams), bench.now)
    connection.data_received(answer())
    assert transport.written.startswith(b"HTTP/1.1 200")
    while bench.loop.soon:
        bench.loop.turn()
        for dial in bench.loop.dials:
            if dial.pending:
                dial.reach()
    assert {b"HTTP/1.1 500"} == {told.written[:12] for _, told in queued}
    assert bench.clean


def test_a_fresh_connection_may_be_lost_before_it_carries_anything() -> None:
    """Between its making and the sending nothing is known of it yet."""
    bench = Bench(kept=0)
    connection = EngineConnection(bench.plane, bench.plane.pools[0])
    connection.connection_made(FakeTransport())  # type: ignore[arg-type]
    connection.connection_lost(None)
    connection.release()
    assert connection.transport.is_closing()
    assert 0 == bench.plane.engine_connections
