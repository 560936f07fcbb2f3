"""Engine connections: kept when an answer left no doubt, closed otherwise."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.core.settings import Limits
from proxy.net.engine import EngineConnection
from proxy.net.exchange import Exchange
from proxy.net.site import Site
from tests.support.plane import DONE, EVENT, LAST, STREAM_HEAD, Bench, FakeTransport, answer, body_of, chunk, post


def serve(wire: bytes) -> tuple[Bench, bool, bytes]:
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    connection, engine = bench.engine_of(client)
    for byte in wire:
        if connection.exchange is None:
            break
        connection.data_received(bytes([byte]))
    return bench, engine.aborted, transport.written


def refused(wire: bytes, size: int) -> None:
    """Asserts that an engine's answer is garbage, in pieces of `size`: another instance's turn."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    connection, engine = bench.engine_of(client)
    for start in range(0, len(wire), size):
        if connection.exchange is not None:
            connection.data_received(wire[start : start + size])
    assert engine.aborted
    assert b"" == transport.written
    bench.engine_of(client)[0].data_received(answer())
    (record,) = bench.plane.take_records()
    assert ["garbage", "ok"] == [attempt.outcome for attempt in record.attempts]
    assert bench.clean


def test_byte_by_byte() -> None:
    """An answer in single bytes arrives whole, and its connection is kept."""
    bench, aborted, written = serve(answer(b"hello"))
    assert written.endswith(b"hello")
    assert not aborted
    assert bench.clean


def test_doubt_closes() -> None:
    """Who says close is not used again."""
    _, aborted, written = serve(answer(b"ok", head=b"connection: close\r\n"))
    assert aborted
    assert b"ok" == body_of(written)


@pytest.mark.parametrize(
    ("lines", "body"),
    [
        (b"transfer-encoding: chunked\r\ncontent-length: 2\r\n", chunk(b"ok") + LAST),
        (b"content-length: 12\r\ntransfer-encoding: chunked\r\n", chunk(b"ok") + LAST),
        (b"content-length: 2\r\ncontent-length: 3\r\n", b"ok"),
        (b"content-length: 2\r\ncontent-length: 2\r\n", b"ok"),
        (b"content-length: 2, 2\r\n", b"ok"),
        (b"content-length: +2\r\n", b"ok"),
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_two_framings_are_garbage(lines: bytes, body: bytes, size: int) -> None:
    """Who frames in two ways is not used again, and nothing of it goes on."""
    refused(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n" + body, size)


@pytest.mark.parametrize(
    "lines",
    [
        b"transfer-encoding: gzip, chunked\r\n",
        b"transfer-encoding: gzip\r\n",
        b"transfer-encoding: identity\r\n",
        b"transfer-encoding: chunked, chunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n",
        b"transfer-encoding: chunked\r\ntransfer-encoding: gzip\r\n",
        b"transfer-encoding: chunked\t\r\n",
        b"transfer-encoding:\r\n",
    ],
)
@pytest.mark.parametrize("size", [1, 1000])
def test_other_codings_are_garbage(lines: bytes, size: int) -> None:
    """A body that we could not read is not passed on as if we had."""
    refused(b"HTTP/1.1 200 OK\r\n" + lines + b"\r\n" + chunk(b"ok") + LAST, size)


@pytest.mark.parametrize("value", [b"chunked", b"Chunked", b"CHUNKED"])
def test_chunked_in_any_case(value: bytes) -> None:
    """The one coding that there is."""
    _, aborted, written = serve(b"HTTP/1.1 200 OK\r\ntransfer-encoding: %b\r\n\r\n" % value + chunk(b"ok") + LAST)
    assert b"ok" == body_of(written)
    assert not aborted


@pytest.mark.parametrize("cut", [0, 20, -1])
def test_an_engines_trailers_are_no_head(cut: int) -> None:
    """Lines after the body do not go on, be they in one piece with the head; nor do those of a 1xx."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    connection, engine = bench.engine_of(client)
    head = b"HTTP/1.1 103 Early Hints\r\nx-early: 1\r\n\r\nHTTP/1.1 200 OK\r\nx-own: 1\r\n"
    body = b"transfer-encoding: chunked\r\n\r\n" + chunk(b"ok") + b"0\r\nx-late: 1\r\nconnection: x-own\r\n\r\n"
    wire = head + body
    for piece in (wire[:cut], wire[cut:]):
        if piece:
            connection.data_received(piece)
    told = transport.written.partition(b"\r\n\r\n")[0]
    assert (1, 0, 0) == (told.count(b"x-own"), told.count(b"x-late"), told.count(b"x-early"))
    assert b"ok" == body_of(transport.written)
    assert not engine.aborted


def test_a_second_answer_is_not_delivered() -> None:
    """Bytes beyond the answer reach nobody, and the connection is closed."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    connection, engine = bench.engine_of(client)
    connection.data_received(answer(b"mine") + answer(b"smuggled"))
    assert b"smuggled" not in transport.written
    assert engine.aborted


def test_unasked_bytes_close_a_kept_connection() -> None:
    """An engine that speaks out of turn is out of step."""
    bench = Bench()
    connection = bench.keep(0)
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\n")
    assert connection.transport.is_closing()


def test_informational_answers_are_skipped() -> None:
    """100 Continue is no answer."""
    _, _, written = serve(b"HTTP/1.1 100 Continue\r\n\r\n" + answer(b"real"))
    assert written.startswith(b"HTTP/1.1 200")
    assert written.endswith(b"real")


def stream(pieces: list[bytes]) -> tuple[bytes, list[tuple[str, int]]]:
    """What a client reads of a stream that came in these pieces, with its record's outcome and events."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post(stream=True))
    connection, _ = bench.engine_of(client)
    for piece in pieces:
        connection.data_received(piece)
    return body_of(transport.written), [(r.outcome, r.events) for r in bench.plane.take_records()]


CONTENTS = [EVENT, EVENT + EVENT, EVENT[:20], EVENT[20:], b"3\r\n\n\n\r\n", chunk(EVENT), b"\n\n"]


@given(st.lists(st.sampled_from(CONTENTS), max_size=8), st.lists(st.integers(0, 2000), max_size=12))
def test_pieces_do_not_matter(contents: list[bytes], cuts: list[int]) -> None:
    """Chunks that look like framing themselves, cut anywhere: the same bytes as in one piece or one chunk a piece."""
    chunks = [chunk(content) for content in [EVENT, *contents, DONE]]
    wire = STREAM_HEAD + b"".join(chunks) + LAST
    places = sorted({cut % len(wire) for cut in cuts} | {len(STREAM_HEAD)})
    cut = [wire[a:b] for a, b in zip([0, *places], [*places, len(wire)], strict=True) if a < b]
    whole, outcome = stream([wire])
    assert b"".join([EVENT, *contents, DONE]) == whole
    assert whole == stream(cut)[0]
    assert (whole, outcome[0][0]) == ((one := stream([STREAM_HEAD, *chunks, LAST]))[0], one[1][0][0])


@pytest.mark.parametrize(
    "size", [b"0x2f", b"+2f", b"2F", b"02f", b"2f;x=1", b" 2f", b"30", b"2e"]
)  # the chunk has 0x2f bytes
def test_the_short_way_takes_only_our_own_framing(size: bytes) -> None:
    """Any other spelling of a chunk's size is llhttp's to judge: it goes on framed by us, or ends the stream."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post(stream=True))
    connection, _ = bench.engine_of(client)
    assert 0x2F == len(EVENT)
    connection.data_received(STREAM_HEAD + chunk(EVENT))
    connection.data_received(chunk(EVENT))
    transport.take()
    connection.data_received(size + b"\r\n" + EVENT + b"\r\n")
    assert size + b"\r\n" not in transport.written


def test_until_close() -> None:
    """An answer without a length ends with its connection."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    connection, _ = bench.engine_of(client)
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nall of it")
    connection.connection_lost(None)
    assert transport.written.endswith(chunk(b"all of it") + LAST)
    assert ["ok"] == [record.outcome for record in bench.plane.take_records()]


def test_until_a_reset() -> None:
    """An answer without a length that ends with a reset is not whole."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    connection, _ = bench.engine_of(client)
    connection.data_received(b"HTTP/1.1 200 OK\r\n\r\nhalf of it")
    connection.connection_lost(ConnectionResetError())
    assert not transport.written.endswith(LAST)
    assert ["upstream_error"] == [record.outcome for record in bench.plane.take_records()]
    assert bench.clean


def test_an_endless_head() -> None:
    """A head that never ends is garbage, not memory."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    connection, engine = bench.engine_of(client)
    connection.data_received(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 40_000)
    assert engine.aborted
    assert not transport.written


def test_pool_takes_the_last_and_forgets_the_closed() -> None:
    """The connection used last is the least likely to be stale."""
    bench = Bench(kept=0)
    one, two = bench.keep(0), bench.keep(0)
    pool = bench.plane.pools[0]
    assert two is pool.take()
    one.transport.close()
    assert None is pool.take()


def test_a_retired_pool_keeps_nothing() -> None:
    """An engine that left the config loses its connections."""
    bench = Bench(kept=1)
    pool = bench.plane.pools[0]
    (kept,) = pool.idle
    pool.retire()
    assert kept.transport.is_closing()
    late = bench.keep(0)
    assert late.transport.is_closing()
    assert [] == pool.idle


@pytest.mark.parametrize("reloaded", [False, True])
def test_a_stale_connection_is_made_anew(monkeypatch: pytest.MonkeyPatch, reloaded: bool) -> None:
    """A kept connection that is closed before a byte came: the same engine again, even one that just left the config; it
    counts against nobody.
    """
    bench = Bench(engines=1)
    connects: list[tuple[str, Exchange]] = []
    monkeypatch.setattr(bench.plane, "connect", lambda pool, exchange: connects.append((pool.upstream.name, exchange)))
    client, transport = bench.client()
    client.data_received(post())
    connection, _ = bench.engine_of(client)
    if reloaded:
        bench.plane.configure(Site("ams", Limits(), {}, {}), bench.now)
    connection.connection_lost(None)
    assert [("one", client.exchange)] == connects
    fresh = EngineConnection(bench.plane, connection.pool)
    fresh.connection_made(FakeTransport())  # type: ignore[arg-type]
    assert client.exchange is not None
    client.exchange.reached(fresh, bench.now)
    fresh.data_received(answer(b"at last"))
    assert transport.written.endswith(b"at last")
    (record,) = bench.plane.take_records()
    assert (1, "ok") == (len(record.attempts), record.outcome)
    assert not bench.router.health.notes
    assert bench.clean


def test_who_crashes_over_a_request_was_not_stale() -> None:
    """A kept connection that is lost long after its request was sent: the instance failed, and another one's turn it is."""
    bench = Bench()
    client, _ = bench.client()
    client.data_received(post())
    first, _ = bench.engine_of(client)
    assert client.exchange is not None
    client.exchange.sent -= 2 * 10**9
    first.connection_lost(None)
    second, _ = bench.engine_of(client)
    assert first.pool is not second.pool
    assert 1 == bench.router.health.notes[first.pool.upstream.cell].failures
    second.data_received(answer())
    (record,) = bench.plane.take_records()
    assert ["reset", "ok"] == [attempt.outcome for attempt in record.attempts]
    assert bench.clean


def test_old_connections_are_swept() -> None:
    """Kept for too long means closed by the engine soon."""
    bench = Bench(kept=1)
    pool = bench.plane.pools[0]
    pool.sweep(bench.now + 50 * 10**9)
    assert 1 == len(pool.idle)
    pool.sweep(bench.now + 60 * 10**9)
    assert [] == pool.idle


def test_stream_in_any_pieces() -> None:
    """Head, chunks and end cut at every byte give the same body."""
    wire = STREAM_HEAD + chunk(EVENT) + chunk(EVENT) + LAST
    for cut in range(1, len(wire)):
        bench = Bench()
        client, transport = bench.client()
        client.data_received(post(stream=True))
        connection, _ = bench.engine_of(client)
        connection.data_received(wire[:cut])
        connection.data_received(wire[cut:])
        assert 2 == transport.written.count(EVENT)
        assert transport.written.endswith(LAST)


@pytest.mark.parametrize(
    ("wire", "expected", "kept"),
    [
        ([answer(b"longer than the first")], b"longer than the first", True),
        ([answer(b"")], b"", True),
        ([answer(b"two pieces")[:-3], answer(b"two pieces")[-3:]], b"two pieces", True),
        ([answer(b"mine") + answer(b"smuggled")], b"mine", False),
        ([answer(b"mine") + b"x"], b"mine", False),
    ],
)
def test_after_a_known_head(wire: list[bytes], expected: bytes, kept: bool) -> None:
    """An answer whose head's like came before is delivered as by the long way, whatever comes of it."""
    bench = Bench(engines=1)
    for pieces in ([answer(b"first")], wire):
        client, transport = bench.client()
        client.data_received(post())
        connection, engine = bench.engine_of(client)
        for piece in pieces:
            connection.data_received(piece)
    assert 1 == len(bench.plane.answers)
    head, _, body = transport.written.partition(b"\r\n\r\n")
    assert (expected, b"content-length: %d" % len(expected) in head) == (body, True)
    assert kept is not engine.aborted
    assert bench.clean
    first, second = bench.plane.take_records()
    assert len(transport.written) == second.bytes_out
    assert (first.outcome, first.status, len(first.attempts)) == (second.outcome, second.status, len(second.attempts))


@pytest.mark.parametrize(
    "wire", [answer(status=404), answer(head=b"connection: close\r\n"), STREAM_HEAD + chunk(EVENT) + LAST]
)
def test_answers_that_are_read_each_time(wire: bytes) -> None:
    """Errors, streams and last answers of a connection take the long way."""
    bench = Bench()
    client, _ = bench.client()
    client.data_received(post())
    bench.engine_of(client)[0].data_received(wire)
    assert not bench.plane.answers


def test_garbage_in_a_stream() -> None:
    """What is no chunk in the middle of a stream breaks it off."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post(stream=True))
    connection, engine = bench.engine_of(client)
    connection.data_received(STREAM_HEAD + chunk(EVENT))
    connection.data_received(chunk(EVENT) + b"zz\r\n")
    assert b'"error"' in transport.written
    assert engine.aborted
    assert ["upstream_error"] == [record.outcome for record in bench.plane.take_records()]
