"""What the connections of a worker share."""

import ssl
from typing import Any

import msgspec
import pytest

from balancer.model import Ask, Balancing, Decision, Table
from proxy.core.headers import Head
from proxy.core.settings import Limits
from tests.support.plane import Bench, answer, post

SECOND = 1_000_000_000
PARENT = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def test_traces() -> None:
    """A valid caller's trace goes on under a span of ours; else a new one begins."""
    plane = Bench().plane
    trace = plane.trace_of(Head(b"POST", b"/", 1, traceparent=PARENT, tracestate=b"a=1"))
    assert ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "headrace=ams,a=1") == (
        trace.trace_id,
        trace.parent_id,
        trace.state,
    )
    assert trace.span_id not in ("", trace.parent_id)
    fresh = plane.trace_of(Head(b"POST", b"/", 1, traceparent=b"junk"))
    assert (32, 16, "") == (len(fresh.trace_id), len(fresh.span_id), fresh.parent_id)


@pytest.mark.parametrize(("share", "flags"), [(0.0, 0), (1.0, 1)])
def test_sampling(share: float, flags: int) -> None:
    """A trace begun here is sampled by its id; of a caller's trace the caller has decided."""
    bench = Bench()
    bench.plane.configure(msgspec.structs.replace(bench.plane.site, sample=share), 0)
    assert flags == bench.plane.trace_of(None).flags
    for said in (0, 1):
        parent = PARENT[:-2] + b"%02x" % said
        assert said == bench.plane.trace_of(Head(b"POST", b"/", 1, traceparent=parent)).flags


def test_tenants() -> None:
    """A keyed hash of the token, else of the address; never the token itself."""
    plane = Bench().plane
    assert plane.tenant_of(b"Bearer k") == plane.tenant_of(b"Bearer k")
    assert plane.tenant_of(b"10.0.0.1") != plane.tenant_of(b"10.0.0.2")
    assert "k" != plane.tenant_of(b"Bearer k")


def test_a_client_without_an_address_is_not_everybody() -> None:
    """Who resets before the accept has none; others without a token are told apart by theirs all the same."""
    bench, tenants = Bench(), []
    for address in ("", "10.0.0.1", "10.0.0.2"):
        client, _ = bench.client()
        client.address = address
        client.data_received(post())
        assert client.exchange is not None
        tenants.append(client.exchange.ask.tenant)
    assert 3 == len(set(tenants))


def test_the_queue() -> None:
    """All saturated: a request waits, is taken in turn, and one that leaves is forgotten."""
    bench = Bench(engines=1)
    prompt = "x" * 60_000
    first, _ = bench.client()
    first.data_received(post(prompt=prompt))
    second, _ = bench.client()
    second.data_received(post(prompt="hi"))
    third, _ = bench.client()
    third.data_received(post(prompt="hi"))
    assert 2 == bench.plane.waiting
    third.connection_lost(None)
    assert 1 == bench.plane.waiting
    connection, _ = bench.engine_of(first)
    connection.data_received(answer())
    assert 0 == bench.plane.waiting
    connection, _ = bench.engine_of(second)
    connection.data_received(answer())
    outcomes = [(r.outcome, r.queued > 0) for r in bench.plane.take_records()]
    assert [("client_gone", True), ("ok", False), ("ok", True)] == outcomes
    assert bench.clean


def test_the_queue_is_bounded() -> None:
    """A full queue answers 429 with a computed time; a wait that is too long ends so too."""
    bench = Bench(Limits(queue=1), engines=1)
    bench.router.configure(bench.router._settings, 1, 30 * SECOND)
    bench.client()[0].data_received(post(prompt="x" * 60_000))
    waiting, told = bench.client()
    waiting.data_received(post(prompt="hi"))
    refused, transport = bench.client()
    refused.data_received(post(prompt="hi"))
    assert transport.written.startswith(b"HTTP/1.1 429")
    assert b"retry-after-ms" in transport.written
    bench.plane.sweep(bench.now + 40 * SECOND)
    assert told.written.startswith(b"HTTP/1.1 429")
    assert 0 == bench.plane.waiting


@pytest.mark.parametrize("status", [200, 429])
def test_a_model_may_go_while_its_requests_are_in_flight(status: int) -> None:
    """A reload takes the model out; a request that had waited for it ends as it would have, and has its record."""
    bench = Bench(engines=1)
    prompt = "x" * 60_000
    clients = [bench.client() for _ in range(2)]
    for client, _ in clients:
        client.data_received(post(prompt=prompt))
    connection, _ = bench.engine_of(clients[0][0])
    connection.data_received(answer())
    bench.router.update(Table(2, {}), bench.now)
    connection, _ = bench.engine_of(clients[1][0])
    connection.data_received(answer(status=status))
    assert clients[1][1].written.startswith(b"HTTP/1.1 %d" % status)
    outcomes = [record.outcome for record in bench.plane.take_records()]
    assert ["ok", "ok" if status == 200 else "shed"] == outcomes
    assert bench.clean


def test_who_waits_for_a_model_that_is_gone_is_told() -> None:
    """A reload takes the model out: who waits for it would wait for ever."""
    bench = Bench(engines=1)
    prompt = "x" * 60_000
    clients = [bench.client() for _ in range(2)]
    for client, _ in clients:
        client.data_received(post(prompt=prompt))
    assert 1 == bench.plane.waiting
    bench.router.update(Table(2, {}), bench.now)
    bench.plane.sweep(bench.now + SECOND)
    assert clients[1][1].written.startswith(b"HTTP/1.1 503")
    assert 0 == bench.plane.waiting


def test_displacing_does_not_recurse() -> None:
    """Each displaced client's next request, already here, displaces another: one after the other, not one inside the other."""
    waiting = 400
    bench = Bench(limits=Limits(queue=waiting), engines=1, kept=900)
    bench.router.configure(Balancing(), queue_capacity=waiting)
    first, _ = bench.client()
    first.data_received(post(prompt="x" * 60_000))
    clients = [bench.client() for _ in range(waiting)]
    for number, (client, _) in enumerate(clients):
        token = b"authorization: Bearer k%d\r\n" % number
        client.data_received(post(head=b"x-headrace-priority: batch\r\n" + token))
        client.data_received(post(head=token))
    assert waiting == bench.plane.waiting
    bench.client()[0].data_received(post(head=b"authorization: Bearer one\r\n"))
    assert waiting == bench.plane.waiting
    assert all(transport.written.startswith(b"HTTP/1.1 429") for _, transport in clients)
    for client in list(bench.plane.open_clients):
        client.connection_lost(None)
    assert bench.clean


def test_configure_keeps_what_is_unchanged() -> None:
    """A reload with the same engines keeps their connections."""
    bench = Bench(kept=1)
    before = dict(bench.plane.pools)
    bench.plane.configure(bench.plane.site, bench.now)
    assert before == bench.plane.pools
    assert isinstance(bench.router.route(Ask("m", 1), bench.now), Decision)


@pytest.mark.parametrize(
    ("change", "kept"),
    [
        ({"name": "renamed"}, True),
        ({"port": 9999}, False),
        ({"host": "127.0.0.2"}, False),
        ({"tls": ssl.create_default_context()}, False),
        ({"server_name": "engine"}, False),
    ],
)
def test_an_engine_that_moved_gets_new_connections(change: dict[str, Any], kept: bool) -> None:
    """A reload gives a cell's engine another endpoint: what leads to the old one is closed, and not kept after its answer."""
    bench = Bench(engines=1, kept=2)
    client, _ = bench.client()
    client.data_received(post())
    connection, busy = bench.engine_of(client)
    (idle,) = bench.plane.pools[0].idle
    site = bench.plane.site
    moved = msgspec.structs.replace(site.upstreams["m"][0], **change)
    bench.plane.configure(msgspec.structs.replace(site, upstreams={"m": {0: moved}}), bench.now)
    connection.data_received(answer())
    assert [kept, kept] == [not idle.transport.is_closing(), not busy.closed]
    pool = bench.plane.pools[0]
    assert (2 if kept else 0) == len(pool.idle)
    assert (moved.host, moved.port) == (pool.upstream.host, pool.upstream.port)
