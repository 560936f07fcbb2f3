"""The streams: real gRPC on loopback, with and without TLS."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import pytest
import trustme

from balancer.mesh import mesh_pb2 as pb
from balancer.mesh.mesh import METHOD, Mesh, Tls
from balancer.mesh.session import Identity, Session
from balancer.mesh.wire import InstanceWork, Told
from balancer.model import Digest

INTERVAL = 0.1
SECONDS = 15.0


@pytest.fixture(autouse=True)
def _no_leak() -> None:
    """Instead of the check of all tests: gRPC keeps pollers for the process, and closes sockets in threads of its own."""


class Clock:
    def __init__(self, ahead: int = 0) -> None:
        self.ahead = ahead

    def monotonic(self) -> int:
        return time.monotonic_ns() + self.ahead

    def unix(self) -> int:
        return time.time_ns() + self.ahead


class Heard:
    """Notes what happens on a mesh."""

    def __init__(self) -> None:
        self.there: list[str] = []
        self.gone: list[str] = []
        self.counts: list[tuple[str, str]] = []
        self.told: Told | None = None
        self.session: Session | None = None

    def greeted(self, session: Session) -> None:
        assert session.peer is not None
        self.there.append("/".join(session.peer))
        self.session = session

    def heard(self, session: Session) -> None:
        self.told = session.told

    def lost(self, session: Session) -> None:
        assert session.peer is not None
        self.gone.append("/".join(session.peer))

    def counted(self, peer: str, reason: str) -> None:
        self.counts.append((peer, reason))


class Node:
    """A mesh that listens, and what it heard."""

    def __init__(self, location: str, node: str = "0", tls: Tls | None = None, ahead: int = 0) -> None:
        self.heard = Heard()
        self.tls = tls
        self.mesh = Mesh(Identity(location, node), self.heard, Clock(ahead), lambda: os.urandom(32), INTERVAL)

    def knows(self, *others: "Node", port: int = 0) -> None:
        addresses = {}
        for other in others:
            me, node = other.mesh.me, other.mesh.me.node if other.mesh.me.location == self.mesh.me.location else ""
            addresses[Identity(me.location, node)] = f"127.0.0.1:{port or other.mesh.port}"
        self.mesh.configure(addresses, self.tls, INTERVAL)

    def knows_port(self, location: str, node: str, port: int) -> None:
        self.mesh.configure({Identity(location, node): f"127.0.0.1:{port}"}, self.tls, INTERVAL)


async def until(holds: Callable[[], object]) -> None:
    async with asyncio.timeout(SECONDS):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def meshed(test: Callable[..., Awaitable[None]], *nodes: Node) -> None:
    async def main() -> None:
        for node in nodes:
            await node.mesh.listen("127.0.0.1:0", node.tls)
        try:
            await test(*nodes)
        finally:
            for node in nodes:
                await node.mesh.stop()

    asyncio.run(main())


def tls_of(ca: trustme.CA, *names: str, trusts: trustme.CA | None = None, **options: Any) -> Tls:
    pair = ca.issue_cert(*names, **options)
    chain = b"".join(pem.bytes() for pem in pair.cert_chain_pems)
    return Tls(chain, pair.private_key_pem.bytes(), (trusts or ca).cert_pem.bytes())


def told(seq: int = 1) -> Told:
    return Told(seq, 0, ("eu",), (Digest("", "m", 0, 0, 5.0, 6e4, 2, 3, 4),), (InstanceWork("gpu", 1, 2, 3),))


async def talk(ams: Node, lhr: Node) -> None:
    ams.knows(lhr)
    lhr.knows(ams)
    await until(lambda: ams.heard.there and lhr.heard.there)
    ams.mesh.tell(told())
    await until(lambda: lhr.heard.told is not None)
    assert lhr.heard.told is not None
    assert () == lhr.heard.told.instances, "that is for nodes of one location"
    assert "m" == lhr.heard.told.digests[0].model
    await until(lambda: lhr.heard.session is not None and lhr.heard.session.known)
    assert ams.heard.session is not None
    assert lhr.heard.session is not None
    assert ams.heard.session.secret == lhr.heard.session.secret
    assert 1 == len(ams.mesh.sessions()) == len(lhr.mesh.sessions())


def test_two_locations() -> None:
    """One stream a pair, dialled by whose name comes first."""
    meshed(talk, Node("ams"), Node("lhr"))


def test_mutual_tls() -> None:
    """Each has a certificate in its location's name."""
    ca = trustme.CA()
    meshed(talk, Node("ams", tls=tls_of(ca, "ams")), Node("lhr", tls=tls_of(ca, "lhr")))


def test_clocks_apart() -> None:
    """An hour: measured, counted, said, and otherwise of no effect."""

    async def test(ams: Node, lhr: Node) -> None:
        await talk(ams, lhr)
        assert ("lhr", "clock") in ams.heard.counts
        await until(lambda: ams.heard.session is not None and ams.heard.session.known)
        assert ams.heard.session is not None
        assert abs(ams.heard.session.offset - 3600 * 10**9) < 5 * 10**9

    meshed(test, Node("ams"), Node("lhr", ahead=3600 * 10**9))


@pytest.mark.parametrize("case", ["other name", "other authority", "expired", "dialler's name", "dialler's authority"])
def test_certificates(case: str) -> None:
    """Neither side speaks with whom it cannot believe; it is counted."""
    ca, foreign = trustme.CA(), trustme.CA()
    first, second = tls_of(ca, "ams"), tls_of(ca, "lhr")
    if case == "other name":
        second = tls_of(ca, "nyc")
    elif case == "other authority":
        second = tls_of(foreign, "lhr", trusts=ca)
    elif case == "expired":
        from datetime import UTC, datetime, timedelta

        second = tls_of(ca, "lhr", not_after=datetime.now(UTC) - timedelta(days=1))
    elif case == "dialler's name":
        first = tls_of(ca, "nyc")
    else:
        first = tls_of(foreign, "ams", trusts=ca)

    async def test(ams: Node, lhr: Node) -> None:
        ams.knows(lhr)
        lhr.mesh.configure({}, lhr.tls, INTERVAL)
        lhr.mesh._addresses = {Identity("ams", ""): "127.0.0.1:9"}
        await until(lambda: ams.heard.counts)
        assert not lhr.heard.there
        assert not lhr.mesh.sessions()

    meshed(test, Node("ams", tls=first), Node("lhr", tls=second))


def test_who_is_not_in_the_config() -> None:
    """A stranger with the right certificate is none of this mesh."""

    async def test(ams: Node, lhr: Node) -> None:
        ams.knows(lhr)
        await until(lambda: ("ams", "stranger") in lhr.heard.counts)
        await until(lambda: ("lhr", "refused") in ams.heard.counts)
        assert not lhr.heard.there

    meshed(test, Node("ams"), Node("lhr"))


def test_garbage_and_giants_end_a_stream() -> None:
    """Bytes that are no frame, frames that are too large: nothing is lost but that stream."""

    async def test(lhr: Node) -> None:
        for data in (b"\xff" * 100, b"x" * 1_000_000):
            async with grpc.aio.insecure_channel(f"127.0.0.1:{lhr.mesh.port}") as channel:
                call = channel.stream_stream(METHOD, lambda message: message, pb.Frame.FromString)()
                with pytest.raises((grpc.aio.AioRpcError, asyncio.InvalidStateError)):  # noqa: PT012
                    await call.write(data)
                    while await call.read() is not grpc.aio.EOF:
                        pass
                    raise asyncio.InvalidStateError
        await until(lambda: lhr.mesh._strangers == 0)
        assert not lhr.mesh.sessions()

    meshed(test, Node("lhr"))


def test_garbage_from_who_was_dialled() -> None:
    """Ends the stream, is counted, and the next one is dialled as ever."""

    async def test(ams: Node) -> None:
        streams: list[Any] = []

        async def garble(requests: Any, context: Any) -> None:
            streams.append(context)
            hello = pb.Hello(version=1, location="lhr", node="0", nonce=b"n" * 32, unix_time=time.time_ns())
            await context.write(pb.Frame(hello=hello).SerializeToString())
            await context.write(b"\xff\xff\xff")
            await asyncio.sleep(5)

        server = grpc.aio.server()
        _, service, method = METHOD.split("/")
        handler = grpc.stream_stream_rpc_method_handler(garble)
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ams.knows_port("lhr", "", port)
        try:
            await until(lambda: len(streams) >= 2)
        finally:
            await server.stop(None)
        assert ("lhr", "garbage") in ams.heard.counts

    meshed(test, Node("ams"))


def test_a_peer_that_goes_and_comes() -> None:
    """Its stream ends, is dialled again, and has a new secret."""

    async def test(ams: Node, lhr: Node) -> None:
        await talk(ams, lhr)
        assert ams.heard.session is not None
        before, port = ams.heard.session.secret, lhr.mesh.port
        await lhr.mesh.stop()
        await until(lambda: ams.heard.gone)
        again = Node("lhr")
        await again.mesh.listen(f"127.0.0.1:{port}", None)
        again.knows(ams)
        await until(lambda: len(ams.heard.there) == 2)
        assert before != ams.heard.session.secret
        await again.mesh.stop()

    meshed(test, Node("ams"), Node("lhr"))


def test_the_second_dials_too() -> None:
    """If the first cannot reach it: networks may be open in one direction only."""

    async def test(ams: Node, lhr: Node) -> None:
        ams.knows(lhr, port=9)
        lhr.knows(ams)
        await until(lambda: ams.heard.there and lhr.heard.there)
        assert ("lhr", "unreachable") in ams.heard.counts

    meshed(test, Node("ams"), Node("lhr"))


def test_nodes_tell_each_other_of_each_engine() -> None:
    """Two nodes of one location hear what other locations do not."""

    async def test(one: Node, two: Node) -> None:
        one.knows(two)
        two.knows(one)
        await until(lambda: one.heard.there and two.heard.there)
        one.mesh.tell(told())
        await until(lambda: two.heard.told is not None)
        assert two.heard.told is not None
        assert (InstanceWork("gpu", 1, 2, 3),) == two.heard.told.instances

    meshed(test, Node("ams", "n1"), Node("ams", "n2"))
