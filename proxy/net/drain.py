"""What a drain asks of a client's connection: whether it may end now, and if not, what for."""

import fcntl
import termios
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from proxy.net.client import Client


def close_if_idle(client: "Client", now: int) -> None:
    """Closes a kept-alive connection between two requests; one that has not asked yet, or whose next request is already here
    unread, gets its answer first: closing now would reset it.
    """
    idle = client.exchange is None and client.head is None and not client.buffer
    if idle and client.accepted and not _kernel_holds(client, termios.FIONREAD):
        client.end(now)


def fresh(client: "Client") -> bool:
    """Whether it has been accepted and has not asked for anything yet."""
    return client.exchange is None and not client.accepted and not client.lingering


def busy(client: "Client") -> bool:
    """Whether a request of its is on the way here, or an answer on the way out."""
    return _coming(client) or _unsent(client)


def _coming(client: "Client") -> bool:
    """Whether a part of a request is here that has not begun its exchange. What follows the last one does not count."""
    return (client.head is not None or client.buffer != b"") and not client.transport.is_closing()


def _unsent(client: "Client") -> bool:
    """Whether a part of its answers still waits for it to read. Beneath TLS there is a buffer that the transport does not
    count; while that holds anything the kernel's is not empty.
    """
    transport = client.transport
    if transport.get_write_buffer_size():
        return True
    return transport.get_extra_info("sslcontext") is not None and _kernel_holds(client, termios.TIOCOUTQ)


def _kernel_holds(client: "Client", which: int) -> bool:
    """Whether there are bytes in its socket's queue of those that came, or of those that go."""
    connected = client.transport.get_extra_info("socket")
    if connected is None:
        return False
    return any(fcntl.ioctl(connected.fileno(), which, bytes(4)))
