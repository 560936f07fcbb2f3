"""A child process of the supervisor: how it is spawned, spoken to, and when it may start again."""

import asyncio
import logging
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable

import msgspec

from proxy.control.link import Link
from proxy.control.messages import ToSupervisor

log = logging.getLogger("headrace.supervisor")
FIRST_WAIT, LONGEST_WAIT = 0.1, 10.0  # s before a restart
GROWN_UP = 30.0  # s of life after which a death is no longer one of a series
PYTHON_FLAGS = ("-P",)  # what lies in the folder that we were started in is none of our modules


class Backoff:
    """How long to wait before the next start: twice as long each time, forgotten after a long life. Pure."""

    def __init__(self) -> None:
        self._wait = FIRST_WAIT

    def after(self, life: float) -> float:
        """Seconds to wait after a life of so many seconds."""
        if life >= GROWN_UP:
            self._wait = FIRST_WAIT
        wait, self._wait = self._wait, min(LONGEST_WAIT, 2 * self._wait)
        return wait


class Child:
    """One place for a process, which has many processes one after the other."""

    def __init__(
        self,
        name: str,
        command: Callable[[int, int], tuple[list[str], list[int]]],
        on_message: Callable[["Child", ToSupervisor], None],
        on_start: Callable[["Child"], None],
        on_death: Callable[["Child"], None],
    ) -> None:
        """`command(control_fd, life)`: the arguments of `python` and the descriptors it inherits."""
        self.name = name
        self.restarts = 0
        self.life = 0  # the how-many-eth process it is
        self.process: subprocess.Popen[bytes] | None = None
        self.link: Link | None = None
        self.ready = 0  # the last generation it has in force
        self.wanted = True  # it is started again when it dies
        self.dead = asyncio.Event()
        self._command = command
        self._on_message, self._on_start, self._on_death = on_message, on_start, on_death

    @property
    def pid(self) -> int:
        return self.process.pid if self.process is not None else 0

    async def keep(self) -> None:
        """Starts it, and again whenever it dies, until it is no longer wanted."""
        backoff = Backoff()
        loop = asyncio.get_running_loop()
        while self.wanted:
            started = loop.time()
            try:
                await self._spawn()
            except OSError as error:  # no memory, no descriptor, no more processes: that may pass
                end = f"could not start: {error}"
            else:
                end = f"(pid {self.pid}) ended with {describe(await self._watch())}"
                self._on_death(self)
            if not self.wanted:
                break
            wait = backoff.after(loop.time() - started)
            log.warning("%s %s; it starts again in %.1f s", self.name, end, wait)
            await asyncio.sleep(wait)
            self.restarts += 1
        self.dead.set()

    async def _spawn(self) -> None:
        ours = self._start_process()
        decode = msgspec.msgpack.Decoder(ToSupervisor).decode
        _, self.link = await asyncio.get_running_loop().create_connection(
            lambda: Link(decode, lambda message: self._on_message(self, message), lambda: None), sock=ours
        )
        self._on_start(self)

    def _start_process(self) -> socket.socket:
        """Starts the process; our end of its control socket. Raises OSError."""
        ours, theirs = socket.socketpair()
        arguments, inherited = self._command(theirs.fileno(), self.life)
        try:
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, *PYTHON_FLAGS, *arguments],
                pass_fds=[theirs.fileno(), *inherited],
                stdin=subprocess.DEVNULL,
            )
        except OSError:
            ours.close()
            raise
        finally:
            theirs.close()
        self.life += 1
        self.ready = 0
        return ours

    async def _watch(self) -> int:
        """Waits for the end of the process; its exit code."""
        process, loop, over = self.process, asyncio.get_running_loop(), asyncio.Event()
        assert process is not None  # noqa: S101
        watched = os.pidfd_open(process.pid)
        loop.add_reader(watched, over.set)
        try:
            await over.wait()
        finally:
            loop.remove_reader(watched)
            os.close(watched)
        if self.link is not None:
            self.link.close()
        return process.wait()

    def send(self, message: object) -> None:
        """Tells it something, if it is there."""
        if self.link is not None:
            self.link.send(message)

    def kill(self) -> None:
        """Ends its process at once."""
        if self.process is not None and self.process.poll() is None:
            os.kill(self.process.pid, signal.SIGKILL)


def describe(code: int) -> str:
    """An exit code in words."""
    return f"exit code {code}" if code >= 0 else signal.Signals(-code).name
