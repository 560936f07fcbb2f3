"""The supervisor: owns the location's sockets, keeps its processes alive, carries the config to them.

    sockets   one listening socket a worker (SO_REUSEPORT), the admin's, the Unix one between workers and agent: all stay
              open here, so that whoever comes next inherits them with their queues
    reload    SIGHUP or the agent's word: all problems are told and nothing changes, or everybody gets the new config
    drain     SIGTERM or the agent's word: workers finish what runs, then the agent, then we

It imports no gRPC and no SDK, carries no request, and waits for nothing but its children.
"""

import asyncio
import logging
import os
import resource
import signal
import sys
import time
from collections.abc import Callable, Coroutine

from balancer.board import Board
from proxy.config import Config, ConfigError, changed_needing_restart, load
from proxy.control.children import Child
from proxy.control.messages import (
    Configure,
    Drain,
    DrainRequest,
    Failed,
    Process,
    Processes,
    Ready,
    ReloadRequest,
    ReloadResult,
    ToSupervisor,
)
from proxy.control.sites import assign_cells, engine_urls, remote_keys
from proxy.control.sockets import Sockets

log = logging.getLogger("headrace.supervisor")
Command = Callable[[int, int], tuple[list[str], list[int]]]
LEAST_CELLS = 1024
WATCH = 1.0  # s between two looks at the heartbeats
STUCK_NS = 10_000_000_000  # a heartbeat that old belongs to a stuck worker
ASLEEP_NS = 3_000_000_000  # between two looks: so late only if we were stopped, and the workers perhaps with us
RELOAD_TIMEOUT = 10.0  # s for all workers to put a config in force
GRACE = 5.0  # s beyond drain_timeout for a worker to end
AGENT_FAREWELL = 8.0  # s for the agent to take the last records


class Supervisor:
    """One location's processes."""

    def __init__(self, path: str, config: Config) -> None:
        """Raises OSError for an address that cannot be had."""
        self.path, self.config = path, config
        self.sockets = Sockets(config)
        self.generation = 1
        self.secret = os.urandom(32)
        urls = engine_urls(config) + remote_keys(config)
        self.board = Board.create(config.workers, max(LEAST_CELLS, 2 * len(urls)))
        self.cells = assign_cells(urls, {}, set(), self.board.cells)
        self.workers = [
            Child(f"worker {n}", self._worker_command(n), self.on_message, self.on_start, self.on_death)
            for n in range(config.workers)
        ]
        self.agent = Child("agent", self._agent_command, self.on_message, self.on_start, self.on_death)
        self.draining = False
        self.signalled = False  # told to end, by SIGTERM or SIGINT
        self.announced = False
        self.looked = 0  # when the heartbeats were last looked at, monotonic ns
        self.reloading = asyncio.Lock()
        self.failures: list[str] = []
        self.changed = asyncio.Event()
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.tasks: set[asyncio.Task[object]] = set()

    # children

    def _worker_command(self, number: int) -> Command:
        def command(control: int, life: int) -> tuple[list[str], list[int]]:
            row = self.board.row_of(number, life)
            listening = self.sockets.clients[number].fileno()
            arguments = {"worker": number, "control": control, "listen": listening, "board": self.board.fd, "row": row}
            flags = [text for name, value in arguments.items() for text in (f"--{name}", str(value))]
            return ["-m", "proxy.control.worker", *flags, "--agent", self.sockets.agent_path], [
                listening,
                self.board.fd,
            ]

        return command

    def _agent_command(self, control: int, life: int) -> tuple[list[str], list[int]]:
        sockets = self.sockets
        given = {"workers": sockets.agent.fileno(), "admin": sockets.admin.fileno(), "board": self.board.fd}
        flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
        return ["-m", "proxy.control.agent", "--control", str(control), *flags], list(given.values())

    def on_start(self, child: Child) -> None:
        """A process has begun: it gets the config, the agent hears of it."""
        child.send(Configure(self.config, self.cells, self.generation, self.secret))
        if not child.wanted:  # the drain began while it was being spawned
            child.send(Drain())
        self._tell_agent()

    def on_death(self, child: Child) -> None:
        """A process has ended: its rows are zeroed before another begins."""
        if child is not self.agent:
            number = self.workers.index(child)
            self.board.clear(self.board.row_of(number, child.life - 1))
        self._tell_agent()

    def on_message(self, child: Child, message: ToSupervisor) -> None:
        """A child's word."""
        if isinstance(message, Ready):
            child.ready = message.generation
            self._announce()
        elif isinstance(message, Failed):
            self.failures.append(f"{child.name}: {message.problem}")
            log.error("%s: %s", child.name, message.problem)
            if not self.announced:  # it would have to be ready for the first time: there is no old config to go on with
                self.end_at_once(1)
        elif isinstance(message, ReloadRequest):
            self.spawn(self.reload())
        elif isinstance(message, DrainRequest):
            self.spawn(self.drain())
        self.changed.set()

    def _tell_agent(self) -> None:
        workers = [
            Process(n, child.pid, self.board.row_of(n, child.life - 1), child.restarts)
            for n, child in enumerate(self.workers)
            if child.process is not None
        ]
        self.agent.send(Processes(workers, self.agent.restarts, self.draining))

    def _announce(self) -> None:
        if self.announced or not all(child.ready for child in (*self.workers, self.agent)):
            return
        self.announced = True
        config = self.config
        clients, admin = ("https" if tls is not None else "http" for tls in (config.tls, config.admin.tls))
        log.info(
            "location %s ready on %s://%s, admin %s://%s, %d worker(s)",
            config.location, clients, config.listen, admin, config.admin.listen, config.workers,
        )  # fmt: skip

    def spawn(self, work: Coroutine[object, object, object]) -> None:
        """Runs a part in the background; its crash is logged and ends the location."""
        task = asyncio.get_running_loop().create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self._part_ended)

    def _part_ended(self, task: asyncio.Task[object]) -> None:
        self.tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a part of the supervisor crashed", exc_info=error)
            self.end_at_once(1)

    def _end(self, code: int) -> None:
        if not self.ended.done():
            self.ended.set_result(code)

    # reload

    async def reload(self) -> list[str]:
        """Reads the file again; the problems, if any: then the old config stays in force."""
        async with self.reloading:
            problems = await self._reload()
            for problem in problems:
                log.error("reload refused: %s", problem)
            if not problems:
                log.info("reloaded %s, generation %d", self.path, self.generation)
            self.agent.send(ReloadResult(self.generation, problems))
            return problems

    async def _reload(self) -> list[str]:
        if self.draining:
            return ["the location is draining"]
        try:
            config = load(self.path)
            fixed = changed_needing_restart(self.config, config)
            if fixed:
                return [f"{path}: a change needs a restart" for path in fixed]
            busy = {cell for cell in range(self.board.cells) if any(self.board.outstanding(cell))}
            cells = assign_cells(engine_urls(config) + remote_keys(config), self.cells, busy, self.board.cells)
        except ConfigError as error:
            return error.problems
        except (OSError, ValueError) as error:
            return [str(error)]
        before = self.config, self.cells
        problems = await self._put_in_force(config, cells)
        if problems:
            await self._put_in_force(*before)
        return problems

    async def _put_in_force(self, config: Config, cells: dict[str, int]) -> list[str]:
        self.config, self.cells = config, cells
        self.generation += 1
        self.failures = []
        everybody = (*self.workers, self.agent)
        for child in everybody:
            child.send(Configure(config, cells, self.generation, self.secret))
        ends = time.monotonic() + RELOAD_TIMEOUT
        while not self.failures and time.monotonic() < ends:
            if all(child.ready >= self.generation for child in everybody):
                return []
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), max(0.01, ends - time.monotonic()))
            except TimeoutError:
                break
        late = [child.name for child in everybody if child.ready < self.generation]
        return self.failures or [
            f"{name}: did not put the config in force within {RELOAD_TIMEOUT:.0f} s" for name in late
        ]

    # end

    async def drain(self) -> None:
        """Lets everything finish, then ends."""
        if self.draining:
            return
        self.draining = True
        log.info("draining, for up to %.0f s", self.config.drain_timeout)
        for child in self.workers:
            child.wanted = False
            child.send(Drain())
        self._tell_agent()
        await self._wait_for(self.workers, self.config.drain_timeout + GRACE)
        self.agent.wanted = False
        self.agent.send(Drain())
        await self._wait_for([self.agent], AGENT_FAREWELL)
        self._end(0)

    async def _wait_for(self, children: list[Child], seconds: float) -> None:
        waits = [asyncio.ensure_future(child.dead.wait()) for child in children]
        _, late = await asyncio.wait(waits, timeout=seconds)
        for child in children:
            if late and not child.dead.is_set():
                log.warning("%s did not end in time", child.name)
                child.kill()
        for wait in late:
            wait.cancel()

    def end_at_once(self, code: int) -> None:
        """No more waiting."""
        for child in (*self.workers, self.agent):
            child.wanted = False
            child.kill()
        self._end(code)

    def end_stuck(self, now: int) -> None:
        """Ends workers whose heartbeat is too old, unless we have been stopped ourselves: then they get time to beat."""
        slept, self.looked = now - self.looked, now
        if slept > ASLEEP_NS:
            return
        for number, child in enumerate(self.workers):
            row = self.board.row_of(number, child.life - 1) if child.life else 0
            if child.ready and self.board.pid(row) == child.pid and now - self.board.heartbeat(row) > STUCK_NS:
                log.error("%s (pid %d) is stuck: its heartbeat is older than 10 s", child.name, child.pid)
                child.kill()

    async def watch_heartbeats(self) -> None:
        """Looks for stuck workers now and then."""
        while True:
            self.end_stuck(time.monotonic_ns())
            await asyncio.sleep(WATCH)

    async def run(self) -> int:
        """Until drained; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.on_end_signal)
        loop.add_signal_handler(signal.SIGHUP, lambda: self.spawn(self.reload()))
        for child in (*self.workers, self.agent):
            self.spawn(child.keep())
        self.spawn(self.watch_heartbeats())
        return await self.ended

    def on_end_signal(self) -> None:
        """The first one drains, the second ends. A drain that was asked for before counts as none: who has a location
        drained before stopping it, as orchestrators do, means the streams no harm.
        """
        if self.signalled:
            log.warning("ending at once, without the rest of the drain")
            self.end_at_once(1)
        else:
            self.signalled = True
            self.spawn(self.drain())

    def close(self) -> None:
        """Gives back what it owns."""
        self.sockets.close()
        self.board.close()
        os.close(self.board.fd)


def run(path: str) -> int:
    """`headrace run`: 0 after a drain, 1 if it could not start or was made to end at once, 2 for a config with problems."""
    logging.basicConfig(level=logging.INFO, format="headrace: %(message)s", stream=sys.stderr)
    try:
        config = load(path)
    except ConfigError as error:
        sys.stderr.write("".join(f"{problem}\n" for problem in error.problems))
        return 2
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        return asyncio.run(_supervise(path, config))
    except OSError as error:
        sys.stderr.write(f"headrace: cannot listen: {error.strerror or error}\n")
        return 1


async def _supervise(path: str, config: Config) -> int:
    supervisor = Supervisor(path, config)
    try:
        return await supervisor.run()
    finally:
        supervisor.close()
