"""The agent: everything about a location that no request waits for.

workers ──records, counters──▶ metrics, the last 10,000 records     probes ──▶ Table ──▶ workers
supervisor ──config, processes──▶ state ──▶ admin API               admin API ──reload, drain──▶ supervisor
"""

import argparse
import asyncio
import collections
import contextlib
import functools
import hashlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Coroutine, Sequence

import aiohttp
import grpc  # noqa: F401  lives here: imported later, by a reload, it would stall the loop; tools tell the agent by it
import msgspec
import uvloop
from prometheus_client import CollectorRegistry

from balancer.board import Board
from balancer.model import Fleet, Instance, Table
from proxy.config import Config, Engine
from proxy.control import views
from proxy.control.admin import Admin
from proxy.control.inflight import Finder
from proxy.control.kept import Kept
from proxy.control.link import Link
from proxy.control.messages import (
    Ack,
    Batch,
    Configure,
    Drain,
    DrainRequest,
    Failed,
    Found,
    Hello,
    Late,
    Learned,
    Processes,
    Push,
    Ready,
    ReloadRequest,
    ReloadResult,
    ToAgent,
    ToChild,
)
from proxy.control.peers import Peers
from proxy.control.probe import Probe, State
from proxy.control.traces import Traces
from proxy.control.weights import Weights
from telemetry.metrics import Metrics
from telemetry.record import shift
from telemetry.tuner import TICK

log = logging.getLogger("headrace.agent")
PUSH_EVERY = 1.0  # s between two Tables that differ in gauges only
FAREWELL = 5.0  # s that a draining agent waits for the workers to be gone
RELOAD_TIMEOUT = 30.0
FILES_EVERY = 1.0  # s
FORGED = "headrace_hops_rejected_total|"
LOST = "headrace_records_dropped_total|file"


class Agent:
    """One location's knowledge."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.registry = CollectorRegistry()
        self.metrics = Metrics(self.registry, lambda: views.samples(self))
        self.config: Config | None = None
        self.cells: dict[str, int] = {}
        self.generation = 0
        self.hash = ""
        self.started = time.time()
        self.pid = os.getpid()
        self.processes = Processes([], 0, False)
        self.workers: dict[Link, int] = {}  # connected ones, by number
        self.alone = asyncio.Event()  # no worker is connected
        self.alone.set()
        self.counted: dict[int, tuple[int, int]] = {}  # of each worker: its pid and the last batch that was counted
        self.ejected: dict[int, list[str]] = {}  # what each worker keeps out
        self.waiting: dict[int, list[int]] = {}  # requests in each worker's queues, by priority
        self.kept = Kept()
        self.finder = Finder()
        self.totals: collections.Counter[str] = collections.Counter()
        self.probes: dict[str, Probe] = {}
        self.probe_tasks: dict[str, asyncio.Task[None]] = {}
        self.table: Table | None = None
        self.version = 0
        self.stale = False  # the Table should be made anew
        self.reload_ok = True
        self.reload_waiters: list[asyncio.Future[ReloadResult]] = []
        self.configuring = asyncio.Lock()  # one Configure after the other
        self.control: Link | None = None
        self.session: aiohttp.ClientSession | None = None
        self.admin = Admin(self)
        self.peers = Peers(self)
        self.traces = Traces(views.VERSION, self.metrics)
        self.weights = Weights(self.metrics, self.traces.changed)
        self.traces.network = self.weights.network
        self.said: set[str] = set()  # what the log was told once
        self.loop = asyncio.get_running_loop()
        self.done: asyncio.Future[int] = self.loop.create_future()
        self.tasks: set[asyncio.Task[None]] = set()

    def spawn(self, work: Coroutine[object, object, None]) -> "asyncio.Task[None]":
        """Runs a part; its crash is logged and ends the agent, which the supervisor starts again."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._part_ended)
        return task

    def _part_ended(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a part of the agent crashed", exc_info=error)
            self.end(1)

    def end(self, code: int) -> None:
        """Ends the process."""
        if not self.done.done():
            self.done.set_result(code)

    # supervisor

    def on_control(self, message: ToChild) -> None:
        """A word of the supervisor."""
        if isinstance(message, Configure):
            self.spawn(self._configure(message))
        elif isinstance(message, Processes):
            self.processes = message
            alive = {process.worker for process in message.workers}
            self.ejected = {worker: out for worker, out in self.ejected.items() if worker in alive}
            self.waiting = {worker: queued for worker, queued in self.waiting.items() if worker in alive}
        elif isinstance(message, ReloadResult):
            self.reload_ok = not message.problems
            waiters, self.reload_waiters = self.reload_waiters, []
            for waiter in waiters:
                if not waiter.done():
                    waiter.set_result(message)
        elif isinstance(message, Drain):
            self.spawn(self._drain())

    async def _configure(self, message: Configure) -> None:
        assert self.control is not None  # noqa: S101
        async with self.configuring:
            config = message.config
            try:
                probes = self._probes_for(config, message.cells)
                archive = self.kept.archive_for(config)
                await self.admin.configure(config.admin)
            except (OSError, ValueError) as error:
                self.control.send(Failed(message.generation, str(error)))
                if self.config is None:  # nothing to go on with: what was half renewed may be whole at the next start
                    self.end(1)
                return
            self.config, self.cells, self.generation = config, message.cells, message.generation
            self.kept.configure(config, archive)
            self.weights.configure(config)
            self.hash = hashlib.sha256(msgspec.msgpack.encode(config)).hexdigest()[:12]
            self._probe_with(probes)
            self.push()
            try:
                await self.traces.configure(config)
                await self.peers.configure(config)
            except OSError as error:
                self.control.send(Failed(message.generation, str(error)))
                return
            self.control.send(Ready(message.generation))

    async def keep_files(self) -> None:
        """Writes what is to outlive the agent, and counts what was lost, there and on the way to the backend."""
        while True:
            await asyncio.sleep(FILES_EVERY)
            if lost := await asyncio.to_thread(self.kept.write):
                self.metrics.count(LOST, lost)
            for state, n in self.traces.take_counts().items():
                self.metrics.spans(state, n)

    def _probes_for(self, config: Config, cells: dict[str, int]) -> dict[str, Probe]:
        """The probes for the engines of this config, each URL once; those unchanged stay, changed ones keep what is known.
        Raises OSError for an engine's authority that cannot be loaded.
        """
        assert self.session is not None  # noqa: S101
        probes = {}
        for engine in (engine for model in config.models.values() for engine in model.engines):
            probe = self.probes.get(engine.url)
            if probe is None or probe.engine != engine or self.cells[engine.url] != cells[engine.url]:
                known = probe.state if probe is not None else State(since=time.monotonic_ns() if self.config else 0)
                own = functools.partial(self.board.outstanding, cells[engine.url])
                probe = Probe(engine, self.session, own, self._on_probe, known)
            probes[engine.url] = probe
        return probes

    def _probe_with(self, probes: dict[str, Probe]) -> None:
        """Ends the probes that are no longer wanted, starts the new ones."""
        for url, probe in self.probes.items():
            if probes.get(url) is not probe:
                self.probe_tasks.pop(url).cancel()
        for url, probe in probes.items():
            if url not in self.probe_tasks:
                self.probe_tasks[url] = self.spawn(probe.run())
        self.probes = probes

    def _on_probe(self, at_once: bool) -> None:
        self.stale = True
        if at_once:
            self.push()

    async def _drain(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.alone.wait(), FAREWELL)
        self.end(0)

    async def reload(self) -> ReloadResult:
        """Asks the supervisor to read the file again; raises TimeoutError."""
        assert self.control is not None  # noqa: S101
        waiter: asyncio.Future[ReloadResult] = self.loop.create_future()
        self.reload_waiters.append(waiter)
        self.control.send(ReloadRequest())
        return await asyncio.wait_for(waiter, RELOAD_TIMEOUT)

    def drain(self) -> None:
        """Asks the supervisor to drain the location."""
        assert self.control is not None  # noqa: S101
        self.control.send(DrainRequest())

    # workers

    def worker_link(self) -> Link:
        """The protocol of a worker's connection."""
        link: Link

        def on_message(message: ToAgent) -> None:
            self._on_worker(link, message)

        def on_lost() -> None:
            number = self.workers.pop(link, None)
            if number is not None:
                self.weights.overdue(number, [], time.monotonic_ns())
            if not self.workers:
                self.alone.set()

        link = Link(msgspec.msgpack.Decoder(ToAgent).decode, on_message, on_lost)
        return link

    def _on_worker(self, link: Link, message: ToAgent) -> None:
        if isinstance(message, Hello):
            self._on_hello(link, message)
            return
        number = self.workers.get(link)
        if number is None:
            link.close()  # it did not say who it is
            return
        if isinstance(message, Learned):
            self.kept.learned.merge(message.models)
            return
        if isinstance(message, Late):
            self.weights.overdue(number, message.requests, time.monotonic_ns())
            return
        if isinstance(message, Found):
            self.finder.answered(message)
            return
        pid, last = self.counted[number]
        if message.sequence > last:  # else it came twice: the link was lost before our word that it is counted
            self.counted[number] = pid, message.sequence
            self._count(number, message)
        link.send(Ack(message.sequence))

    def _on_hello(self, link: Link, message: Hello) -> None:
        self.workers[link] = message.worker
        self.alone.clear()
        if self.counted.get(message.worker, (0, 0))[0] != message.pid:
            self.counted[message.worker] = message.pid, 0
        if self.weights.restore(message.found):
            self.push()
        if self.table is not None:
            link.send(Push(self.table, self.weights.snapshot()))
        if (news := self.peers.all()).remotes:
            link.send(news)
        if self.kept.learned.models:
            link.send(Learned(self.kept.learned.models))

    def _count(self, worker: int, batch: Batch) -> None:
        for key, n in batch.counters.items():
            self.metrics.count(key, n)
            if key.startswith(FORGED) and key not in self.said:
                self.said.add(key)
                log.warning("a hop header proved nothing: %s (said once; counted always)", key.partition("|")[2])
            self.totals[key.partition("|")[0]] += n
        for seconds in batch.lag:
            self.metrics.lag(worker, seconds)
        self.ejected[worker], self.waiting[worker] = batch.ejected, batch.queued
        now = time.monotonic_ns()
        for record in batch.records:
            shift(record, batch.offset)
            self.metrics.observe(record)
            self.peers.observe(record)
            self.traces.observe(record)
            self.weights.observe(record, now)
            self.totals["requests"] += 1
            self.totals["outcome:" + record.outcome] += 1
            self.kept.add(record)

    # the Table

    def push(self) -> None:
        """Makes the Table and sends it to every worker if it differs from the last."""
        config = self.config
        if config is None:
            return
        self.stale = False
        models = {name: self._fleet(name, model.engines) for name, model in config.models.items()}
        if self.table is not None and models == self.table.models:
            return
        self.version = max(self.version + 1, time.time_ns() // 1_000_000)  # grows over the agent's restarts too
        self.table = Table(self.version, models)
        found = self.weights.snapshot()
        for link in self.workers:
            link.send(Push(self.table, found))

    def _fleet(self, model: str, engines: Sequence[Engine]) -> Fleet:
        weights = self.weights.of(model)
        return Fleet(tuple(self._instance(engine, weights[engine.name]) for engine in engines))

    def _instance(self, engine: Engine, weight: float) -> Instance:
        state = self.probes[engine.url].state
        return Instance(
            cell=self.cells[engine.url],
            name=engine.name,
            weight=weight,
            ready=state.ready,
            since=state.since,
            kv_use=round(state.load.kv_use, 3),
            background=state.background,
            scraped=state.scraped,
        )

    async def keep_table_fresh(self) -> None:
        """Sends new gauges now and then."""
        while True:
            await asyncio.sleep(PUSH_EVERY)
            if self.stale:
                self.push()

    async def tune(self) -> None:
        """Lets the tuners look at what was learned."""
        while True:
            await asyncio.sleep(TICK / 1e9)
            if self.weights.tick(time.monotonic_ns()):
                self.push()


async def serve(args: argparse.Namespace) -> int:
    """Runs the agent; its exit code."""
    loop = asyncio.get_running_loop()
    agent = Agent(Board.attach(args.board))
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)  # the supervisor passes on what is meant for us
    agent.session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    )
    agent.admin.listening = socket.socket(fileno=args.admin)
    decode = msgspec.msgpack.Decoder(ToChild).decode
    _, agent.control = await loop.create_connection(
        lambda: Link(decode, agent.on_control, lambda: agent.end(1)), sock=socket.socket(fileno=args.control)
    )
    listening = await loop.create_unix_server(agent.worker_link, sock=socket.socket(fileno=args.workers))
    agent.spawn(agent.keep_table_fresh())
    agent.spawn(agent.keep_files())
    agent.spawn(agent.tune())
    agent.spawn(agent.peers.keep_telling())
    code = await agent.done
    await agent.peers.stop()
    await agent.traces.close()
    agent.kept.close()
    listening.close()
    await agent.session.close()
    return code


def main() -> None:
    """The process's entry: descriptors by number, as the supervisor passes them."""
    parser = argparse.ArgumentParser()
    for name in ("control", "workers", "admin", "board"):
        parser.add_argument(f"--{name}", type=int, required=True)
    logging.basicConfig(level=logging.INFO, format="headrace: %(message)s", stream=sys.stderr)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what fails on the mesh is said by us, once
    code = uvloop.run(serve(parser.parse_args()))
    logging.shutdown()
    os._exit(code)  # probes and links need no farewell


if __name__ == "__main__":
    main()
