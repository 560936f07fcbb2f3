"""A worker: one event loop that carries requests. It waits for nobody but its supervisor's first word.

    supervisor ──Configure, Drain──▶ worker ──Ready, Failed──▶ supervisor
    agent ──Table, Ack──▶ worker ──batches of records──▶ agent     (it may come and go: the last Table stays)

It must stay light: no gRPC, no OpenTelemetry, no aiohttp, no YAML.
"""

import argparse
import asyncio
import gc
import logging
import os
import random
import resource
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from typing import NoReturn

import msgspec
import uvloop

from balancer.board import Board
from balancer.ledger import Ledger
from balancer.model import Table
from balancer.router import Router
from balancer.share import BoardShares
from proxy.control import inflight, sites
from proxy.control.link import Link
from proxy.control.listener import Listener
from proxy.control.messages import (
    Ack,
    Batch,
    Configure,
    Drain,
    Failed,
    Find,
    Found,
    Hello,
    Late,
    Learned,
    News,
    Push,
    Ready,
    ToChild,
    ToWorker,
    Tuned,
)
from proxy.control.outbox import Outbox
from proxy.net.plane import Plane

log = logging.getLogger("headrace.worker")
SECOND = 1_000_000_000
FLUSH = 0.05  # s between batches, and how often the event loop's lag is measured
LAG_SAMPLES = 20  # flushes between two lag samples that are sent
LOOK, LOOK_WAITING = 0.25, 0.01  # s between two looks at attempts and at the queue, and while requests wait there
LATE_LOOK = SECOND // 2
TEACH = 10  # sweeps
FULL_BATCH = 256  # records
RECONNECT = 0.2  # s
LAST_WORDS = 2.0  # s that a drained worker waits for its last records to be counted
LAST_ASKS = 1.0  # s that who was accepted last has for its request
LAST_TURN = 0.5  # s for requests that were cut to end
DRAIN_LEAST = 0.2
POLL = 0.01


class Worker:
    """One worker process's parts and timers."""

    def __init__(self, number: int, board: Board, row: int, listening: socket.socket, agent_path: str) -> None:
        self.loop = asyncio.get_running_loop()
        self.number, self.board, self.row = number, board, row
        self.agent_path = agent_path
        self.done = self.loop.create_future()
        self.ledger = Ledger(board.ints, board.base(row))
        self.outbox = Outbox()
        self.agent: Link | None = None
        self.table: Table | None = None  # in force
        self.pushed: Table | None = None  # the agent's last, which may be of another configuration
        self.found: Tuned = {}  # weights that the agent's tuner has found
        self.was_late = False  # the agent knows of overdue requests here
        self.elsewhere = 0
        self.neighbours: list[int] = []  # where the other workers' part of the shares begins on the board
        self.router = Router(
            self.ledger, random.Random(os.urandom(16)), shares=self._shares if board.workers > 1 else None
        )
        self.plane = Plane(
            worker=number,
            router=self.router,
            loop=self.loop,
            connections_elsewhere=lambda: self.elsewhere,
            workers=board.workers,
        )
        self.listener = Listener(self.loop, listening, self.plane.client_factory)
        self.lag: list[float] = []
        self.lag_worst, self.flushes, self.sweeps, self.looked = 0.0, 0, 0, 0
        self.control: Link | None = None
        self.config_drain = 300.0
        self.settled = False
        self.configuring = asyncio.Lock()  # one Configure after the other
        self.descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self.tasks: set[asyncio.Task[None]] = set()

    def start(self, control: Link) -> None:
        """Begins its timers; requests come with the first Configure."""
        self.control = control
        self.board.claim(self.row, os.getpid(), time.monotonic_ns())
        self._spawn(self._keep_agent())
        self._flush_at(self.loop.time() + FLUSH)
        self._sweep()
        self._look()

    def _shares(self, model: str) -> BoardShares:
        board = self.board
        return BoardShares(board.ints, board.shares(self.row), self.neighbours, board.cells, model)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        """Runs a part; its crash is logged and ends the worker, which the supervisor starts again."""
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._part_ended)

    def _part_ended(self, task: "asyncio.Task[None]") -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a part of worker %d crashed", self.number, exc_info=error)
            self._end(1)

    # supervisor

    def on_control(self, message: ToChild) -> None:
        """A word of the supervisor."""
        if isinstance(message, Configure):
            self._spawn(self._configure(message))
        elif isinstance(message, Drain):
            self._spawn(self._drain())

    def on_control_lost(self) -> None:
        """Without a supervisor nobody owns the sockets: end at once, so that another location can start."""
        self._end(1)

    async def _configure(self, message: Configure) -> None:
        async with self.configuring:
            await self._put_in_force(message)

    async def _put_in_force(self, message: Configure) -> None:
        config, now = message.config, time.monotonic_ns()
        assert self.control is not None  # noqa: S101
        try:
            site = sites.build(config, message.cells, message.secret)
            tls = sites.server_context(config.tls) if config.tls is not None else None
        except (OSError, ValueError) as error:
            self._fail(message.generation, str(error))
            return
        limits = config.limits
        self.router.configure(config.balancing, limits.queue, int(limits.queue_timeout * SECOND))
        self.plane.configure(site, now)
        self.config_drain = config.drain_timeout
        self._route_by(sites.table(config, message.cells, self.table, self.found))
        self._take_pushed()
        if not self.plane.draining:
            try:
                await self.listener.open(tls)
            except OSError as error:
                self._fail(message.generation, f"cannot accept: {error}")
                return
        if not self.settled:
            settle_garbage()
            self.settled = True
        self.control.send(Ready(message.generation))

    def _fail(self, generation: int, problem: str) -> None:
        """Says why a config is not in force. The one before it stays; a worker that has none ends: a certificate that was
        half renewed may be whole when the supervisor starts the next.
        """
        assert self.control is not None  # noqa: S101
        self.control.send(Failed(generation, problem))
        if not self.settled:
            self._end(1)

    async def _drain(self) -> None:
        log.info("worker %d drains, %d requests in flight", self.number, self.plane.active)
        self.plane.drain()
        ends = self.loop.time() + self.config_drain
        await asyncio.sleep(DRAIN_LEAST)
        await self._until(lambda: not self.plane.busy, ends)
        self.listener.close()
        await self._until(lambda: not self.plane.expecting, self.loop.time() + LAST_ASKS)
        await self._until(lambda: not self.plane.busy, ends)
        self.plane.close()
        await self._until(lambda: not self.plane.active, self.loop.time() + LAST_TURN)  # what was cut is recorded too
        self._flush()
        self._teach()
        await self._until(lambda: not len(self.outbox), self.loop.time() + LAST_WORDS)
        self._end(0)

    async def _until(self, holds: Callable[[], bool], ends: float) -> None:
        """Waits until it holds, but not beyond `ends`. By polling: a drain is rare, and requests should not pay for it. Never
        at once: the loop's turn puts what waits here where the kernel has made room.
        """
        await asyncio.sleep(POLL)
        while not holds() and self.loop.time() < ends:
            await asyncio.sleep(POLL)

    def _end(self, code: int) -> None:
        if not self.done.done():
            self.done.set_result(code)

    # agent

    async def _keep_agent(self) -> None:
        """Connects to the agent, again whenever it is gone."""
        decode = msgspec.msgpack.Decoder(ToWorker).decode
        while True:
            if self.agent is None:
                try:
                    _, link = await self.loop.create_unix_connection(
                        lambda: Link(decode, self._on_agent, self._on_agent_lost), self.agent_path
                    )
                except OSError:
                    pass
                else:
                    self.agent = link
                    link.send(Hello(self.number, os.getpid(), self.found))
                    self._teach()
                    self._tell(self.outbox.unacknowledged())
            await asyncio.sleep(RECONNECT)

    def _on_agent(self, message: ToWorker) -> None:
        if isinstance(message, Ack):
            self.outbox.acknowledge(message.sequence)
        elif isinstance(message, Push):
            self.pushed, self.found = message.table, message.found
            self._take_pushed()
        elif isinstance(message, Find):
            if self.agent is not None:
                self.agent.send(
                    Found(message.number, inflight.look(self.plane, message.request_id, time.monotonic_ns()))
                )
        elif isinstance(message, News):
            if self.plane.abroad is not None:
                for remote in message.remotes:
                    self.plane.abroad.hear(remote, time.monotonic_ns())
        else:
            self.router.remember(message.models)

    def _tell(self, batches: list[Batch]) -> None:
        """Sends batches. If the agent has stopped reading, the link ends: the next one gets all that is not acknowledged,
        while an acknowledgement of a later batch on this one would pass for that of those left out.
        """
        if self.agent is not None and not all(self.agent.send(batch) for batch in batches):
            self.agent.abort()

    def _teach(self) -> None:
        """Tells the agent what was learned here: the next worker begins with it."""
        if self.agent is not None and (learned := self.router.learned()):
            self.agent.send(Learned(learned))

    def _take_pushed(self) -> None:
        """Routes by the agent's last Table, unless it is of another configuration: it may be a reload ahead or behind."""
        if self.pushed is not None and self._fits(self.pushed):
            self._route_by(self.pushed)

    def _route_by(self, table: Table) -> None:
        now = time.monotonic_ns()
        self.table = table
        self.router.update(table, now)
        self.plane.admit(now)

    def _fits(self, table: Table) -> bool:
        """Whether a Table speaks of the engines of this configuration."""
        upstreams = self.plane.site.upstreams
        return table.models.keys() == upstreams.keys() and all(
            {i.cell: i.name for i in fleet.instances} == {cell: u.name for cell, u in upstreams[model].items()}
            for model, fleet in table.models.items()
        )

    def _on_agent_lost(self) -> None:
        self.agent = None

    # timers

    def _flush_at(self, due: float) -> None:
        self.loop.call_at(due, self._on_flush, due)

    def _on_flush(self, due: float) -> None:
        self.lag_worst = max(self.lag_worst, self.loop.time() - due)
        self.flushes += 1
        if self.flushes % LAG_SAMPLES == 0:
            self.lag.append(self.lag_worst)
            self.lag_worst = 0.0
        self._flush_at(max(due + FLUSH, self.loop.time() + FLUSH / 2))
        self._flush()

    def _flush(self) -> None:
        plane = self.plane
        if not (plane.unrecorded or plane.counters or self.lag):
            return
        counters, plane.counters = plane.counters, {}
        lag, self.lag = self.lag, []
        records, ejected, offset = plane.take_records(), self.router.ejected(time.monotonic_ns()), plane.offset
        queued = self.router.queued_by_class() if plane.waiting else []
        batches = [self.outbox.add(records[:FULL_BATCH], counters, lag, ejected, queued, offset)]
        for start in range(FULL_BATCH, len(records), FULL_BATCH):
            batches.append(self.outbox.add(records[start : start + FULL_BATCH], {}, [], ejected, queued, offset))
        self._tell(batches)

    def _sweep(self) -> None:
        """Once a second: what the data plane must look after, and this worker's row. The heart beats last: a worker that
        cannot look after its requests any more passes for stuck, while one failure among many sweeps does no harm.
        """
        self.loop.call_later(1.0, self._sweep)
        now, board, row, plane = time.monotonic_ns(), self.board, self.row, self.plane
        board.set_connections(row, plane.clients)
        board.set_queued(row, plane.waiting)
        self.ledger.others = [board.base(other) for other in board.live(except_row=row)]
        self.neighbours[:] = [board.shares(other) for other in board.awake(row, now)]
        self.elsewhere = board.connections(except_row=row)
        plane.queued_elsewhere = board.queued(except_row=row)
        plane.sweep(now)
        self._tell_late(now)
        self._guard()
        self.sweeps += 1
        if self.sweeps % TEACH == 0:
            self._teach()
        board.beat(row, now)

    def _tell_late(self, now: int) -> None:
        """Tells the agent of the requests that wait for their first token too long: its tuner sees a stall by them."""
        if self.agent is None:
            return
        late = inflight.overdue(self.plane, now)
        if late or self.was_late:
            self.agent.send(Late(late))
            self.was_late = bool(late)

    def _look(self) -> None:
        """Four times a second: attempts that seem stalled. While requests wait, more often: what the location's other
        workers finish makes room too.
        """
        plane = self.plane
        self.loop.call_later(LOOK_WAITING if plane.waiting else LOOK, self._look)
        now, before = time.monotonic_ns(), self.looked
        self.looked = now
        if now - before < LATE_LOOK:  # else it was we who were held up: what has come is read before anyone is blamed
            plane.notice(now)
        if plane.waiting:
            plane.admit(now)

    def _guard(self) -> None:
        """Stops accepting before connections or descriptors run out; goes on when there is room again."""
        plane = self.plane
        connections = plane.clients + self.elsewhere
        used = plane.clients + plane.engine_connections + 100
        limit = plane.limits.connections
        if self.listener.accepting and (connections >= limit or used > self.descriptors):
            plane.count("headrace_accept_pauses_total|" + ("connections" if connections >= limit else "descriptors"))
            self.listener.pause()
        elif not self.listener.accepting and connections < 0.98 * limit and used < 0.98 * self.descriptors:
            self._spawn(self._resume())

    async def _resume(self) -> None:
        try:
            await self.listener.resume()
        except OSError as error:  # still no descriptor: the next sweep tries again
            log.warning("worker %d cannot accept yet: %s", self.number, error)


def settle_garbage() -> None:
    """Nearly all garbage of the hot path goes by reference counts. What is there to stay is taken out of the
    collector's sight, and it looks rarely: its pauses would be the event loop's.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


async def serve(args: argparse.Namespace) -> NoReturn:
    """Runs the worker and ends the process: open connections and timers need no farewell, nor does the loop."""
    loop = asyncio.get_running_loop()
    board = Board.attach(args.board)
    worker = Worker(args.worker, board, args.row, socket.socket(fileno=args.listen), args.agent)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        loop.add_signal_handler(number, lambda: None)  # the supervisor passes on what is meant for us
    decode = msgspec.msgpack.Decoder(ToChild).decode
    _, control = await loop.create_connection(
        lambda: Link(decode, worker.on_control, worker.on_control_lost), sock=socket.socket(fileno=args.control)
    )
    worker.start(control)
    code = int(await worker.done)
    logging.shutdown()
    os._exit(code)


def main() -> None:
    """The process's entry: descriptors by number, as the supervisor passes them."""
    parser = argparse.ArgumentParser()
    for name in ("worker", "control", "listen", "board", "row"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--agent", required=True)
    logging.basicConfig(level=logging.INFO, format="headrace: %(message)s", stream=sys.stderr)
    uvloop.run(serve(parser.parse_args()))


if __name__ == "__main__":
    main()
