"""The supervisor: what it tells its children and when, with children that are no processes; and how the command ends."""

import asyncio
import itertools
import json
import logging
import signal
import subprocess
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from fixtures.demo_processes import free_ports
from proxy.config import load
from proxy.control import supervisor as module
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
)
from proxy.control.sockets import listening_socket
from proxy.control.supervisor import STUCK_NS, Supervisor
from tests.support.process import ROOT

SECOND = 1_000_000_000
A, B, C = (f"http://127.0.0.1:{port}" for port in (9001, 9002, 9003))
PIDS = itertools.count(1001)


class Fake(Child):
    """A child that is no process. `answer` says what comes of a generation; deaf ones do not end when they are told."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.heard: list[object] = []
        self.answer: Callable[[Configure], object | None] = lambda configure: Ready(configure.generation)
        self.deaf = False
        self.killed = 0
        self.number = 0  # its pid
        self.over = asyncio.Event()

    @property
    def pid(self) -> int:
        return self.number

    async def keep(self) -> None:
        while self.wanted:
            self.process = object()  # type: ignore[assignment]  # there is one
            self.ready, self.number = 0, next(PIDS)
            self.over.clear()
            self._command(0, self.life)
            self.life += 1
            self._on_start(self)
            await self.over.wait()
            self._on_death(self)
            self.restarts += 1
        self.dead.set()

    def send(self, message: object) -> None:
        self.heard.append(message)
        if isinstance(message, Configure) and (answer := self.answer(message)) is not None:
            asyncio.get_running_loop().call_soon(self._on_message, self, answer)
        elif isinstance(message, Drain) and not self.deaf:
            self.over.set()

    def says(self, message: Any) -> None:
        self._on_message(self, message)

    def kill(self) -> None:
        self.killed += 1
        self.over.set()

    def last(self, kind: type) -> Any:
        """The last message of a kind that it was sent."""
        return [message for message in self.heard if isinstance(message, kind)][-1]


class Located:
    """A supervisor that runs over fakes, and its file."""

    def __init__(self, path: Path, workers: int, **options: object) -> None:
        listen, admin = free_ports(2)
        self.path = path
        self.written: dict[str, object] = {
            "location": "ams", "listen": f"127.0.0.1:{listen}", "admin": f"127.0.0.1:{admin}", "workers": workers,
            "drain_timeout": "1s", **options,
        }  # fmt: skip
        self.write(A, B)
        self.supervisor = Supervisor(str(path), load(str(path)))
        self.workers: list[Fake] = self.supervisor.workers  # type: ignore[assignment]
        self.agent: Fake = self.supervisor.agent  # type: ignore[assignment]

    def write(self, *engines: str, **options: object) -> None:
        """Writes the file: these engines, and what else differs from the first."""
        models = {"llama": {"engines": [{"url": url} for url in engines]}}
        self.path.write_text(json.dumps({**self.written, "models": models, **options}))

    @property
    def everybody(self) -> list[Fake]:
        return [*self.workers, self.agent]

    def generations(self) -> list[list[int]]:
        """Of each child, the generations that it was sent."""
        return [[m.generation for m in child.heard if isinstance(m, Configure)] for child in self.everybody]


async def turns(count: int = 10) -> None:
    """Lets everything happen that waits for nothing."""
    for _ in range(count):
        await asyncio.sleep(0)


@pytest.fixture
def located(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a test's coroutine beside a supervisor over fakes; the supervisor's exit code."""
    monkeypatch.setattr(module, "Child", Fake)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def run(
        test: Callable[[Located], Coroutine[Any, Any, None]],
        workers: int = 2,
        prepare: Callable[[Located], None] = lambda at: None,
    ) -> int:
        async def go() -> int:
            at = Located(tmp_path / "headrace.yaml", workers)
            prepare(at)
            running = asyncio.get_running_loop().create_task(at.supervisor.run())
            try:
                await turns()
                await test(at)
                if not running.done():
                    at.supervisor.end_at_once(99)
                return await running
            finally:
                await turns()
                at.supervisor.close()

        return asyncio.run(asyncio.wait_for(go(), 20))

    return run


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The supervisor's own words."""
    return [record.getMessage() for record in caplog.records if record.name == "headrace.supervisor"]


def test_start(located: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    """Everybody gets the config, the agent hears of all; when all are ready, one line says where the location is."""
    caplog.set_level(logging.INFO)

    async def test(at: Located) -> None:
        for child in at.everybody:
            configure = child.last(Configure)
            assert ({A: 0, B: 1}, 1, 32) == (configure.cells, configure.generation, len(configure.secret))
            assert at.supervisor.config == configure.config
        workers = [Process(n, child.pid, 2 * n, 0) for n, child in enumerate(at.workers)]
        assert Processes(workers, 0, False) == at.agent.last(Processes)
        written = at.written
        line = f"location ams ready on http://{written['listen']}, admin http://{written['admin']}, 2 worker(s)"
        assert [line] == logged(caplog)

    assert 99 == located(test)


def test_not_ready_before_all_are(located: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    """The line waits for the last."""
    caplog.set_level(logging.INFO)

    def prepare(at: Located) -> None:
        at.agent.answer = lambda configure: None

    async def test(at: Located) -> None:
        assert [] == logged(caplog)
        at.agent.says(Ready(1))
        assert 1 == len(logged(caplog))
        at.agent.says(Ready(1))
        assert 1 == len(logged(caplog))

    located(test, prepare=prepare)


def test_first_config_fails(located: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    """With no config in force before, there is nothing to go on with: the command fails and says why."""

    def prepare(at: Located) -> None:
        at.workers[1].answer = lambda configure: Failed(configure.generation, "edge.pem: no such file")

    async def test(at: Located) -> None:
        assert [1, 1, 1] == [child.killed for child in at.everybody]

    assert 1 == located(test, prepare=prepare)
    assert ["worker 1: edge.pem: no such file"] == logged(caplog)


def test_commands(located: Callable[..., int]) -> None:
    """Each process finds its descriptors by number and inherits them; a worker's rows take turns."""

    async def test(at: Located) -> None:
        supervisor = at.supervisor
        sockets, board = supervisor.sockets, supervisor.board.fd
        own = sockets.clients[1].fileno()
        flags, inherited = supervisor._worker_command(1)(7, 4)
        assert ["-m", "proxy.control.worker"] == flags[:2]
        given = dict(zip(flags[2::2], flags[3::2], strict=True))
        numbers = {"--worker": 1, "--control": 7, "--listen": own, "--board": board, "--row": 2}
        assert {**{name: str(n) for name, n in numbers.items()}, "--agent": sockets.agent_path} == given
        assert [own, board] == inherited
        assert [2, 3, 2] == [int(supervisor._worker_command(1)(7, life)[0][11]) for life in range(3)]
        flags, inherited = supervisor._agent_command(7, 0)
        assert ["-m", "proxy.control.agent", "--control", "7"] == flags[:4]
        assert [sockets.agent.fileno(), sockets.admin.fileno(), board] == inherited == list(map(int, flags[5::2]))

    located(test)


def test_worker_dies(located: Callable[..., int]) -> None:
    """Its row is empty before its successor starts, which gets the same config and another row."""

    async def test(at: Located) -> None:
        board, worker = at.supervisor.board, at.workers[1]
        first = worker.pid
        board.claim(2, first, 1)
        board.ints[board.base(2) + 1] = 500
        worker.over.set()
        await turns()
        assert ((0, 0, 0), []) == (board.outstanding(0), board.live())
        assert [[1], [1, 1], [1]] == at.generations()
        assert Process(1, worker.pid, 3, 1) == at.agent.last(Processes).workers[1]
        assert first != worker.pid

    located(test)


def test_agent_dies(located: Callable[..., int]) -> None:
    """A new agent is told everything anew; the workers hear nothing of it."""

    async def test(at: Located) -> None:
        heard = [len(worker.heard) for worker in at.workers]
        at.agent.over.set()
        await turns()
        assert heard == [len(worker.heard) for worker in at.workers]
        assert [1, 1] == at.generations()[-1]
        assert (1, 2) == (at.agent.last(Processes).agent_restarts, len(at.agent.last(Processes).workers))

    located(test)


def test_stuck(located: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    """A worker whose heartbeat is more than 10 s old is killed, once; a fresh one, and one that is not ready, are not."""

    async def test(at: Located) -> None:
        board, now = at.supervisor.board, 1000 * SECOND
        beats = (now - STUCK_NS - 1, now - STUCK_NS)
        for row, worker, beat in zip((0, 2), at.workers, beats, strict=True):
            board.claim(row, worker.pid, beat)
        pid = at.workers[0].pid
        at.supervisor.looked = now - SECOND
        at.supervisor.end_stuck(now)
        assert [1, 0] == [worker.killed for worker in at.workers]
        assert [f"worker 0 (pid {pid}) is stuck: its heartbeat is older than 10 s"] == logged(caplog)
        await turns()
        at.supervisor.end_stuck(now)
        assert [1, 0] == [worker.killed for worker in at.workers]

    located(test)


def test_stopped_and_continued(located: Callable[..., int]) -> None:
    """After the whole location stood still, its workers get a second to beat before they pass for stuck."""

    async def test(at: Located) -> None:
        board, now, supervisor = at.supervisor.board, 1000 * SECOND, at.supervisor
        board.claim(0, at.workers[0].pid, now - 60 * SECOND)
        supervisor.looked = now - 60 * SECOND
        supervisor.end_stuck(now)
        assert 0 == at.workers[0].killed
        supervisor.end_stuck(now + SECOND)
        assert 1 == at.workers[0].killed

    located(test)


def test_reload(located: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    """Everybody gets the new config with the next generation; who asked is told; engines keep their cells."""
    caplog.set_level(logging.INFO)

    async def test(at: Located) -> None:
        at.write(C, B)
        at.agent.says(ReloadRequest())
        await turns(30)
        assert [[1, 2]] * 3 == at.generations()
        assert (1, {C, B}) == (at.agent.last(Configure).cells[B], at.agent.last(Configure).cells.keys())
        assert ReloadResult(2, []) == at.agent.last(ReloadResult)
        assert f"reloaded {at.path}, generation 2" == logged(caplog)[-1]

    located(test)


def test_reload_by_signal(located: Callable[..., int]) -> None:
    """SIGHUP reloads."""

    async def test(at: Located) -> None:
        at.write(A)
        signal.raise_signal(signal.SIGHUP)
        while not isinstance(at.agent.heard[-1], ReloadResult):  # noqa: ASYNC110  the signal comes by a pipe
            await asyncio.sleep(0.001)
        assert [[1, 2]] * 3 == at.generations()

    located(test)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"location": 5}, "location:"),
        ({"workers": 4}, "workers: a change needs a restart"),
        ({"listen": "127.0.0.1:1"}, "listen: a change needs a restart"),
    ],
)
def test_bad_reload(
    located: Callable[..., int], caplog: pytest.LogCaptureFixture, options: dict[str, object], problem: str
) -> None:
    """A config with problems, or one that needs other sockets, changes nothing, and all problems are told."""

    async def test(at: Located) -> None:
        at.write(C, **options)
        [told] = await at.supervisor.reload()
        assert told.startswith(problem)
        assert [[1]] * 3 == at.generations()
        assert ReloadResult(1, [told]) == at.agent.last(ReloadResult)
        assert f"reload refused: {told}" == logged(caplog)[-1]

    located(test)


def test_reload_of_a_missing_file(located: Callable[..., int]) -> None:
    """A file that is gone changes nothing."""

    async def test(at: Located) -> None:
        at.path.unlink()
        assert 1 == len(await at.supervisor.reload())
        assert [[1]] * 3 == at.generations()

    located(test)


def test_reload_fails_in_a_worker(located: Callable[..., int]) -> None:
    """If one cannot put it in force, all get the old config back, as a new generation."""

    async def test(at: Located) -> None:
        old = at.supervisor.config
        at.workers[1].answer = lambda c: Ready(c.generation) if C not in c.cells else Failed(c.generation, "no such ca")
        at.write(C)
        assert ["worker 1: no such ca"] == await at.supervisor.reload()
        assert [[1, 2, 3]] * 3 == at.generations()
        for child in at.everybody:
            assert (old, {A: 0, B: 1}) == (child.last(Configure).config, child.last(Configure).cells)
        assert ReloadResult(3, ["worker 1: no such ca"]) == at.agent.last(ReloadResult)

    located(test)


def test_reload_that_nobody_answers(located: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that does not put it in force in time is named, and the old config comes back."""
    monkeypatch.setattr(module, "RELOAD_TIMEOUT", 0.01)

    async def test(at: Located) -> None:
        at.workers[0].answer = lambda configure: None
        at.write(C)
        assert ["worker 0: did not put the config in force within 0 s"] == await at.supervisor.reload()
        assert A in at.workers[0].last(Configure).cells

    located(test)


def test_reload_and_death(located: Callable[..., int]) -> None:
    """A worker that dies over a reload counts when its successor is ready."""

    async def test(at: Located) -> None:
        worker = at.workers[0]

        def die(configure: Configure) -> None:
            worker.answer = lambda configure: Ready(configure.generation)
            worker.over.set()

        worker.answer = die
        at.write(C)
        assert [] == await at.supervisor.reload()
        assert [[1, 2, 2], [1, 2], [1, 2]] == at.generations()

    located(test)


def test_drain(located: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    """Workers first, then the agent; the agent hears of it; no reload any more; the command has done its work."""
    caplog.set_level(logging.INFO)

    async def test(at: Located) -> None:
        at.workers[1].deaf = True
        at.agent.says(DrainRequest())
        at.agent.says(DrainRequest())
        await turns()
        assert [1, 1, 0] == [sum(isinstance(m, Drain) for m in child.heard) for child in at.everybody]
        assert at.agent.last(Processes).draining
        assert ["the location is draining"] == await at.supervisor.reload()
        at.workers[1].over.set()
        await asyncio.wait_for(asyncio.shield(at.supervisor.ended), 10)
        assert [0, 0, 0] == [child.killed for child in at.everybody]
        assert isinstance(at.agent.heard[-2], Drain)  # after it, only the news of its own end

    assert 0 == located(test)
    assert 1 == logged(caplog).count("draining, for up to 1 s")


def test_drain_of_a_newborn(located: Callable[..., int]) -> None:
    """A process that was being spawned as the drain began is told of it after its config."""

    async def test(at: Located) -> None:
        worker = at.workers[0]
        worker.deaf = True
        at.agent.says(DrainRequest())
        await turns()
        before = len(worker.heard)
        at.supervisor.on_start(worker)
        assert [Configure, Drain] == [type(message) for message in worker.heard[before:]]
        worker.over.set()

    located(test)


def test_drain_has_an_end(
    located: Callable[..., int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Who has not ended after `drain_timeout` is killed, and the agent still takes its last records."""
    monkeypatch.setattr(module, "GRACE", -0.99)

    async def test(at: Located) -> None:
        at.workers[0].deaf = True
        await at.supervisor.drain()
        assert [1, 0, 0] == [child.killed for child in at.everybody]

    assert 0 == located(test)
    assert ["worker 0 did not end in time"] == logged(caplog)


def test_signals(located: Callable[..., int]) -> None:
    """The first SIGTERM or SIGINT drains, the second ends everything at once."""

    async def test(at: Located) -> None:
        for child in at.everybody:
            child.deaf = True
        signal.raise_signal(signal.SIGTERM)
        while not at.supervisor.draining:  # noqa: ASYNC110  the signal comes by a pipe
            await asyncio.sleep(0.001)
        await turns()
        assert [0, 0, 0] == [child.killed for child in at.everybody]
        signal.raise_signal(signal.SIGINT)
        await asyncio.wait_for(asyncio.shield(at.supervisor.ended), 10)
        assert [1, 1, 1] == [child.killed for child in at.everybody]

    assert 1 == located(test)


def test_signal_after_a_drain_was_asked_for(located: Callable[..., int]) -> None:
    """The first SIGTERM does not cut a drain short that the admin API began."""

    async def test(at: Located) -> None:
        at.workers[0].deaf = True
        at.agent.says(DrainRequest())
        await turns()
        assert at.supervisor.draining
        signal.raise_signal(signal.SIGTERM)
        while not at.supervisor.signalled:  # noqa: ASYNC110  the signal comes by a pipe
            await asyncio.sleep(0.001)
        await turns()
        assert [0, 0, 0] == [child.killed for child in at.everybody]
        at.workers[0].over.set()
        await asyncio.wait_for(asyncio.shield(at.supervisor.ended), 10)

    assert 0 == located(test)


def test_crash(located: Callable[..., int], caplog: pytest.LogCaptureFixture) -> None:
    """A part of the supervisor that crashes ends the location, and says why: half a supervisor would be worse."""

    async def crash() -> None:
        raise ZeroDivisionError

    async def test(at: Located) -> None:
        at.supervisor.spawn(crash())
        await turns()

    assert 1 == located(test)
    assert ["a part of the supervisor crashed"] == logged(caplog)


def run(path: Path) -> "subprocess.CompletedProcess[str]":
    """`headrace run` that is expected to end by itself."""
    command = [sys.executable, "-m", "proxy", "run", str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


def test_run_with_a_bad_config(tmp_path: Path) -> None:
    """All problems are printed, and the exit code says that it is the config."""
    path = tmp_path / "headrace.yaml"
    path.write_text('{"location": "ams", "listen": "nowhere", "modles": {}}')
    ended = run(path)
    lines = ended.stderr.splitlines()
    assert (2, True) == (ended.returncode, len(lines) >= 2), ended.stderr
    assert any(line.startswith("listen:") for line in lines)
    assert any("modles" in line for line in lines)


def test_run_on_a_taken_port(tmp_path: Path) -> None:
    """The address that cannot be had is named, in one line."""
    listen, admin = free_ports(2)
    path = tmp_path / "headrace.yaml"
    models = {"llama": {"engines": [{"url": A}]}}
    path.write_text(
        json.dumps(
            {"location": "ams", "listen": f"127.0.0.1:{listen}", "admin": f"127.0.0.1:{admin}", "models": models}
        )
    )
    with listening_socket(load(str(path)).admin.listen):
        ended = run(path)
    line = f"headrace: cannot listen: 127.0.0.1:{admin}: Address already in use\n"
    assert (1, line) == (ended.returncode, ended.stderr)
