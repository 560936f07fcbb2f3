"""The agent on the mesh: what it tells, what its workers and its board hear."""

import asyncio
import os
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from balancer.board import Board
from balancer.ledger import Ledger
from balancer.mesh.wire import InstanceWork, Told
from balancer.model import Digest, Fleet, Instance, Table
from proxy.config import Address, Config, Engine, Mesh, Model, Peer
from proxy.control import views
from proxy.control.agent import Agent
from proxy.control.messages import News, Processes
from telemetry.record import Attempt
from tests.balancer.mesh.test_mesh import INTERVAL, Node, until
from tests.support.records import record

ENGINE = Engine("http://127.0.0.1:9", "gpu-9")


@pytest.fixture(autouse=True)
def _no_leak() -> None:
    """See tests/balancer/mesh/test_mesh.py."""


class Link:
    """A worker's link that keeps what is sent over it."""

    def __init__(self) -> None:
        self.news: list[News] = []

    def send(self, message: object) -> bool:
        if isinstance(message, News):
            self.news.append(message)
        return True


def run(other: Node, test: Callable[[Agent, Link], Awaitable[None]]) -> None:
    """An agent of ams, node n1, that knows the other; both listen."""

    async def main() -> None:
        board = Board.create(workers=1, cells=8)
        await other.mesh.listen("127.0.0.1:0", None)
        agent = Agent(board)
        address = Peer(Address("127.0.0.1", other.mesh.port), "http://127.0.0.1:9")
        me = other.mesh.me
        inside = me.location == "ams"
        mesh = Mesh(
            Address("127.0.0.1", 0), insecure=True, interval=INTERVAL, locations={} if inside else {me.location: address},
            nodes={me.node: address} if inside else {},
        )  # fmt: skip
        agent.config = Config(
            "ams", Address("127.0.0.1", 8080), {"m": Model((ENGINE,))}, node="n1", mesh=mesh, residency=("eu",)
        )
        agent.cells = {ENGINE.url: 3}
        agent.table = Table(1, {"m": Fleet((Instance(3, "gpu-9", 2.0),), 1e-4)})
        worker: Any = Link()
        agent.workers[worker] = 0
        telling = asyncio.ensure_future(agent.peers.keep_telling())
        try:
            await agent.peers.configure(agent.config)
            assert agent.peers.mesh is not None
            other.knows_port("ams", "n1" if inside else "", agent.peers.mesh.port)
            await test(agent, worker)
        finally:
            telling.cancel()
            await agent.peers.stop()
            await other.mesh.stop()
            board.close()
            os.close(board.fd)

    asyncio.run(main())


def test_what_it_tells() -> None:
    """Its digests, made from the Table and the board; a guard's change at once; nothing any more while it drains."""
    lhr = Node("lhr")

    async def test(agent: Agent, worker: Link) -> None:
        await until(lambda: lhr.heard.told is not None)

        def told() -> Digest:
            assert lhr.heard.told is not None
            return lhr.heard.told.digests[0]

        assert ("m", 1, ("eu",), True) == (told().model, told().instances, told().residency, told().accepting)
        assert pytest.approx(20_000) == told().capacity
        Ledger(agent.board.ints, agent.board.base(0)).acquire(3, 9000, 5, [1] * 64)
        await until(lambda: not told().accepting)
        assert (9000, 1) == (told().work, told().running)
        agent.board.clear(0)
        await until(lambda: told().accepting)
        agent.processes = Processes([], 0, True)
        await until(lambda: not told().accepting)

    run(lhr, test)


def test_what_records_tell() -> None:
    """Streams that ended here say how fast the engines are; what was spilled says it of others."""
    lhr = Node("lhr")

    async def test(agent: Agent, worker: Link) -> None:
        await until(lambda: lhr.heard.told is not None)
        assert lhr.heard.told is not None
        before = lhr.heard.told.digests[0].t0
        attempt = Attempt("gpu-9", "0" * 16, 0, 1, "ok")
        slow = record(
            model="m", attempts=[attempt], outcome="ok", first_token=10**9, last_byte=21 * 10**9, output_tokens=101
        )
        away = record(
            model="m", attempts=[attempt], outcome="ok", first_token=1, last_byte=2, output_tokens=101, spill_to="lhr"
        )
        for _ in range(200):
            agent.peers.observe(slow)
            agent.peers.observe(away)
        await until(lambda: lhr.heard.told is not None and lhr.heard.told.digests[0].t0 > 5 * before)

    run(lhr, test)


def test_what_workers_hear() -> None:
    """The secret before anything is told; digests by our clock; that a location is gone."""
    lhr = Node("lhr", ahead=3600 * 10**9)

    async def test(agent: Agent, worker: Link) -> None:
        await until(lambda: any(remote.accept for news in worker.news for remote in news.remotes))
        first = worker.news[0].remotes[0]
        assert lhr.heard.session is not None
        assert ("lhr", (lhr.heard.session.secret,), ()) == (first.location, first.accept, first.sign)
        given = Digest("", "m", 0, 0, 5.0, 6e4, 2, 3, 4)
        lhr.mesh.tell(Told(1, time.monotonic_ns() + 3600 * 10**9, ("eu",), (given,)))
        await until(lambda: worker.news[-1].remotes[0].digests)
        last = worker.news[-1].remotes[0]
        assert last.accept == last.sign == first.accept
        assert abs(last.digests[0].ts - time.monotonic_ns()) < 10 * 10**9
        assert abs(last.offset - 3600 * 10**9) < 10 * 10**9
        assert agent.peers.all().remotes[0].location == "lhr"
        shown = views.locations(agent)["lhr"]
        assert shown["up"]
        assert 3590 < shown["clock_ahead_s"] < 3610
        assert 0 <= shown["age_s"] < 10
        assert {"clock": 1} == shown["failures"]
        await lhr.mesh.stop()
        await until(lambda: not worker.news[-1].remotes[0].sign)

    run(lhr, test)


def test_nodes_share_their_work() -> None:
    """Another node's work at an engine is on the board until it is silent; what we tell it is our own alone."""
    two = Node("ams", "n2")

    async def test(agent: Agent, worker: Link) -> None:
        await until(lambda: two.heard.there)
        work = (InstanceWork("gpu-9", 100, 50, 2), InstanceWork("elsewhere", 1, 1, 1))
        two.mesh.tell(Told(1, time.monotonic_ns(), (), (), work))
        await until(lambda: agent.board.outstanding(3) == (100, 50, 2))
        assert (0, 0, 0) == agent.board.outstanding(3, own=True)
        assert agent.board.nodes_row in agent.board.live()
        Ledger(agent.board.ints, agent.board.base(0)).acquire(3, 10, 5, [1] * 64)
        await until(
            lambda: two.heard.told is not None and two.heard.told.instances == (InstanceWork("gpu-9", 10, 5, 1),)
        )
        await two.mesh.stop()
        await until(lambda: agent.board.outstanding(3) == (10, 5, 1))

    run(two, test)
