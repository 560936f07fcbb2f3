"""A worker's listening socket: accepting can stop and go on, and no queued connection is lost by it.

The socket belongs to the supervisor. asyncio gets a duplicate: closing that stops accepting, while the queue of the
original goes on to fill and waits for whoever accepts next.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable

BACKLOG = 4096


class Listener:
    """Opens, pauses, resumes and closes."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, listening: socket.socket, factory: Callable[[], asyncio.Protocol]
    ) -> None:
        self._loop = loop
        self._socket = listening
        self._factory = factory
        self._server: asyncio.Server | None = None
        self._tls: ssl.SSLContext | None = None

    @property
    def accepting(self) -> bool:
        return self._server is not None

    async def open(self, tls: ssl.SSLContext | None) -> None:
        """Begins to accept, or goes on with other certificates."""
        before, self._server = self._server, None
        self._tls = tls
        await self.resume()
        if before is not None:
            before.close()

    async def resume(self) -> None:
        """Accepts again."""
        if self._server is None:
            self._server = await self._loop.create_server(
                self._factory, sock=self._socket.dup(), ssl=self._tls, backlog=BACKLOG
            )

    def pause(self) -> None:
        """Stops accepting; connections queue up."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        """Stops for good."""
        self.pause()
        self._socket.close()
