"""Child processes: how long until the next start, how they are spawned and heard, and what their end brings."""

import asyncio
import signal
import socket
import sys
from collections.abc import Awaitable, Callable

import pytest

from proxy.control import children
from proxy.control.children import Backoff, Child, describe
from proxy.control.link import frame
from proxy.control.messages import Drain, Ready, ToSupervisor

SAY = "import socket, sys; s = socket.socket(fileno=int(sys.argv[1])); s.sendall(bytes.fromhex(sys.argv[2])); "
LISTEN = SAY + "s.recv(100)"  # until it is told something, or its supervisor is gone


class Heard(list[object]):
    """What came from a child, in order."""

    def __init__(self) -> None:
        super().__init__()
        self._news = asyncio.Event()

    def note(self, what: object) -> None:
        self.append(what)
        self._news.set()

    async def until(self, what: object) -> None:
        """Waits until it was heard."""
        while what not in self:
            self._news.clear()
            await self._news.wait()


@pytest.fixture(autouse=True)
def _no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next start comes at once."""
    monkeypatch.setattr(children, "FIRST_WAIT", 0.0)


def kept(script: str, until: Callable[[Child, Heard], Awaitable[object]]) -> tuple[Child, Heard]:
    """Keeps a process that runs `script` until `until` returns; the place and all that was heard."""

    async def go() -> tuple[Child, Heard]:
        heard = Heard()

        def command(control: int, life: int) -> tuple[list[str], list[int]]:
            return ["-c", script, str(control), frame(Ready(life + 1)).hex()], []

        def on_message(child: Child, message: ToSupervisor) -> None:
            heard.note(message)

        child = Child(
            "worker 0",
            command,
            on_message,
            lambda child: heard.note(("start", child.life)),
            lambda child: heard.note(("death", child.life)),
        )
        task = asyncio.get_running_loop().create_task(child.keep())
        try:
            await asyncio.wait_for(until(child, heard), 20)
        finally:
            child.wanted = False
            child.kill()
            await asyncio.wait_for(task, 20)
        return child, heard

    return asyncio.run(go())


def test_backoff(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of a series of deaths doubles the wait, up to 10 s; a long life ends the series."""
    monkeypatch.undo()
    backoff = Backoff()
    assert [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0] == [backoff.after(1.0) for _ in range(9)]
    assert [0.1, 0.2] == [backoff.after(30.0), backoff.after(29.9)]


@pytest.mark.parametrize(("code", "words"), [(0, "exit code 0"), (3, "exit code 3"), (-9, "SIGKILL"), (-15, "SIGTERM")])
def test_describe(code: int, words: str) -> None:
    """A signal is called by its name."""
    assert words == describe(code)


def test_killed(caplog: pytest.LogCaptureFixture) -> None:
    """A process that is killed is followed by another, on the same place, after its death was told."""

    async def until(child: Child, heard: Heard) -> None:
        await heard.until(Ready(1))
        child.kill()
        await heard.until(Ready(2))

    child, heard = kept(LISTEN, until)
    assert [("start", 1), Ready(1), ("death", 1), ("start", 2), Ready(2), ("death", 2)] == heard
    assert (1, 2, True) == (child.restarts, child.life, child.dead.is_set())
    [message] = caplog.messages
    assert message.startswith("worker 0 (pid ")
    assert message.endswith(") ended with SIGKILL; it starts again in 0.0 s")


def test_told() -> None:
    """What is sent reaches the process; when it is not wanted any more, its end is the last."""

    async def until(child: Child, heard: Heard) -> None:
        await heard.until(Ready(1))
        child.wanted = False
        child.send(Drain())
        await child.dead.wait()

    child, heard = kept(LISTEN, until)
    assert ([("start", 1), Ready(1), ("death", 1)], 0) == (heard, child.restarts)
    assert child.process is not None
    assert 0 == child.process.returncode


def test_supervisor_gone() -> None:
    """A process hears the end of its control socket: nothing of it outlives its supervisor."""

    async def until(child: Child, heard: Heard) -> None:
        await heard.until(Ready(1))
        child.wanted = False
        assert child.link is not None
        child.link.abort()
        await child.dead.wait()

    child, _ = kept(LISTEN, until)
    assert child.process is not None
    assert 0 == child.process.returncode


def test_cannot_start(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A process that cannot be started is tried again, and keeps its place on the board: it never lived."""
    monkeypatch.setattr(sys, "executable", "/nonexistent/python")

    async def until(child: Child, heard: Heard) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    child, heard = kept(LISTEN, until)
    assert ([], 0) == (heard, child.life)
    assert child.restarts > 3
    assert (
        "worker 0 could not start: [Errno 2] No such file or directory: '/nonexistent/python'; it starts again in 0.0 s"
        in (caplog.messages)
    )


def test_inherits_only_what_it_is_given() -> None:
    """Standard streams, its control socket, and nothing else that its supervisor has open."""
    count = SAY.replace("sys.argv[2]", "sys.argv[2] if len(__import__('os').listdir('/dev/fd')) == 5 else ''")

    async def until(child: Child, heard: Heard) -> None:
        await heard.until(Ready(1))

    with socket.socket():
        kept(count + "s.recv(100)", until)


def test_nobody_there(caplog: pytest.LogCaptureFixture) -> None:
    """Before its first process, a place takes words and blows without harm."""
    child = Child("agent", lambda *_: ([], []), lambda *_: None, lambda *_: None, lambda *_: None)
    child.send(Drain())
    child.kill()
    assert (0, 0) == (child.pid, child.life)


def test_kill_of_the_dead() -> None:
    """A second kill hits nobody, who may have the number by now."""

    async def until(child: Child, heard: Heard) -> None:
        await heard.until(Ready(1))
        child.wanted = False
        child.kill()
        await child.dead.wait()
        child.kill()

    child, _ = kept(LISTEN, until)
    assert child.process is not None
    assert -signal.SIGKILL == child.process.returncode
