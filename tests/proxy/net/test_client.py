"""Clients: one strict request after the other, and nothing of a bad one goes on."""

import json
import re
import socket
import time

import pytest

from proxy.core.settings import Limits
from proxy.net.client import RESET
from tests.support.plane import Bench, answer, post

SECOND = 1_000_000_000


def status_of(written: bytes) -> int:
    return int(written.split(b" ", 2)[1])


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_request_in_two_pieces(cut: int) -> None:
    """Wherever the network cuts a request, the engine gets it once and whole."""
    bench = Bench()
    client, transport = bench.client()
    request = post(messages=[], stream=False)
    client.data_received(request[:cut])
    client.data_received(request[cut:])
    connection, engine = bench.engine_of(client)
    assert b'"model":"theirs"' in engine.written
    connection.data_received(answer())
    assert 200 == status_of(transport.written)
    assert transport.written.endswith(b'{"ok":1}')
    assert bench.clean


def chunked(*chunks: bytes) -> bytes:
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: edge\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
def test_chunked_and_pipelined(size: int) -> None:
    """A chunked body ends where it ends: the request behind it is the next one, at any cuts."""
    bench = Bench()
    client, transport = bench.client()
    wire = chunked(b'{"model":', b'"m","x":"\\r\\n\\r\\n"}') + post()
    for start in range(0, len(wire), size):
        client.data_received(wire[start : start + size])
    first, engine = bench.engine_of(client)
    assert engine.written.endswith(b'{"model":"theirs","x":"\\r\\n\\r\\n"}')
    first.data_received(answer(b"1"))
    second, _ = bench.engine_of(client)
    second.data_received(answer(b"2"))
    assert [200, 200] == [
        status_of(part) for part in transport.written.split(b"HTTP/1.1")[1:] for part in [b"x" + part]
    ]
    assert bench.clean


def trailed(*lines: bytes, end: bytes = b"\r\n") -> bytes:
    """A chunked request with these lines after its body."""
    return chunked(b'{"model":"m"}')[:-2] + b"".join(line + b"\r\n" for line in lines) + end


@pytest.mark.parametrize("size", [1, 5, 100_000])
def test_trailers_are_ignored(size: int) -> None:
    """Lines after a chunked body say nothing of this request, nor of the next."""
    bench = Bench()
    client, transport = bench.client()
    lines = (
        b"x-request-id: late",
        b"authorization: Bearer late",
        b"upgrade: h2c",
        b"host: other",
    )
    wire = trailed(*lines)
    for start in range(0, len(wire), size):
        client.data_received(wire[start : start + size])
    connection, engine = bench.engine_of(client)
    assert b"late" not in engine.written
    assert b"other" not in engine.written
    connection.data_received(answer())
    client.data_received(post(head=b"x-request-id: 2\r\n"))
    connection, engine = bench.engine_of(client)
    assert b"x-request-id: 2\r\n" in engine.written
    connection.data_received(answer())
    assert 2 == transport.written.count(b"HTTP/1.1 200")
    first, _ = bench.plane.take_records()
    assert len(wire) > first.bytes_in > sum(map(len, lines))


LINES = [b"x%d: %b" % (n, b"y" * 90) for n in range(20)]


@pytest.mark.parametrize("size", [1, 100, 100_000])
@pytest.mark.parametrize(
    "wire",
    [
        trailed(*LINES),
        trailed(*LINES, end=b""),
        trailed(b"x: " + b"y" * 2000, end=b""),
        trailed()[:-2] + b"y" * 2000,
        chunked()[:-5] + b"1;" + b"x" * 2000,
        chunked(b"a")[:-5] + b"1" + b";x=y" * 500,
    ],
    ids=["many", "without end", "a value", "a name", "an extension", "extensions"],
)
def test_trailers_are_bounded(wire: bytes, size: int) -> None:
    """What stands around a chunked body is limited as the head is, and is not gathered."""
    bench = Bench(Limits(header_bytes=1000))
    client, transport = bench.client()
    for start in range(0, len(wire), size):
        client.data_received(wire[start : start + size])
    if not transport.eof:  # what came in one piece with bytes of the body is not counted, but once
        client.data_received(b"y" * 2000)
    assert 431 == status_of(transport.written)
    assert 1 == bench.plane.counters["headrace_parse_rejects_total|header_bytes"]
    assert transport.eof
    assert ["bad_request"] == [record.outcome for record in bench.plane.take_records()]


def test_many_small_chunks_are_no_trailers() -> None:
    """The framing of a long body may be longer than a head."""
    bench = Bench(Limits(header_bytes=1000))
    client, _ = bench.client()
    body = b'{"model":"m"%b}' % (b" " * 3000)
    wire = chunked(*(body[at : at + 1] for at in range(len(body))))
    for start in range(0, len(wire), 3):
        client.data_received(wire[start : start + 3])
    assert client.exchange is not None


@pytest.mark.parametrize(
    ("wire", "status", "rule"),
    [
        (b"POST / HTTP/1.1\nhost: a\n\n", 400, "bare_lf"),
        (b"POST / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n", 400, "duplicate_host"),
        (b"POST / HTTP/1.1\r\n\r\n", 400, "missing_host"),
        (b"GET / HTTP/2.0\r\n\r\n", 505, "version"),
        (b"GET /\r\n", 400, "request_line"),
        (
            b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            400,
            "length_and_chunked",
        ),
        (b"POST /v1/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n\r\n", 400, "chunk"),
        (b"POST /v1/x HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n-1\r\n\r\n", 400, "chunk"),
        (b"GET / HTTP/1.1\r\nhost: a\r\nx: " + b"y" * 40_000, 431, "header_bytes"),
    ],
)
def test_broken_requests(wire: bytes, status: int, rule: str) -> None:
    """A broken rule: its status, its counter, the end of the connection, nothing forwarded, one record."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(wire)
    assert status == status_of(transport.written)
    assert rule == json.loads(transport.written.partition(b"\r\n\r\n")[2])["error"]["code"]
    assert transport.eof
    assert 1 == bench.plane.counters[f"headrace_parse_rejects_total|{rule}"]
    assert ["bad_request"] == [record.outcome for record in bench.plane.take_records()]
    assert all(not c.transport.written for p in bench.plane.pools.values() for c in p.idle)  # type: ignore[attr-defined]


UPGRADES = [
    b"Upgrade: h2c\r\nConnection: Upgrade\r\n",
    b"connection: keep-alive, upgrade\r\nUPGRADE:websocket\r\nx: y\r\nupgrade: h2c\r\n",
]


@pytest.mark.parametrize("upgrade", UPGRADES)
@pytest.mark.parametrize("size", [1, 7, 1000])
def test_nothing_is_upgraded(upgrade: bytes, size: int) -> None:
    """A request that offers another protocol is read as any other: its body is its body, whatever that looks like."""
    bench = Bench()
    client, transport = bench.client()
    inner = b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"
    chunks = chunked(inner).replace(b"host:", upgrade + b"host:", 1)
    for wire in (post(inner, upgrade), chunks, b"GET /livez HTTP/1.1\r\nhost: a\r\n" + upgrade + b"\r\n"):
        for start in range(0, len(wire), size):
            client.data_received(wire[start : start + size])
    assert [400, 400, 200] == [status_of(b"x" + part) for part in transport.take().split(b"HTTP/1.1")[1:]]
    client.data_received(post(b'{"model":"m"}', upgrade) + inner)
    connection, engine = bench.engine_of(client)
    assert engine.written.startswith(b"POST /v1/chat/completions HTTP/1.1\r\n")
    assert engine.written.endswith(b'{"model":"theirs"}')
    assert b"upgrade" not in engine.written.lower()
    connection.data_received(answer())
    assert 2 == transport.written.count(b"HTTP/1.1 200")
    assert bench.clean


@pytest.mark.parametrize("upgrade", [b"", *UPGRADES])
def test_connect_is_refused(upgrade: bytes) -> None:
    """There are no tunnels, and what was meant for one is not read as requests."""
    bench = Bench()
    client, transport = bench.client()
    inner = b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"
    client.data_received(b"CONNECT other:443 HTTP/1.1\r\nhost: a\r\n" + upgrade + b"\r\n" + inner)
    assert 501 == status_of(transport.written)
    assert 1 == bench.plane.counters["headrace_parse_rejects_total|method"]
    assert 1 == transport.written.count(b"HTTP/1.1")
    assert transport.eof


def test_what_follows_a_refusal_is_thrown_away() -> None:
    """After a refusal no byte is read as a request any more."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(b"GET / HTTP/2.0\r\n\r\n" + post())
    client.data_received(post())
    assert client.exchange is None
    assert 1 == transport.written.count(b"content-length")


@pytest.mark.parametrize(
    ("wire", "status", "code"),
    [
        (post(b"{"), 400, "bad_request"),
        (post(b'{"model":"m","\xff":1}'), 400, "bad_request"),
        (post(b'{"model":"m","stream":true,"stream_options":{"\xff":1}}'), 400, "bad_request"),
        (post(b'{"model":"nobody"}'), 404, "model_not_found"),
        (post(path=b"/elsewhere"), 404, "not_found"),
        (post(head=b"x-headrace-priority: urgent\r\n"), 400, "bad_request"),
        (b"DELETE /v1/models HTTP/1.1\r\nhost: a\r\n\r\n", 405, "method_not_allowed"),
    ],
)
def test_bad_requests_keep_the_connection(wire: bytes, status: int, code: str) -> None:
    """Whole but wrong requests are answered, and the next is served on the same connection."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(wire)
    assert status == status_of(transport.written)
    assert code == json.loads(transport.take().partition(b"\r\n\r\n")[2])["error"]["code"]
    client.data_received(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
    assert 200 == status_of(transport.written)


def test_expect_continue() -> None:
    """A client that waits for our word gets it, unless its body is too large anyway."""
    bench = Bench(Limits(body_bytes=100))
    head = b"POST /v1/x HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: %d\r\n\r\n"
    client, transport = bench.client()
    client.data_received(head % 50)
    assert b"HTTP/1.1 100 Continue\r\n\r\n" == transport.written
    client, transport = bench.client()
    client.data_received(head % 500)
    assert 413 == status_of(transport.written)


def test_http_1_0_closes() -> None:
    """HTTP/1.0 gets no chunks, and its connection is closed."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post().replace(b"HTTP/1.1", b"HTTP/1.0"))
    connection, _ = bench.engine_of(client)
    connection.data_received(answer())
    assert b"connection: close" in transport.written
    assert transport.closed


def test_too_many_connections() -> None:
    """Over the location's limit a connection is told so."""
    bench = Bench(Limits(connections=1))
    bench.client()
    _, transport = bench.client()
    assert 503 == status_of(transport.written)
    assert 1 == bench.plane.counters["headrace_connections_refused_total|limit"]


@pytest.mark.parametrize(
    ("sent", "seconds", "status"), [(b"", 76, 0), (b"POST / HT", 11, 408), (post(b"{}   ")[:-2], 61, 408)]
)
def test_slow_clients(sent: bytes, seconds: int, status: int) -> None:
    """Idle connections are closed, slow heads and bodies are told."""
    bench = Bench()
    client, transport = bench.client()
    if sent:
        client.data_received(sent)
    client.tick(client.since + (seconds - 2) * SECOND)
    assert not transport.written
    assert not transport.closed
    client.tick(client.since + seconds * SECOND)
    assert (status or 0) == (status_of(transport.written) if transport.written else 0)
    assert transport.closed or transport.eof


def test_a_body_has_the_requests_time() -> None:
    """One byte a minute is not silence, but after `request_timeout` it is enough."""
    bench = Bench(Limits(request_timeout=100.0))
    client, transport = bench.client()
    client.data_received(post()[:-3])
    begun = client.accepted
    client.data_received(post()[-3:-2])
    client.since = begun + 90 * SECOND
    client.tick(begun + 99 * SECOND)
    assert b"" == transport.written
    client.tick(begun + 101 * SECOND)
    assert 408 == status_of(transport.written)
    assert transport.eof


def test_many_at_once_are_answered_one_after_the_other() -> None:
    """Not one inside the other: a thousand requests in one piece would be too deep."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n" * 1000)
    assert 1000 == transport.written.count(b"HTTP/1.1 200")


def test_flooding_is_paused() -> None:
    """Requests that pile up behind one in flight are not read without bound."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post())
    client.data_received(post() * 1000)
    assert not transport.reading
    connection, _ = bench.engine_of(client)
    connection.data_received(answer())
    assert transport.reading


VARYING = re.compile(rb"(x-request-id: |traceparent: )[^\r]*")


@pytest.mark.parametrize("extra", [b"", b"authorization: Bearer x\r\nx-more: y\r\n", b"x-headrace-priority: batch\r\n"])
def test_a_known_head_means_the_same(extra: bytes) -> None:
    """A request whose head's like came before reaches the engine as it would by the long way, and so does its answer."""
    bench = Bench()
    requests = [post(head=extra, prompt="x" * size) for size in (10, 10, 300)]
    sent, got = [], []
    for known in (True, False):
        for request in requests:
            if not known:
                bench.plane.requests.clear()
                bench.plane.answers.clear()
            client, transport = bench.client()
            client.data_received(request)
            connection, engine = bench.engine_of(client)
            sent.append(VARYING.sub(b"", engine.take()).split(b"\r\n"))
            connection.data_received(answer())
            got.append(re.sub(rb"(x-request-id|server-timing|x-headrace-instance): [^\r]*", b"", transport.take()))
        assert 1 == len(bench.plane.requests)
    hosts = [lines.pop(1)[:6] for lines in sent]
    assert [b"host: "] * 6 == hosts
    assert sent[3:] == sent[:3]
    assert got[3:] == got[:3]
    assert bench.clean


def test_a_known_head_is_still_checked() -> None:
    """The short way is for whole requests within the limits: what is too large or in pieces takes the long way."""
    bench = Bench(Limits(body_bytes=100))
    client, transport = bench.client()
    client.data_received(post(b'{"model":"nobody"}'))
    assert 404 == status_of(transport.take())
    client.data_received(post(b'{"model":"unknown"}'))
    assert 404 == status_of(transport.take())
    client.data_received(post(b'{"model"'))
    assert 400 == status_of(transport.take())
    client.data_received(post(b"x" * 101))
    assert 413 == status_of(transport.take())
    assert 1 == len(bench.plane.requests)


@pytest.mark.parametrize(
    "head", [b"x-request-id: 1\r\n", b"expect: 100-continue\r\n", b"connection: close\r\n", b"traceparent: 00-1\r\n"]
)
def test_heads_of_one_request_are_not_kept(head: bytes) -> None:
    """What differs with every request would only fill the memory."""
    bench = Bench()
    client, _ = bench.client()
    client.data_received(post(head=head))
    assert not bench.plane.requests


def test_who_does_not_read_is_served_nothing_more() -> None:
    """Answers that nobody reads would fill the memory: the next request waits until the last answer is read."""
    bench = Bench()
    client, transport = bench.client()
    models = b"GET /v1/models HTTP/1.1\r\nhost: a\r\n\r\n"
    client.data_received(models)
    client.pause_writing()
    transport.take()
    client.data_received(models)
    client.data_received(post() + models)
    assert (b"", None) == (transport.written, client.exchange)
    client.data_received(b"x" * 70_000)
    assert not transport.reading
    since = client.since
    client.tick(since + 299 * SECOND)
    assert not transport.closed
    client.resume_writing()
    assert transport.reading
    assert b'"object":"list"' in transport.take()
    assert client.exchange is not None
    client.pause_writing()
    client.tick(client.since + 301 * SECOND)
    assert transport.aborted


@pytest.mark.parametrize("draining", [False, True])
def test_who_never_reads_the_rest_is_let_go(draining: bool) -> None:
    """A connection that is closed with a few bytes unread would stay for ever: the kernel waits for its reader."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(post(head=b"" if draining else b"connection: close\r\n"))
    connection, _ = bench.engine_of(client)
    if draining:
        bench.plane.drain()
    client.since -= 400 * SECOND  # it was a long answer
    now = time.monotonic_ns()
    connection.data_received(answer())
    assert transport.closed
    bench.plane.sweep(now + 299 * SECOND)
    assert not transport.aborted
    bench.plane.sweep(now + 302 * SECOND)
    assert transport.aborted


@pytest.mark.parametrize("behind", [b"", b"GET /livez HTTP/1.1\r\nhost: a\r\n", post()])
def test_what_follows_a_last_request_is_not_waited_for(behind: bytes) -> None:
    """A connection that is being closed is told nothing more, whatever came behind its last request."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(b"GET /livez HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n" + behind)
    assert transport.closed
    transport.take()
    client.tick(client.since + 12 * SECOND)
    assert (b"", False) == (transport.written, transport.aborted)


def test_an_idle_connection_that_does_not_read_is_let_go() -> None:
    """It is closed for being idle; what it had not read until then it gets its time for."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(b"GET /livez HTTP/1.1\r\nhost: a\r\n\r\n")
    idle = client.since + 76 * SECOND
    client.tick(idle)
    assert (True, False) == (transport.closed, transport.aborted)
    client.tick(idle + 299 * SECOND)
    assert not transport.aborted
    client.tick(idle + 301 * SECOND)
    assert transport.aborted


@pytest.mark.parametrize("paused", [False, True])
def test_who_is_cut_off_is_reset(paused: bool) -> None:
    """A client of HTTP/1.0 would take a mere end for that of the answer."""
    bench = Bench()
    client, transport = bench.client()
    with socket.socket() as connected:
        transport.extra["socket"] = connected
        client.data_received(b"GET /livez HTTP/1.0\r\n\r\n")
        if paused:
            client.pause_writing()
        client.tick(client.since + 301 * SECOND)
        assert transport.aborted
        assert RESET == connected.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER, len(RESET))
