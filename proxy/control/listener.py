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
        listening.setblocking(
            False
        )  # else each duplicate makes all blocking again, and an `accept` stops the event loop
        self._loop = loop
        self._socket = listening
        self._factory = factory
        self._server: asyncio.Server | None = None
        self._tls: ssl.SSLContext | None = None
        self._opened = False  # from the first `open` to `close`

    @property
    def accepting(self) -> bool:
        return self._server is not None

    async def open(self, tls: ssl.SSLContext | None) -> None:
        """Begins to accept, or goes on with other certificates; raises OSError, and then nothing has changed."""
        if self._server is not None and tls is None is self._tls:
            return
        made = await self._serve(tls)
        self.pause()
        self._tls, self._server, self._opened = tls, made, True

    async def resume(self) -> None:
        """Accepts again, if it was opened; raises OSError, and then it still does not."""
        if self._server is None and self._opened:
            self._server = await self._serve(self._tls)

    async def _serve(self, tls: ssl.SSLContext | None) -> asyncio.Server:
        duplicate = self._socket.dup()
        try:
            return await self._loop.create_server(self._factory, sock=duplicate, ssl=tls, backlog=BACKLOG)
        except OSError:
            duplicate.close()
            raise

    def pause(self) -> None:
        """Stops accepting; connections queue up."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def close(self) -> None:
        """Stops for good."""
        self.pause()
        self._opened = False
        self._socket.close()
