"""The agent's part that speaks with the other locations and the other nodes of this one: the mesh at one end, the Table's
second half and the board at the other.

    out   every interval, and at once when a model's guard begins or ceases to refuse: this location's digests, made from the
          Table and the board; to nodes also what this node itself has outstanding at each engine
    in    a location's digests, distance and secrets go to the workers as `Remote`, its times brought to our clock; a node's
          work goes to the board's last row, where every worker counts it like another worker's
"""

import asyncio
import logging
import os
import random
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from balancer import digest
from balancer.mesh import wire
from balancer.mesh.mesh import Mesh, Tls
from balancer.mesh.session import Identity, Session
from balancer.mesh.wire import InstanceWork, Told
from balancer.model import Digest
from proxy.config import Config, MeshTls
from proxy.control.messages import News, Remote
from telemetry.record import Record

if TYPE_CHECKING:
    from proxy.control.agent import Agent

log = logging.getLogger("headrace.agent")
SECOND = 1_000_000_000
JITTER = 0.1  # of the interval
LOOK = 0.1  # s between two looks at the guards and at what the mesh has said
MEASURABLE = 8  # output tokens from which a stream tells its engine's speed
NODE_FRESH = 3  # intervals for which another node's work counts, and a second


def _read(tls: MeshTls) -> Tls:
    return Tls(*(Path(name).read_bytes() for name in (tls.cert, tls.key, tls.ca)))


class SystemClock:
    """See `balancer.mesh.mesh.Clock`."""

    def monotonic(self) -> int:
        return time.monotonic_ns()

    def unix(self) -> int:
        return time.time_ns()


class Peers:
    """What this node knows of the others and tells them."""

    def __init__(self, agent: "Agent") -> None:
        self.failures: Counter[tuple[str, str]] = Counter()  # by peer and reason
        self._contexts: dict[str, digest.Context] = {}  # by model
        self._speeds: dict[str, digest.Speed] = {}
        self.mesh: Mesh | None = None
        self._agent = agent
        self._random = random.Random(os.urandom(16))
        self._interval = 1.0
        self._residency: tuple[str, ...] = ()
        self._seq = 0
        self._accepting: dict[str, bool] = {}
        self._changed: set[str] = set()  # locations that the workers must hear of
        self._nodes: dict[str, tuple[int, Told]] = {}  # when it came, by node
        self._counted: set[int] = set()  # cells in which the nodes' row says something

    # the agent

    async def configure(self, config: Config) -> None:
        """Listens and dials as the config says; raises OSError for an address or a file that cannot be had."""
        mesh = config.mesh
        self._residency = config.residency
        if mesh is None:
            if self.mesh is not None:
                self.mesh.configure({}, None, self._interval)
            return
        tls = _read(mesh.tls) if mesh.tls is not None else None
        self._interval = mesh.interval
        if self.mesh is None:
            made = Mesh(
                Identity(config.location, config.node),
                self,
                SystemClock(),
                lambda: os.urandom(wire.NONCE),
                mesh.interval,
            )
            await made.listen(str(mesh.listen), tls)
            self.mesh = made
        addresses = {Identity(name, ""): str(peer.mesh) for name, peer in mesh.locations.items()}
        addresses.update({Identity(config.location, node): str(peer.mesh) for node, peer in mesh.nodes.items()})
        self.mesh.configure(addresses, tls, mesh.interval)
        if mesh.nodes:
            self._agent.board.claim(self._agent.board.nodes_row, os.getpid(), time.monotonic_ns())

    async def keep_telling(self) -> None:
        """Every interval, and at once when a guard has changed its mind."""
        due = 0.0
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(LOOK if self.mesh is not None else 1.0)
            if self.mesh is None:
                continue
            digests = self._digests()
            accepting = {one.model: one.accepting for one in digests}
            if loop.time() >= due or accepting != self._accepting:
                self._accepting = accepting
                due = loop.time() + self._interval * (1 + JITTER * (2 * self._random.random() - 1))
                self._tell(digests)
            self._forget_nodes()
            self._pass_on()

    def all(self) -> News:
        """What a worker must hear first."""
        return News([self._remote(location) for location in self._locations()])

    async def stop(self) -> None:
        """Ends the streams."""
        if self.mesh is not None:
            await self.mesh.stop()

    def observe(self, record: Record) -> None:
        """Takes what a request tells of how much its engine holds, and how fast it is."""
        if not record.prompt_tokens_estimated or record.spill_to not in ("", record.location):
            return
        context = self._contexts.setdefault(record.model, digest.Context())
        context.observe(record.prompt_tokens or record.prompt_tokens_estimated, record.output_tokens)
        table = self._agent.table
        if record.outcome != "ok" or not record.first_token or record.output_tokens < MEASURABLE or table is None:
            return
        fleet = table.models.get(record.model)
        name = record.attempts[-1].instance
        for instance in fleet.instances if fleet is not None else ():
            if instance.name == name:
                tpot = (record.last_byte - record.first_token) / (record.output_tokens - 1) / SECOND
                running = self._agent.board.outstanding(instance.cell)[2] + 1
                self._speeds.setdefault(record.model, digest.Speed()).observe(tpot, running, context.tokens)

    # out

    def _digests(self) -> tuple[Digest, ...]:
        agent, now = self._agent, time.monotonic_ns()
        if agent.table is None or agent.config is None:
            return ()
        ejected = {name for out in agent.ejected.values() for name in out}
        target = agent.config.balancing.ttft_target
        return tuple(
            digest.make(
                agent.config.location,
                model,
                now,
                [i for i in fleet.instances if i.ready and i.weight > 0 and i.name not in ejected],
                fleet.reference,
                agent.board.outstanding,
                target,
                self._contexts.setdefault(model, digest.Context()).tokens,
                coefficients=self._speeds.setdefault(model, digest.Speed()).coefficients,
            )
            for model, fleet in agent.table.models.items()
        )

    def _tell(self, digests: tuple[Digest, ...]) -> None:
        assert self.mesh is not None  # noqa: S101
        if self._agent.processes.draining:  # a location that is about to end takes nothing more
            digests = tuple(msgspec.structs.replace(one, accepting=False) for one in digests)
        self._seq += 1
        self.mesh.tell(Told(self._seq, time.monotonic_ns(), self._residency, digests, self._own_work()))

    def _own_work(self) -> tuple[InstanceWork, ...]:
        config, board = self._agent.config, self._agent.board
        if config is None or config.mesh is None or not config.mesh.nodes:
            return ()
        cells = {
            engine.name: self._agent.cells[engine.url] for model in config.models.values() for engine in model.engines
        }
        return tuple(InstanceWork(name, *board.outstanding(cell, own=True)) for name, cell in cells.items())

    # in (Audience of the mesh)

    def greeted(self, session: Session) -> None:
        """Its secret is with the workers before it hears from us: it signs with it from our first digest on."""
        assert session.peer is not None  # noqa: S101
        self._changed.add(session.peer.location)
        self._pass_on()
        self._tell(self._digests())

    def heard(self, session: Session) -> None:
        assert session.peer is not None  # noqa: S101
        config = self._agent.config
        if config is not None and session.peer.location == config.location:
            self._take_node(session)
        else:
            self._changed.add(session.peer.location)

    def lost(self, session: Session) -> None:
        assert session.peer is not None  # noqa: S101
        self._changed.add(session.peer.location)

    def counted(self, peer: str, reason: str) -> None:
        self._agent.metrics.count(f"headrace_mesh_failures_total|{peer}:{reason}", 1)
        self.failures[peer, reason] += 1

    def _pass_on(self) -> None:
        """To the workers: those locations of which something new is known."""
        config = self._agent.config
        changed, self._changed = self._changed, set()
        remotes = [self._remote(name) for name in changed if config is None or name != config.location]
        if remotes:
            news = News(remotes)
            for link in self._agent.workers:
                link.send(news)

    def _locations(self) -> list[str]:
        mesh = self._agent.config.mesh if self._agent.config is not None else None
        return list(mesh.locations) if mesh is not None else []

    def _remote(self, location: str) -> Remote:
        """One location, as its nodes that are here tell: of each model the newest digest."""
        sessions = self.sessions(location)
        newest: dict[str, Digest] = {}
        for session in sessions:
            if session.told is None or not session.known:
                continue
            for one in wire.brought(session.told.digests, session.offset):
                if one.model not in newest or newest[one.model].ts < one.ts:
                    newest[one.model] = one
        heard = [session for session in sessions if session.told is not None and session.known]
        best = min(heard, key=lambda session: session.rtt, default=None)
        return Remote(
            location, best.rtt if best else 0, best.offset if best else 0, tuple(newest.values()),
            tuple(session.secret for session in sessions), tuple(session.secret for session in heard),
        )  # fmt: skip

    def sessions(self, location: str) -> list[Session]:
        """The streams to a location's nodes."""
        found: Mapping[Identity, Session] = self.mesh.sessions() if self.mesh is not None else {}
        return [session for identity, session in found.items() if identity.location == location]

    # nodes

    def _take_node(self, session: Session) -> None:
        assert session.peer is not None  # noqa: S101
        if session.told is not None:
            self._nodes[session.peer.node] = time.monotonic_ns(), session.told
            self._write_nodes()

    def _forget_nodes(self) -> None:
        oldest = time.monotonic_ns() - int((NODE_FRESH * self._interval + 1) * SECOND)
        if gone := [node for node, (at, _) in self._nodes.items() if at < oldest]:
            for node in gone:
                del self._nodes[node]
            self._write_nodes()

    def _write_nodes(self) -> None:
        """The sum of what the other nodes have outstanding, engines being the same by their names."""
        agent, sums = self._agent, dict[int, list[int]]()
        config = agent.config
        assert config is not None  # noqa: S101
        cells = {engine.name: agent.cells[engine.url] for model in config.models.values() for engine in model.engines}
        for _, told in self._nodes.values():
            for work in told.instances:
                if (cell := cells.get(work.name)) is not None:
                    total = sums.setdefault(cell, [0, 0, 0])
                    for place, count in enumerate(work[1:]):
                        total[place] += count
        for cell in self._counted | sums.keys():
            prefill, decode, requests = sums.get(cell, (0, 0, 0))
            agent.board.set_outstanding(agent.board.nodes_row, cell, (prefill, decode, requests))
        self._counted = set(sums)
