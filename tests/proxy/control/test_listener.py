"""A paused listener loses nothing: connections queue at the supervisor's socket."""

import asyncio
import socket

from proxy.control.listener import Listener


class Greeter(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hello")
        transport.close()


def test_pause_and_resume() -> None:
    """Who comes during a pause is served after it."""

    async def scenario() -> list[object]:
        owned = socket.create_server(("127.0.0.1", 0))
        port = owned.getsockname()[1]
        listener = Listener(asyncio.get_running_loop(), owned.dup(), Greeter)
        seen: list[object] = [listener.accepting]
        await listener.open(None)
        seen.append(listener.accepting)
        listener.pause()
        seen.append(listener.accepting)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await listener.resume()
        seen.append(await asyncio.wait_for(reader.read(), 10))
        writer.close()
        await writer.wait_closed()
        listener.close()
        owned.close()
        return seen

    assert [False, True, False, b"hello"] == asyncio.run(scenario())
