"""Messages between the processes of a location: msgpack, each behind its length as four bytes, over a Unix socket."""

import asyncio
import struct
from collections.abc import Callable
from typing import Any, cast

import msgspec

MAX_FRAME = 16 * 2**20  # bytes; a longer one ends the link
MAX_QUEUED = 32 * 2**20  # bytes that wait for a peer that does not read
_LENGTH = struct.Struct("!I")
_encode = msgspec.msgpack.Encoder().encode


def frame(message: object) -> bytes:
    """A message as it goes over the wire; ValueError if it is longer than a peer would take."""
    body = _encode(message)
    if len(body) > MAX_FRAME:
        raise ValueError(f"{type(message).__name__}: {len(body)} bytes, at most {MAX_FRAME}")
    return _LENGTH.pack(len(body)) + body


class Link(asyncio.Protocol):
    """One end. `decode` turns a frame's body into a message, `on_message` hears of each, `on_lost` of the end.

    A frame that is too long or does not decode ends the link: after it nothing can be trusted.
    """

    transport: asyncio.Transport

    def __init__(
        self, decode: Callable[[bytes], Any], on_message: Callable[[Any], None], on_lost: Callable[[], None]
    ) -> None:
        self._decode = decode
        self._on_message = on_message
        self._on_lost = on_lost
        self._buffer = bytearray()
        self.open = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        self._on_lost()

    def data_received(self, data: bytes) -> None:
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (size,) = _LENGTH.unpack_from(buffer, start)
            if size > MAX_FRAME:
                self.transport.abort()
                return
            end = start + _LENGTH.size + size
            if len(buffer) < end:
                break
            try:
                message = self._decode(bytes(buffer[start + _LENGTH.size : end]))
            except msgspec.DecodeError:
                self.transport.abort()
                return
            start = end
            self._on_message(message)
        del buffer[:start]

    def send(self, message: object) -> bool:
        """Sends a message; False if the link is gone or its peer has not read for too long."""
        if not self.open or self.transport.is_closing() or self.transport.get_write_buffer_size() > MAX_QUEUED:
            return False
        self.transport.write(frame(message))
        return True

    def close(self) -> None:
        """Ends the link after what was sent."""
        if self.open:
            self.transport.close()

    def abort(self) -> None:
        """Ends the link at once."""
        if self.open:
            self.transport.abort()
