"""A worker as a real process, with sockets and a board as the supervisor passes them, and an agent of the test's own."""

import asyncio
import contextlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, TypeVar, cast

import msgspec
import pytest

from balancer.board import Board
from balancer.model import Fleet, Instance, Table
from fixtures.engine.faults import Fault
from fixtures.engine.server import SimulatedEngine
from proxy.config import Address, Config, Engine, Model, ServerTls
from proxy.control.learned import samples
from proxy.control.link import Link
from proxy.control.messages import (
    Ack,
    Batch,
    Configure,
    Drain,
    Failed,
    Hello,
    Learned,
    Push,
    Ready,
    ToAgent,
    ToSupervisor,
)
from proxy.control.worker import FULL_BATCH, LAST_WORDS, LATE_LOOK, Worker
from proxy.core.settings import Limits
from proxy.net.client import Client
from tests.proxy.control.test_learned import taught
from tests.support.http import eventually
from tests.support.loop import run_virtually
from tests.support.plane import FakeTransport, post
from tests.support.process import ROOT
from tests.support.records import record

HEAVY = ("grpc", "aiohttp", "yaml", "prometheus_client", "opentelemetry")
ZERO = (0, 0, 0)
STALL = Fault("stall-after", events=3)
SLOW = Fault("slow", factor=20.0)
MODELS = b"GET /v1/models HTTP/1.1\r\nhost: h\r\n\r\n"
M = TypeVar("M")


class End:
    """This test's end of a link: what was heard, in order."""

    def __init__(self, kinds: object) -> None:
        self.heard: asyncio.Queue[Any] = asyncio.Queue()
        self.lost = asyncio.Event()
        self.link = Link(msgspec.msgpack.Decoder(kinds).decode, self.heard.put_nowait, self.lost.set)

    async def hear(self, kind: type[M]) -> M:
        """The next message of a kind; what comes before it is passed over."""
        async with asyncio.timeout(20):
            while not isinstance(message := await self.heard.get(), kind):
                pass
            return message

    async def records(self, count: int) -> list[Batch]:
        """Batches until they hold so many records, none acknowledged."""
        batches: list[Batch] = []
        while sum(len(batch.records) for batch in batches) < count:
            batches.append(await self.hear(Batch))
        return batches


class Answer:
    """One answer; `text` is all of it, chunk sizes and all."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.status = int(text.split()[1]) if text else 0

    def header(self, name: str) -> str:
        head = self.text.partition("\r\n\r\n")[0].split("\r\n")
        return dict(line.split(": ", 1) for line in head[1:]).get(name, "")


class Place:
    """The worker's surroundings: engines, board, sockets, supervisor and agent."""

    def __init__(self, folder: Path, engines: int) -> None:
        self.engines = [SimulatedEngine("fast", "demo") for _ in range(engines)]
        self.listening = socket.create_server(("127.0.0.1", 0))
        self.port = self.listening.getsockname()[1]
        self.board = Board.create(1, 8)
        self.agent_path = str(folder / "agent.sock")
        self.supervisor = End(ToSupervisor)
        self.agents: asyncio.Queue[End] = asyncio.Queue()
        self.generation = 0

    def config(self, **changes: object) -> Config:
        engines = tuple(Engine(engine.url, f"gpu-{n}") for n, engine in enumerate(self.engines))
        made = Config("ams", Address("127.0.0.1", self.port), {"demo": Model(engines)}, drain_timeout=20.0)
        return msgspec.structs.replace(made, **changes)

    async def configure(self, config: Config) -> Ready | Failed:
        """Sends the config as the next generation; what the worker says to it."""
        self.generation += 1
        urls = {engine.url for model in config.models.values() for engine in model.engines}
        cells = {engine.url: n for n, engine in enumerate(self.engines) if engine.url in urls}
        self.supervisor.link.send(Configure(config, cells, self.generation, b"secret"))
        return await self.supervisor.hear(Ready | Failed)  # type: ignore[arg-type]

    def table(self, *instances: Instance, version: int = 5) -> Table:
        return Table(version, {"demo": Fleet(instances)})

    def new_agent(self) -> Link:
        end = End(ToAgent)
        self.agents.put_nowait(end)
        return end.link

    async def agent(self) -> End:
        """The worker's next connection to the agent, after its greeting."""
        end = await asyncio.wait_for(self.agents.get(), 20)
        assert Hello(0, self.process.pid) == await end.hear(Hello)
        return end

    def spawn(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        numbers = {"worker": 0, "control": theirs.fileno(), "listen": self.listening.fileno(), "row": 0}
        flags = [text for name, n in (numbers | {"board": self.board.fd}).items() for text in (f"--{name}", str(n))]
        command = [sys.executable, "-m", "proxy.control.worker", *flags, "--agent", self.agent_path]
        inherited = [theirs.fileno(), self.listening.fileno(), self.board.fd]
        self.process = subprocess.Popen(command, cwd=ROOT, pass_fds=inherited)
        theirs.close()
        return ours

    def libraries(self) -> str:
        """The files that the worker has mapped."""
        return Path(f"/proc/{self.process.pid}/maps").read_text()

    async def ended(self) -> int:
        """The worker's exit code."""
        return await asyncio.to_thread(self.process.wait, 20)

    async def open(self, request: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(request.replace("\n", "\r\n").encode())
        return reader, writer

    async def get(self, path: str) -> Answer:
        return await answer(*await self.open(f"GET {path} HTTP/1.1\nhost: h\nconnection: close\n\n"))

    async def ask(self, tokens: int = 3, stream: bool = False) -> Answer:
        return await answer(*await self.open(completion(tokens, stream)))


def completion(tokens: int, stream: bool = False, connection: str = "close") -> str:
    """A chat completion's request."""
    flag = str(stream).lower()
    body = f'{{"model":"demo","stream":{flag},"max_tokens":{tokens},"messages":[{{"role":"user","content":"hi"}}]}}'
    head = f"POST /v1/chat/completions HTTP/1.1\nhost: h\nconnection: {connection}\ncontent-length: {len(body)}\n\n"
    return head + body


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Answer:
    """All that comes until the connection ends."""
    try:
        text = await asyncio.wait_for(reader.read(), 20)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
    return Answer(text.decode())


@contextlib.asynccontextmanager
async def placed(folder: Path, engines: int = 1) -> AsyncIterator[Place]:
    """A worker that is started but not configured."""
    place = Place(folder, engines)
    loop = asyncio.get_running_loop()
    for engine in place.engines:
        await engine.start()
    agent = await loop.create_unix_server(place.new_agent, place.agent_path)
    ours = place.spawn()
    await loop.create_connection(lambda: place.supervisor.link, sock=ours)
    try:
        yield place
    finally:
        place.process.kill()
        await asyncio.to_thread(place.process.wait, 20)
        place.supervisor.link.close()
        agent.close()
        place.listening.close()
        for engine in place.engines:
            await engine.close()
        await asyncio.sleep(0.02)  # transports close in the loop's next turns
        place.board.close()


def run(tmp_path: Path, scenario: Any, engines: int = 1) -> None:
    async def main() -> None:
        async with placed(tmp_path, engines) as place:
            await scenario(place)

    asyncio.run(main())


def test_serves_without_an_agent_that_speaks(tmp_path: Path) -> None:
    """Configured it is ready, serves, holds its row of the board, and has loaded nothing heavy."""

    async def scenario(place: Place) -> None:
        assert Ready(1) == await place.configure(place.config())
        answered = await place.ask()
        assert 200 == answered.status
        assert "tok0 tok1 tok2" in answered.text
        assert ("ams", "gpu-0") == (answered.header("x-headrace-location"), answered.header("x-headrace-instance"))
        assert 200 == (await place.get("/readyz")).status
        assert (place.process.pid, ZERO) == (place.board.pid(0), place.board.outstanding(0))
        loaded = place.libraries()
        assert "/uvloop/" in loaded
        assert [] == [name for name in HEAVY if f"/site-packages/{name}/" in loaded]

    run(tmp_path, scenario)


def test_requests_are_on_the_board(tmp_path: Path) -> None:
    """While an answer streams its tokens are there for all to see; when its client has left they are not."""

    async def scenario(place: Place) -> None:
        await place.configure(place.config())
        await place.engines[0].break_(STALL)
        reader, writer = await place.open(completion(50, stream=True))
        await asyncio.wait_for(reader.readuntil(b"data: "), 20)
        prefill, decode, requests = place.board.outstanding(0)
        assert (0, 1) == (prefill, requests)
        assert decode > 0
        writer.close()
        await asyncio.to_thread(eventually, lambda: ZERO == place.board.outstanding(0), "the board is empty")

    run(tmp_path, scenario)


def test_records_wait_for_an_agent_that_counts(tmp_path: Path) -> None:
    """What is not acknowledged comes again to the next agent, in the same batches; what is acknowledged does not."""

    async def scenario(place: Place) -> None:
        await place.configure(place.config())
        first = await place.agent()
        assert 200 == (await place.ask()).status
        batches = await first.records(1)
        first.link.abort()
        second = await place.agent()
        again = await second.records(1)
        assert [batch.sequence for batch in batches if batch.records] == [b.sequence for b in again if b.records]
        made = again[-1].records[0]
        assert ("ams", "demo", "ok") == (made.location, made.model, made.outcome)
        assert "gpu-0" == made.attempts[0].instance
        second.link.send(Ack(again[-1].sequence))
        assert 404 == (await place.get("/nothing")).status
        later = await second.records(1)
        second.link.abort()
        third = await place.agent()
        assert [b.sequence for b in later if b.records] == [b.sequence for b in await third.records(1) if b.records]

    run(tmp_path, scenario)


def test_lag_is_measured(tmp_path: Path) -> None:
    """A sample of the event loop's lag comes every second, requests or not."""

    async def scenario(place: Place) -> None:
        await place.configure(place.config())
        agent = await place.agent()
        (sample,) = (await agent.hear(Batch)).lag
        assert 0 <= sample < 20

    run(tmp_path, scenario)


def test_routes_by_the_pushed_table(tmp_path: Path) -> None:
    """An instance that the agent says is down gets nothing, and the decision names the Table's version."""

    async def scenario(place: Place) -> None:
        await place.configure(place.config())
        agent = await place.agent()
        agent.link.send(Push(place.table(Instance(0, "gpu-0", ready=False), Instance(1, "gpu-1"))))
        while (await place.ask()).header("x-headrace-instance") != "gpu-1":
            pass
        assert {"gpu-1"} == {(await place.ask()).header("x-headrace-instance") for _ in range(8)}
        batches = await agent.records(9)
        assert 5 == batches[-1].records[-1].table_version
        agent.link.abort()  # the Table stays
        assert {"gpu-1"} == {(await place.ask()).header("x-headrace-instance") for _ in range(8)}

    run(tmp_path, scenario, engines=2)


def test_table_ahead_of_its_config(tmp_path: Path) -> None:
    """A Table of the next configuration waits until that is in force."""

    async def scenario(place: Place) -> None:
        both = place.config()
        one = place.config(models={"demo": Model(both.models["demo"].engines[:1])})
        await place.configure(one)
        agent = await place.agent()
        agent.link.send(Push(place.table(Instance(0, "gpu-0", ready=False), Instance(1, "gpu-1"))))
        assert {"gpu-0"} == {(await place.ask()).header("x-headrace-instance") for _ in range(4)}
        assert Ready(2) == await place.configure(both)
        assert {"gpu-1"} == {(await place.ask()).header("x-headrace-instance") for _ in range(8)}

    run(tmp_path, scenario, engines=2)


def test_bad_config_changes_nothing(tmp_path: Path) -> None:
    """A certificate that is not there: the generation and the problem are told, and the old config stays."""

    async def scenario(place: Place) -> None:
        await place.configure(place.config())
        missing = ServerTls(str(tmp_path / "none.pem"), str(tmp_path / "none.key"))
        failed = await place.configure(place.config(tls=missing, location="lhr"))
        assert isinstance(failed, Failed)
        assert 2 == failed.generation
        assert "No such file" in failed.problem
        assert "ams" == (await place.ask()).header("x-headrace-location")
        assert Ready(3) == await place.configure(place.config(location="lhr"))
        assert "lhr" == (await place.ask()).header("x-headrace-location")

    run(tmp_path, scenario)


def test_without_any_config_it_ends(tmp_path: Path) -> None:
    """A first config that fails leaves nothing to serve: it says why and exits with 1, so that a later start tries again."""

    async def scenario(place: Place) -> None:
        missing = ServerTls(str(tmp_path / "none.pem"), str(tmp_path / "none.key"))
        failed = await place.configure(place.config(tls=missing))
        assert isinstance(failed, Failed)
        assert "No such file" in failed.problem
        assert 1 == await place.ended()

    run(tmp_path, scenario)


def test_drain(tmp_path: Path) -> None:
    """The stream that runs ends whole, new connections are told to close, the last records arrive, then it exits with 0."""

    async def scenario(place: Place) -> None:
        await place.configure(place.config())
        agent = await place.agent()
        reader, writer = await place.open(completion(40, stream=True, connection="keep-alive"))
        await asyncio.wait_for(reader.readuntil(b"data: "), 20)
        await place.engines[0].break_(SLOW)
        place.supervisor.link.send(Drain())
        while (ready := await place.get("/readyz")).status == 200:
            pass
        assert (503, "close") == (ready.status, ready.header("connection"))
        streamed = (await asyncio.wait_for(reader.read(), 20)).decode()
        writer.close()
        assert "data: [DONE]" in streamed
        batches = await agent.records(1)
        agent.link.send(Ack(batches[-1].sequence))
        assert "ok" == batches[-1].records[0].outcome
        assert (0, ZERO) == (await place.ended(), place.board.outstanding(0))

    run(tmp_path, scenario)


def test_what_it_learned_goes_to_the_agent_and_comes_from_it(tmp_path: Path) -> None:
    """It begins with what the agent knows, and tells what it knows when it drains."""

    async def scenario(place: Place) -> None:
        await place.configure(place.config())
        agent = await place.agent()
        agent.link.send(Learned({"demo": taught(40), "other": taught(4)}))
        await place.ask(7)
        place.supervisor.link.send(Drain())
        told = await agent.hear(Learned)
        assert ["demo"] == list(told.models)
        assert 41 == samples(told.models["demo"])

    run(tmp_path, scenario)


def test_drain_has_an_end(tmp_path: Path) -> None:
    """After `drain_timeout` what still runs is cut, recorded, and the worker exits with 0."""

    async def scenario(place: Place) -> None:
        await place.configure(place.config(drain_timeout=0.3))
        agent = await place.agent()
        await place.engines[0].break_(STALL)
        reader, writer = await place.open(completion(40, stream=True))
        await asyncio.wait_for(reader.readuntil(b"data: "), 20)
        place.supervisor.link.send(Drain())
        (batch,) = [batch for batch in await agent.records(1) if batch.records]
        agent.link.send(Ack(batch.sequence))
        assert "ok" != batch.records[0].outcome
        writer.close()
        assert (0, ZERO) == (await place.ended(), place.board.outstanding(0))

    run(tmp_path, scenario)


def test_supervisor_is_gone(tmp_path: Path) -> None:
    """Without its supervisor a worker ends at once, whatever it carries."""

    async def scenario(place: Place) -> None:
        await place.configure(place.config())
        await place.engines[0].break_(STALL)
        reader, writer = await place.open(completion(40, stream=True))
        await asyncio.wait_for(reader.readuntil(b"data: "), 20)
        place.supervisor.link.abort()
        assert 1 == await place.ended()
        writer.close()

    run(tmp_path, scenario)


def test_accept_pauses(tmp_path: Path) -> None:
    """At the location's limit of connections the next ones wait in the socket's queue, and are served when there is room."""

    async def scenario(place: Place) -> None:
        await place.configure(place.config(limits=Limits(connections=4)))
        agent = await place.agent()
        idle = [(await place.open(""))[1] for _ in range(4)]
        counted: dict[str, int] = {}
        while not counted.get("headrace_accept_pauses_total|connections"):
            counted |= (await agent.hear(Batch)).counters
        waiting = asyncio.ensure_future(place.ask())
        done, _ = await asyncio.wait([waiting], timeout=0.1)
        assert not done
        for writer in idle:
            writer.close()
        assert 200 == (await asyncio.wait_for(waiting, 20)).status

    run(tmp_path, scenario)


# parts that are hard to bring about in a process


@contextlib.asynccontextmanager
async def in_process() -> AsyncIterator[Worker]:
    """A worker without a process, its timers not started."""
    board = Board.create(1, 8)
    worker = Worker(0, board, 0, socket.create_server(("127.0.0.1", 0)), "none")
    await worker.listener.open(None)
    try:
        yield worker
    finally:
        worker.listener.close()
        await asyncio.sleep(0)
        worker.ledger.cells = []  # lets go of the board's memory
        board.close()


def test_descriptors_run_out() -> None:
    """Accepting pauses before the last descriptor is gone, is counted, and goes on when there are enough."""

    async def scenario() -> None:
        async with in_process() as worker:
            worker.descriptors = 99
            worker._guard()
            worker._guard()
            assert not worker.listener.accepting
            assert {"headrace_accept_pauses_total|descriptors": 1} == worker.plane.counters
            worker.descriptors = 101
            worker._guard()  # less than 2 % are free
            assert not worker.tasks
            worker.descriptors = 1000
            worker._guard()
            await asyncio.gather(*worker.tasks)
            assert worker.listener.accepting

    asyncio.run(scenario())


def connected(worker: Worker) -> tuple[Client, FakeTransport]:
    """A client of a worker's."""
    client, transport = worker.plane.client_factory(), FakeTransport()
    client.connection_made(transport)  # type: ignore[arg-type]
    return client, transport


@pytest.mark.parametrize("cut", [20, -3])
def test_a_drain_waits_for_requests_that_are_still_coming(cut: int) -> None:
    """One of which a part is here is answered, once the rest has come."""

    async def scenario() -> None:
        async with in_process() as worker:
            client, transport = connected(worker)
            client.data_received(post()[:cut])
            worker.on_control(Drain())
            await asyncio.sleep(worker.config_drain - 1.0)
            assert not transport.aborted
            client.data_received(post()[cut:])
            assert transport.written.startswith(b"HTTP/1.1 404")
            assert 0 == await worker.done
            assert worker.loop.time() < worker.config_drain + LAST_WORDS

    run_virtually(scenario())


def test_a_drain_does_not_wait_for_ever_for_a_request() -> None:
    """After `drain_timeout` whoever has not sent all of it is cut off."""

    async def scenario() -> None:
        async with in_process() as worker:
            client, transport = connected(worker)
            client.data_received(post()[:20])
            worker.on_control(Drain())
            assert 0 == await worker.done
            assert transport.aborted
            assert worker.config_drain <= worker.loop.time() < worker.config_drain + LAST_WORDS

    run_virtually(scenario())


def test_a_drain_does_not_wait_for_what_follows_the_last_request() -> None:
    """The answer said `connection: close`: what was sent behind its request is never looked at."""

    async def scenario() -> None:
        async with in_process() as worker:
            client, transport = connected(worker)
            worker.on_control(Drain())
            await asyncio.sleep(0)
            client.data_received(MODELS + post())
            assert 1 == transport.written.count(b"HTTP/1.1 200")
            assert 0 == await worker.done
            assert worker.loop.time() < 5

    run_virtually(scenario())


@pytest.mark.parametrize("reads", [True, False])
def test_a_drain_waits_for_who_reads_slowly(reads: bool) -> None:
    """An answer that is whole here is not yet whole there; after `drain_timeout` it is cut off all the same."""

    async def scenario() -> None:
        async with in_process() as worker:
            client, transport = connected(worker)
            worker.on_control(Drain())
            await asyncio.sleep(0)
            transport.unsent = 3_000_000
            client.data_received(MODELS)
            assert transport.closed
            await asyncio.sleep(worker.config_drain - 5.0)
            assert not transport.aborted
            if reads:
                transport.unsent = 0
            assert 0 == await worker.done
            assert reads is (worker.loop.time() < worker.config_drain)

    run_virtually(scenario())


class Deaf:
    """An agent's link that takes some messages, then stands still."""

    def __init__(self, takes: int) -> None:
        self.sent: list[Batch] = []
        self.takes = takes
        self.aborted = False

    def send(self, message: Batch) -> bool:
        if len(self.sent) == self.takes:
            return False
        self.sent.append(message)
        return True

    def abort(self) -> None:
        self.aborted = True


@pytest.mark.parametrize(("takes", "aborted"), [(2, True), (3, False)])
def test_agent_stands_still(takes: int, aborted: bool) -> None:
    """Many records go in several batches; if one cannot be sent the link ends, and all wait for the next agent."""

    async def scenario() -> None:
        async with in_process() as worker:
            agent = Deaf(takes)
            worker.agent = cast(Link, agent)
            worker.plane.noted = [record()] * (2 * FULL_BATCH + 1)
            worker.plane.count("a|b")
            worker._flush()
            waiting = worker.outbox.unacknowledged()
            assert [FULL_BATCH, FULL_BATCH, 1] == [len(batch.records) for batch in waiting]
            assert [{"a|b": 1}, {}, {}] == [batch.counters for batch in waiting]
            assert (waiting[:takes], aborted) == (agent.sent, agent.aborted)

    asyncio.run(scenario())


def test_who_was_held_up_itself_blames_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """A look that comes late leaves the stalled attempts to the next one: their first tokens may wait to be read."""

    async def scenario() -> None:
        async with in_process() as worker:
            looks: list[int] = []
            monkeypatch.setattr(worker.plane, "notice", looks.append)
            worker._look()  # the first one cannot know
            worker._look()
            assert len(looks) == 1
            worker.looked -= LATE_LOOK + 1
            worker._look()
            assert len(looks) == 1
            worker._look()
            assert len(looks) == 2

    asyncio.run(scenario())
