"""The listener: what waits in the socket's queue is served after a pause, under other certificates, or by a successor."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, cast

import pytest
import trustme
import uvloop

from proxy.control.listener import Listener

Run = Callable[[Coroutine[Any, Any, None]], None]


class Greeter(asyncio.Protocol):
    """Says `hello` and closes."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        writing = cast(asyncio.Transport, transport)  # uvloop's is one by duck typing only
        writing.write(b"hello")
        writing.close()


@pytest.fixture(scope="module", autouse=True)
def _libuv_has_its_pipe() -> None:
    """The first uvloop of a process opens a pipe for signals that stays: that is no test's leak."""
    uvloop.run(asyncio.sleep(0))


@pytest.fixture
def listening() -> Iterator[socket.socket]:
    """The supervisor's socket."""
    with socket.create_server(("127.0.0.1", 0)) as made:
        yield made


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    """Either event loop's runner."""
    return cast(Run, request.param)


def listener(listening: socket.socket) -> Listener:
    return Listener(asyncio.get_running_loop(), listening.dup(), Greeter)


async def greeting(listening: socket.socket, tls: ssl.SSLContext | None = None) -> bytes:
    """What a new connection hears."""
    reader, writer = await asyncio.open_connection(
        *listening.getsockname(), ssl=tls, server_hostname="localhost" if tls else None
    )
    said = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    await writer.wait_closed()
    return said


async def start_waiting(listening: socket.socket) -> "asyncio.Task[bytes]":
    """A connection that is made but greeted by nobody."""
    waiting = asyncio.ensure_future(greeting(listening))
    done, _ = await asyncio.wait([waiting], timeout=0.1)
    assert not done
    return waiting


def certificates() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context and that of a client which trusts no other."""
    ca = trustme.CA()
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    ca.issue_cert("localhost").configure_cert(server)
    ca.configure_trust(client)
    return server, client


def test_pause_and_resume(listening: socket.socket, run: Run) -> None:
    """Who comes in a pause waits, and is served after it."""

    async def scenario() -> None:
        served = listener(listening)
        await served.open(None)
        assert b"hello" == await greeting(listening)
        served.pause()
        served.pause()
        assert not served.accepting
        waiting = await start_waiting(listening)
        await served.resume()
        await served.resume()
        assert served.accepting
        assert b"hello" == await waiting
        served.close()

    run(scenario())


def test_neither_before_nor_after(listening: socket.socket, run: Run) -> None:
    """Resuming is for a pause: before the first certificates are known, and after the end, nobody is accepted."""

    async def scenario() -> None:
        served = listener(listening)
        await served.resume()
        assert not served.accepting
        await served.open(None)
        served.close()
        await served.resume()
        assert not served.accepting

    run(scenario())


def test_successor_serves_the_queue(listening: socket.socket, run: Run) -> None:
    """A closed listener's socket goes on to queue: the next worker takes over."""

    async def scenario() -> None:
        first = listener(listening)
        await first.open(None)
        first.close()
        waiting = await start_waiting(listening)
        second = listener(listening)
        await second.open(None)
        assert b"hello" == await waiting
        second.close()

    run(scenario())


def test_new_certificates(listening: socket.socket, run: Run) -> None:
    """Handshakes use what the last `open` brought, after a pause too; plain HTTP can become TLS."""

    async def scenario() -> None:
        served = listener(listening)
        await served.open(None)
        await served.open(None)
        assert b"hello" == await greeting(listening)
        (one, trusts_one), (two, trusts_two) = certificates(), certificates()
        await served.open(one)
        assert b"hello" == await greeting(listening, trusts_one)
        await served.open(two)
        assert b"hello" == await greeting(listening, trusts_two)
        with pytest.raises(ssl.SSLError):
            await greeting(listening, trusts_one)
        served.pause()
        await served.resume()
        assert b"hello" == await greeting(listening, trusts_two)
        served.close()

    run(scenario())


class Poor(asyncio.SelectorEventLoop):
    """An event loop that may run out of descriptors."""

    out_of_files = False

    async def create_server(self, *args: Any, **options: Any) -> asyncio.Server:
        if self.out_of_files:
            raise OSError(24, "Too many open files")
        return await super().create_server(*args, **options)


def test_out_of_files(listening: socket.socket) -> None:
    """Without a descriptor for a new server the old one goes on, without blocking, and a paused listener stays paused."""

    async def scenario() -> None:
        loop = cast(Poor, asyncio.get_running_loop())
        served = listener(listening)
        await served.open(None)
        loop.out_of_files = True
        with pytest.raises(OSError, match="Too many open files"):
            await served.open(certificates()[0])
        assert b"hello" == await greeting(listening)
        served.pause()
        with pytest.raises(OSError, match="Too many open files"):
            await served.resume()
        assert not served.accepting
        loop.out_of_files = False
        await served.resume()
        assert b"hello" == await greeting(listening)
        served.close()

    with asyncio.Runner(loop_factory=Poor) as runner:
        runner.run(scenario())
