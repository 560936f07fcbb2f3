"""A drain's view of a client's connection."""

import socket
import time

from tests.support.plane import Bench, answer, post

SECOND = 1_000_000_000


def test_a_draining_worker_says_close() -> None:
    """While it drains, answers end their connections and idle ones are closed."""
    bench = Bench()
    idle, idle_transport = bench.client()
    idle.data_received(b"GET /livez HTTP/1.1\r\nhost: edge\r\n\r\n")
    client, transport = bench.client()
    client.data_received(post())
    bench.plane.drain()
    connection, _ = bench.engine_of(client)
    connection.data_received(answer())
    assert b"connection: close" in transport.written
    assert transport.closed
    assert idle_transport.closed
    assert idle.exchange is None


def test_who_just_came_is_answered_by_a_draining_worker() -> None:
    """A connection accepted as the drain begins asks once; one that asks nothing is closed after a second."""
    bench = Bench()
    client, transport = bench.client()
    _, silent = bench.client()
    bench.plane.drain()
    assert bench.plane.expecting
    client.data_received(b"GET /readyz HTTP/1.1\r\nhost: edge\r\n\r\n")
    assert transport.take().startswith(b"HTTP/1.1 503")
    assert (True, False) == (transport.closed, silent.closed)
    bench.plane.sweep(time.monotonic_ns() + 2 * SECOND)
    assert silent.closed


def test_an_unread_request_is_not_reset_by_a_drain() -> None:
    """A kept-alive connection whose next request waits in the kernel stays open for its answer."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(b"GET /livez HTTP/1.1\r\nhost: edge\r\n\r\n")
    here, there = socket.socketpair()
    with here, there:
        transport.extra["socket"] = here
        there.send(b"GET")
        bench.plane.drain()
        assert not transport.closed
        here.recv(3)
        bench.plane.drain()
        assert transport.closed


def test_beneath_tls_only_the_kernel_knows_what_is_unsent() -> None:
    """The transport says that nothing is, as soon as all is encrypted."""
    bench = Bench()
    _, transport = bench.client()
    here, there = socket.socketpair()
    with here, there:
        transport.extra |= {"socket": here, "sslcontext": object()}
        assert not bench.plane.busy
        here.send(b"x")
        assert bench.plane.busy
        there.recv(1)
        assert not bench.plane.busy


def test_who_was_idle_has_its_time_to_read() -> None:
    """An idle connection that a drain closes may have an answer to read: its time for that begins now."""
    bench = Bench()
    client, transport = bench.client()
    client.data_received(b"GET /livez HTTP/1.1\r\nhost: edge\r\n\r\n")
    client.since -= 70 * SECOND
    now = time.monotonic_ns()
    bench.plane.drain()
    assert transport.closed
    bench.plane.sweep(now + 299 * SECOND)
    assert not transport.aborted
