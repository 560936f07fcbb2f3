"""Other locations in one worker: requests that leave, come back, and come from others."""

import time
from typing import Any

import pytest

from balancer.ledger import WIDTH
from balancer.model import Digest, Table
from balancer.spill import IN_FLIGHT
from proxy.control.messages import Remote
from proxy.core.hop import Hop, write
from proxy.core.settings import Limits
from proxy.net import vigil
from proxy.net.client import Client
from proxy.net.site import Site, Upstream
from tests.support.plane import DONE, EVENT, LAST, STREAM_HEAD, Bench, FakeTransport, answer, chunk, post

SECOND = 1_000_000_000
KEY = b"k" * 32
LHR, NYC = 10, 11  # cells
BUSY = {"prompt": 20_000}
REFUSED = answer(b'{"error":{"code":"spill_refused"}}', 429)


class Places(Bench):
    """A bench of ams with two other locations."""

    def __init__(self, engines: int = 3, remotes: tuple[str, ...] = ("lhr", "nyc"), **site: Any) -> None:
        super().__init__(engines=engines)
        self.cells.extend([0] * WIDTH * 16)
        self.site = site
        self.configure(remotes)

    def configure(self, remotes: tuple[str, ...]) -> None:
        before = self.plane.site
        cells = {"lhr": LHR, "nyc": NYC}
        given = {
            name: Upstream(cells[name], name, "127.0.0.1", 9100 + cells[name], "", location=name) for name in remotes
        }
        self.plane.configure(
            Site("ams", Limits(), before.names, before.upstreams, b"secret", remotes=given, **self.site), self.now
        )

    def hear(self, location: str = "lhr", sign: bool = True, **digest: Any) -> None:
        """The location has told of itself just now."""
        assert self.plane.abroad is not None
        now = time.monotonic_ns()
        given = {"work": 0.0, "capacity": 40 / 70e-6, "instances": 40, "running": 0, "kv_tokens": 0, **digest}
        told = Digest(location, "m", 1, now, **given)
        remote = Remote(location, 20_000_000, 5 * SECOND, (told,), (KEY,), (KEY,) if sign else ())
        self.plane.abroad.hear(remote, now)

    def busy(self, tokens: int = 50_000) -> None:
        """All engines here have so much to do."""
        for cell in range(3):
            self.cells[WIDTH * cell] += tokens
            self.cells[WIDTH * cell + 2] += 1

    def idle(self) -> None:
        self.cells[:] = [0] * len(self.cells)

    def ask(self, **fields: object) -> tuple[Client, FakeTransport]:
        client, transport = self.client()
        client.data_received(post(**fields))
        return client, transport

    def reach(self) -> None:
        """What is being dialled is reached."""
        for dial in self.loop.dials:
            if dial.pending:
                dial.reach()

    def flying(self, location: str = "lhr") -> int:
        assert self.plane.abroad is not None
        peer = self.plane.abroad._rules["m"].peer(location)
        assert peer is not None
        return peer.flying


def spilled() -> tuple[Places, Client, FakeTransport, FakeTransport]:
    """A request that has just been written to lhr."""
    bench = Places()
    bench.hear()
    bench.busy()
    client, transport = bench.ask(stream=True)
    bench.reach()
    _, there = bench.engine_of(client)
    return bench, client, transport, there


def test_a_request_that_leaves() -> None:
    """It goes by its model's own name, with a hop header; its answer says where from; the record tells the way."""
    bench, client, transport, there = spilled()
    sent = there.take()
    assert b"x-headrace-hop: 1;ams;lhr;" in sent
    assert b'"model":"m"' in sent.replace(b" ", b"")
    connection, _ = bench.engine_of(client)
    head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nx-headrace-instance: gpu-7\r\nx-headrace-spill: a>b\r\n\r\n")
    connection.data_received(head + chunk(EVENT) + chunk(DONE) + LAST)
    got = transport.take()
    assert b"x-headrace-spill: ams>lhr\r\n" in got
    assert b"a>b" not in got
    assert b"x-headrace-instance: lhr/gpu-7\r\n" in got
    assert b"x-headrace-location: ams\r\n" in got
    (record,) = bench.plane.take_records()
    assert ("ams", "lhr", 0, "spill", "ok") == (
        record.spill_from, record.spill_to, record.hop, record.reason, record.outcome,
    )  # fmt: skip
    assert ["ams", "lhr"] == [row[0] for row in record.candidates]
    assert 0 == bench.flying()
    bench.idle()
    assert bench.clean


def test_none_leaves_without_need() -> None:
    """Nor without a fresh digest, a secret, or where none may go."""
    for case in ("idle", "unheard", "unsigned", "full", "cut"):
        bench = Places()
        if case != "unheard":
            bench.hear(sign=case != "unsigned", accepting=case != "full")
        if case != "idle":
            bench.busy()
        if case == "cut":
            assert bench.plane.abroad is not None
            bench.plane.abroad.hear(Remote("lhr", 0, 0, (), (KEY,), ()), time.monotonic_ns())
        client, _ = bench.ask()
        assert client.exchange is None or not client.exchange.spilled, case


def test_a_refusal_comes_back_here() -> None:
    """It is placed here, the location is let be, and the connection serves on."""
    bench, client, transport, _ = spilled()
    connection, _ = bench.engine_of(client)
    bench.idle()
    connection.data_received(REFUSED)
    here, _ = bench.engine_of(client)
    assert ["one", "two", "three"].count(here.pool.upstream.name) == 1
    assert connection in bench.plane.pools[LHR].idle
    here.data_received(STREAM_HEAD + chunk(EVENT) + chunk(DONE) + LAST)
    assert b"x-headrace-attempts: 2\r\n" in transport.take()
    (record,) = bench.plane.take_records()
    assert ["lhr", here.pool.upstream.name] == [attempt.instance for attempt in record.attempts]
    assert ("", "") == (record.spill_from, record.spill_to)
    assert 1 == bench.plane.counters["headrace_spill_total|ams:lhr:refused"]
    bench.busy()
    assert bench.ask()[0].exchange.spilled == ""  # type: ignore[union-attr]


@pytest.mark.parametrize("how", ["reset", "status", "not there", "garbage"])
def test_a_failure_comes_back_here(how: str) -> None:
    """Whatever went wrong before the first byte; no retry budget is asked."""
    bench, client, _, _ = spilled()
    connection, _ = bench.engine_of(client)
    bench.idle()
    if how == "reset":
        connection.connection_lost(ConnectionResetError())
    else:
        connection.data_received(
            {"status": answer(b"", 503), "not there": answer(b"", 404), "garbage": b"\x00\x01\r\n"}[how]
        )
    here, _ = bench.engine_of(client)
    assert here.pool.upstream.name in ("one", "two", "three")
    assert 1 == bench.plane.counters["headrace_spill_total|ams:lhr:failed"]
    assert 0 == bench.flying()


def test_after_the_first_byte_there_is_no_way_back() -> None:
    bench, client, transport, _ = spilled()
    connection, _ = bench.engine_of(client)
    connection.data_received(STREAM_HEAD + chunk(EVENT))
    connection.connection_lost(ConnectionResetError())
    assert b'"error"' in transport.take()
    (record,) = bench.plane.take_records()
    assert ("upstream_error", "lhr") == (record.outcome, record.spill_to)
    assert 0 == bench.flying()


def test_a_location_out_of_sight_is_given_up() -> None:
    """Who waits for its answer is placed here; who has begun to get one is not."""
    for begun in (False, True):
        bench, client, _, _ = spilled()
        exchange = client.exchange
        assert exchange is not None
        if begun:
            bench.engine_of(client)[0].data_received(STREAM_HEAD + chunk(EVENT))
        late = time.monotonic_ns() + 4 * SECOND
        bench.idle()
        assert vigil.cut_off(exchange, late) is not begun
        bench.plane.notice(late)
        assert ("lhr" if begun else "") == exchange.spilled


def test_while_it_is_being_dialled_too() -> None:
    bench = Places()
    bench.hear()
    bench.busy()
    client, _ = bench.ask()
    assert client.exchange is not None
    bench.idle()
    bench.plane.notice(time.monotonic_ns() + 4 * SECOND)
    assert client.exchange.spilled == ""
    assert bench.engine_of(client)[0].pool.upstream.name in ("one", "two", "three")


def test_a_client_that_leaves() -> None:
    """Nothing is left of its request."""
    bench, client, _, there = spilled()
    client.connection_lost(None)
    assert there.aborted
    bench.idle()
    assert bench.clean
    assert 0 == bench.flying()


def test_once_elsewhere_when_nobody_is_here() -> None:
    """A location without engines tries a second one, never a third."""
    bench = Places(engines=0)
    for location in ("lhr", "nyc"):
        bench.hear(location)
    client, transport = bench.ask()
    bench.reach()
    first = bench.engine_of(client)[0]
    first.data_received(REFUSED)
    bench.reach()
    second = bench.engine_of(client)[0]
    assert {"lhr", "nyc"} == {first.pool.upstream.name, second.pool.upstream.name}
    second.data_received(REFUSED)
    got = transport.take()
    assert got.startswith(b"HTTP/1.1 503 ")
    assert b"retry-after" in got
    assert bench.clean


def test_when_all_here_have_failed() -> None:
    """Before any probe has noticed: the last resort is another location, once, within the retry budget."""
    for reached in (True, False):
        bench = Places(engines=1)
        if reached:
            bench.hear()
        client, transport = bench.ask()
        bench.engine_of(client)[0].data_received(answer(b"", 500))
        if not reached:
            assert transport.take().startswith(b"HTTP/1.1 502 ")
            continue
        bench.reach()
        there, _ = bench.engine_of(client)
        assert "lhr" == there.pool.upstream.name
        there.data_received(answer())
        assert b"x-headrace-spill: ams>lhr\r\n" in transport.take()
        assert bench.clean


def test_one_that_came_from_another_is_not_sent_on() -> None:
    """Not even when all here have failed."""
    bench = Places(engines=1)
    bench.hear()
    client, transport = bench.client()
    client.data_received(post(BODY, hop(bench, BODY)))
    bench.engine_of(client)[0].data_received(answer(b"", 500))
    assert transport.take().startswith(b"HTTP/1.1 502 ")
    assert bench.clean


def test_a_model_that_left_while_its_request_was_away() -> None:
    """It comes back to nobody, and says so."""
    bench, client, transport, _ = spilled()
    connection, _ = bench.engine_of(client)
    bench.router.update(Table(2, {}), bench.now)
    connection.data_received(REFUSED)
    assert transport.take().startswith(b"HTTP/1.1 503 ")
    assert 0 == bench.plane.active


def test_how_fast_the_engines_here_are_shows() -> None:
    """What leaves is weighed against what tokens really take here."""
    bench = Places()
    abroad = bench.plane.abroad
    assert abroad is not None
    now = time.monotonic_ns()
    before = abroad.here("m", now).t0
    for _ in range(200):
        abroad.observe("m", 0, 0.2)
    assert abroad.here("m", now + SECOND).t0 > 5 * before


# who comes


def hop(bench: Places, body: bytes, **change: Any) -> bytes:
    """A hop header's line for a request of lhr to us; its clock is 5 s ahead."""
    given = Hop("lhr", "ams", "abc", 0, (), time.monotonic_ns() + 5 * SECOND, "their-id")._replace(**change)
    return b"x-headrace-hop: %b\r\n" % write(given, [KEY], b"POST", b"/v1/chat/completions", body)


BODY = b'{"model":"m"}'


def test_a_request_that_comes() -> None:
    """Its tenant, priority and id are as its origin says; it is placed here though another location is better."""
    bench = Places()
    bench.hear()
    bench.busy(1000)
    client, _ = bench.client()
    client.data_received(post(BODY, hop(bench, BODY)))
    exchange = client.exchange
    assert exchange is not None
    assert ("abc", 0, "their-id", "") == (
        exchange.ask.tenant, int(exchange.ask.priority), exchange.request_id, exchange.spilled,
    )  # fmt: skip
    connection, engine = bench.engine_of(client)
    assert b"x-headrace-hop" not in engine.take()
    connection.data_received(answer())
    (record,) = bench.plane.take_records()
    assert ("lhr", "ams", 1) == (record.spill_from, record.spill_to, record.hop)


def test_the_guard() -> None:
    """Locals come first: a busy location takes none, and says so before anything is sent anywhere."""
    bench = Places()
    bench.hear()
    bench.busy()
    client, transport = bench.client()
    client.data_received(post(BODY, hop(bench, BODY)))
    got = transport.take()
    assert got.startswith(b"HTTP/1.1 429 ")
    assert b"spill_refused" in got
    assert b"retry-after" in got
    assert 1 == bench.plane.counters["headrace_spill_refused_total|lhr:ams:guard"]
    (record,) = bench.plane.take_records()
    assert ("shed", 1) == (record.outcome, record.hop)


@pytest.mark.parametrize(
    ("site", "theirs", "taken"),
    [
        ({"tags": ("eu",)}, (("eu", "ch"),), True), ({"tags": ("us",)}, (("eu",),), False), ({}, (("eu",),), False),
        ({"tags": ("eu", "de")}, (("eu",), ("us",)), False), ({"tags": ("eu",), "residency": {"m": ("eu",)}}, (), True),
        ({"tags": ("us",), "residency": {"m": ("eu",)}}, (), False),
    ],
)  # fmt: skip
def test_residency_is_checked_where_it_comes(
    site: dict[str, Any], theirs: tuple[tuple[str, ...], ...], taken: bool
) -> None:
    """Of each set this location carries a tag: the request's own sets, and its model's here."""
    bench = Places(**site)
    bench.hear()
    client, transport = bench.client()
    client.data_received(post(BODY, hop(bench, BODY, residency=theirs)))
    assert taken is not transport.take().startswith(b"HTTP/1.1 429 ")


@pytest.mark.parametrize(("carried", "goes"), [(("eu",), True), (("us",), False), ((), False)])
def test_residency_is_checked_where_it_leaves(carried: tuple[str, ...], goes: bool) -> None:
    bench = Places(residency={"m": ("eu", "ch")})
    bench.hear(residency=carried)
    bench.busy()
    client, _ = bench.ask()
    assert goes is bool(client.exchange is not None and client.exchange.spilled)
    bench.reach()
    assert not goes or b";eu+ch;" in bench.engine_of(client)[1].take()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"target": "nyc"}, "wrong_target"), ({"origin": "nyc"}, "unknown_origin"), ({"time": 1}, "expired"),
        ({"tenant": "def"}, ""),
    ],
)  # fmt: skip
def test_what_proves_nothing(change: dict[str, Any], reason: str) -> None:
    """The request is a client's like any other, but is not spilled; it is counted."""
    bench = Places()
    bench.hear()
    client, _ = bench.client()
    client.data_received(post(BODY, hop(bench, BODY, **change)))
    exchange = client.exchange
    assert exchange is not None
    assert (exchange.hop is None) == bool(reason)
    assert "" == exchange.spilled
    if reason:
        assert exchange.ask.tenant != "abc"
        assert 1 == bench.plane.counters[f"headrace_hops_rejected_total|{reason}"]


def test_a_hop_comes_once() -> None:
    """The second time it proves nothing; nor does one with another body, or two of them."""
    bench = Places()
    bench.hear()
    line = hop(bench, BODY)
    for number, (head, body) in enumerate(
        [(line, BODY), (line, BODY), (hop(bench, BODY), b'{"model":"alias"}'), (line * 2, BODY)]
    ):
        client, _ = bench.client()
        client.data_received(post(body, head))
        assert client.exchange is not None
        assert (client.exchange.hop is not None) == (number == 0)
    counters = bench.plane.counters
    assert [1, 1, 1] == [
        counters[f"headrace_hops_rejected_total|{why}"] for why in ("replayed", "bad_mac", "malformed")
    ]


def test_without_a_mesh_a_hop_is_nobodys() -> None:
    bench = Bench()
    client, _ = bench.client()
    client.data_received(post(BODY, b"x-headrace-hop: 1;x\r\n"))
    assert client.exchange is not None
    assert 1 == bench.plane.counters["headrace_hops_rejected_total|unknown_origin"]


def test_a_location_that_leaves_the_config() -> None:
    """While a request is there: it ends well, and nothing more goes."""
    bench, client, transport, _ = spilled()
    connection, _ = bench.engine_of(client)
    bench.configure(("nyc",))
    connection.data_received(STREAM_HEAD + chunk(EVENT) + chunk(DONE) + LAST)
    assert b"[DONE]" in transport.take()
    bench.hear("lhr")
    assert bench.ask()[0].exchange.spilled == ""  # type: ignore[union-attr]


def test_a_new_secret_does_not_void_the_old_one() -> None:
    """For as long as eight more were agreed on."""
    bench = Places()
    bench.hear()
    assert bench.plane.abroad is not None
    for number in range(7):
        bench.plane.abroad.hear(Remote("lhr", 0, 5 * SECOND, (), (b"%032d" % number,), ()), 0)
    client, _ = bench.client()
    client.data_received(post(BODY, hop(bench, BODY)))
    assert client.exchange is not None
    assert client.exchange.hop is not None
    bench.plane.abroad.hear(Remote("lhr", 0, 5 * SECOND, (), (b"%032d" % 8,), ()), 0)
    client, _ = bench.client()
    client.data_received(post(BODY, hop(bench, BODY, request_id="other")))
    assert client.exchange is not None
    assert client.exchange.hop is None


def test_no_more_are_in_flight_than_may_be() -> None:
    """64 an instance there."""
    bench = Places()
    bench.hear(instances=1, capacity=1 / 70e-6)
    bench.busy(10**9)
    assert bench.plane.abroad is not None
    peer = bench.plane.abroad._rules["m"].peer("lhr")
    assert peer is not None
    peer.flying = IN_FLIGHT - 1
    assert "lhr" == bench.ask()[0].exchange.spilled  # type: ignore[union-attr]
    assert "" == getattr(bench.ask()[0].exchange, "spilled", "")
