"""The agent: as an object for what it knows, as a real process for how it lives and ends."""

import asyncio
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec
import pytest

from balancer.board import Board
from fixtures.demo_processes import free_ports
from proxy.config import Address, Admin, Config, Engine, EngineTls, Model
from proxy.control import agent as agents
from proxy.control import kept
from proxy.control.agent import Agent
from proxy.control.link import Link, frame
from proxy.control.messages import (
    Ack,
    Batch,
    Configure,
    Drain,
    Failed,
    Hello,
    Late,
    Learned,
    Overdue,
    Process,
    Processes,
    Push,
    Ready,
    ToSupervisor,
    ToWorker,
)
from tests.proxy.control.test_learned import taught
from tests.support.http import eventually
from tests.support.process import ROOT
from tests.support.records import record

SECONDS = 20.0
A, B = (Engine(f"http://127.0.0.1:{port}", f"gpu-{port}") for port in (9, 10))


def config_of(*engines: Engine, admin_port: int = 8081) -> Config:
    """A location with one model on these engines."""
    admin = Admin(Address("127.0.0.1", admin_port))
    return Config("ams", Address("127.0.0.1", 8080), {"llama": Model(engines)}, admin=admin)


class Told(Link):
    """A link that keeps what is sent over it."""

    def __init__(self) -> None:
        super().__init__(lambda body: body, lambda message: None, lambda: None)
        self.sent: list[Any] = []
        self.closed = False
        self._news = asyncio.Event()

    def send(self, message: object) -> bool:
        self.sent.append(message)
        self._news.set()
        return True

    async def has(self, count: int) -> None:
        """Waits until so many messages were sent."""
        while len(self.sent) < count:
            self._news.clear()
            await self._news.wait()

    def close(self) -> None:
        self.closed = True


def with_agent(talk: Callable[[Agent, Told], Awaitable[None]]) -> None:
    """Runs `talk` with an agent and its link to the supervisor; nothing listens, probes end with it."""

    async def go() -> None:
        board = Board.create(2, 8)
        agent = Agent(board)
        agent.session = aiohttp.ClientSession()
        control = agent.control = Told()
        try:
            await talk(agent, control)
        finally:
            for task in list(agent.tasks):
                task.cancel()
            await asyncio.gather(*agent.tasks, return_exceptions=True)
            await agent.admin.close()
            await agent.session.close()
            board.close()

    asyncio.run(go())


async def configure(agent: Agent, generation: int, *engines: Engine) -> None:
    """Gives it a config, as the supervisor does, and lets it take it."""
    agent.on_control(Configure(config_of(*engines), {e.url: n for n, e in enumerate(engines)}, generation))
    assert isinstance(agent.control, Told)
    await agent.control.has(len(agent.control.sent) + 1)


# the object


def test_configure_is_answered() -> None:
    """Ready with the generation; the Table is there, its version set."""

    async def talk(agent: Agent, control: Told) -> None:
        await configure(agent, 5, A, B)
        assert [Ready(5)] == control.sent
        assert agent.table is not None
        assert [0, 1] == [instance.cell for instance in agent.table.models["llama"].instances]
        assert {A.url, B.url} == set(agent.probe_tasks)

    with_agent(talk)


def test_configs_are_taken_one_after_the_other() -> None:
    """Two in a row: the second is in force, though the first takes longer."""

    async def talk(agent: Agent, control: Told) -> None:
        for generation, engines in ((1, (A, B)), (2, (A,))):
            agent.on_control(Configure(config_of(*engines), {A.url: 0, B.url: 1}, generation))
        await control.has(2)
        assert [Ready(1), Ready(2)] == control.sent
        assert (2, {A.url}) == (agent.generation, set(agent.probes))

    with_agent(talk)


def test_a_config_that_cannot_be() -> None:
    """An engine's authority that is no file: Failed, and all stays as it was."""

    async def talk(agent: Agent, control: Told) -> None:
        await configure(agent, 1, A)
        before = agent.probes[A.url]
        tls = EngineTls(ca="/nowhere/ca.pem")
        await configure(agent, 2, A, msgspec.structs.replace(B, url=B.url.replace("http", "https"), tls=tls))
        assert isinstance(control.sent[-1], Failed)
        assert (2, 1) == (control.sent[-1].generation, agent.generation)
        assert agent.probes == {A.url: before}
        assert not agent.done.done()

    with_agent(talk)


def test_without_any_config_it_ends() -> None:
    """A first config that fails leaves nothing to go on with: it says why and exits with 1, so that a later start tries."""

    async def talk(agent: Agent, control: Told) -> None:
        tls = EngineTls(ca="/nowhere/ca.pem")
        await configure(agent, 1, msgspec.structs.replace(A, url=A.url.replace("http", "https"), tls=tls))
        assert isinstance(control.sent[-1], Failed)
        assert 1 == await asyncio.wait_for(agent.done, 5)

    with_agent(talk)


def test_probes_over_a_reload() -> None:
    """An unchanged engine keeps its probe, a changed one what is known, a new one starts slowly, a removed one is let go."""

    async def talk(agent: Agent, control: Told) -> None:
        await configure(agent, 1, A)
        first, task = agent.probes[A.url], agent.probe_tasks[A.url]
        assert 0 == first.state.since
        await configure(agent, 2, A, B)
        assert first is agent.probes[A.url]
        assert agent.probes[B.url].state.since > 0
        first.state.ready = False
        await configure(agent, 3, msgspec.structs.replace(A, weight=3.0))
        assert first is not agent.probes[A.url]
        assert not agent.probes[A.url].state.ready
        await asyncio.sleep(0)
        assert task.cancelled()
        assert {A.url} == set(agent.probe_tasks)
        assert agent.table is not None
        (instance,) = agent.table.models["llama"].instances
        assert (3.0, False) == (instance.weight, instance.ready)

    with_agent(talk)


def test_worker_gets_the_table() -> None:
    """At its Hello, then whenever it differs, with a higher version; not when nothing changed."""

    async def talk(agent: Agent, control: Told) -> None:
        await configure(agent, 1, A, B)
        worker = Told()
        agent._on_worker(worker, Hello(0, 4321))
        agent.push()
        agent._on_probe(True)
        assert 1 == len(worker.sent)
        agent.probes[B.url].state.ready = False
        agent._on_probe(True)
        first, second = (message.table for message in worker.sent)
        assert [True, False] == [instance.ready for instance in second.models["llama"].instances]
        assert first.version < second.version

    with_agent(talk)


def test_a_new_agent_learns_the_weights_from_a_worker() -> None:
    """Its Table has them at once, and the worker is told the same again."""

    async def talk(agent: Agent, control: Told) -> None:
        await configure(agent, 1, A, B)
        worker, found = Told(), {"llama": {A.name: (1.0, 1.5), B.name: (1.0, 0.5)}}
        agent._on_worker(worker, Hello(0, 4321, found))
        pushed = worker.sent[-1]
        assert [1.5, 0.5] == [instance.weight for instance in pushed.table.models["llama"].instances]
        assert [1.5, 0.5] == [pushed.found["llama"][engine.name][1] for engine in (A, B)]

    with_agent(talk)


def test_overdue_requests_of_a_worker() -> None:
    """Go to the tuner; when the worker is gone nothing of it waits any more."""

    async def talk(agent: Agent, control: Told) -> None:
        await configure(agent, 1, A)
        link = agent.worker_link()
        monkey = Told()
        link.send = monkey.send  # type: ignore[method-assign]
        agent._on_worker(link, Hello(0, 4321))
        agent._on_worker(link, Late([Overdue("llama", A.name, 500, 10**9, 0.1)]))
        pending = agent.weights.tuners["llama"]._pending
        assert [500] == [sample.work for sample in pending[0]]
        link.connection_lost(None)
        assert [] == pending[0]

    with_agent(talk)


def test_gauges_wait_for_the_next_push(monkeypatch: pytest.MonkeyPatch) -> None:
    """Load alone is no reason to push at once; the regular push takes it along."""
    monkeypatch.setattr(agents, "PUSH_EVERY", 0.0)

    async def talk(agent: Agent, control: Told) -> None:
        await configure(agent, 1, A)
        worker = Told()
        agent._on_worker(worker, Hello(0, 4321))
        agent.probes[A.url].state.background = 512
        agent._on_probe(False)
        assert 1 == len(worker.sent)
        agent.spawn(agent.keep_table_fresh())
        await worker.has(2)
        assert 512 == worker.sent[1].table.models["llama"].instances[0].background

    with_agent(talk)


def test_batch_that_comes_twice() -> None:
    """A worker that lost the link before the Ack sends again: acknowledged again, counted once."""

    async def talk(agent: Agent, control: Told) -> None:
        batch = Batch(1, [record()], {"headrace_retries_total|reset": 3}, [])
        for _ in range(2):
            worker = Told()
            agent._on_worker(worker, Hello(0, 4321))
            agent._on_worker(worker, batch)
            assert [Ack(1)] == worker.sent
        assert (1, 3, 1) == (agent.totals["requests"], agent.totals["headrace_retries_total"], len(agent.kept.records))
        successor = Told()
        agent._on_worker(successor, Hello(0, 4322))
        agent._on_worker(successor, batch)
        assert 2 == agent.totals["requests"]

    with_agent(talk)


def test_forged_hops_are_said_once(caplog: pytest.LogCaptureFixture) -> None:
    """Each reason; all are counted."""

    async def talk(agent: Agent, control: Told) -> None:
        worker = Told()
        agent._on_worker(worker, Hello(0, 4321))
        for number, reason in enumerate(("bad_mac", "bad_mac", "replayed"), 1):
            agent._on_worker(worker, Batch(number, [], {f"headrace_hops_rejected_total|{reason}": 2}, []))
        assert 6 == agent.totals["headrace_hops_rejected_total"]

    with_agent(talk)
    said = [record.getMessage() for record in caplog.records if "hop header" in record.getMessage()]
    assert ["bad_mac", "replayed"] == [text.split(": ")[1].split(" ")[0] for text in said]


def test_what_a_worker_has_learned_is_told_to_the_next() -> None:
    async def talk(agent: Agent, control: Told) -> None:
        await configure(agent, 1, A)
        stranger, first, second = Told(), Told(), Told()
        agent._on_worker(stranger, Learned({"llama": taught(9)}))
        agent._on_worker(first, Hello(0, 4321))
        assert not any(isinstance(message, Learned) for message in first.sent)
        agent._on_worker(first, Learned({"llama": taught(7)}))
        agent._on_worker(second, Hello(0, 4322))
        (told,) = (message for message in second.sent if isinstance(message, Learned))
        assert {"llama": taught(7)} == told.models

    with_agent(talk)


def test_batch_of_nobody() -> None:
    """Who does not say Hello first is not listened to."""

    async def talk(agent: Agent, control: Told) -> None:
        stranger = Told()
        agent._on_worker(stranger, Batch(1, [record()], {}, []))
        assert (True, [], 0) == (stranger.closed, stranger.sent, agent.totals["requests"])

    with_agent(talk)


def test_last_records_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """The ring is bounded and its index with it; an id that comes again is the newer one's."""
    monkeypatch.setattr(kept, "KEPT_RECORDS", 3)

    async def talk(agent: Agent, control: Told) -> None:
        for number, request_id in enumerate(("a", "b", "a", "c", "d")):
            agent._count(0, Batch(number, [record(request_id=request_id, status=number)], {}, []))
        assert ["a", "c", "d"] == [one.request_id for one in agent.kept.records]
        assert {"a": 2, "c": 3, "d": 4} == {key: one.status for key, one in agent.kept.by_id.items()}
        assert 5 == agent.totals["requests"]

    with_agent(talk)


def test_what_dead_workers_ejected_is_forgotten() -> None:
    """A worker that is no more keeps nothing out."""

    async def talk(agent: Agent, control: Told) -> None:
        for worker in (0, 1):
            agent._count(worker, Batch(1, [], {}, [], ["gpu-9"]))
        agent.on_control(Processes([Process(1, 4321, 2, 0)], 0, False))
        assert {1: ["gpu-9"]} == agent.ejected

    with_agent(talk)


def test_a_part_that_crashes_ends_the_agent(caplog: pytest.LogCaptureFixture) -> None:
    """The crash is logged, the exit code 1: the supervisor starts another."""

    async def talk(agent: Agent, control: Told) -> None:
        async def crash() -> None:
            raise RuntimeError("as planned")

        agent.spawn(crash())
        assert 1 == await agent.done

    with_agent(talk)
    assert "as planned" in caplog.text


def test_draining_agent_waits_for_its_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """It ends with 0 when the last one is gone, or after a while."""

    async def talk(agent: Agent, control: Told) -> None:
        link = agent.worker_link()
        agent._on_worker(link, Hello(0, 4321))
        agent.on_control(Drain())
        await asyncio.sleep(0)
        assert not agent.done.done()
        link.connection_lost(None)
        assert 0 == await agent.done

    async def in_vain(agent: Agent, control: Told) -> None:
        monkeypatch.setattr(agents, "FAREWELL", 0.01)
        agent._on_worker(agent.worker_link(), Hello(0, 4321))
        agent.on_control(Drain())
        assert 0 == await agent.done

    with_agent(talk)
    with_agent(in_vain)


# the process


class Wire:
    """A blocking end of a link."""

    def __init__(self, end: socket.socket, kind: Any) -> None:
        self.end = end
        self.end.settimeout(SECONDS)
        self._decode = msgspec.msgpack.Decoder(kind).decode

    def send(self, message: object) -> None:
        self.end.sendall(frame(message))

    def read(self) -> Any:
        """The next message."""
        (size,) = struct.unpack("!I", self._exactly(4))
        return self._decode(self._exactly(size))

    def _exactly(self, size: int) -> bytes:
        found = b""
        while len(found) < size:
            piece = self.end.recv(size - len(found))
            assert piece, "the agent closed the link"
            found += piece
        return found


class AgentProcess:
    """`python -m proxy.control.agent` with a test in the supervisor's place."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "agent.sock")
        self.board = Board.create(1, 8)
        ours, theirs = socket.socketpair()
        self.supervisor = Wire(ours, ToSupervisor)
        self.workers = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.workers.bind(self.path)
        self.workers.listen()
        self.admin = socket.create_server(("127.0.0.1", 0))
        self.port: int = self.admin.getsockname()[1]
        given = {"control": theirs, "workers": self.workers, "admin": self.admin}
        fds = {name: end.fileno() for name, end in given.items()} | {"board": self.board.fd}
        flags = [text for name, fd in fds.items() for text in (f"--{name}", str(fd))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "proxy.control.agent", *flags], cwd=ROOT, pass_fds=tuple(fds.values())
        )
        theirs.close()
        self.ends: list[socket.socket] = [ours, self.workers, self.admin]

    def worker(self, number: int) -> Wire:
        """A worker's connection, which has said Hello."""
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.connect(self.path)
        self.ends.append(end)
        wire = Wire(end, ToWorker)
        wire.send(Hello(number, 4321))
        return wire

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=SECONDS) as answer:
            return json.load(answer)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for end in self.ends:
            end.close()
        try:
            self.process.wait(SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        os.close(self.board.fd)
        self.board.close()


@pytest.fixture
def process(tmp_path: Path) -> Iterator[AgentProcess]:
    """An agent's process, gone after the test."""
    with AgentProcess(tmp_path) as started:
        yield started


def test_a_life(process: AgentProcess) -> None:
    """Configured, it says so; a worker gets the Table and its batch acknowledged; the admin API shows the record; an engine
    where nobody is becomes not ready, of which the worker hears; drained, it ends with 0.
    """
    dead = Engine(f"http://127.0.0.1:{free_ports(1)[0]}", "gpu-dead")
    config = config_of(dead, admin_port=process.port)
    process.supervisor.send(Configure(config, {dead.url: 0}, 1))
    process.supervisor.send(Processes([Process(0, 4321, 0, 0)], 0, False))
    assert Ready(1) == process.supervisor.read()

    worker = process.worker(0)
    pushed = worker.read()
    assert isinstance(pushed, Push)
    assert "gpu-dead" == pushed.table.models["llama"].instances[0].name

    worker.send(Batch(1, [record(request_id="r-9")], {"headrace_parse_rejects_total|te_and_cl": 1}, [0.002]))
    message = worker.read()
    while isinstance(message, Push):  # the engine may be found down before
        message = worker.read()
    assert Ack(1) == message
    assert "ok" == process.get("/api/requests/r-9")["outcome"]
    state = process.get("/api/state")
    assert (1, [4321], process.process.pid) == (
        state["totals"]["requests"],
        [shown["pid"] for shown in state["workers"]],
        state["agent"]["pid"],
    )

    eventually(lambda: not process.get("/api/state")["models"]["llama"][0]["ready"], "the dead engine is not ready")
    assert [False] == [instance.ready for instance in process.worker(0).read().table.models["llama"].instances]

    process.supervisor.send(Drain())
    for end in process.ends[3:]:
        end.close()
    assert 0 == process.process.wait(SECONDS)


def test_without_its_supervisor(process: AgentProcess) -> None:
    """It ends with 1 when nobody looks after it any more."""
    process.supervisor.end.close()
    assert 1 == process.process.wait(SECONDS)


def test_signals_are_the_supervisors_business(process: AgentProcess) -> None:
    """A terminal's Ctrl-C reaches the whole group; the agent stays until it is told to go."""
    config = config_of(A, admin_port=process.port)
    process.supervisor.send(Configure(config, {A.url: 0}, 1))
    assert Ready(1) == process.supervisor.read()
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        process.process.send_signal(number)
    assert "ams" == process.get("/api/state")["location"]
    process.supervisor.send(Drain())
    assert 0 == process.process.wait(SECONDS)


def test_grpc_is_loaded_at_the_start() -> None:
    """Loaded later, by a reload that adds a mesh, it would stall the loop."""
    code = "import proxy.control.agent, sys; print('grpc' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert "True" == run.stdout.strip()
